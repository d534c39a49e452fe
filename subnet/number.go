package subnet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// number is an unsigned 128-bit integer: an address of either family to
// calculate with, or a count of subnets.
type number struct{ hi, lo uint64 }

// numberOf is a as a number; IPv4 addresses are below 2^32.
func numberOf(a netip.Addr) number {
	if a.Is4() {
		b := a.As4()
		return number{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return number{hi: binary.BigEndian.Uint64(b[:8]), lo: binary.BigEndian.Uint64(b[8:])}
}

// addr is n as an address of the same family as like.
func (n number) addr(like netip.Addr) netip.Addr {
	if like.Is4() {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(n.lo))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b)
}

func (n number) add(m number) number {
	lo, carry := bits.Add64(n.lo, m.lo, 0)
	hi, _ := bits.Add64(n.hi, m.hi, carry)
	return number{hi, lo}
}

func (n number) sub(m number) number {
	lo, borrow := bits.Sub64(n.lo, m.lo, 0)
	hi, _ := bits.Sub64(n.hi, m.hi, borrow)
	return number{hi, lo}
}

func (n number) shl(k uint) number {
	if k >= 64 {
		return number{hi: n.lo << (k - 64)}
	}
	return number{hi: n.hi<<k | n.lo>>(64-k), lo: n.lo << k}
}

func (n number) shr(k uint) number {
	if k >= 64 {
		return number{lo: n.hi >> (k - 64)}
	}
	return number{hi: n.hi >> k, lo: n.lo>>k | n.hi<<(64-k)}
}
