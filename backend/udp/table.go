package udp

import (
	"cmp"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// endpoint is where a peer receives datagrams. A table has one for each, so that
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
	prefix   netip.Prefix // masked
	endpoint endpoint
}

// table finds the peer of an address by its longest prefix. It never changes: a
// new one takes its place, so readers need no lock.
//
//	levels[IPv4]:  /24 | key -> n | - | - | key -> n | ...     endpoints
//	               /16 | - | key -> n | ...              n --> | . | . | . |
//
// All subnets of a network usually have one length, and then a lookup meets one
// level, and there with 10,000 peers one or two cells of 8 bytes. Keys of other
// lengths (an old SubnetLen, another operator's reservation) cost as much again
// for each length.
type table struct {
	ipv4 []level[uint32]
	ipv6 []level[address]
	// endpoints are those of all peers, each once.
	endpoints []endpoint
}

// level holds the peers of one prefix length: cells that are looked at from the
// hash of a key on until there is the key or nothing (linear probing). At least
// half of them are empty.
type level[K comparable] struct {
	bits  int
	mask  K
	shift int // of a hash, to the number of a cell
	cells []cell[K]
}

// cell is a place for one prefix.
type cell[K comparable] struct {
	key  K
	peer uint32 // the number of its endpoint from 1 on; 0: the cell is empty
}

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
	t := new(table)
	numbers := make(map[endpoint]uint32)
	byLength := make(map[lengthOf]map[address]uint32)
	for _, p := range peers {
		n, known := numbers[p.endpoint]
		if !known {
			t.endpoints = append(t.endpoints, p.endpoint)
			n = uint32(len(t.endpoints)) //nolint:gosec // a number of peers
			numbers[p.endpoint] = n
		}
		l := lengthOf{subnet.FamilyOf(p.prefix.Addr()), p.prefix.Bits()}
		if byLength[l] == nil {
			byLength[l] = make(map[address]uint32)
		}
		byLength[l][addressOf(p.prefix.Masked().Addr())] = n
	}
	for l, prefixes := range byLength {
		mask := maskOf(l.family, l.bits)
		if l.family == subnet.IPv4 {
			t.ipv4 = append(t.ipv4, newLevel(l.bits, mask.ipv4(), prefixes, address.ipv4, hash4))
		} else {
			t.ipv6 = append(t.ipv6, newLevel(l.bits, mask, prefixes, address.ipv6, hash6))
		}
	}
	sortLevels(t.ipv4)
	sortLevels(t.ipv6)
	return t
}

// lengthOf is what the prefixes of one level have in common.
type lengthOf struct {
	family subnet.Family
	bits   int
}

// sortLevels puts the longest prefixes first.
func sortLevels[K comparable](levels []level[K]) {
	slices.SortFunc(levels, func(a, b level[K]) int { return cmp.Compare(b.bits, a.bits) })
}

// newLevel places prefixes in two to four times as many cells.
func newLevel[K comparable](length int, mask K, prefixes map[address]uint32, keyOf func(address) K, hash func(K) uint64) level[K] {
	size := bits.Len(uint(2*len(prefixes) - 1))
	l := level[K]{bits: length, mask: mask, shift: 64 - size, cells: make([]cell[K], 1<<size)}
	for a, n := range prefixes {
		key := keyOf(a)
		i := hash(key) >> l.shift
		for l.cells[i].peer != 0 {
			i = (i + 1) % uint64(len(l.cells))
		}
		l.cells[i] = cell[K]{key, n}
	}
	return l
}

// find returns the number of the peer that has key, or 0.
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
