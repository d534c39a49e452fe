package native

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// Registers. The kernel has sixteen of four bytes, of which four in a row have a
// name of sixteen bytes too; it lists a number of the second kind where one
// fits, so we write those.
const (
	reg1  = 1 // the first of sixteen bytes
	reg4b = 8 // the first of four bytes, in the same place
)

// at is the register for a part of a key that starts at a byte.
func at(offset int) uint32 {
	if offset%16 == 0 {
		return reg1 + uint32(offset/16) //nolint:gosec // a key has 32 bytes
	}
	return reg4b + uint32(offset/4) //nolint:gosec // a key has 32 bytes
}

// Numbers of the kernel.
const (
	protoUDP      = 17 // IPPROTO_UDP
	arpEther      = 1  // ARPHRD_ETHER
	typeLocal     = 2  // RTN_LOCAL
	interfaceName = 16 // IFNAMSIZ
)

// match is a condition: a packet that it does not hold for, or that is too
// short to tell, goes to the next rule.
type match []expr.Any

// field is a place in a packet.
type field struct {
	base           expr.PayloadBase
	offset, length uint32
}

// source and destination are the addresses of the packet itself.
func source(f subnet.Family) field {
	return [...]field{{network, 12, 4}, {network, 8, 16}}[f]
}

func destination(f subnet.Family) field {
	return [...]field{{network, 16, 4}, {network, 24, 16}}[f]
}

const (
	link      = expr.PayloadBaseLLHeader
	network   = expr.PayloadBaseNetworkHeader
	transport = expr.PayloadBaseTransportHeader
)

func (f field) load(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: f.base, Offset: f.offset, Len: f.length}
}

// is compares a field with a value.
func (f field) is(value ...byte) match {
	return match{f.load(reg1), compare(expr.CmpOpEq, value)}
}

// in and notIn tell whether an address is in a range.
func (f field) in(p netip.Prefix) match    { return f.compareCut(expr.CmpOpEq, p) }
func (f field) notIn(p netip.Prefix) match { return f.compareCut(expr.CmpOpNeq, p) }

func (f field) compareCut(op expr.CmpOp, p netip.Prefix) match {
	return match{f.load(reg1), masked(reg1, p), compare(op, p.Masked().Addr().AsSlice())}
}

// masked keeps the bits of a prefix.
func masked(reg uint32, p netip.Prefix) expr.Any {
	m := mask(p)
	return &expr.Bitwise{
		SourceRegister: reg, DestRegister: reg, Len: uint32(len(m)), //nolint:gosec // 4 or 16
		Mask: m, Xor: make([]byte, len(m)),
	}
}

func mask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

func compare(op expr.CmpOp, value []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg1, Data: value}
}

// comesBy and leavesBy tell the interface by its name, which it need not have yet.
func comesBy(name string) match  { return named(expr.MetaKeyIIFNAME, name) }
func leavesBy(name string) match { return named(expr.MetaKeyOIFNAME, name) }

func named(key expr.MetaKey, name string) match {
	value := make([]byte, interfaceName)
	copy(value, name)
	return match{&expr.Meta{Key: key, Register: reg1}, compare(expr.CmpOpEq, value)}
}

func isUDP() match {
	return match{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, compare(expr.CmpOpEq, []byte{protoUDP})}
}

// isEthernet makes nft show what follows as Ethernet's, too.
func isEthernet() match    { return interfaceType(expr.CmpOpEq) }
func isNotEthernet() match { return interfaceType(expr.CmpOpNeq) }

func interfaceType(op expr.CmpOp) match {
	value := binary.NativeEndian.AppendUint16(nil, arpEther)
	return match{&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: reg1}, compare(op, value)}
}

// noWayBack: the route to the source does not leave by the interface that the
// packet came in by (RFC 3704, 2.2, strict reverse path forwarding).
func noWayBack() match {
	return match{
		&expr.Fib{Register: reg1, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true, ResultOIF: true},
		// One byte on later kernels, four on earlier ones; the rest is zero.
		compare(expr.CmpOpEq, make([]byte, 4)),
	}
}

// sourceIsLocal: the source is an address of this host.
func sourceIsLocal() match {
	value := binary.NativeEndian.AppendUint32(nil, typeLocal)
	return match{
		&expr.Fib{Register: reg1, FlagSADDR: true, ResultADDRTYPE: true},
		compare(expr.CmpOpEq, value),
	}
}

// part is a piece of a set's key: a field, an address cut to a prefix's length
// where there is a range.
type part struct {
	field field
	cut   netip.Prefix
}

// lookedUp: the parts together are in a set.
func lookedUp(name string, parts ...part) match {
	var m match
	offset := 0
	for _, p := range parts {
		m = append(m, p.field.load(at(offset)))
		if p.cut.IsValid() {
			m = append(m, masked(at(offset), p.cut))
		}
		offset += int(p.field.length+3) / 4 * 4
	}
	return append(m, &expr.Lookup{SourceRegister: reg1, SetName: name})
}

// not inverts a match that ends in a set.
func not(m match) match {
	last := *m[len(m)-1].(*expr.Lookup) //nolint:forcetypeassert,errcheck // lookedUp makes no other
	last.Invert = true
	return append(m[:len(m)-1:len(m)-1], &last)
}

// What is done with a packet that matched.

func dropAs(reason string) []expr.Any {
	return []expr.Any{
		&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: reason},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

func returned() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

func gone(to string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: to}}
}

// translate gives the connection a source address.
func translate(f subnet.Family, to expr.Any, randomFully bool) []expr.Any {
	return []expr.Any{to, &expr.NAT{
		Type: expr.NATTypeSourceNAT, Family: uint32(family(f)),
		RegAddrMin: reg1, RegAddrMax: reg1, FullyRandom: randomFully,
	}}
}

// newRule joins conditions and what is done.
func newRule(f subnet.Family, comment string, action []expr.Any, conditions ...match) (rule, error) {
	r := rule{comment: comment}
	for _, c := range conditions {
		r.exprs = append(r.exprs, c...)
	}
	r.exprs = append(r.exprs, action...)
	var err error
	r.text, err = encode(f, r.comment, r.exprs)
	return r, err
}

// encode is what rules are compared by. Numbers of sets are those of one
// transaction and say nothing.
func encode(f subnet.Family, comment string, exprs []expr.Any) (string, error) {
	text := []byte(comment + "\x00")
	for _, e := range exprs {
		if l, ok := e.(*expr.Lookup); ok {
			plain := *l
			plain.SetID = 0
			e = &plain
		}
		b, err := expr.Marshal(byte(family(f)), e)
		if err != nil {
			return "", fmt.Errorf("encode expression: %w", err)
		}
		text = append(text, b...)
	}
	return string(text), nil
}
