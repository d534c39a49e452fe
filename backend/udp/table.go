package udp

import (
	"cmp"
	"math/bits"
	"net/netip"
	"slices"
	"unique"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// endpoint is where a peer receives datagrams. A table has one for all prefixes of a
// lease: two packets have one receiver if their endpoints are the same pointer.
type endpoint struct {
	to netip.AddrPort
	// former is where it sent from until a moment ago; zero: nowhere else.
	former unique.Handle[formers]
	// vary: what goes there may come from any of our ports.
	vary bool
	// direct: the peer also takes packets that come without the tunnel.
	direct bool
	// An endpoint is as long as a line of the cache, and so lies in one, not two, where they
	// are many: a large array begins with a page.
	_ [16]byte
}

// formers are addresses that a peer has left a moment ago; those that are not valid mean
// nothing.
type formers [backend.MostFormer]netip.Addr

// add puts a behind the others, in the place of the first if there are enough.
func (f *formers) add(a netip.Addr) {
	copy(f[:], f[1:])
	f[len(f)-1] = a
}

// left reports whether the peer has sent from a until a moment ago.
func (e *endpoint) left(a netip.Addr) bool {
	if e.former == (unique.Handle[formers]{}) {
		return false
	}
	list := e.former.Value()
	return slices.Contains(list[:], a)
}

// peer says where the packets for one prefix go.
type peer struct {
	prefix netip.Prefix // masked
	*endpoint
}

// table finds the peer of an address by its longest prefix. It never changes: a
// new one takes its place, so readers need no lock.
//
//	ipv4:  /24 | key -> n | - | - | key -> n | ...     endpoints
//	       /16 | - | key -> n | ...              n --> | . | . | . |
//
// All subnets of a network usually have one length, and then a lookup meets one
// level, and there with 10,000 peers one or two cells of 8 bytes. Keys of other
// lengths (an old SubnetLen, another operator's reservation) cost as much again
// for each length.
//
// What packets read is in few pieces, for what they pay for is the cache. A change of
// some peers therefore copies the levels that it is about as a whole, 256 KiB for IPv4
// with 10,000 peers, and places nobody anew.
type table struct {
	// Both have the longest prefixes first.
	ipv4 []level[uint32]
	ipv6 []level[address]
	// endpoints are a part of an array, which the tables that were made of one another
	// share: each has those of the former and more. Who left stays there until the
	// array is full.
	endpoints []endpoint
	// last is the length of the longest part: only who has that may add to it. It is
	// for those who make tables, one at a time, and not for those who look up.
	last *int
}

// level holds the peers of one prefix length, at least one: cells that are looked at
// from the hash of a key on until there is the key or nothing (linear probing). Their
// number is a power of two, and at least half of them are empty.
type level[K comparable] struct {
	bits  int
	mask  K
	shift int // of a hash, to the number of a cell
	cells []cell[K]
	used  int
	hash  func(K) uint64
}

// cell is a place for one prefix.
type cell[K comparable] struct {
	key  K
	peer uint32 // the number of its endpoint from 1 on; 0: the cell is empty
}

// leastRoom is for how many endpoints a table has room when it is made, beside its own and
// a quarter of that. It is made anew once there is none: a change costs a few us of that.
const leastRoom = 64

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
func newTable(peers []peer) *table {
	endpoints, numbers := enlist(nil, peers)
	n := len(endpoints)
	t := table{endpoints: append(make([]endpoint, 0, n+n/4+leastRoom), endpoints...), last: &n}
	return t.edited(nil, peers, numbers)
}

// exchange returns a table without the prefixes in gone, and with fresh.
func (t *table) exchange(gone []netip.Prefix, fresh []peer) *table {
	if len(fresh) == 0 {
		return t.edited(gone, nil, nil)
	}
	if n := len(t.endpoints); n < *t.last || n+len(fresh) > cap(t.endpoints) {
		return newTable(slices.Concat(t.edited(gone, nil, nil).peers(), fresh))
	}
	next, numbers := *t, []uint32(nil)
	next.endpoints, numbers = enlist(t.endpoints, fresh)
	*t.last = len(next.endpoints)
	return next.edited(gone, fresh, numbers)
}

// enlist appends the endpoints of peers, each once, and says which number each peer's
// then has.
func enlist(endpoints []endpoint, peers []peer) (_ []endpoint, numbers []uint32) {
	numbers = make([]uint32, len(peers))
	known := make(map[endpoint]uint32)
	for i, p := range peers {
		n, found := known[*p.endpoint]
		if !found {
			endpoints = append(endpoints, *p.endpoint)
			n = uint32(len(endpoints)) //nolint:gosec // a number of peers
			known[*p.endpoint] = n
		}
		numbers[i] = n
	}
	return endpoints, numbers
}

// edited returns t without the prefixes in gone, and with fresh, whose endpoints have
// these numbers.
func (t *table) edited(gone []netip.Prefix, fresh []peer, numbers []uint32) *table {
	var (
		ipv4 [32 + 1][]cell[uint32] // by prefix length
		ipv6 [128 + 1][]cell[address]
		edit = func(p netip.Prefix, to uint32) {
			a, n := addressOf(p.Addr()), p.Bits()
			if p.Addr().Is4() {
				ipv4[n] = append(ipv4[n], cell[uint32]{a.ipv4(), to})
			} else {
				ipv6[n] = append(ipv6[n], cell[address]{a, to})
			}
		}
	)
	for _, p := range gone {
		edit(p, 0)
	}
	for i, p := range fresh {
		edit(p.prefix, numbers[i])
	}
	next := *t
	next.ipv4, next.ipv6 = slices.Clone(t.ipv4), slices.Clone(t.ipv6)
	for n, cells := range ipv4 {
		next.ipv4 = change(next.ipv4, level[uint32]{bits: n, mask: maskOf(subnet.IPv4, n).ipv4(), hash: hash4}, cells)
	}
	for n, cells := range ipv6 {
		next.ipv6 = change(next.ipv6, level[address]{bits: n, mask: maskOf(subnet.IPv6, n), hash: hash6}, cells)
	}
	return &next
}

// change does what [level.with] does to that of levels which has as many bits as fresh,
// a level without cells.
func change[K comparable](levels []level[K], fresh level[K], edits []cell[K]) []level[K] {
	if len(edits) == 0 {
		return levels
	}
	at, found := slices.BinarySearchFunc(levels, fresh.bits, func(l level[K], n int) int { return cmp.Compare(n, l.bits) })
	if !found {
		fresh.resize(len(edits))
		levels = slices.Insert(levels, at, fresh)
	}
	if levels[at] = levels[at].with(edits); levels[at].used == 0 {
		levels = slices.Delete(levels, at, at+1)
	}
	return levels
}

// with returns the level that edits make of l. An empty one removes its key; of two with
// one key the later counts.
func (l level[K]) with(edits []cell[K]) level[K] {
	l.cells = slices.Clone(l.cells)
	for i, e := range edits {
		if e.peer != 0 && 2*(l.used+1) > len(l.cells) {
			l.resize(l.used + len(edits) - i)
		}
		l.set(e)
	}
	return l
}

// resize places the prefixes of l anew, in two to four times as many cells as given.
func (l *level[K]) resize(prefixes int) {
	old, size := l.cells, bits.Len(uint(2*prefixes-1)) //nolint:gosec // positive
	l.shift, l.cells, l.used = 64-size, make([]cell[K], 1<<size), 0
	for _, c := range old {
		if c.peer != 0 {
			l.set(c)
		}
	}
}

// set does one edit. There must be an empty cell.
func (l *level[K]) set(e cell[K]) {
	last := uint64(len(l.cells) - 1)
	at := l.hash(e.key) >> l.shift
	for l.cells[at].peer != 0 && l.cells[at].key != e.key {
		at = (at + 1) & last
	}
	there := l.cells[at].peer != 0
	switch {
	case e.peer != 0 && !there:
		l.used++
		fallthrough
	case e.peer != 0:
		l.cells[at] = e
	case there:
		l.used--
		l.empty(at)
	}
}

// empty empties cell number at. Those behind it that would not be found any more, since
// there is a gap before them, move up.
func (l *level[K]) empty(at uint64) {
	last := uint64(len(l.cells) - 1)
	for i := (at + 1) & last; l.cells[i].peer != 0; i = (i + 1) & last {
		if home := l.hash(l.cells[i].key) >> l.shift; (i-home)&last >= (i-at)&last {
			l.cells[at], at = l.cells[i], i
		}
	}
	l.cells[at] = cell[K]{}
}

// find returns the number of the endpoint that has key, or 0.
func (l *level[K]) find(key K, hash uint64) uint32 {
	last := uint64(len(l.cells) - 1)
	for i := hash >> l.shift; ; i++ {
		c := &l.cells[i&last]
		if c.key == key || c.peer == 0 {
			return c.peer
		}
	}
}

// lookup returns where the peer that has a is reached; nil: nobody has it.
func (t *table) lookup(f subnet.Family, a address) *endpoint {
	n := uint32(0)
	if f == subnet.IPv4 {
		for i := range t.ipv4 {
			l := &t.ipv4[i]
			key := a.ipv4() & l.mask
			if n = l.find(key, hash4(key)); n != 0 {
				break
			}
		}
	} else {
		for i := range t.ipv6 {
			l := &t.ipv6[i]
			key := a.and(l.mask)
			if n = l.find(key, hash6(key)); n != 0 {
				break
			}
		}
	}
	if n == 0 {
		return nil
	}
	return &t.endpoints[n-1]
}

// home reads the cells at which a lookup of a begins.
func (t *table) home(f subnet.Family, a address) (sum uint32) {
	if f == subnet.IPv4 {
		for i := range t.ipv4 {
			l := &t.ipv4[i]
			sum += l.cells[hash4(a.ipv4()&l.mask)>>l.shift].peer
		}
		return sum
	}
	for i := range t.ipv6 {
		l := &t.ipv6[i]
		sum += l.cells[hash6(a.and(l.mask))>>l.shift].peer
	}
	return sum
}

// peers are all in t.
func (t *table) peers() (peers []peer) {
	for i := range t.ipv4 {
		for _, c := range t.ipv4[i].cells {
			if c.peer != 0 {
				a := address{lo: uint64(c.key)}.addr(subnet.IPv4)
				peers = append(peers, peer{netip.PrefixFrom(a, t.ipv4[i].bits), &t.endpoints[c.peer-1]})
			}
		}
	}
	for i := range t.ipv6 {
		for _, c := range t.ipv6[i].cells {
			if c.peer != 0 {
				peers = append(peers, peer{netip.PrefixFrom(c.key.addr(subnet.IPv6), t.ipv6[i].bits), &t.endpoints[c.peer-1]})
			}
		}
	}
	return peers
}

// holds reports whether t has been made of peers, which have no prefix twice.
func (t *table) holds(peers []peer) bool {
	count := 0
	for i := range t.ipv4 {
		count += t.ipv4[i].used
	}
	for i := range t.ipv6 {
		count += t.ipv6[i].used
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
	a, n := addressOf(p.Addr()), uint32(0)
	if p.Addr().Is4() {
		n = exact(t.ipv4, p.Bits(), a.ipv4())
	} else {
		n = exact(t.ipv6, p.Bits(), a)
	}
	if n == 0 {
		return nil
	}
	return &t.endpoints[n-1]
}

func exact[K comparable](levels []level[K], bits int, key K) uint32 {
	for i := range levels {
		if l := &levels[i]; l.bits == bits {
			return l.find(key, l.hash(key))
		}
	}
	return 0
}
