package udp

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
)

// put writes a packet, or several joined, to the device. Where that refuses a join,
// its packets are written one by one.
//
// EINVAL and EOPNOTSUPP are what a kernel says that does not know such a join: then
// none of the kind is made any more. What the Merger makes is well-formed, so it is
// the kind that is refused and not a packet. Other errors, such as want of memory for
// 64 KiB, may pass.
func (r *receiver) put(joined *offload.Joined) {
	err := r.write(joined)
	switch {
	case err == nil:
		r.count.pass(joined.Packets, joined.Bytes+(joined.Packets-1)*int(joined.Header.HeaderLen))
	case joined.Packets == 1, errors.Is(err, errGone), errors.Is(err, unix.EIO): // EIO: the device is down
		r.count.drop(NotDelivered, joined.Packets)
	default:
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			r.joins.giveUp(joined.Header.GSO, err)
		}
		r.putApart(joined)
	}
}

// errRefused is about joins of a kind that the device has refused before.
var errRefused = errors.New("joined packets are refused")

// write hands a packet to the device, unless it would be refused.
func (r *receiver) write(joined *offload.Joined) error {
	if r.to == nil {
		return errGone
	}
	if joined.Packets > 1 {
		if refused, _ := r.joins.refused(joined.Header.GSO); refused.Load() {
			return errRefused
		}
	}
	return r.to.Write(*joined)
}

// putApart writes the packets that were joined one by one.
func (r *receiver) putApart(joined *offload.Joined) {
	if r.parter == nil {
		r.parter = new(parter)
	}
	if !r.parter.take(joined) { // never, for they were joined so that they can be cut
		r.count.drop(NotDelivered, joined.Packets)
		return
	}
	for i := range r.parter.cut.Count {
		one := r.parter.packet(i)
		if err := r.to.Write(one); err != nil {
			r.count.drop(NotDelivered, 1)
			continue
		}
		r.count.pass(1, one.Bytes)
	}
}

// parter takes joins apart again.
type parter struct {
	cut   offload.Cut
	large []byte // what is cut
	data  [maxPacket]byte
	head  [offload.MaxHead]byte
	parts [2][]byte
}

// take begins with joined; false: it cannot be cut.
func (p *parter) take(joined *offload.Joined) bool {
	p.large = p.data[:0]
	for _, part := range joined.Parts {
		p.large = append(p.large, part...)
	}
	var err error
	p.cut, err = offload.Plan(joined.Header, p.large)
	return err == nil
}

// packet is number i of those that were joined. It is valid until the next one.
func (p *parter) packet(i int) offload.Joined {
	p.parts[0], p.parts[1] = p.cut.Heads(p.large, p.head[:p.cut.Head], i), p.cut.Payload(p.large, i)
	return offload.Joined{Parts: p.parts[:], Packets: 1, Bytes: len(p.parts[0]) + len(p.parts[1])}
}
