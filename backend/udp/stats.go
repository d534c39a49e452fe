package udp

import "sync/atomic"

// Verdict is what became of one packet.
type Verdict uint8

// The verdicts. All but Forwarded are reasons for a drop.
const (
	// Forwarded: handed on, to the peer's socket or to the kernel.
	Forwarded Verdict = iota
	// Malformed: no IP packet, or one that lies about its length.
	Malformed
	// NoPeer: no peer has the destination. The sender is told.
	NoPeer
	// Multicast: the destination is a multicast or broadcast address.
	Multicast
	// Expired: the TTL or hop limit ran out here. The sender is told.
	Expired
	// TooBig: above the tunnel's MTU and not to be fragmented. The sender is
	// told.
	TooBig
	// UnknownSource: no peer has the inner source address.
	UnknownSource
	// WrongSender: the inner source belongs to another peer than the one
	// that sent the datagram.
	WrongSender
	// SendFailed: the socket did not take it.
	SendFailed
	// NotDelivered: the TUN device did not take it, or was gone.
	NotDelivered

	verdicts // their number
)

// String returns the verdict as a metric's label.
func (v Verdict) String() string {
	names := [verdicts]string{
		"forwarded", "malformed", "no_peer", "multicast", "expired", "too_big",
		"unknown_source", "wrong_sender", "send_failed", "not_delivered",
	}
	if v >= verdicts {
		return "unknown"
	}
	return names[v]
}

// ByVerdict counts packets, indexed by Verdict.
type ByVerdict [verdicts]uint64

// Direction is what happened to the packets of one direction.
type Direction struct {
	Packets ByVerdict
	// Bytes are those of the inner packets that were forwarded.
	Bytes uint64
}

// Stats are the data path's counters since the backend was made.
type Stats struct {
	// Out is from this host to peers, In the other way.
	Out, In Direction
	// Answers are the ICMP errors sent to the senders of dropped packets;
	// Unanswered those that the rate limit or the kernel suppressed.
	Answers, Unanswered uint64
}

// traffic are the live counters of one queue.
type traffic struct{ out, in counters }

// counters are the live form of a Direction. The padding keeps directions and
// queues, written by different cores, off each other's cache lines.
type counters struct {
	packets [verdicts]atomic.Uint64
	bytes   atomic.Uint64
	_       [64]byte
}

// add adds d, which is one batch's count, and clears it.
func (c *counters) add(d *Direction) {
	for v, n := range d.Packets {
		if n != 0 {
			c.packets[v].Add(n)
		}
	}
	c.bytes.Add(d.Bytes)
	*d = Direction{}
}

func (c *counters) snapshot() Direction {
	var d Direction
	for v := range d.Packets {
		d.Packets[v] = c.packets[v].Load()
	}
	d.Bytes = c.bytes.Load()
	return d
}

// join adds another queue's o.
func (d *Direction) join(o Direction) {
	for v, n := range o.Packets {
		d.Packets[v] += n
	}
	d.Bytes += o.Bytes
}

// pass notes packets that were forwarded, of so many bytes together.
func (d *Direction) pass(packets, bytes int) {
	d.Packets[Forwarded] += uint64(packets) //nolint:gosec // a count
	d.Bytes += uint64(bytes)                //nolint:gosec // a length
}

// drop notes packets that were not.
func (d *Direction) drop(v Verdict, packets int) {
	d.Packets[v] += uint64(packets) //nolint:gosec // a count
}

// Counters returns s by name: direction, then a verdict and "packets", or
// "bytes".
func (s Stats) Counters() map[string]uint64 {
	m := map[string]uint64{"answers": s.Answers, "unanswered": s.Unanswered}
	for _, way := range []struct {
		name string
		Direction
	}{{"out", s.Out}, {"in", s.In}} {
		m[way.name+"_bytes"] = way.Bytes
		for v, n := range way.Packets {
			m[way.name+"_"+Verdict(v).String()+"_packets"] = n
		}
	}
	return m
}
