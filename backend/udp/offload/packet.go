package offload

import "encoding/binary"

const (
	ipv4Header = 20 // RFC 791, without options
	ipv6Header = 40 // RFC 8200
	tcpHeader  = 20 // RFC 9293, without options
	udpHeader  = 8  // RFC 768

	tcpSum = 16 // where TCP's checksum stands in its header
	udpSum = 6

	protoHopByHop = 0
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoICMPv6   = 58
	protoDestOpts = 60

	flagFIN = 0x01 // the flags in the word with TCP's data offset
	flagPSH = 0x08
	flagACK = 0x10
	flagCWR = 0x80

	// mayFragment are IPv4's more-fragments bit and its fragment offset.
	mayFragment  = 0x3fff
	dontFragment = 0x4000

	maxPacket = 65535
)

// headerSize is the length of an IP header that begins with b, without IPv6's
// extension headers. It is beyond every packet if b begins none.
func headerSize(b byte) int {
	switch b >> 4 {
	case 4:
		return max(int(b&0xf)*4, ipv4Header)
	case 6:
		return ipv6Header
	}
	return maxPacket + 1
}

// location is where a packet's transport header begins.
type location struct {
	start int
	proto byte
	v4    bool
}

// locate finds the transport header of one whole packet, which is no fragment.
func locate(packet []byte) (location, error) {
	if len(packet) < ipv4Header {
		return location{}, ErrLength
	}
	be := binary.BigEndian
	switch start := headerSize(packet[0]); {
	case start > len(packet):
		return location{}, ErrLength
	case start == ipv6Header && packet[0]>>4 == 6:
		if int(be.Uint16(packet[4:]))+ipv6Header != len(packet) {
			return location{}, ErrLength
		}
		return skipExtensions(packet)
	case int(be.Uint16(packet[2:])) != len(packet) || int(packet[0]&0xf)*4 < ipv4Header:
		return location{}, ErrLength
	case be.Uint16(packet[6:])&mayFragment != 0:
		return location{}, ErrKind
	default:
		return location{start: start, proto: packet[9], v4: true}, nil
	}
}

// skipExtensions finds the transport header behind extension headers (RFC 8200,
// 4), which kernels before 6.13 leave in front of segments. A routing header that
// is not used up is not understood: the sum is over another destination.
func skipExtensions(packet []byte) (location, error) {
	proto, start := packet[6], ipv6Header
	for {
		switch proto {
		case protoHopByHop, protoDestOpts, protoRouting:
		default:
			return location{start: start, proto: proto}, nil
		}
		if start+8 > len(packet) || start > MaxHead {
			return location{}, ErrLength
		}
		if proto == protoRouting && packet[start+3] != 0 {
			return location{}, ErrKind
		}
		proto, start = packet[start], start+8+8*int(packet[start+1])
	}
}

// tcpHead is where the payload begins of a packet with a TCP header at start.
func tcpHead(packet []byte, start int) (int, error) {
	if start+tcpHeader > len(packet) {
		return 0, ErrLength
	}
	size := int(packet[start+12]>>4) * 4
	if size < tcpHeader || start+size > len(packet) {
		return 0, ErrLength
	}
	return start + size, nil
}

// pseudo is the sum of the pseudo header of packet (RFC 9293, 3.1; RFC 8200,
// 8.1) but for the length.
func pseudo(packet []byte, proto uint16) Sum {
	le := binary.LittleEndian
	s := Sum(0).Add16(proto)
	if packet[0]>>4 == 4 {
		return s.add64(le.Uint64(packet[12:]))
	}
	return s.add64(le.Uint64(packet[8:])).add64(le.Uint64(packet[16:])).add64(le.Uint64(packet[24:])).add64(le.Uint64(packet[32:]))
}
