package subnet

import (
	"iter"
	"net/netip"
	"slices"
	"sort"
	"time"
)

// entry is a lease as a view holds it. Entries are shared between snapshots and
// never change.
type entry struct {
	lease Lease
	// gone: the key is deleted, and the lease is held until then.
	gone  bool
	until time.Duration
	// unreadable: the key was overwritten with something unreadable, and the
	// lease is the last that could be read.
	unreadable bool
}

// stored reports whether the lease is what the store holds.
func (e *entry) stored() bool { return !e.gone && !e.unreadable }

// chunkLen is how long a chunk grows before it is split: near the square root
// of the number of hosts that this is made for, 10,000 and more.
const chunkLen = 128

// leaseList is entries sorted by subnet, in chunks. It is persistent: put and
// remove return another list that shares all chunks but one with the old, so
// that a change costs O(sqrt n) while every snapshot stays as it is.
type leaseList struct {
	chunks [][]*entry
	len    int
}

// listOf makes a list of entries that are sorted.
func listOf(sorted []*entry) leaseList {
	l := leaseList{len: len(sorted)}
	for chunk := range slices.Chunk(sorted, chunkLen) {
		l.chunks = append(l.chunks, slices.Clip(chunk))
	}
	return l
}

// all yields the entries in order.
func (l leaseList) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for _, chunk := range l.chunks {
			for _, e := range chunk {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// position is where s is or would be: a chunk, an index in it.
func (l leaseList) position(s Subnet) (chunk, index int, found bool) {
	chunk = sort.Search(len(l.chunks), func(i int) bool {
		c := l.chunks[i]
		return c[len(c)-1].lease.Subnet.Compare(s) >= 0
	})
	if chunk == len(l.chunks) {
		if chunk == 0 {
			return 0, 0, false
		}
		chunk--
		return chunk, len(l.chunks[chunk]), false
	}
	index, found = slices.BinarySearchFunc(l.chunks[chunk], s, func(e *entry, s Subnet) int { return e.lease.Subnet.Compare(s) })
	return chunk, index, found
}

// get returns the entry of s; nil: there is none.
func (l leaseList) get(s Subnet) *entry {
	if chunk, i, found := l.position(s); found {
		return l.chunks[chunk][i]
	}
	return nil
}

// put returns the list with e in the place of what has its subnet.
func (l leaseList) put(e *entry) leaseList {
	if len(l.chunks) == 0 {
		return listOf([]*entry{e})
	}
	chunk, i, found := l.position(e.lease.Subnet)
	old := l.chunks[chunk]
	if found {
		fresh := slices.Clone(old)
		fresh[i] = e
		return l.replace(chunk, l.len, fresh)
	}
	fresh := make([]*entry, 0, len(old)+1)
	fresh = append(append(append(fresh, old[:i]...), e), old[i:]...)
	if half := len(fresh) / 2; len(fresh) > 2*chunkLen {
		return l.replace(chunk, l.len+1, slices.Clip(fresh[:half]), fresh[half:])
	}
	return l.replace(chunk, l.len+1, fresh)
}

// remove returns the list without s.
func (l leaseList) remove(s Subnet) leaseList {
	chunk, i, found := l.position(s)
	if !found {
		return l
	}
	old := l.chunks[chunk]
	if len(old) == 1 {
		return l.replace(chunk, l.len-1)
	}
	return l.replace(chunk, l.len-1, append(slices.Clip(old[:i]), old[i+1:]...))
}

// replace returns the list with other chunks in the place of one.
func (l leaseList) replace(chunk, length int, by ...[]*entry) leaseList {
	chunks := make([][]*entry, 0, len(l.chunks)+1)
	chunks = append(append(append(chunks, l.chunks[:chunk]...), by...), l.chunks[chunk+1:]...)
	return leaseList{chunks: chunks, len: length}
}

// overlapIndex finds the subnets of a set that overlap a given one. Unlike a
// sorted list it does so in both families.
type overlapIndex ByFamily[familyIndex]

type familyIndex struct {
	// owners are the subnets that have a prefix as their half: one, unless
	// somebody broke the rules.
	owners map[netip.Prefix][]Subnet
	// lengths counts the prefixes by their length: as a rule there is but one.
	lengths map[int]int
}

func newOverlapIndex() overlapIndex {
	var x overlapIndex
	for f := range x {
		x[f] = familyIndex{owners: map[netip.Prefix][]Subnet{}, lengths: map[int]int{}}
	}
	return x
}

// add puts s into the set.
func (x overlapIndex) add(s Subnet) {
	for f, p := range s {
		if p.IsValid() && !slices.Contains(x[f].owners[p], s) {
			x[f].owners[p] = append(x[f].owners[p], s)
			x[f].lengths[p.Bits()]++
		}
	}
}

// remove takes s out of the set.
func (x overlapIndex) remove(s Subnet) {
	for f, p := range s {
		i := slices.Index(x[f].owners[p], s)
		if i < 0 {
			continue
		}
		if x[f].owners[p] = slices.Delete(x[f].owners[p], i, i+1); len(x[f].owners[p]) == 0 {
			delete(x[f].owners, p)
		}
		if x[f].lengths[p.Bits()]--; x[f].lengths[p.Bits()] == 0 {
			delete(x[f].lengths, p.Bits())
		}
	}
}

// overlapping returns the subnets of the set that overlap s, s itself left out.
func (x overlapIndex) overlapping(s Subnet) []Subnet {
	var found []Subnet
	for f, p := range s {
		if !p.IsValid() {
			continue
		}
		for _, o := range x[f].overlapping(p) {
			if o != s && !slices.Contains(found, o) {
				found = append(found, o)
			}
		}
	}
	return found
}

func (x familyIndex) overlapping(p netip.Prefix) []Subnet {
	var found []Subnet
	finer := false
	for bits := range x.lengths {
		if bits > p.Bits() {
			finer = true
			continue
		}
		found = append(found, x.owners[netip.PrefixFrom(p.Addr(), bits).Masked()]...)
	}
	if !finer {
		return found
	}
	for q, owners := range x.owners {
		if q.Bits() > p.Bits() && p.Contains(q.Addr()) {
			found = append(found, owners...)
		}
	}
	return found
}
