package subnet

// Difference is a lease that two snapshots show differently. Of one that only one of
// them shows the other is zero.
type Difference struct{ Old, New Lease }

// Differences are the leases that are in effect otherwise than in old, by subnet. Their
// cost is that of the difference: snapshots share what did not change, and what
// they share is not looked at.
func (s *Snapshot) Differences(old *Snapshot) []Difference {
	d, _ := differences(old.list, s.list)
	return d
}

// differences also counts the entries that it looked at.
func differences(old, now leaseList) (d []Difference, looked int) {
	a, b := cursor{chunks: old.chunks}, cursor{chunks: now.chunks}
	for ; ; looked++ {
		for a.shares(&b) {
			a.skip()
			b.skip()
		}
		x, y := a.entry(), b.entry()
		order := 0
		switch {
		case x == nil && y == nil:
			return d, looked
		case x == nil:
			order = 1
		case y == nil:
			order = -1
		default:
			order = x.lease.Subnet.Compare(y.lease.Subnet)
		}
		switch {
		case order < 0:
			d = append(d, Difference{Old: x.lease})
		case order > 0:
			d = append(d, Difference{New: y.lease})
		case x != y && x.lease != y.lease:
			d = append(d, Difference{Old: x.lease, New: y.lease})
		}
		if order <= 0 {
			a.next()
		}
		if order >= 0 {
			b.next()
		}
	}
}

// cursor is a place in a list of chunks.
type cursor struct {
	chunks [][]*entry
	index  int // in the first of them
}

// entry is the one at the cursor; nil at the end.
func (c *cursor) entry() *entry {
	if len(c.chunks) == 0 {
		return nil
	}
	return c.chunks[0][c.index]
}

// shares reports whether both are at the beginning of one and the same chunk.
func (c *cursor) shares(o *cursor) bool {
	return len(c.chunks) > 0 && len(o.chunks) > 0 && c.index == 0 && o.index == 0 &&
		len(c.chunks[0]) == len(o.chunks[0]) && &c.chunks[0][0] == &o.chunks[0][0]
}

func (c *cursor) skip() { c.chunks, c.index = c.chunks[1:], 0 }

func (c *cursor) next() {
	if c.index++; c.index == len(c.chunks[0]) {
		c.skip()
	}
}
