package offload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/go-cmp/cmp"
)

// slowSum is RFC 1071 as its text says it, word by word.
func slowSum(pieces ...[]byte) uint16 {
	total := uint32(0)
	for _, b := range pieces {
		if len(b)%2 == 1 {
			b = append(slices.Clone(b), 0)
		}
		for i := 0; i < len(b); i += 2 {
			total += uint32(b[i])<<8 | uint32(b[i+1])
			if total > 0xffff {
				total = total - 0x10000 + 1
			}
		}
	}
	return uint16(total)
}

// spec is a TCP segment or UDP datagram, field by field. Its packet is what the
// RFCs say.
type spec struct {
	v6               bool
	src, dst         byte // last byte of the address
	tos, hops        uint8
	label            uint32 // IPv6
	id               uint16 // IPv4
	fragment         uint16 // IPv4: flags and offset
	ipOptions        []byte // IPv4: options; IPv6: extension headers as they stand
	udp              bool
	sport, dport     uint16
	seq, ack         uint32
	flags            uint16 // TCP, 9 bits and 3 reserved
	window, urgent   uint16
	options, payload []byte
	sumless          bool   // UDP without a checksum
	raw              []byte // both addresses, in place of src and dst
}

func (s spec) proto() byte {
	if s.udp {
		return protoUDP
	}
	return protoTCP
}

// addresses are source and destination.
func (s spec) addresses() []byte {
	switch {
	case s.raw != nil:
		return slices.Clone(s.raw)
	case s.v6:
		prefix := []byte{0xfd, 5, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 1}
		return slices.Concat(prefix, []byte{s.src}, prefix, []byte{s.dst})
	}
	return []byte{10, 5, 1, s.src, 10, 5, 1, s.dst}
}

// transport is the packet from the transport header on, its checksum zero.
func (s spec) transport() []byte {
	be := binary.BigEndian
	b := be.AppendUint16(be.AppendUint16(nil, s.sport), s.dport)
	if s.udp {
		b = be.AppendUint16(b, uint16(8+len(s.payload)))
		return append(be.AppendUint16(b, 0), s.payload...)
	}
	b = be.AppendUint32(be.AppendUint32(b, s.seq), s.ack)
	b = be.AppendUint16(b, uint16((20+len(s.options))/4)<<12|s.flags)
	b = be.AppendUint16(be.AppendUint16(b, s.window), 0)
	b = be.AppendUint16(b, s.urgent)
	return append(append(b, s.options...), s.payload...)
}

// pseudoHeader is that of RFC 9293, 3.1, or of RFC 8200, 8.1.
func (s spec) pseudoHeader(length int) []byte {
	b := s.addresses()
	if s.v6 {
		return append(binary.BigEndian.AppendUint32(b, uint32(length)), 0, 0, 0, s.proto())
	}
	return binary.BigEndian.AppendUint16(append(b, 0, s.proto()), uint16(length))
}

func (s spec) sumAt() int {
	if s.udp {
		return udpSum
	}
	return tcpSum
}

// ip is the IP header in front of a transport of so many bytes.
func (s spec) ip(length int) []byte {
	be := binary.BigEndian
	if s.v6 {
		b := be.AppendUint32(nil, 6<<28|uint32(s.tos)<<20|s.label)
		b = append(be.AppendUint16(b, uint16(len(s.ipOptions)+length)), s.proto(), s.hops)
		b = append(b, s.addresses()...)
		if len(s.ipOptions) > 0 {
			b[6] = protoDestOpts
		}
		return append(b, s.ipOptions...)
	}
	size := 20 + len(s.ipOptions)
	b := be.AppendUint16([]byte{0x40 | byte(size/4), s.tos}, uint16(size+length))
	b = be.AppendUint16(be.AppendUint16(b, s.id), s.fragment)
	b = append(b, s.hops, s.proto(), 0, 0)
	b = append(append(b, s.addresses()...), s.ipOptions...)
	be.PutUint16(b[10:], ^slowSum(b))
	return b
}

// packet is s as it goes on the wire.
func (s spec) packet() []byte {
	b := s.transport()
	sum := ^slowSum(s.pseudoHeader(len(b)), b)
	if sum == 0 && s.udp {
		sum = 0xffff
	}
	if s.sumless {
		sum = 0
	}
	binary.BigEndian.PutUint16(b[s.sumAt():], sum)
	return append(s.ip(len(b)), b...)
}

// partial is s as a device hands it over that need not complete sums.
func (s spec) partial() []byte {
	b := s.transport()
	binary.BigEndian.PutUint16(b[s.sumAt():], slowSum(s.pseudoHeader(len(b))))
	return append(s.ip(len(b)), b...)
}

// header is that of s, to be cut into segments of size bytes.
func (s spec) header(size int) Header {
	start := len(s.ip(0))
	h := Header{Flags: NeedsSum, GSO: TCP4, SegmentSize: uint16(size), SumStart: uint16(start), SumOffset: uint16(s.sumAt())}
	switch {
	case s.udp:
		h.GSO = UDP
	case s.v6:
		h.GSO = TCP6
	}
	h.HeaderLen = uint16(start + len(s.transport()) - len(s.payload))
	return h
}

// differ is cmp.Diff, which takes long to find out that nothing differs.
func differ(want, got [][]byte) string {
	if slices.EqualFunc(want, got, bytes.Equal) {
		return ""
	}
	return cmp.Diff(want, got)
}

// cut is what a sender with segments of size bytes would have sent: the slow
// obvious reference for Heads.
func (s spec) cut(size int) [][]byte {
	var out [][]byte
	for payload := s.payload; len(payload) > 0; {
		one := s
		one.payload = payload[:min(size, len(payload))]
		payload = payload[len(one.payload):]
		i := len(out)
		one.id = s.id + uint16(i)
		one.seq = s.seq + uint32(i*size)
		if i > 0 {
			one.flags &^= 0x80 // CWR
		}
		if len(payload) > 0 {
			one.flags &^= 0x01 | 0x08 // FIN, PSH
		}
		out = append(out, one.packet())
	}
	return out
}

// read is the spec of a packet, if it is what this file can build. Only tests of
// arbitrary bytes need it.
func read(b []byte) (spec, error) {
	be := binary.BigEndian
	var s spec
	var rest []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		size := int(b[0]&0xf) * 4
		if size < 20 || size > len(b) || int(be.Uint16(b[2:])) != len(b) {
			return s, fmt.Errorf("length")
		}
		s.tos, s.hops, s.id, s.fragment = b[1], b[8], be.Uint16(b[4:]), be.Uint16(b[6:])
		s.udp, s.ipOptions, rest = b[9] == protoUDP, b[20:size], b[size:]
		s.raw = b[12:20]
	case len(b) >= 40 && b[0]>>4 == 6:
		if 40+int(be.Uint16(b[4:])) != len(b) {
			return s, fmt.Errorf("length")
		}
		word := be.Uint32(b)
		s.v6, s.tos, s.label, s.hops = true, uint8(word>>20), word&0xfffff, b[7]
		s.udp, rest = b[6] == protoUDP, b[40:]
		s.raw = b[8:40]
	default:
		return s, fmt.Errorf("version")
	}
	if len(rest) < 8 || !s.udp && len(rest) < 20 {
		return s, fmt.Errorf("transport")
	}
	s.sport, s.dport = be.Uint16(rest), be.Uint16(rest[2:])
	if s.udp {
		s.payload = rest[8:]
		return s, nil
	}
	size := int(rest[12]>>4) * 4
	if size < 20 || size > len(rest) {
		return s, fmt.Errorf("transport")
	}
	s.seq, s.ack, s.flags = be.Uint32(rest[4:]), be.Uint32(rest[8:]), be.Uint16(rest[12:])&0xfff
	s.window, s.urgent = be.Uint16(rest[14:]), be.Uint16(rest[18:])
	s.options, s.payload = rest[20:size], rest[size:]
	return s, nil
}
