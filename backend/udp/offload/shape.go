package offload

import (
	"encoding/binary"
	"math/bits"
)

// fate is what may become of a wire packet.
type fate uint8

const (
	foreign  fate = iota // neither TCP nor UDP: no flow of ours
	unclear              // of some flow, but not to be seen which: a fragment, options, a lie
	alone                // goes alone, and after what its flow had before
	joinable             // may be joined
)

// shape is what joining needs to know of a wire packet.
type shape struct {
	hash        uint64 // of addresses, ports and protocol
	seq         uint32 // TCP's
	start, head uint16 // where the transport header begins, and the payload
	fate        fate
	proto       byte
	v4, push    bool
}

// parse finds the shape of packet. It writes in place, for a shape returned is
// one copied in larger words than it was written in, which stalls the processor.
func (s *shape) parse(packet []byte) {
	be, le := binary.BigEndian, binary.LittleEndian
	*s = shape{fate: unclear}
	switch {
	case len(packet) < ipv4Header:
		return
	case packet[0]>>4 == 4:
		s.v4, s.start, s.proto = true, ipv4Header, packet[9]
		switch {
		case s.proto != protoTCP && s.proto != protoUDP:
			s.fate = foreign
			return
		case packet[0] != 0x45 || int(be.Uint16(packet[2:])) != len(packet) || be.Uint16(packet[6:])&mayFragment != 0:
			return
		}
		s.hash = le.Uint64(packet[12:])
	case packet[0]>>4 == 6 && len(packet) >= ipv6Header && int(be.Uint16(packet[4:]))+ipv6Header == len(packet):
		s.start, s.proto = ipv6Header, packet[6]
		switch s.proto {
		case protoTCP, protoUDP:
		case protoICMPv6:
			s.fate = foreign
			return
		default: // perhaps TCP behind an extension header
			return
		}
		s.hash = mix(mix(le.Uint64(packet[8:]), le.Uint64(packet[16:])), mix(le.Uint64(packet[24:]), le.Uint64(packet[32:])))
	default:
		return
	}
	s.parseTransport(packet[s.start:])
}

// parseTransport completes the shape of a packet with this transport header and
// payload. Only data can be joined, and TCP's only with no other flag than ACK
// and PSH.
func (s *shape) parseTransport(transport []byte) {
	if len(transport) < udpHeader {
		return
	}
	be := binary.BigEndian
	s.hash = mix(s.hash, uint64(binary.LittleEndian.Uint32(transport))<<8|uint64(s.proto))
	s.fate = alone
	switch {
	case s.proto == protoUDP:
		s.head = s.start + udpHeader
		if int(be.Uint16(transport[4:])) == len(transport) && len(transport) > udpHeader && be.Uint16(transport[udpSum:]) != 0 {
			s.fate = joinable
		}
	case len(transport) >= tcpHeader:
		size, flags := int(transport[12]>>4)*4, be.Uint16(transport[12:])&0xfff
		if size >= tcpHeader && size < len(transport) && flags&^flagPSH == flagACK {
			s.fate, s.push = joinable, flags&flagPSH != 0
			s.seq, s.head = be.Uint32(transport[4:]), s.start+uint16(size)
		}
	}
}

// reparse is parse for a packet that may be of the flow of the one that s is of, and
// is false unless it is joinable and has a header of the same form. The addresses, the
// protocol and the ports are not looked at: see sameFlow. Nor is what fits compares.
func (s *shape) reparse(packet []byte) bool {
	be, at := binary.BigEndian, 4
	if len(packet) <= int(s.head) {
		return false
	}
	length := len(packet)
	if s.v4 {
		at = 2
	} else {
		length -= ipv6Header
	}
	transport := packet[s.start:]
	switch {
	case int(be.Uint16(packet[at:])) != length:
		return false
	case s.proto == protoUDP:
		return int(be.Uint16(transport[4:])) == len(transport) && be.Uint16(transport[udpSum:]) != 0
	}
	s.seq, s.push = be.Uint32(transport[4:]), transport[13]&flagPSH != 0
	return true
}

// mix hashes two words into one. Whoever finds two flows with one hash gains a
// longer comparison.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x9e3779b97f4a7c15, b^0xc2b2ae3d27d4eb4f)
	return hi ^ lo
}

// sameFlow compares addresses, ports and protocols of packet and other, which
// has the shape s. Packet is TCP or UDP without options before that; whether other is,
// too, is for the caller to find out.
func sameFlow(packet, other []byte, s *shape) bool {
	le := binary.LittleEndian
	if packet[0]>>4 != other[0]>>4 {
		return false
	}
	if s.v4 {
		a, b := packet[:24], other[:24]
		return a[9] == b[9] && le.Uint64(a[12:]) == le.Uint64(b[12:]) && le.Uint32(a[20:]) == le.Uint32(b[20:])
	}
	return packet[6] == other[6] && string(packet[8:44]) == string(other[8:44])
}

// sound reports whether the sums of a joinable packet are right. Pseudo is that
// of its flow.
func sound(packet []byte, s *shape, pseudo Sum) bool {
	if s.v4 && sumIPv4(packet).Fold() != 0xffff {
		return false
	}
	length := uint16(len(packet)) - s.start
	return pseudo.Add16(length).Add(packet[s.start:]).Fold() == 0xffff
}

// sumIPv4 is the sum of an IPv4 header without options.
func sumIPv4(packet []byte) Sum {
	le, b := binary.LittleEndian, packet[:ipv4Header]
	return Sum(le.Uint64(b)).add64(le.Uint64(b[8:])).add64(uint64(le.Uint32(b[16:])))
}
