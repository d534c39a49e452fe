package kernel

import (
	"context"
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// HopID is the number that a nexthop object of the first instance would have at a probe.
func HopID(gateway netip.Addr, link, probe int) uint32 {
	return uint32(hop{gateway: gateway, link: link, onLink: true}.id(0, probe))
}

// Attempts is how often a list is begun, and ErrInterrupted what comes of it then.
const Attempts = attempts

var ErrInterrupted = errInterrupted

// ListAddrs lists all addresses and calls each as it reads one.
func (n *Netlink) ListAddrs(ctx context.Context, each func(Addr)) ([]Addr, error) {
	t := n.Addrs(0).(*table[Addr])
	parse := t.parse
	t.parse = func(m message) (Addr, bool, error) {
		a, ok, err := parse(m)
		if ok {
			each(a)
		}
		return a, ok, err
	}
	return t.List(ctx)
}

// ShrinkBuffer leaves the request socket room for a few answers only.
func (n *Netlink) ShrinkBuffer(ctx context.Context) error {
	return n.use(ctx, func(c *conn) error { return unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1) })
}

// BatchSize is how many messages go out at once now.
func (n *Netlink) BatchSize(ctx context.Context) (size int, err error) {
	err = n.use(ctx, func(c *conn) error {
		size = c.batch
		return nil
	})
	return size, err
}

// Subscribe is the first half of Events.
func (n *Netlink) Subscribe() (*os.File, error) { return n.subscribe() }

// SetBuffer sets the receive buffer of a subscription.
func SetBuffer(sock *os.File, size int) error {
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		setErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size)
	})
	return errors.Join(err, setErr)
}

// Watch is the second half of Events.
func (n *Netlink) Watch(ctx context.Context, sock *os.File) (<-chan Event, error) {
	return n.watch(ctx, sock)
}
