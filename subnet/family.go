package subnet

import "net/netip"

// Family is an address family. It is data: it indexes a [ByFamily], and no
// function exists twice because of it.
type Family uint8

// The families, in the order in which everything is listed and printed.
const (
	IPv4 Family = iota
	IPv6
)

// Families lists both families in order, for range loops.
func Families() [2]Family { return [2]Family{IPv4, IPv6} }

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// Bits is the length of an address of the family: 32 or 128.
func (f Family) Bits() int {
	if f == IPv6 {
		return 128
	}
	return 32
}

// FamilyOf returns the family of a, which must be valid. An IPv4-mapped IPv6
// address counts as IPv4.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// ByFamily holds one value per family, indexed by [Family]. The zero T means
// that the family is off.
type ByFamily[T any] [2]T
