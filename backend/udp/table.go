package udp

import (
	"cmp"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// endpoint is where a peer receives datagrams. A lease has one for all its prefixes:
// two packets have one receiver if their endpoints are the same pointer.
type endpoint struct {
	to netip.AddrPort
	// former is where it sent from until a moment ago; invalid: as now.
	former netip.Addr
	// vary: what goes there may come from any of our ports.
	vary bool
	// direct: the peer also takes packets that come without the tunnel.
	direct bool
}

// peer says where the packets for one prefix go.
type peer struct {
	prefix netip.Prefix // masked
	*endpoint
}

// table finds the peer of an address by its longest prefix. It never changes: a
// new one takes its place, so readers need no lock. What the two have in common they
// share, so that a change of some peers costs those, however many others there are.
//
//	ipv4:  /24   pages  | . | . | . | . | ...       by the upper bits of a key's hash
//	                          |
//	             cells  | - | key -> endpoint | ... by the bits below those
//	       /16   ...
//
// All subnets of a network usually have one length, and then a lookup meets one
// level, and there with 10,000 peers one or two cells of one page. Keys of other
// lengths (an old SubnetLen, another operator's reservation) cost as much again
// for each length.
type table struct {
	// Both have the longest prefixes first.
	ipv4 []level[uint32]
	ipv6 []level[address]
}

// level holds the peers of one prefix length, at least one.
type level[K comparable] struct {
	bits  int
	mask  K
	hash  func(K) uint64
	count int
	shift uint // of a hash, to the number of a page
	pages []page[K]
}

// page is cells that are looked at from the hash of a key on until there is the key or
// nothing (linear probing). Their number is a power of two, and at least half of them
// are empty.
type page[K comparable] struct {
	cells []cell[K]
	used  int
}

// cell is a place for one prefix.
type cell[K comparable] struct {
	key K
	to  *endpoint // nil: the cell is empty
}

const (
	// pageFill is how many prefixes pages have on average at most, when they are
	// made. A change copies the list of pages, and each that it is about: with 10,000
	// peers that is 8 KiB, and 2 KiB for a peer.
	pageFill = 64
	// pageLeast is how many cells a page has at least.
	pageLeast = 8
)

// The hashes are multiplicative: a level takes their upper bits.
const (
	golden  = 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio
	another = 0xd6e8feb86659fd93 // odd, and unlike the first
)

func hash4(key uint32) uint64 { return uint64(key) * golden }

func hash6(key address) uint64 {
	h := key.hi * golden
	return (h ^ h>>32 ^ bits.ReverseBytes64(key.lo)) * another
}

// newTable indexes peers. Of two with one prefix the later counts.
func newTable(peers []peer) *table { return new(table).exchange(nil, peers) }

// exchange returns a table without the prefixes in gone, and with fresh.
func (t *table) exchange(gone []netip.Prefix, fresh []peer) *table {
	var (
		ipv4  [32 + 1][]cell[uint32] // by prefix length
		ipv6  [128 + 1][]cell[address]
		edits = func(p netip.Prefix, to *endpoint) {
			a, n := addressOf(p.Addr()), p.Bits()
			if p.Addr().Is4() {
				ipv4[n] = append(ipv4[n], cell[uint32]{a.ipv4(), to})
			} else {
				ipv6[n] = append(ipv6[n], cell[address]{a, to})
			}
		}
		next = &table{slices.Clone(t.ipv4), slices.Clone(t.ipv6)}
	)
	for _, p := range gone {
		edits(p, nil)
	}
	for _, p := range fresh {
		edits(p.prefix, p.endpoint)
	}
	for n, cells := range ipv4 {
		next.ipv4 = edit(next.ipv4, level[uint32]{bits: n, mask: maskOf(subnet.IPv4, n).ipv4(), hash: hash4}, cells)
	}
	for n, cells := range ipv6 {
		next.ipv6 = edit(next.ipv6, level[address]{bits: n, mask: maskOf(subnet.IPv6, n), hash: hash6}, cells)
	}
	return next
}

// edit does what [level.with] does to that of levels which has as many bits as empty.
func edit[K comparable](levels []level[K], empty level[K], edits []cell[K]) []level[K] {
	if len(edits) == 0 {
		return levels
	}
	at, found := slices.BinarySearchFunc(levels, empty.bits, func(l level[K], n int) int { return cmp.Compare(n, l.bits) })
	if !found {
		levels = slices.Insert(levels, at, empty)
	}
	if levels[at] = levels[at].with(edits); levels[at].count == 0 {
		levels = slices.Delete(levels, at, at+1)
	}
	return levels
}

// with returns the level that edits make of l. One without an endpoint removes its key;
// of two with one key the later counts.
func (l level[K]) with(edits []cell[K]) level[K] {
	var own []bool // which pages are not l's
	if most := l.count + len(edits); most > 2*pageFill*len(l.pages) {
		edits = slices.Concat(l.all(), edits)
		l.clear(edits)
		own = slices.Repeat([]bool{true}, len(l.pages))
	} else {
		l.pages = slices.Clone(l.pages)
		own = make([]bool, len(l.pages))
	}
	for _, e := range edits {
		at := l.hash(e.key) >> l.shift
		p := &l.pages[at]
		if !own[at] || 2*p.used == len(p.cells) {
			*p, own[at] = l.copied(*p), true
		}
		l.count -= p.used
		l.set(p, e)
		l.count += p.used
	}
	return l
}

// clear makes l empty, with pages that have room for edits.
func (l *level[K]) clear(edits []cell[K]) {
	l.count, l.shift = 0, uint(64-bits.Len(uint(len(edits)/pageFill))) //nolint:gosec // at most 64
	counts := make([]int, 1<<(64-l.shift))
	for _, e := range edits {
		counts[l.hash(e.key)>>l.shift]++
	}
	all := 0
	for _, n := range counts {
		all += cellsFor(n)
	}
	// In one piece, which costs packets less than many.
	slab := make([]cell[K], all)
	l.pages = make([]page[K], len(counts))
	for i, n := range counts {
		size := cellsFor(n)
		l.pages[i].cells, slab = slab[:size:size], slab[size:]
	}
}

// cellsFor is how many cells a page of n prefixes has.
func cellsFor(n int) int { return max(pageLeast, 1<<bits.Len(uint(max(1, 2*n-1)))) } //nolint:gosec // positive

// all are the cells that are not empty.
func (l *level[K]) all() []cell[K] {
	cells := make([]cell[K], 0, l.count)
	for _, p := range l.pages {
		for _, c := range p.cells {
			if c.to != nil {
				cells = append(cells, c)
			}
		}
	}
	return cells
}

// copied is p with room for one more.
func (l *level[K]) copied(p page[K]) page[K] {
	room := page[K]{cells: make([]cell[K], cellsFor(p.used+1))}
	for _, c := range p.cells {
		if c.to != nil {
			l.set(&room, c)
		}
	}
	return room
}

// set does one edit to p.
func (l *level[K]) set(p *page[K], e cell[K]) {
	last := uint64(len(p.cells) - 1)
	at := l.first(l.hash(e.key), last)
	for p.cells[at].to != nil && p.cells[at].key != e.key {
		at = (at + 1) & last
	}
	there := p.cells[at].to != nil
	switch {
	case e.to != nil && !there:
		p.used++
		fallthrough
	case e.to != nil:
		p.cells[at] = e
	case there:
		p.used--
		l.empty(p, at)
	}
}

// empty empties cell number at. Those behind it that would not be found any more, since
// there is a gap before them, move up.
func (l *level[K]) empty(p *page[K], at uint64) {
	last := uint64(len(p.cells) - 1)
	for i := (at + 1) & last; p.cells[i].to != nil; i = (i + 1) & last {
		if home := l.first(l.hash(p.cells[i].key), last); (i-home)&last >= (i-at)&last {
			p.cells[at], at = p.cells[i], i
		}
	}
	p.cells[at] = cell[K]{}
}

// first is the cell where the search for a key begins, in a page whose last is given.
func (l *level[K]) first(hash, last uint64) uint64 {
	return hash << (64 - l.shift) >> bits.LeadingZeros64(last)
}

// find returns who has key; nil: nobody.
func (l *level[K]) find(key K, hash uint64) *endpoint {
	cells := l.pages[hash>>l.shift].cells
	last := uint64(len(cells) - 1)
	for i := l.first(hash, last); ; i++ {
		c := &cells[i&last]
		if c.key == key || c.to == nil {
			return c.to
		}
	}
}

// lookup returns where the peer that has a is reached; nil: nobody has it.
func (t *table) lookup(f subnet.Family, a address) *endpoint {
	if f == subnet.IPv4 {
		for i := range t.ipv4 {
			l := &t.ipv4[i]
			key := a.ipv4() & l.mask
			if to := l.find(key, hash4(key)); to != nil {
				return to
			}
		}
		return nil
	}
	for i := range t.ipv6 {
		l := &t.ipv6[i]
		key := a.and(l.mask)
		if to := l.find(key, hash6(key)); to != nil {
			return to
		}
	}
	return nil
}

// holds reports whether t has been made of peers, which have no prefix twice.
func (t *table) holds(peers []peer) bool {
	count := 0
	for i := range t.ipv4 {
		count += t.ipv4[i].count
	}
	for i := range t.ipv6 {
		count += t.ipv6[i].count
	}
	for _, p := range peers {
		if to := t.exact(p.prefix); to == nil || *to != *p.endpoint {
			return false
		}
	}
	return count == len(peers)
}

// exact returns who has a prefix; nil: nobody has just that.
func (t *table) exact(p netip.Prefix) *endpoint {
	a := addressOf(p.Addr())
	if p.Addr().Is4() {
		return exact(t.ipv4, p.Bits(), a.ipv4())
	}
	return exact(t.ipv6, p.Bits(), a)
}

func exact[K comparable](levels []level[K], bits int, key K) *endpoint {
	for i := range levels {
		if l := &levels[i]; l.bits == bits {
			return l.find(key, l.hash(key))
		}
	}
	return nil
}
