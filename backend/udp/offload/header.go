package offload

import "encoding/binary"

// HeaderSize is the length of struct virtio_net_hdr.
const HeaderSize = 10

// Kind says what a large packet stands for, as VIRTIO_NET_HDR_GSO_* does.
type Kind uint8

const (
	None Kind = 0 // an ordinary packet
	TCP4 Kind = 1 // TCP segments over IPv4
	TCP6 Kind = 4 // TCP segments over IPv6
	UDP  Kind = 5 // UDP datagrams over either (USO, "UDP_L4")

	// ECN is added to TCP4 and TCP6 if CWR is set, which only the first
	// segment keeps (RFC 3168, 6.1.2).
	ECN Kind = 0x80
)

// The flags of a header, VIRTIO_NET_HDR_F_*.
const (
	NeedsSum  = 1 // the packet has a partial sum
	DataValid = 2 // somebody verified the sum
)

// Header is struct virtio_net_hdr, which stands before each packet that goes
// through a device with IFF_VNET_HDR.
type Header struct {
	Flags       uint8
	GSO         Kind
	HeaderLen   uint16 // what the kernel should keep in one piece; read, it is a hint without worth
	SegmentSize uint16
	SumStart    uint16 // where the bytes begin that the sum is over; they reach to the end
	SumOffset   uint16 // where the sum goes, counted from SumStart
}

// ParseHeader reads the header at the start of b. It is false if b is too short.
func ParseHeader(b []byte) (Header, bool) {
	if len(b) < HeaderSize {
		return Header{}, false
	}
	host := binary.NativeEndian
	return Header{
		Flags:       b[0],
		GSO:         Kind(b[1]),
		HeaderLen:   host.Uint16(b[2:]),
		SegmentSize: host.Uint16(b[4:]),
		SumStart:    host.Uint16(b[6:]),
		SumOffset:   host.Uint16(b[8:]),
	}, true
}

// Put writes h to the first HeaderSize bytes of b.
func (h Header) Put(b []byte) {
	host, b := binary.NativeEndian, b[:HeaderSize]
	b[0], b[1] = h.Flags, uint8(h.GSO)
	host.PutUint16(b[2:], h.HeaderLen)
	host.PutUint16(b[4:], h.SegmentSize)
	host.PutUint16(b[6:], h.SumStart)
	host.PutUint16(b[8:], h.SumOffset)
}
