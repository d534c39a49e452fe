package native

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/google/nftables"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// concatBits is how far nft shifts the type of a key's part for the next.
const concatBits = 6

func macKey() keyType { return typeOf(nftables.TypeEtherAddr, false) }

func addressKey(f subnet.Family) keyType {
	return typeOf([...]nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr}[f], false)
}

// rawKey is the type of a place that has no name.
func rawKey(f field) keyType {
	k := typeOf(nftables.TypeInteger, false)
	k.bytes = f.length
	return k
}

// concat is the type of a key of two parts, each padded to four bytes.
func concat(a, b keyType) keyType {
	return keyType{magic: a.magic<<concatBits | b.magic, bytes: pad(a.bytes) + pad(b.bytes)}
}

func pad(n uint32) uint32 { return (n + 3) / 4 * 4 }

// setWriter collects sets of prefixes. Prefixes of each length have a set of
// their own, so that a lookup is one hash of the masked address; there is one
// length but while hosts follow a changed SubnetLen one by one.
type setWriter map[string]*set

// add adds a key of one part or two.
func (w setWriter) add(name string, key keyType, parts ...[]byte) {
	s := w[name]
	if s == nil {
		s = &set{name: name, key: key}
		w[name] = s
	}
	var k []byte
	for _, p := range parts {
		k = append(k, p...)
		if len(parts) > 1 {
			k = append(k, make([]byte, int(pad(uint32(len(p))))-len(p))...) //nolint:gosec // at most 16
		}
	}
	s.keys = append(s.keys, string(k))
}

// sets returns them without duplicate keys.
func (w setWriter) sets() []set {
	var out []set
	for _, name := range slices.Sorted(maps.Keys(w)) {
		s := *w[name]
		slices.Sort(s.keys)
		s.keys = slices.Compact(s.keys)
		out = append(out, s)
	}
	return out
}

// sized is the name of the set for prefixes of a length.
func sized(name string, bits int) string { return name + strconv.Itoa(bits) }

// lengths are those of the peers' subnets in a family, each once, the shortest
// first.
func lengths(peers []Peer, f subnet.Family) []int {
	var seen [129]bool
	for _, p := range peers {
		if p.Subnet[f].IsValid() {
			seen[p.Subnet[f].Bits()] = true
		}
	}
	var out []int
	for bits, is := range seen {
		if is {
			out = append(out, bits)
		}
	}
	return out
}

// prefixKey is a prefix as part of a key.
func prefixKey(p netip.Prefix) []byte { return p.Masked().Addr().AsSlice() }
