package udp

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// peer says where the packets for one prefix go.
type peer struct {
	prefix   netip.Prefix // masked
	endpoint netip.AddrPort
}

// table finds the peer of an address by its longest prefix. It never changes: a
// new one takes its place, so readers need no lock.
//
// All subnets of a network usually have one length, and then a lookup is one
// map access. Keys of other lengths (an old SubnetLen, another operator's
// reservation) cost one more access per length.
type table struct {
	levels subnet.ByFamily[[]level]
}

// level holds the peers of one prefix length.
type level struct {
	bits  int
	mask  address
	peers map[address]netip.AddrPort
}

// newTable indexes peers. Of two with one prefix the later counts.
func newTable(peers []peer) *table {
	t := new(table)
	for _, p := range peers {
		f := subnet.FamilyOf(p.prefix.Addr())
		l := t.level(f, p.prefix.Bits())
		l.peers[addressOf(p.prefix.Addr()).and(l.mask)] = p.endpoint
	}
	return t
}

// level returns the level of a length, made where it is missing: the longest
// stands first.
func (t *table) level(f subnet.Family, bits int) *level {
	longestFirst := func(l level, bits int) int { return cmp.Compare(bits, l.bits) }
	i, found := slices.BinarySearchFunc(t.levels[f], bits, longestFirst)
	if !found {
		t.levels[f] = slices.Insert(t.levels[f], i, level{
			bits:  bits,
			mask:  maskOf(f, bits),
			peers: make(map[address]netip.AddrPort),
		})
	}
	return &t.levels[f][i]
}

// lookup returns where the peer that has a is reached; false: nobody has it.
func (t *table) lookup(f subnet.Family, a address) (netip.AddrPort, bool) {
	for i := range t.levels[f] {
		l := &t.levels[f][i]
		if to, ok := l.peers[a.and(l.mask)]; ok {
			return to, true
		}
	}
	return netip.AddrPort{}, false
}

// world is all that the packet path knows, as one immutable value.
type world struct {
	table *table
	// own are the tunnel's addresses, the source of our ICMP errors; invalid
	// where the family is off.
	own subnet.ByFamily[netip.Addr]
}

// outbound decides on a packet of this host and finds its receiver. Wire is the
// length of the longest packet that b is cut into. When it is
// [Forwarded] one hop has been taken from b; otherwise b is untouched, so that
// an ICMP error can quote it.
func (w *world) outbound(b []byte, wire, mtu int) (netip.AddrPort, header, Verdict) {
	h, ok := parse(b)
	if !ok {
		return netip.AddrPort{}, h, Malformed
	}
	to, ok := w.table.lookup(h.family, h.dst)
	switch {
	case h.dst.multicast(h.family):
		return netip.AddrPort{}, h, Multicast
	case !ok:
		return netip.AddrPort{}, h, NoPeer
	case h.hops <= 1:
		return netip.AddrPort{}, h, Expired
	case wire > mtu && h.whole, wire > maxDatagram:
		return netip.AddrPort{}, h, TooBig
	}
	lowerHops(b, h.family)
	return to, h, Forwarded
}

// inbound decides on a packet that came from the outer address from. What is
// said of b at outbound holds here too.
//
// The port of the sender is not looked at, as in flannel: it may stand behind a
// NAT, or spread its flows over many ports. Where the packet may go is not
// decided here but by the kernel's routes and firewall, as with every backend.
func (w *world) inbound(b []byte, from netip.Addr) (header, Verdict) {
	h, ok := parse(b)
	if !ok {
		return h, Malformed
	}
	owner, ok := w.table.lookup(h.family, h.src)
	switch {
	case !ok:
		return h, UnknownSource
	case owner.Addr() != from:
		return h, WrongSender
	case h.hops <= 1:
		return h, Expired
	}
	lowerHops(b, h.family)
	return h, Forwarded
}
