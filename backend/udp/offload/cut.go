package offload

import (
	"encoding/binary"
	"errors"
)

// What can be wrong with a packet from the device.
var (
	ErrKind    = errors.New("segmentation kind does not fit the packet")
	ErrLength  = errors.New("header and packet disagree about lengths")
	ErrSum     = errors.New("checksum is outside of the packet or not where its protocol has it")
	ErrSegment = errors.New("segment size is zero")
)

// MaxHead bounds Cut.Head: the longest IPv4 and TCP headers are 120 bytes, IPv6
// may have extension headers before TCP's.
const MaxHead = 256

// Cut is how a packet from the device is cut for the wire. It is found by Plan
// and valid for that packet, whose TTL may be lowered since.
type Cut struct {
	Head    int // bytes of each wire packet that Heads writes, 0 if Count is 1
	Segment int // the most that Payload returns
	Count   int // wire packets, at least 1

	start, sum int // offsets of the transport header, and of its sum
	partial    bool
	tcp        bool
}

// WireSize is the length of the longest wire packet.
func (c Cut) WireSize() int { return c.Head + c.Segment }

// Plan decides how packet is cut, which h came with. An error says that h or
// the packet's lengths lie; then nothing of it can be sent.
func Plan(h Header, packet []byte) (Cut, error) {
	if h.GSO == None {
		return planOrdinary(h, packet)
	}
	where, err := locate(packet)
	if err != nil {
		return Cut{}, err
	}
	c := Cut{Count: 1, Segment: len(packet), start: where.start, partial: h.Flags&NeedsSum != 0}
	var head int
	switch {
	case where.proto == protoTCP && (h.GSO&^ECN == TCP4 && where.v4 || h.GSO&^ECN == TCP6 && !where.v4):
		c.tcp, c.sum = true, c.start+tcpSum
		if head, err = tcpHead(packet, c.start); err != nil {
			return Cut{}, err
		}
	case where.proto == protoUDP && h.GSO == UDP:
		c.sum, head = c.start+udpSum, c.start+udpHeader
		if head > len(packet) || int(binary.BigEndian.Uint16(packet[c.start+4:])) != len(packet)-c.start {
			return Cut{}, ErrLength
		}
	default:
		return Cut{}, ErrKind
	}
	switch size := int(h.SegmentSize); {
	case head > MaxHead:
		return Cut{}, ErrLength
	case size == 0:
		return Cut{}, ErrSegment
	case h.Flags&(NeedsSum|DataValid) == 0:
		return Cut{}, ErrSum // new sums would make a wrong one right
	case c.partial && (int(h.SumStart) != c.start || int(h.SumStart)+int(h.SumOffset) != c.sum):
		return Cut{}, ErrSum
	case len(packet)-head > size:
		c.Head, c.Segment, c.Count = head, size, (len(packet)-head+size-1)/size
	}
	return c, nil
}

// planOrdinary plans for a packet that stands for itself.
func planOrdinary(h Header, packet []byte) (Cut, error) {
	c := Cut{Count: 1, Segment: len(packet)}
	if h.Flags&NeedsSum == 0 {
		return c, nil
	}
	c.partial, c.start = true, int(h.SumStart)
	c.sum = c.start + int(h.SumOffset)
	// A sum within the IP header would damage that.
	if c.sum+2 > len(packet) || c.start < headerSize(packet[0]) {
		return Cut{}, ErrSum
	}
	return c, nil
}

// Complete makes a partial sum one of all bytes, in place, as Heads does if
// Count is above 1. Zero is written as 0xffff, which means the same, but for UDP,
// where zero stands for no sum (RFC 768).
func (c Cut) Complete(packet []byte) {
	if !c.partial || c.Count > 1 {
		return
	}
	binary.BigEndian.PutUint16(packet[c.sum:], notZero(^Sum(0).Add(packet[c.start:]).Fold()))
}

func notZero(sum uint16) uint16 {
	if sum == 0 {
		return 0xffff
	}
	return sum
}

// Payload returns what follows the head of wire packet i, a part of packet.
func (c Cut) Payload(packet []byte, i int) []byte {
	from := c.Head + i*c.Segment
	return packet[from:min(from+c.Segment, len(packet))]
}

// Heads writes the heads of wire packets first, first+1, ... into scratch, each
// c.Head bytes long, and returns them: as many as there are or as scratch holds.
// The first of them must exist.
func (c Cut) Heads(packet, scratch []byte, first int) []byte {
	if c.Count == 1 {
		return nil
	}
	n := min(len(scratch)/c.Head, c.Count-first)
	t := c.template(packet)
	for i := range n {
		head := scratch[i*c.Head:][:c.Head]
		copy(head, packet)
		t.fill(head, c.Payload(packet, first+i), first+i)
	}
	return scratch[:n*c.Head]
}

// template is what the heads of one large packet have in common: their sums
// without what differs.
type template struct {
	c             Cut
	v4            bool
	id            uint16
	seq           uint32
	flags         uint16 // TCP's offset and flags, one word
	ip, transport Sum
}

func (c Cut) template(packet []byte) template {
	be := binary.BigEndian
	t := template{c: c, v4: packet[0]>>4 == 4}
	if t.v4 {
		t.id = be.Uint16(packet[4:])
		t.ip = Sum(0).Add(packet[:2]).Add(packet[6:10]).Add(packet[12:c.start])
	}
	transport := packet[c.start:c.Head]
	if !c.tcp {
		t.transport = pseudo(packet, protoUDP).Add(transport[:4])
		return t
	}
	t.seq, t.flags = be.Uint32(transport[4:]), be.Uint16(transport[12:])
	t.transport = pseudo(packet, protoTCP).Add(transport[:4]).Add(transport[8:12]).Add(transport[14:tcpSum]).Add(transport[tcpSum+2:])
	return t
}

// fill makes head, a copy of the large packet's, that of wire packet i.
func (t *template) fill(head, payload []byte, i int) {
	be, c := binary.BigEndian, &t.c
	size := len(head) + len(payload)
	if t.v4 {
		id := t.id + uint16(i) // wraps, as identifications do
		be.PutUint16(head[2:], uint16(size))
		be.PutUint16(head[4:], id)
		be.PutUint16(head[10:], ^t.ip.Add16(uint16(size)).Add16(id).Fold())
	} else {
		be.PutUint16(head[4:], uint16(size-ipv6Header))
	}
	length := uint16(size - c.start)
	sum := t.transport.Add16(length)
	transport := head[c.start:]
	if !c.tcp {
		be.PutUint16(transport[4:], length)
		be.PutUint16(transport[udpSum:], notZero(^sum.Add16(length).Add(payload).Fold()))
		return
	}
	seq, flags := t.seq+uint32(i*c.Segment), t.flags
	if i > 0 {
		flags &^= flagCWR
	}
	if i < c.Count-1 {
		flags &^= flagFIN | flagPSH
	}
	be.PutUint32(transport[4:], seq)
	be.PutUint16(transport[12:], flags)
	be.PutUint16(transport[tcpSum:], ^sum.Add32(seq).Add16(flags).Add(payload).Fold())
}
