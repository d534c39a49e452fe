package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Netlink's encoding, after include/uapi/linux/netlink.h. A datagram is a run of
// messages; a message is a header, a family's fixed header, and attributes:
//
//	| len u32 | type u16 | flags u16 | seq u32 | port u32 | fixed | attr | attr ...
//	                                                attr: | len u16 | type u16 | value | pad
//
// Everything is aligned to 4 bytes and in the host's byte order, but for what
// RFCs define (addresses, UDP ports).

// attrTypeMask cuts NLA_F_NESTED and NLA_F_NET_BYTEORDER off an attribute type.
const attrTypeMask = 0x3fff

// Attributes that x/sys/unix has no name for.
const rtaNHID = 30 // RTA_NH_ID, since Linux 5.3

var errMalformed = errors.New("malformed netlink message")

// align rounds up to the next attribute or message.
func align(n int) int { return (n + 3) &^ 3 }

// encoder writes messages into one buffer, which it keeps.
type encoder struct {
	b     []byte
	start int // of the message being written
}

func (e *encoder) reset() { e.b = e.b[:0] }

// begin starts a message with its fixed header; end sets its length.
func (e *encoder) begin(typ, flags uint16, fixed []byte) {
	e.start = len(e.b)
	var header [unix.SizeofNlMsghdr]byte
	e.b = append(e.b, header[:]...)
	binary.NativeEndian.PutUint16(e.b[e.start+4:], typ)
	binary.NativeEndian.PutUint16(e.b[e.start+6:], flags|unix.NLM_F_REQUEST)
	e.b = append(e.b, fixed...)
	e.pad()
}

func (e *encoder) end(seq uint32) {
	binary.NativeEndian.PutUint32(e.b[e.start:], uint32(len(e.b)-e.start))
	binary.NativeEndian.PutUint32(e.b[e.start+8:], seq)
}

// addFlags adds flags to the last message.
func (e *encoder) addFlags(flags uint16) {
	old := binary.NativeEndian.Uint16(e.b[e.start+6:])
	binary.NativeEndian.PutUint16(e.b[e.start+6:], old|flags)
}

// setFixed sets a u32 of the last message's fixed header.
func (e *encoder) setFixed(offset int, v uint32) {
	binary.NativeEndian.PutUint32(e.b[e.start+unix.SizeofNlMsghdr+offset:], v)
}

func (e *encoder) pad() {
	for len(e.b)%4 != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) bytes(typ uint16, v []byte) {
	at := e.nest(typ)
	e.b = append(e.b, v...)
	e.endNest(at)
}

func (e *encoder) str(typ uint16, v string) { e.bytes(typ, append([]byte(v), 0)) }

func (e *encoder) u8(typ uint16, v uint8) { e.bytes(typ, []byte{v}) }

func (e *encoder) u32(typ uint16, v int) {
	at := e.nest(typ)
	e.b = binary.NativeEndian.AppendUint32(e.b, uint32(v))
	e.endNest(at)
}

func (e *encoder) addr(typ uint16, a netip.Addr) {
	at := e.nest(typ)
	if a.Is4() {
		v := a.As4()
		e.b = append(e.b, v[:]...)
	} else {
		v := a.As16()
		e.b = append(e.b, v[:]...)
	}
	e.endNest(at)
}

// nest starts an attribute, endNest sets its length.
func (e *encoder) nest(typ uint16) int {
	at := len(e.b)
	e.b = append(e.b, 0, 0)
	e.b = binary.NativeEndian.AppendUint16(e.b, typ)
	return at
}

func (e *encoder) endNest(at int) {
	binary.NativeEndian.PutUint16(e.b[at:], uint16(len(e.b)-at))
	e.pad()
}

// message is one received message; its data lies in the receive buffer.
type message struct {
	typ, flags uint16
	seq, port  uint32
	data       []byte
}

// nextMessage cuts the first message off b.
func nextMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return m, nil, fmt.Errorf("%w: %d bytes left", errMalformed, len(b))
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < unix.SizeofNlMsghdr || n > len(b) {
		return m, nil, fmt.Errorf("%w: length %d of %d", errMalformed, n, len(b))
	}
	m = message{
		typ:   binary.NativeEndian.Uint16(b[4:]),
		flags: binary.NativeEndian.Uint16(b[6:]),
		seq:   binary.NativeEndian.Uint32(b[8:]),
		port:  binary.NativeEndian.Uint32(b[12:]),
		data:  b[unix.SizeofNlMsghdr:n],
	}
	return m, b[min(align(n), len(b)):], nil
}

// status is the result in an NLMSG_ERROR or NLMSG_DONE message: nil for an
// acknowledgement.
func (m message) status() error {
	if len(m.data) < 4 {
		return nil // kernels before 4.13 end some dumps with an empty message
	}
	code := int32(binary.NativeEndian.Uint32(m.data))
	if code == 0 {
		return nil
	}
	return &Error{Code: syscall.Errno(-code), Message: m.extended()}
}

// extended returns the text of the extended acknowledgement. In NLMSG_ERROR it
// stands behind the refused message's header (and body, if not capped), in
// NLMSG_DONE right behind the code.
func (m message) extended() string {
	if m.flags&unix.NLM_F_ACK_TLVS == 0 {
		return ""
	}
	tlvs := m.data[4:]
	if m.typ == unix.NLMSG_ERROR {
		if len(tlvs) < unix.SizeofNlMsghdr {
			return ""
		}
		skip := unix.SizeofNlMsghdr
		if m.flags&unix.NLM_F_CAPPED == 0 {
			skip = align(int(binary.NativeEndian.Uint32(tlvs)))
		}
		if skip < 0 || skip > len(tlvs) {
			return ""
		}
		tlvs = tlvs[skip:]
	}
	var text string
	_ = eachAttr(tlvs, func(typ uint16, v []byte) { // a damaged text is no text
		if typ == unix.NLMSGERR_ATTR_MSG {
			text = str(v)
		}
	})
	return text
}

// eachAttr calls f for the attributes in b. Values lie in b.
func eachAttr(b []byte, f func(typ uint16, v []byte)) error {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return fmt.Errorf("%w: attribute of %d bytes in %d", errMalformed, n, len(b))
		}
		f(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[unix.SizeofRtAttr:n])
		b = b[min(align(n), len(b)):]
	}
	return nil
}

// The readers of values give zero for a value of another size: the kernel's
// types do not change, and a wrong one must not end in a panic.

func u8(v []byte) uint8 {
	if len(v) < 1 {
		return 0
	}
	return v[0]
}

func u16be(v []byte) int {
	if len(v) < 2 {
		return 0
	}
	return int(binary.BigEndian.Uint16(v))
}

func u32(v []byte) int {
	if len(v) < 4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(v))
}

func ip(v []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(v) // another size: the invalid address
	return a
}

func mac(v []byte) (m MAC) {
	if len(v) == len(m) {
		copy(m[:], v)
	}
	return m
}

func str(v []byte) string { return unix.ByteSliceToString(v) }

// family is the kernel's number of a's family.
func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
