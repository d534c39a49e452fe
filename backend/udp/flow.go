package udp

import (
	"encoding/binary"
	"math/bits"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// The protocols whose header begins with the two ports.
const (
	protoTCP     = 6
	protoUDP     = 17
	protoDCCP    = 33
	protoSCTP    = 132
	protoUDPLite = 136
)

// flowHash is alike for all packets of a flow: it is made of the addresses, and of
// the ports where every packet shows them. Of a fragmented packet only the first
// piece does, so fragments go by the addresses alone and stay together. B is what
// parse accepted as h.
func flowHash(b []byte, h header) uint32 {
	x := (h.src.hi ^ bits.RotateLeft64(h.dst.hi, 29)) * golden
	x = (x ^ x>>32 ^ h.src.lo ^ bits.RotateLeft64(h.dst.lo, 31)) * another
	x = (x ^ x>>32 ^ uint64(ports(b, h.family))) * golden
	return uint32(x >> 32) //nolint:gosec // 32 bits are left
}

// ports are those of b as one number, or 0.
func ports(b []byte, f subnet.Family) uint32 {
	proto, at := b[6], ipv6Header
	if f == subnet.IPv4 {
		if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 { // more fragments, or an offset
			return 0
		}
		proto, at = b[9], int(b[0]&0xf)*4
	}
	switch proto {
	case protoTCP, protoUDP, protoDCCP, protoSCTP, protoUDPLite:
		if len(b) >= at+4 {
			return binary.BigEndian.Uint32(b[at:])
		}
	}
	return 0
}
