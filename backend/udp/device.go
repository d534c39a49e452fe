package udp

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
)

const (
	// batchSize is how many packets one call moves at most.
	batchSize = 64
	// maxPacket is the largest IP packet.
	maxPacket = 65535
	// maxDatagram is the largest payload of a UDP datagram over IPv4.
	maxDatagram = maxPacket - ipv4Header - udpHeader
)

// errGone is what a Device's methods return, wrapped, once it exists no longer:
// closed by us, or deleted by somebody else.
var errGone = errors.New("tun device is gone")

// Packet is an element of a batch: one whole inner IP packet.
//
// The owner of a batch owns its buffers. It lends them for the duration of a
// call; nobody keeps a reference to Data after returning.
type Packet struct {
	// Data is the packet. A read fills Data[:cap(Data)] and cuts Data to what
	// it read; so a batch can be read into again and again. A write does not
	// change it.
	Data []byte
	// Outer is the other end of the tunnel: the sender of a packet read from
	// a Conn, the receiver of one written to it. A Device ignores it.
	Outer netip.AddrPort
}

// Device is one queue of a TUN device. One goroutine may read while another
// writes; any may close.
type Device interface {
	// Read blocks until there is a packet, then takes what is there without
	// blocking again, up to len(batch), and returns how many it read: at
	// least one unless there is an error. errGone is final, all other errors
	// may pass.
	Read(batch []Packet) (int, error)
	// Write hands packets to the kernel in order until one fails. It returns
	// how many it wrote; if fewer than len(batch), the error is about the
	// packet that follows. It does not block. errGone is final.
	Write(batch []Packet) (int, error)
	// Close ends pending calls with errGone. It is idempotent.
	Close() error
}

// Conn is one UDP socket, bound to our outer address and port.
type Conn interface {
	// ReadBatch is Read of Device, with datagrams. It also sets Outer.
	// net.ErrClosed is final, all other errors may pass.
	ReadBatch(batch []Packet) (int, error)
	// WriteBatch is Write of Device: it sends each Data to its Outer. It may
	// block while the socket's buffer is full.
	WriteBatch(batch []Packet) (int, error)
	// Close ends pending calls with net.ErrClosed. It is idempotent.
	Close() error
}

// newBatch returns packets with a buffer for any IP packet each. The buffers are
// parts of one slab of fresh pages, of which only those ever written to become
// resident.
func newBatch(n int) []Packet {
	slab := make([]byte, n*maxPacket)
	batch := make([]Packet, n)
	for i := range batch {
		at := i * maxPacket
		batch[i].Data = slab[at : at+maxPacket : at+maxPacket]
	}
	return batch
}

// slot holds the device that the loops use at present. Apply puts a new one when
// the old one was deleted; loops that found theirs gone wait here for the next.
//
//	Apply --put(A)------------------put(B)-->
//	            \                      \
//	loop         next -> A ... errGone, next -> B ...
type slot struct {
	current atomic.Pointer[generation]
}

// generation is a device for as long as it is the slot's.
type generation struct {
	device   Device // nil: there is none
	replaced chan struct{}
}

func newSlot() *slot {
	s := new(slot)
	s.current.Store(&generation{replaced: make(chan struct{})})
	return s
}

// put makes d, which may be nil, the current device.
func (s *slot) put(d Device) {
	old := s.current.Swap(&generation{device: d, replaced: make(chan struct{})})
	close(old.replaced)
}

// get returns the current device or nil.
func (s *slot) get() Device { return s.current.Load().device }

// next blocks until there is a device other than old, or until ctx ends.
func (s *slot) next(ctx context.Context, old Device) (Device, error) {
	for {
		g := s.current.Load()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if g.device != nil && g.device != old {
			return g.device, nil
		}
		select {
		case <-g.replaced:
		case <-ctx.Done():
		}
	}
}
