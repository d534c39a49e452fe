package udp

import "net/netip"

// query is a packet and the question who has the address at one end of it.
type query struct {
	header
	ok bool // parse has accepted the packet
	// peer is the answer; nil: nobody has it.
	peer *endpoint
}

// end is one of the two ends of a packet.
type end int

const (
	source end = iota
	destination
)

// whom is the address that is looked up.
func (q *query) whom(e end) address {
	if e == destination {
		return q.dst
	}
	return q.src
}

// read begins a query about the packet b.
func (q *query) read(b []byte) { q.header, q.ok = parse(b) }

// answer looks one up.
func (t *table) answer(q *query, e end) {
	if q.peer = nil; q.ok {
		q.peer = t.lookup(q.family, q.whom(e))
	}
}

// answerAll looks all of them up, of one batch. What costs is waiting for memory: with
// many peers the cells and the endpoint of a packet's are seldom in the cache. Here the
// reads stand close together and none waits for another, so that the processor waits for
// many of them at once: first for the cells at which the lookups begin, then, with the
// answers there, for the endpoints, each of which is one line of the cache. Between two
// reads must be next to nothing: the processor looks ahead some hundred instructions. The
// sum of what was read is of no use but that it has to be computed.
func (t *table) answerAll(queries []query, e end) (sum uint32) {
	for i := range queries {
		if q := &queries[i]; q.ok {
			sum += t.home(q.family, q.whom(e))
		}
	}
	for i := range queries {
		t.answer(&queries[i], e)
	}
	for i := range queries {
		if to := queries[i].peer; to != nil {
			sum += uint32(to.to.Port())
		}
	}
	return sum
}

// outbound decides on a packet of this host, b, about whose destination q is. Wire is
// the length of the longest packet that b is cut into. When it is [Forwarded], to q.peer,
// one hop has been taken from b; otherwise b is untouched, so that an ICMP error can
// quote it.
func (q *query) outbound(b []byte, wire, mtu int) Verdict {
	switch {
	case !q.ok:
		return Malformed
	case q.dst.multicast(q.family):
		return Multicast
	case q.peer == nil:
		return NoPeer
	case q.hops <= 1:
		return Expired
	case wire > mtu && q.whole, wire > maxDatagram:
		return TooBig
	}
	lowerHops(b, q.family)
	return Forwarded
}

// inbound decides on a packet that came from the outer address from, b, about whose
// source q is. What is said of b at outbound holds here too.
//
// The port of the sender is not looked at, as in flannel: it may stand behind a
// NAT, or spread its flows over many ports. Where the packet may go is not
// decided here but by the kernel's routes and firewall, as with every backend.
func (q *query) inbound(b []byte, from netip.Addr) Verdict {
	switch {
	case !q.ok:
		return Malformed
	case q.peer == nil:
		return UnknownSource
	case q.peer.to.Addr() != from && !q.peer.left(from):
		return WrongSender
	case q.hops <= 1:
		return Expired
	}
	lowerHops(b, q.family)
	return Forwarded
}
