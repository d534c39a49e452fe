package udp

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/flanneld-go/flanneld-go/subnet"
)

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
