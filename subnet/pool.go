package subnet

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"net/netip"
	"slices"
	"sort"
)

// Pool is the subnets that a config lets hosts lease, numbered from 0. It takes
// no memory per subnet.
//
// With two families the subnets are pairs: number i of the one always goes with
// number i of the other. That is what makes the absence of a key proof enough:
// of two subnets of a pool either they are one and the same key, or they overlap
// in neither family. A free choice per family, as flannel makes it, would let
// two hosts create different keys that share their IPv4 half.
type Pool struct {
	ranges ByFamily[Range]
	size   uint64
}

// Pool returns the pool of a valid config.
func (c *Config) Pool() Pool {
	p := Pool{ranges: c.Ranges, size: math.MaxUint64}
	none := true
	for _, r := range c.Ranges {
		if r.Network.IsValid() {
			p.size = min(p.size, r.size())
			none = false
		}
	}
	if none {
		p.size = 0
	}
	return p
}

// String says which subnets there are: "/24s from 10.5.1.0 to 10.5.255.0".
func (p Pool) String() string {
	text := ""
	for _, r := range p.ranges {
		if !r.Network.IsValid() {
			continue
		}
		if text != "" {
			text += " with "
		}
		text += fmt.Sprintf("/%ds from %s to %s", r.SubnetLen, r.Min, r.Max)
	}
	return text
}

// shift is the number of address bits inside one subnet.
func (r Range) shift() uint { return uint(r.Network.Addr().BitLen() - r.SubnetLen) }

// size is the number of subnets from Min to Max. What does not fit into 64 bits
// is as good as endless.
func (r Range) size() uint64 {
	n := numberOf(r.Max).sub(numberOf(r.Min)).shr(r.shift())
	if n.hi != 0 || n.lo == math.MaxUint64 {
		return math.MaxUint64
	}
	return n.lo + 1
}

// at is subnet number i of the range.
func (r Range) at(i uint64) netip.Prefix {
	a := numberOf(r.Min).add(number{lo: i}.shl(r.shift())).addr(r.Min)
	return netip.PrefixFrom(a, r.SubnetLen)
}

// index is the number of the subnet that holds a, which must not lie below Min
// but may lie beyond Max; false: too far to be numbered.
func (r Range) index(a netip.Addr) (uint64, bool) {
	n := numberOf(a).sub(numberOf(r.Min)).shr(r.shift())
	return n.lo, n.hi == 0
}

// has reports whether p is exactly one of the range's subnets.
func (r Range) has(p netip.Prefix) bool {
	if !r.Network.IsValid() {
		return !p.IsValid()
	}
	return p.IsValid() && p.Bits() == r.SubnetLen && p.Masked() == p &&
		!p.Addr().Less(r.Min) && !r.Max.Less(p.Addr())
}

// Len is the number of subnets; [math.MaxUint64]: that many or more.
func (p Pool) Len() uint64 { return p.size }

// At is subnet number i, which must be below Len.
func (p Pool) At(i uint64) Subnet {
	var s Subnet
	for f, r := range p.ranges {
		if r.Network.IsValid() {
			s[f] = r.at(i)
		}
	}
	return s
}

// Index is the number of s; false: s is no subnet of the pool.
func (p Pool) Index(s Subnet) (uint64, bool) {
	if !p.Fits(s) {
		return 0, false
	}
	for f, r := range p.ranges {
		if r.Network.IsValid() {
			i, ok := r.index(s[f].Addr())
			return i, ok && i < p.size && p.At(i) == s
		}
	}
	return 0, false
}

// Contains reports whether s may be created in this pool.
func (p Pool) Contains(s Subnet) bool {
	_, ok := p.Index(s)
	return ok
}

// Fits reports whether s has the families, lengths, boundaries and ranges of
// the config. A key that somebody wrote may be kept if it fits; to be created
// it must be in the pool, which is more with two families.
func (p Pool) Fits(s Subnet) bool {
	for f, r := range p.ranges {
		if !r.has(s[f]) {
			return false
		}
	}
	return !s.IsZero()
}

// Start is where the host called node begins to look for a subnet: its place
// depends on nothing else, so that it returns there even when the store has
// forgotten it, and a thousand hosts spread evenly.
func (p Pool) Start(node NodeID) uint64 {
	if p.size == 0 {
		return 0
	}
	sum := sha256.Sum256([]byte(node))
	return binary.BigEndian.Uint64(sum[:8]) % p.size
}

// Free yields every subnet of the pool that overlaps nothing taken, from number
// start upwards and around. It steps over neighbours that are taken in one go.
func (p Pool) Free(start uint64, t Taken) iter.Seq[Subnet] {
	return func(yield func(Subnet) bool) {
		for _, part := range []span{{start, p.size}, {0, start}} {
			for i := t.free(part.first); i < part.end; i = t.free(i + 1) {
				if !yield(p.At(i)) {
					return
				}
			}
		}
	}
}

// span is the subnets first <= i < end of a pool.
type span struct{ first, end uint64 }

// Taken is the numbers of a pool's subnets that must not be leased, as sorted
// spans that do not touch.
type Taken []span

// Taken returns which subnets of the pool overlap any of prefixes, in whichever
// family.
func (p Pool) Taken(prefixes iter.Seq[netip.Prefix]) Taken {
	var spans []span
	for q := range prefixes {
		if !q.IsValid() {
			continue
		}
		r := p.ranges[FamilyOf(q.Addr())]
		if s := p.covered(r, q); s.first < s.end {
			spans = append(spans, s)
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var t Taken
	for _, s := range spans {
		if n := len(t); n > 0 && s.first <= t[n-1].end {
			t[n-1].end = max(t[n-1].end, s.end)
			continue
		}
		t = append(t, s)
	}
	return t
}

// covered is the span of subnets that q overlaps in a range.
func (p Pool) covered(r Range, q netip.Prefix) span {
	if !r.Network.IsValid() || !r.Network.Overlaps(q) {
		return span{}
	}
	q = q.Masked()
	last := lastAddr(q)
	if last.Less(r.Min) {
		return span{}
	}
	var first uint64
	if !q.Addr().Less(r.Min) {
		var ok bool
		if first, ok = r.index(q.Addr()); !ok || first >= p.size {
			return span{}
		}
	}
	end, ok := r.index(last)
	if !ok || end >= p.size {
		return span{first, p.size}
	}
	return span{first, end + 1}
}

// lastAddr is the highest address of q, which must be masked.
func lastAddr(q netip.Prefix) netip.Addr {
	hosts := number{lo: 1}.shl(uint(q.Addr().BitLen() - q.Bits())).sub(number{lo: 1})
	return numberOf(q.Addr()).add(hosts).addr(q.Addr())
}

// free is the lowest number from i on that is not taken.
func (t Taken) free(i uint64) uint64 {
	at := sort.Search(len(t), func(k int) bool { return t[k].end > i })
	if at < len(t) && t[at].first <= i {
		return t[at].end
	}
	return i
}

// Len counts the subnets taken.
func (t Taken) Len() uint64 {
	var n uint64
	for _, s := range t {
		n += s.end - s.first
	}
	return n
}

// ExhaustedError is a pool without a free subnet.
type ExhaustedError struct {
	// Size counts the subnets of the pool, Occupied those that are taken, by
	// leases, by keys that cannot be read and by routes of this host.
	Size, Occupied uint64
}

// Error says how large the pool is and what would help.
func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("no free subnet: %d of the pool's %d are occupied: a larger Network, a larger SubnetLen or a wider SubnetMin to SubnetMax would make room",
		e.Occupied, e.Size)
}
