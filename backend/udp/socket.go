package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// ErrPortTaken: another program has our UDP port.
var ErrPortTaken = errors.New("udp port is taken")

// socketBuffer is asked for in bytes, in each direction: 3 ms at 10 Gb/s.
const socketBuffer = 4 << 20

// socket is a Conn of the kernel.
type socket struct{ conn *net.UDPConn }

// openSocket binds at, in the network namespace of the calling thread.
//
// It is bound to the uplink's address, as flannel's is, and not to all: so what
// leaves has the source address that peers check, and two daemons with two
// addresses can share a host.
func openSocket(ctx context.Context, at netip.AddrPort) (*socket, error) {
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
	return &socket{udp}, nil
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

// ReadBatch implements [Conn]. It reads one datagram.
func (s *socket) ReadBatch(batch []Packet) (int, error) {
	p := &batch[0]
	n, from, err := s.conn.ReadFromUDPAddrPort(p.Data[:cap(p.Data)])
	if err != nil {
		return 0, err
	}
	p.Data, p.Outer = p.Data[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	return 1, nil
}

// WriteBatch implements [Conn].
func (s *socket) WriteBatch(batch []Packet) (int, error) {
	for i := range batch {
		if _, err := s.conn.WriteToUDPAddrPort(batch[i].Data, batch[i].Outer); err != nil {
			return i, err
		}
	}
	return len(batch), nil
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
