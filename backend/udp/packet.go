package udp

import (
	"encoding/binary"
	"net/netip"

	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	ipv4Header = 20 // RFC 791, without options
	ipv6Header = 40 // RFC 8200
	udpHeader  = 8  // RFC 768
)

// address is an IP address as a number. Of an IPv4 address only the low 32 bits
// of lo are used; which family it is of stands beside it.
type address struct{ hi, lo uint64 }

// addressOf converts a, which must be valid.
func addressOf(a netip.Addr) address {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return address{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// addr is the opposite of addressOf.
func (a address) addr(f subnet.Family) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	if f == subnet.IPv4 {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

// and keeps the bits of a that are set in m.
func (a address) and(m address) address { return address{a.hi & m.hi, a.lo & m.lo} }

// ipv4 is a as a number of 32 bits.
func (a address) ipv4() uint32 { return uint32(a.lo) } //nolint:gosec // no others are used

// maskOf has the leading bits set, counted as the family counts them.
func maskOf(f subnet.Family, bits int) address {
	if f == subnet.IPv4 {
		return address{lo: uint64(^uint32(0)) << (32 - bits) & uint64(^uint32(0))}
	}
	if bits <= 64 {
		return address{hi: ^uint64(0) << (64 - bits)}
	}
	return address{hi: ^uint64(0), lo: ^uint64(0) << (128 - bits)}
}

// multicast reports whether packets to a may have several receivers; IPv4's
// limited broadcast is one of these.
func (a address) multicast(f subnet.Family) bool {
	if f == subnet.IPv4 {
		return a.lo>>28 == 0xe || a.lo == uint64(^uint32(0))
	}
	return a.hi>>56 == 0xff
}

// header is what forwarding needs to know of an IP header.
type header struct {
	family   subnet.Family
	hops     uint8 // TTL or hop limit, as received
	whole    bool  // must not be fragmented on its way
	src, dst address
}

// parse reads the IP header at the start of b. It is false unless b is exactly
// one packet: a length field that says less or more than b has is a lie, for
// neither TUN nor UDP pads.
func parse(b []byte) (header, bool) {
	if len(b) < ipv4Header {
		return header{}, false
	}
	switch b[0] >> 4 {
	case 4:
		return parseIPv4(b)
	case 6:
		return parseIPv6(b)
	}
	return header{}, false
}

func parseIPv4(b []byte) (header, bool) {
	be := binary.BigEndian
	length, options := int(be.Uint16(b[2:])), int(b[0]&0xf)*4
	if length != len(b) || options < ipv4Header || options > length {
		return header{}, false
	}
	return header{
		family: subnet.IPv4,
		hops:   b[8],
		whole:  b[6]&0x40 != 0,
		src:    address{lo: uint64(be.Uint32(b[12:]))},
		dst:    address{lo: uint64(be.Uint32(b[16:]))},
	}, true
}

func parseIPv6(b []byte) (header, bool) {
	be := binary.BigEndian
	if len(b) < ipv6Header || ipv6Header+int(be.Uint16(b[4:])) != len(b) {
		return header{}, false
	}
	return header{
		family: subnet.IPv6,
		hops:   b[7],
		whole:  true, // routers never fragment IPv6
		src:    address{be.Uint64(b[8:]), be.Uint64(b[16:])},
		dst:    address{be.Uint64(b[24:]), be.Uint64(b[32:])},
	}, true
}

// lowerHops takes one from the TTL or hop limit of b, which parse accepted and
// whose hops are not zero. IPv4's checksum follows incrementally (RFC 1624,
// equation 3), so a header that was damaged before stays as damaged as it was,
// and its receiver finds out.
func lowerHops(b []byte, f subnet.Family) {
	if f == subnet.IPv6 {
		b[7]--
		return
	}
	be := binary.BigEndian
	old := uint32(be.Uint16(b[8:]))
	b[8]--
	now := uint32(be.Uint16(b[8:]))
	be.PutUint16(b[10:], ^fold(uint32(^be.Uint16(b[10:]))+(^old&0xffff)+now))
}

// sum adds the 16-bit words of b to acc, an odd last byte padded with zero
// (RFC 1071). Acc holds the carries of up to 64 KiB.
func sum(b []byte, acc uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		acc += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	return acc
}

// fold brings the carries of a sum back into its 16 bits.
func fold(acc uint32) uint16 {
	for acc>>16 != 0 {
		acc = acc&0xffff + acc>>16
	}
	return uint16(acc) //nolint:gosec // the loop ends below 2^16
}
