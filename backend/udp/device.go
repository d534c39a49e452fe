package udp

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
)

const (
	// maxPacket is the largest IP packet.
	maxPacket = 65535
	// maxDatagram is the largest payload of a UDP datagram over IPv4. Over
	// IPv6 it is larger, which nobody needs.
	maxDatagram = maxPacket - ipv4Header - udpHeader
	// maxSegments is how many datagrams one call may send to one receiver:
	// UDP_MAX_SEGMENTS of the oldest kernel that has UDP_SEGMENT (4.18).
	maxSegments = 64
)

// errGone is what a Device's methods return, wrapped, once it exists no longer:
// closed by us, or deleted by somebody else.
var errGone = errors.New("tun device is gone")

// Device is one queue of a TUN device. The kernel keeps a flow on one queue. One goroutine may read while others
// write; any may close.
type Device interface {
	// Read blocks until there is a packet, then takes what is there without
	// blocking again, as long as f has room. It returns without an error
	// only if f has at least one frame. errGone is final, all other errors
	// may pass.
	Read(f *Frames) error
	// Writer returns one more way to write to the device.
	Writer() Writer
	// Close ends pending calls with errGone. It is idempotent.
	Close() error
}

// Writer writes to one queue of a TUN device, for one goroutine.
type Writer interface {
	// Write hands a packet to the kernel, one of the wire or several joined.
	// It does not block. errGone is final.
	Write(packet offload.Joined) error
}

// Conn is one UDP socket, bound to our outer address and port. One goroutine may
// read while another writes; any may close.
type Conn interface {
	// ReadBatch blocks until there is a datagram, then takes what is there
	// without blocking again, up to len(batch) arrivals, and returns how many
	// it read: at least one unless there is an error. net.ErrClosed is final,
	// all other errors may pass.
	ReadBatch(batch []Arrival) (int, error)
	Sender
}

// Sender is a UDP socket to send from, bound to our outer address.
type Sender interface {
	// WriteBatch sends messages in order until one fails. It returns how many
	// it sent; if fewer than len(batch), the error is about the one that
	// follows. Of a message that counts as sent, Failed is what was refused all
	// the same: its datagrams may be sent one by one. It may block while the
	// socket's buffer is full.
	WriteBatch(batch []Message) (int, error)
	// Close ends pending calls with net.ErrClosed. It is idempotent.
	Close() error
}

// Arrival is what one receiver's buffer holds: datagrams from one sender, as many
// as the kernel had joined (UDP_GRO).
//
// The owner of a batch owns its buffers. It lends them for the duration of a
// call; nobody keeps a reference to Data after returning. A read fills
// Data[:cap(Data)] and cuts Data to what it read.
type Arrival struct {
	Data []byte
	// Size is the length of each datagram in Data; only the last may be
	// shorter.
	Size int
	From netip.AddrPort
}

// Message is datagrams for one receiver, to be sent with one call where the
// kernel can (UDP_SEGMENT): up to maxSegments, up to maxDatagram bytes.
type Message struct {
	To netip.AddrPort
	// Source is the number of the socket that it leaves by: 0 is the one with
	// our port.
	Source int
	// Parts are the datagrams' bytes, one behind the other; a datagram begins
	// where a part does.
	Parts [][]byte
	// Size is the length of each datagram; only the last may be shorter.
	Size int
	// Packets is how many datagrams there are, Bytes what they hold.
	Packets, Bytes int
	// Failed is how many of them were refused alone, FailedBytes what those hold:
	// see WriteBatch.
	Failed, FailedBytes int
}

// fail notes that datagram number i was refused.
func (m *Message) fail(i int) {
	m.Failed++
	m.FailedBytes += min(m.Size, m.Bytes-i*m.Size)
}

// newArrivals returns arrivals with a buffer for any datagrams each. The buffers
// are parts of one slab of fresh pages, of which only those ever written to become
// resident.
func newArrivals(n int) []Arrival {
	slab := make([]byte, n*maxPacket)
	batch := make([]Arrival, n)
	for i := range batch {
		at := i * maxPacket
		batch[i].Data = slab[at : at+maxPacket : at+maxPacket]
	}
	return batch
}

// Frame is one packet of a device, perhaps a large one that stands for many.
type Frame struct {
	Header offload.Header
	Data   []byte
}

// Frames are what one read of a device takes. Its packets lie in one slab, each
// where the one before ends, so that many small ones stay in the processor's
// cache and one large one always fits.
type Frames struct {
	List []Frame
	slab []byte
	used int
}

// Frames hold as many packets, or about as many bytes.
const (
	framesMost = 64
	framesSlab = 8 * maxPacket
)

func newFrames() *Frames {
	return &Frames{List: make([]Frame, 0, framesMost), slab: make([]byte, framesSlab)}
}

// Reset forgets the frames, whose buffers are then used again.
func (f *Frames) Reset() { f.List, f.used = f.List[:0], 0 }

// Room is where a read may put the next packet with the vnet header in front;
// nil: nothing more fits.
func (f *Frames) Room() []byte {
	if len(f.List) == cap(f.List) || len(f.slab)-f.used < offload.HeaderSize+maxPacket {
		return nil
	}
	return f.slab[f.used:]
}

// Add notes that a read filled the first n bytes of Room. It is false for what is
// too short to be a packet, which is then as if it had not been read.
func (f *Frames) Add(n int) bool {
	at := f.slab[f.used : f.used+n : f.used+n]
	h, ok := offload.ParseHeader(at)
	if !ok {
		return false
	}
	f.List = append(f.List, Frame{Header: h, Data: at[offload.HeaderSize:]})
	f.used += n
	return true
}

// slot holds the device that the loops use at present, with all its queues. Apply
// puts a new one when the old one was deleted; loops that found their queue gone
// wait here for the next.
//
//	Apply --put(A)----------------------put(B)-->
//	            \                          \
//	loop 0       next -> A[0] ... errGone, next -> B[0] ...
//	loop 1       next -> A[1] ... errGone, next -> B[1] ...
type slot struct {
	current atomic.Pointer[generation]
}

// generation is a device for as long as it is the slot's.
type generation struct {
	queues   []Device // none: there is no device
	replaced chan struct{}
}

func newSlot() *slot {
	s := new(slot)
	s.current.Store(&generation{replaced: make(chan struct{})})
	return s
}

// put makes the device with these queues the current one; without any there is
// none.
func (s *slot) put(queues ...Device) {
	old := s.current.Swap(&generation{queues: queues, replaced: make(chan struct{})})
	close(old.replaced)
}

// get returns queue number i of the current device, or nil.
func (s *slot) get(i int) Device { return s.current.Load().queue(i) }

func (g *generation) queue(i int) Device {
	if i >= len(g.queues) {
		return nil
	}
	return g.queues[i]
}

// next blocks until there is a queue number i other than old, or until ctx ends.
func (s *slot) next(ctx context.Context, i int, old Device) (Device, error) {
	for {
		g := s.current.Load()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if d := g.queue(i); d != nil && d != old {
			return d, nil
		}
		select {
		case <-g.replaced:
		case <-ctx.Done():
		}
	}
}
