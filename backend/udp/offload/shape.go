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

// parse finds the shape of packet.
func parse(packet []byte) shape {
	if len(packet) < ipv4Header {
		return shape{fate: unclear}
	}
	be, le := binary.BigEndian, binary.LittleEndian
	s := shape{fate: unclear}
	switch packet[0] >> 4 {
	case 4:
		s.v4, s.start, s.proto = true, ipv4Header, packet[9]
		if s.proto != protoTCP && s.proto != protoUDP {
			return shape{fate: foreign}
		}
		if packet[0] != 0x45 || int(be.Uint16(packet[2:])) != len(packet) || be.Uint16(packet[6:])&mayFragment != 0 {
			return s
		}
		s.hash = le.Uint64(packet[12:])
	case 6:
		if len(packet) < ipv6Header || int(be.Uint16(packet[4:]))+ipv6Header != len(packet) {
			return s
		}
		s.start, s.proto = ipv6Header, packet[6]
		if s.proto == protoICMPv6 {
			return shape{fate: foreign}
		}
		if s.proto != protoTCP && s.proto != protoUDP {
			return s // perhaps behind an extension header
		}
		s.hash = mix(mix(le.Uint64(packet[8:]), le.Uint64(packet[16:])), mix(le.Uint64(packet[24:]), le.Uint64(packet[32:])))
	default:
		return s
	}
	transport := packet[s.start:]
	if len(transport) < udpHeader {
		return s
	}
	s.hash = mix(s.hash, uint64(le.Uint32(transport))<<8|uint64(s.proto))
	s.fate = alone
	if s.proto == protoTCP {
		return s.tcp(transport)
	}
	s.head = s.start + udpHeader
	if int(be.Uint16(transport[4:])) == len(transport) && len(transport) > udpHeader && be.Uint16(transport[udpSum:]) != 0 {
		s.fate = joinable
	}
	return s
}

// tcp completes the shape of a TCP segment. Only data can be joined, and only
// with no other flag than ACK and PSH.
func (s shape) tcp(transport []byte) shape {
	if len(transport) < tcpHeader {
		return s
	}
	be := binary.BigEndian
	size, flags := int(transport[12]>>4)*4, be.Uint16(transport[12:])&0xfff
	if size >= tcpHeader && size < len(transport) && flags&^flagPSH == flagACK {
		s.fate, s.push = joinable, flags&flagPSH != 0
		s.seq, s.head = be.Uint32(transport[4:]), s.start+uint16(size)
	}
	return s
}

// mix hashes two words into one. Whoever finds two flows with one hash gains a
// longer comparison.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x9e3779b97f4a7c15, b^0xc2b2ae3d27d4eb4f)
	return hi ^ lo
}

// sameFlow compares addresses, ports and protocols of packet and other, which
// has the shape s.
func sameFlow(packet, other []byte, s shape) bool {
	if s.v4 {
		return packet[0]>>4 == 4 && packet[9] == s.proto && string(packet[12:24]) == string(other[12:24])
	}
	return packet[0]>>4 == 6 && packet[6] == s.proto && string(packet[8:44]) == string(other[8:44])
}

// sound reports whether the sums of a joinable packet are right.
func sound(packet []byte, s shape) bool {
	if s.v4 && Sum(0).Add(packet[:ipv4Header]).Fold() != 0xffff {
		return false
	}
	length := uint16(len(packet)) - s.start
	return pseudo(packet, uint16(s.proto)).Add16(length).Add(packet[s.start:]).Fold() == 0xffff
}
