package udp

import (
	"net/netip"

	"github.com/flanneld-go/flanneld-go/subnet"
)

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
func (w *world) outbound(b []byte, wire, mtu int) (*endpoint, header, Verdict) {
	h, ok := parse(b)
	if !ok {
		return nil, h, Malformed
	}
	to := w.table.lookup(h.family, h.dst)
	switch {
	case h.dst.multicast(h.family):
		return nil, h, Multicast
	case to == nil:
		return nil, h, NoPeer
	case h.hops <= 1:
		return nil, h, Expired
	case wire > mtu && h.whole, wire > maxDatagram:
		return nil, h, TooBig
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
	owner := w.table.lookup(h.family, h.src)
	switch {
	case owner == nil:
		return h, UnknownSource
	case owner.to.Addr() != from && owner.former != from:
		return h, WrongSender
	case h.hops <= 1:
		return h, Expired
	}
	lowerHops(b, h.family)
	return h, Forwarded
}
