package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// ErrPortTaken: another program has our UDP port.
var ErrPortTaken = errors.New("udp port is taken")

// socketBuffer is asked for in bytes, in each direction: 3 ms at 10 Gb/s.
const socketBuffer = 4 << 20

// socketOptions say how sockets are opened.
type socketOptions struct {
	// Queues is how many receive at one address.
	Queues int
	// Whole asks for no offloads: each header is of one datagram. A call still moves
	// several of them.
	Whole bool
	// Level is the sockets' common state.
	Level *socketLevel
}

// openSockets binds all sockets at, in the network namespace of the calling
// thread. The kernel gives what a sender sends from one port to one of them
// (SO_REUSEPORT).
//
// They are bound to the uplink's address, as flannel's is, and not to all: so what
// leaves has the source address that peers check, and two daemons with two
// addresses can share a host.
func openSockets(at netip.AddrPort, o socketOptions) (_ []Conn, err error) {
	var conns []Conn
	defer func() {
		if err != nil {
			for _, c := range conns {
				err = errors.Join(err, c.Close())
			}
		}
	}()
	for i := range o.Queues {
		// The first is bound as if it were alone, which fails if anybody has
		// the port, however they share it; only then may others join it.
		first := share
		if i == 0 {
			first = func(int) error { return nil }
		}
		s, err := openSocket(at, true, first)
		if err != nil {
			return nil, err
		}
		conns = append(conns, s)
		if err := s.prepare(o); err != nil {
			return nil, err
		}
	}
	return conns, nil
}

// openSenders binds sockets at to n ports that nobody has, one for each queue at each
// port, to send from and never to read. They are by queue: each can send from every
// port. Ports of ip_local_reserved_ports are left out by the kernel.
func openSenders(at netip.Addr, n int, o socketOptions) (_ [][]Sender, err error) {
	senders := make([][]Sender, o.Queues)
	defer func() {
		if err != nil {
			err = errors.Join(err, closeSenders(slices.Concat(senders...)))
		}
	}()
	for range n {
		var port uint16 // of the kernel's choice, and then the same
		for q := range senders {
			s, err := openSocket(netip.AddrPortFrom(at, port), false, func(fd int) error {
				if port == 0 {
					return deafen(fd)
				}
				return errors.Join(deafen(fd), share(fd))
			})
			if err != nil {
				return nil, err
			}
			senders[q] = append(senders[q], s)
			if err := s.prepare(o); err != nil {
				return nil, err
			}
			port = s.at.Port()
		}
	}
	return senders, nil
}

// closeSenders closes all at the same time: who waits for room in one goes on with the
// next, and would wait there, too.
func closeSenders(senders []Sender) error {
	errs := make([]error, len(senders))
	var g sync.WaitGroup
	for i, s := range senders {
		g.Go(func() { errs[i] = s.Close() })
	}
	g.Wait()
	return errors.Join(errs...)
}

// openSocket binds one socket at, after first was called with its descriptor. It is
// for sending only unless reads.
func openSocket(at netip.AddrPort, reads bool, first func(fd int) error) (*socket, error) {
	family := [...]int{unix.AF_INET, unix.AF_INET6}[subnet.FamilyOf(at.Addr())]
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open udp socket: %w", err)
	}
	enlarge(fd)
	if err = first(fd); err == nil {
		err = unix.Bind(fd, sockaddr(at))
	}
	if err != nil {
		return nil, errors.Join(bindError(at, err), unix.Close(fd))
	}
	raw, err := newHandle(fd, reads)
	if err != nil {
		return nil, err
	}
	return newSocket(raw)
}

func sockaddr(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	}
	return &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
}

// bindError explains why the address cannot be had.
func bindError(at netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: %s is held by %s: stop it (`ss -lunp sport = :%d` shows it; flanneld uses this port too) or set Backend.Port: %w",
			ErrPortTaken, at, portHolder(at), at.Port(), err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("bind udp socket: the uplink has lost its address %s: %w", at.Addr(), err)
	}
	return fmt.Errorf("bind udp socket: %w", err)
}

// newSocket makes a Conn of raw, which it closes if it cannot.
func newSocket(raw *handle) (*socket, error) {
	s := &socket{raw: raw}
	s.in.ready, s.out.ready = s.receive, s.send
	err := control(raw, func(fd int) (err error) {
		s.at, err = boundTo(fd)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return s, nil
}

// boundTo is the address of a UDP socket.
func boundTo(fd int) (netip.AddrPort, error) {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockopt", err)
	}
	if protocol != unix.IPPROTO_UDP {
		return netip.AddrPort{}, fmt.Errorf("a socket of protocol %d, not of udp", protocol)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil //nolint:gosec // a port
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)), nil //nolint:gosec // a port
	}
	return netip.AddrPort{}, fmt.Errorf("a socket bound to %T", sa)
}

// prepare turns on what o asks for and the kernel has: UDP_SEGMENT is Linux 4.18,
// UDP_GRO 5.0.
func (s *socket) prepare(o socketOptions) error {
	s.level = o.Level
	err := control(s.raw, func(fd int) error {
		if !o.Whole {
			_, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT)
			s.level.segment.Store(err == nil)
			s.level.gro.Store(unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) == nil)
		}
		if o.Queues > 1 {
			return share(fd)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set up udp socket: %w", err)
	}
	return nil
}

// share lets other sockets of ours have fd's address and port.
func share(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}

// deafen makes the kernel drop what comes to the socket, which would otherwise stay
// in its buffer for good.
func deafen(fd int) error {
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K} // keep 0 bytes
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
}

// enlarge gives the socket large buffers, beyond rmem_max where we may. That it
// cannot be done costs bursts, not correctness.
func enlarge(fd int) {
	for _, o := range [...]struct{ force, ask int }{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF},
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
	} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.force, socketBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.ask, socketBuffer)
		}
	}
}

// control calls f with the descriptor of raw.
func control(raw syscall.RawConn, f func(fd int) error) error {
	var err error
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}
