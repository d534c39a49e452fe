package udp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// ErrPortTaken: another program has our UDP port.
var ErrPortTaken = errors.New("udp port is taken")

// socketBuffer is asked for in bytes, in each direction: 3 ms at 10 Gb/s.
const socketBuffer = 4 << 20

// socket is a Conn of the kernel.
//
// Its calls run in the runtime's poller, so closing ends them. What they need
// stands in it, made once, so that a call allocates nothing.
type socket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	// segment: messages of several datagrams go with one call (UDP_SEGMENT).
	// It is given up when the way to a peer cannot do it.
	segment atomic.Bool
	gro     bool
	in      incoming
	out     outgoing
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32 // bytes moved
	_ [4]byte
}

// control holds one control message with a number of up to four bytes.
type control [24]byte

// incoming is a call of recvmmsg in progress.
type incoming struct {
	n     int
	err   error
	ready func(fd uintptr) bool

	most    int // messages
	headers [arrivalsMost]mmsghdr
	from    [arrivalsMost]unix.RawSockaddrInet6 // of either family
	data    [arrivalsMost]unix.Iovec
	control [arrivalsMost]control
}

// outgoing is a call of sendmmsg in progress.
type outgoing struct {
	n, sent int
	err     error
	ready   func(fd uintptr) bool

	headers [messagesMost]mmsghdr
	to      [messagesMost]unix.RawSockaddrInet6
	parts   [partsMost]unix.Iovec
	control [messagesMost]control
}

// openSocket binds at, in the network namespace of the calling thread.
//
// It is bound to the uplink's address, as flannel's is, and not to all: so what
// leaves has the source address that peers check, and two daemons with two
// addresses can share a host.
//
// Whole asks for no offloads: each call moves one datagram for each header.
func openSocket(ctx context.Context, at netip.AddrPort, whole bool) (*socket, error) {
	lc := net.ListenConfig{Control: enlarge}
	network := [...]string{"udp4", "udp6"}[subnet.FamilyOf(at.Addr())]
	conn, err := lc.ListenPacket(ctx, network, at.String())
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("%w: %s: stop the program that has it (`ss -lunp sport = :%d` shows it; flanneld uses this port too) or set Backend.Port: %w",
			ErrPortTaken, at, at.Port(), err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("bind udp socket: the uplink has lost its address %s: %w", at.Addr(), err)
	case err != nil:
		return nil, fmt.Errorf("bind udp socket: %w", err)
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("bind udp socket: unexpected %T", conn), conn.Close())
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("poll udp socket: %w", err), udp.Close())
	}
	s := &socket{conn: udp, raw: raw}
	s.in.ready, s.out.ready = s.receive, s.send
	if !whole {
		return s, s.enableOffloads()
	}
	return s, nil
}

// enlarge gives the socket large buffers, beyond rmem_max where we may. That it
// cannot be done costs bursts, not correctness.
func enlarge(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		for _, o := range [...]struct{ force, ask int }{
			{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF},
			{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
		} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o.force, socketBuffer) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o.ask, socketBuffer)
			}
		}
	})
}

// enableOffloads turns on what the kernel has: UDP_SEGMENT is Linux 4.18,
// UDP_GRO 5.0.
func (s *socket) enableOffloads() error {
	return s.raw.Control(func(fd uintptr) {
		_, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT)
		s.segment.Store(err == nil)
		s.gro = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1) == nil
	})
}

// ReadBatch implements [Conn].
func (s *socket) ReadBatch(batch []Arrival) (int, error) {
	c := &s.in
	c.n, c.err, c.most = 0, nil, min(len(batch), arrivalsMost)
	for i := range c.most {
		b := batch[i].Data[:cap(batch[i].Data)]
		c.data[i] = unix.Iovec{Base: &b[0], Len: uint64(len(b))}
		c.headers[i].Msghdr = unix.Msghdr{
			Name: (*byte)(unsafe.Pointer(&c.from[i])), Namelen: unix.SizeofSockaddrInet6,
			Iov: &c.data[i], Iovlen: 1,
			Control: &c.control[i][0], Controllen: uint64(len(c.control[i])),
		}
	}
	if err := s.raw.Read(c.ready); err != nil {
		return 0, err
	}
	if c.err != nil {
		return 0, c.err
	}
	for i := range c.n {
		a, h := &batch[i], &c.headers[i]
		a.Data = a.Data[:h.n]
		a.Size = groSize(h, &c.control[i], len(a.Data))
		a.From = addrPort(&c.from[i])
	}
	return c.n, nil
}

func (s *socket) receive(fd uintptr) bool {
	c := &s.in
	for {
		n, _, err := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&c.headers[0])), uintptr(c.most), 0, 0, 0)
		switch err {
		case 0:
			c.n = int(n)
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			c.err = err
			return true
		}
	}
}

// groSize is the length of the datagrams that the kernel joined: udp(7), UDP_GRO.
// Without the control message there is one.
func groSize(h *mmsghdr, c *control, all int) int {
	cm := (*unix.Cmsghdr)(unsafe.Pointer(c))
	if h.Controllen >= uint64(unix.CmsgLen(4)) && cm.Level == unix.SOL_UDP && cm.Type == unix.UDP_GRO {
		if size := int(binary.NativeEndian.Uint32(c[unix.CmsgLen(0):])); size > 0 {
			return size
		}
	}
	return max(all, 1)
}

// WriteBatch implements [Conn].
func (s *socket) WriteBatch(batch []Message) (int, error) {
	c := &s.out
	for done := 0; done < len(batch); {
		if m := &batch[done]; m.Packets > 1 && !s.segment.Load() {
			if err := s.sendApart(m); err != nil {
				return done, err
			}
			done++
			continue
		}
		c.fill(batch[done:], s.segment.Load())
		err := s.flush()
		done += c.sent
		switch {
		case err == nil:
		case batch[done].Packets > 1 && (errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL)):
			// EIO: the way out cannot complete sums (udp(7)). EINVAL: its
			// MTU is smaller; alone, the datagrams are fragmented.
			if errors.Is(err, unix.EIO) {
				s.segment.Store(false)
			}
			if err := s.sendApart(&batch[done]); err != nil {
				return done, err
			}
			done++
		default:
			return done, err
		}
	}
	return len(batch), nil
}

// flush sends what is filled in. The error is about the message after those sent.
func (s *socket) flush() error {
	c := &s.out
	c.sent, c.err = 0, nil
	if err := s.raw.Write(c.ready); err != nil {
		return err
	}
	return c.err
}

func (s *socket) send(fd uintptr) bool {
	c := &s.out
	for c.sent < c.n {
		n, _, err := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&c.headers[c.sent])), uintptr(c.n-c.sent), 0, 0, 0)
		switch err {
		case 0:
			c.sent += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			c.err = err
			return true
		}
	}
	return true
}

// sendApart sends the datagrams of m with a header each.
func (s *socket) sendApart(m *Message) error {
	var (
		c     = &s.out
		one   = Message{To: m.To, Packets: 1}
		begin int
	)
	for i := range m.Parts {
		one.Size += len(m.Parts[i])
		if one.Size < m.Size && i+1 < len(m.Parts) {
			continue
		}
		one.Parts, one.Bytes = m.Parts[begin:i+1], one.Size
		c.n = 0
		c.add(&one, 0)
		if err := s.flush(); err != nil {
			return err
		}
		begin, one.Size = i+1, 0
	}
	return nil
}

// fill prepares as many messages as there is room for, at least one; several
// datagrams only with segment.
func (c *outgoing) fill(batch []Message, segment bool) {
	c.n = 0
	used := 0
	for i := range batch {
		m := &batch[i]
		if c.n == len(c.headers) || used+len(m.Parts) > len(c.parts) || m.Packets > 1 && !segment {
			return
		}
		used = c.add(m, used)
	}
}

// add prepares m, whose parts stand from used on.
func (c *outgoing) add(m *Message, used int) int {
	parts := c.parts[used : used+len(m.Parts)]
	for i, b := range m.Parts {
		parts[i] = unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
	}
	h := &c.headers[c.n].Msghdr
	*h = unix.Msghdr{
		Name: (*byte)(unsafe.Pointer(&c.to[c.n])), Namelen: putAddrPort(&c.to[c.n], m.To),
		Iov: &parts[0], Iovlen: uint64(len(parts)),
	}
	if m.Packets > 1 {
		ctl := &c.control[c.n]
		*(*unix.Cmsghdr)(unsafe.Pointer(ctl)) = unix.Cmsghdr{
			Len: uint64(unix.CmsgLen(2)), Level: unix.SOL_UDP, Type: unix.UDP_SEGMENT,
		}
		binary.NativeEndian.PutUint16(ctl[unix.CmsgLen(0):], uint16(m.Size)) //nolint:gosec // at most maxDatagram
		h.Control, h.Controllen = &ctl[0], uint64(unix.CmsgSpace(2))
	}
	c.n++
	return used + len(parts)
}

// addrPort reads a sockaddr of either family; both begin with family and port.
func addrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port)
}

// putAddrPort writes a sockaddr of the family of a and returns its length.
func putAddrPort(sa *unix.RawSockaddrInet6, a netip.AddrPort) uint32 {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], a.Port())
	if a.Addr().Is4() {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		sa4.Family, sa4.Addr = unix.AF_INET, a.Addr().As4()
		return unix.SizeofSockaddrInet4
	}
	sa.Family, sa.Addr, sa.Flowinfo, sa.Scope_id = unix.AF_INET6, a.Addr().As16(), 0, 0
	return unix.SizeofSockaddrInet6
}

// Close implements [Conn].
func (s *socket) Close() error {
	if err := s.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close udp socket: %w", err)
	}
	return nil
}

// rawSockets is the kernel's Injector: a socket per family that sends packets
// with headers of their own and receives nothing (raw(7), IPPROTO_RAW).
type rawSockets subnet.ByFamily[*net.IPConn]

// openRaw opens the sockets of families. What cannot be opened stays nil, with
// the reason in the joined error: answers are then not sent.
func openRaw(ctx context.Context, families []subnet.Family) (*rawSockets, error) {
	var (
		s    rawSockets
		errs []error
	)
	for _, f := range families {
		network := [...]string{"ip4:255", "ip6:255"}[f]
		conn, err := new(net.ListenConfig).ListenPacket(ctx, network, "")
		if raw, ok := conn.(*net.IPConn); ok && err == nil {
			s[f] = raw
		}
		errs = append(errs, err)
	}
	return &s, errors.Join(errs...)
}

// errNoRaw: see openRaw.
var errNoRaw = errors.New("no raw socket")

// Inject implements [Injector].
func (s *rawSockets) Inject(packet []byte, dst netip.Addr) error {
	conn := s[subnet.FamilyOf(dst)]
	if conn == nil {
		return errNoRaw
	}
	_, err := conn.WriteToIP(packet, &net.IPAddr{IP: dst.AsSlice()})
	return err
}

// Close closes both sockets.
func (s *rawSockets) Close() error {
	var errs []error
	for _, conn := range s {
		if conn != nil {
			errs = append(errs, conn.Close())
		}
	}
	return errors.Join(errs...)
}
