package offload

import (
	"encoding/binary"
	"math/bits"
)

// Sum is a ones' complement sum on its way (RFC 1071): 64 bits with the carry
// brought back around, of words read as little-endian. Both are allowed, since
// 2^16-1 divides 2^64-1, and since a sum of swapped words is the swapped sum
// (RFC 1071, 2 B). Its zero value is the sum of nothing. Once it is not zero it
// never becomes zero again.
type Sum uint64

// Add adds the bytes of b, an odd last one padded with zero. So only the last
// of several pieces may have an odd length.
func (s Sum) Add(b []byte) Sum {
	s, b = s.addWide(b)
	return s.addNarrow(b)
}

// addNarrow is Add in words of 64 bits.
func (s Sum) addNarrow(b []byte) Sum {
	acc, carry, le := uint64(s), uint64(0), binary.LittleEndian
	for len(b) >= 64 {
		acc, carry = bits.Add64(acc, le.Uint64(b), 0)
		acc, carry = bits.Add64(acc, le.Uint64(b[8:]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[16:]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[24:]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[32:]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[40:]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[48:]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[56:]), carry)
		acc += carry // cannot carry again: the sum of two 64-bit words is below 2^65-1
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, le.Uint64(b), 0)
		acc += carry
		b = b[8:]
	}
	if len(b) > 0 {
		acc, carry = bits.Add64(acc, tail(b), 0)
		acc += carry
	}
	return Sum(acc)
}

// tail is the last word, of less than eight bytes.
func tail(b []byte) uint64 {
	word, shift, le := uint64(0), 0, binary.LittleEndian
	if len(b) >= 4 {
		word, shift = uint64(le.Uint32(b)), 32
		b = b[4:]
	}
	if len(b) >= 2 {
		word |= uint64(le.Uint16(b)) << shift
		shift += 16
		b = b[2:]
	}
	if len(b) == 1 {
		word |= uint64(b[0]) << shift
	}
	return word
}

// add64 adds a word that was read as little-endian.
func (s Sum) add64(word uint64) Sum {
	acc, carry := bits.Add64(uint64(s), word, 0)
	return Sum(acc + carry)
}

// Add16 adds the number v as it stands in a packet, big-endian.
func (s Sum) Add16(v uint16) Sum { return s.add64(uint64(bits.ReverseBytes16(v))) }

// Add32 is Add16 for a number of 32 bits.
func (s Sum) Add32(v uint32) Sum { return s.add64(uint64(bits.ReverseBytes32(v))) }

// Fold is the sum as a number of 16 bits, to be written big-endian. What a
// packet carries is its complement; the sum over all that a right one covers,
// itself included, is 0xffff.
func (s Sum) Fold() uint16 {
	acc := uint64(s)
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return bits.ReverseBytes16(uint16(acc)) // 2^32-1 folds to at most 0xffff in two steps
}
