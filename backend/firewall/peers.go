package firewall

import (
	"encoding/base32"
	"hash/fnv"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// leafSize is how many accepts one chain may hold before it is cut into a tree.
const leafSize = 64

// nibble is by how many address bits a chain is cut.
const nibble = 4

// peersOf returns the addresses of one family as the shortest list of prefixes
// that covers exactly them, in order.
func peersOf(addrs []netip.Addr, f subnet.Family) []netip.Prefix {
	own := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		if a.IsValid() && subnet.FamilyOf(a) == f {
			own = append(own, a.Unmap().WithZone(""))
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	own = slices.Compact(own)

	// In order, two halves of one prefix always become neighbours on the
	// stack, so that one pass merges all there is to merge.
	var stack []netip.Prefix
	for _, a := range own {
		p := netip.PrefixFrom(a, a.BitLen())
		for len(stack) > 0 {
			parent, ok := join(stack[len(stack)-1], p)
			if !ok {
				break
			}
			stack, p = stack[:len(stack)-1], parent
		}
		stack = append(stack, p)
	}
	return stack
}

// join returns the prefix that has a and b as its halves.
func join(a, b netip.Prefix) (netip.Prefix, bool) {
	if a.Bits() != b.Bits() || a.Bits() == 0 || a == b {
		return netip.Prefix{}, false
	}
	parent := netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
	return parent, parent.Contains(b.Addr())
}

// peerChains returns a chain of that name which accepts the given prefixes
// (disjoint and in order), and the chains it needs for that, those that are
// gone to behind those that go there. The names and contents of chains depend
// only on the addresses below them: a new peer changes few.
func (o owner) peerChains(name string, peers []netip.Prefix) []chainSpec {
	self := chainSpec{name: name}
	if len(peers) <= leafSize {
		for _, p := range peers {
			self.rules = append(self.rules, acceptPeer(p))
		}
		return []chainSpec{self}
	}
	out := []chainSpec{self}
	length := commonBits(peers)/nibble*nibble + nibble
	for len(peers) > 0 {
		cut := netip.PrefixFrom(peers[0].Addr(), length).Masked()
		n := 1
		for n < len(peers) && cut.Contains(peers[n].Addr()) {
			n++
		}
		group := peers[:n]
		peers = peers[n:]
		if n == 1 {
			out[0].rules = append(out[0].rules, acceptPeer(group[0]))
			continue
		}
		sub := o.peerChains(o.named(chainPeers)+hashName(cut), group)
		out[0].rules = append(out[0].rules, rule{
			src: cut, target: sub[0].name, isGoto: true, comment: Mark + ": peers",
		})
		out = append(out, sub...)
	}
	return out
}

func acceptPeer(p netip.Prefix) rule {
	return rule{src: p, target: "ACCEPT", comment: Mark + ": tunnel from a peer"}
}

// commonBits is the length of the longest prefix that covers all of peers, which
// are in order.
func commonBits(peers []netip.Prefix) int {
	a, b := peers[0].Addr().AsSlice(), peers[len(peers)-1].Addr().AsSlice()
	for i := range a {
		if a[i] != b[i] {
			return i*8 + bits.LeadingZeros8(a[i]^b[i])
		}
	}
	return len(a) * 8
}

// hashName makes 12 characters out of a prefix, as many as a chain's name has
// room for in either family.
func hashName(p netip.Prefix) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(p.String())) // never fails
	return base32.HexEncoding.EncodeToString(h.Sum(nil))[:12]
}
