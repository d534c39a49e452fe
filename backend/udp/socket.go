package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is a Conn of the kernel.
//
// Its calls never block, and are made without telling Go's scheduler: see Cost. What they
// need stands in the socket, made once, so that a call allocates nothing.
type socket struct {
	raw *handle
	// at is what it is bound to.
	at netip.AddrPort
	// level is shared with the other sockets.
	level *socketLevel
	in    incoming
	out   outgoing
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32 // bytes moved
}

// ancillary holds one control message with a number of up to four bytes, aligned
// as struct cmsghdr is.
type ancillary struct {
	unix.Cmsghdr
	data [8]byte
}

// vector is b as the kernel takes it.
func vector(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

// incoming is a call of recvmmsg in progress.
type incoming struct {
	n     int
	err   error
	ready func(fd uintptr) bool

	most    int // messages
	headers [arrivalsMost]mmsghdr
	from    [arrivalsMost]unix.RawSockaddrInet6 // of either family
	data    [arrivalsMost]unix.Iovec
	control [arrivalsMost]ancillary
}

// outgoing is a call of sendmmsg in progress.
type outgoing struct {
	n, sent int
	err     error
	ready   func(fd uintptr) bool

	headers [messagesMost]mmsghdr
	to      [messagesMost]unix.RawSockaddrInet6
	parts   [partsMost]unix.Iovec
	control [messagesMost]ancillary
}

// ReadBatch implements [Conn].
func (s *socket) ReadBatch(batch []Arrival) (int, error) {
	c := &s.in
	c.n, c.err, c.most = 0, nil, min(len(batch), arrivalsMost)
	for i := range c.most {
		b := batch[i].Data[:cap(batch[i].Data)]
		c.data[i] = vector(b)
		c.headers[i].Msghdr = unix.Msghdr{
			Name: (*byte)(unsafe.Pointer(&c.from[i])), Namelen: unix.SizeofSockaddrInet6,
			Iov: &c.data[i], Iovlen: 1, Control: (*byte)(unsafe.Pointer(&c.control[i])),
		}
		c.headers[i].SetControllen(int(unsafe.Sizeof(c.control[i])))
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
		n, _, err := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&c.headers[0])), uintptr(c.most), 0, 0, 0)
		switch err {
		case 0:
			s.raw.linger.found()
			c.n = int(n)
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			if !s.raw.linger.again() {
				return false
			}
			yield()
		default:
			c.err = err
			return true
		}
	}
}

// groSize is the length of the datagrams that the kernel joined: udp(7), UDP_GRO.
// Without the control message there is one.
func groSize(h *mmsghdr, c *ancillary, all int) int {
	if int(h.Controllen) >= unix.CmsgLen(4) && c.Level == unix.SOL_UDP && c.Type == unix.UDP_GRO { //nolint:gosec // at most what was offered
		if size := int(binary.NativeEndian.Uint32(c.data[:])); size > 0 {
			return size
		}
	}
	return max(all, 1)
}

// WriteBatch implements [Conn].
func (s *socket) WriteBatch(batch []Message) (int, error) {
	c := &s.out
	for done := 0; done < len(batch); {
		if m := &batch[done]; m.Packets > 1 && !s.level.segment.Load() {
			s.sendApart(m)
			done++
			continue
		}
		c.fill(batch[done:], s.level.segment.Load())
		err := s.flush()
		done += c.sent
		switch {
		case err == nil:
		case batch[done].Packets > 1 && (errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)):
			// EIO: the way out cannot complete sums (udp(7)). EINVAL, and
			// EMSGSIZE of newer kernels: its MTU is smaller; alone, the
			// datagrams are fragmented.
			if errors.Is(err, unix.EIO) {
				s.level.giveUpSegment(err)
			}
			s.sendApart(&batch[done])
			done++
		default:
			return done, err
		}
	}
	return len(batch), nil
}

// flush sends what is filled in. The error is about the message after those sent.
func (s *socket) flush() error {
	s.out.sent = 0
	return s.resume()
}

// resume sends what is filled in from c.sent on.
func (s *socket) resume() error {
	c := &s.out
	c.err = nil
	if err := s.raw.Write(c.ready); err != nil {
		return err
	}
	return c.err
}

func (s *socket) send(fd uintptr) bool {
	c := &s.out
	for c.sent < c.n {
		n, _, err := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&c.headers[c.sent])), uintptr(c.n-c.sent), 0, 0, 0)
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

// sendApart sends the datagrams of m with a header each: there is room for those of
// one message. One that is refused is noted in m, and the others go on.
func (s *socket) sendApart(m *Message) {
	c := &s.out
	c.n = 0
	begin, size, used := 0, 0, 0
	for i, part := range m.Parts {
		if size += len(part); size < m.Size && i+1 < len(m.Parts) {
			continue
		}
		used = c.add(&Message{To: m.To, Parts: m.Parts[begin : i+1], Packets: 1}, used)
		begin, size = i+1, 0
	}
	for c.sent = 0; c.sent < c.n; c.sent++ {
		if s.resume() == nil {
			return
		}
		m.fail(c.sent)
	}
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
		parts[i] = vector(b)
	}
	h := &c.headers[c.n].Msghdr
	*h = unix.Msghdr{
		Name: (*byte)(unsafe.Pointer(&c.to[c.n])), Namelen: putAddrPort(&c.to[c.n], m.To),
		Iov: &parts[0],
	}
	h.SetIovlen(len(parts))
	if m.Packets > 1 {
		ctl := &c.control[c.n]
		ctl.Level, ctl.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		ctl.SetLen(unix.CmsgLen(2))
		binary.NativeEndian.PutUint16(ctl.data[:], uint16(m.Size)) //nolint:gosec // at most maxDatagram
		h.Control = (*byte)(unsafe.Pointer(ctl))
		h.SetControllen(unix.CmsgSpace(2))
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
	if err := s.raw.Close(); err != nil {
		return fmt.Errorf("close udp socket: %w", err)
	}
	return nil
}
