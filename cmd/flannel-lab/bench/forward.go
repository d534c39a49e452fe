package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// ForwardCommand is the subcommand of flannel-lab that runs Forward.
const ForwardCommand = "forward"

const (
	forwardDevice = "fwd0"
	forwardPort   = 8290
	// forwardMTU leaves room for IPv4 and UDP.
	forwardMTU = ethernetMTU - 20 - 8
)

// threads is how many carry packets.
type threads int

const (
	// oneThread serves both directions in turn: see turns.
	oneThread threads = 1
	// twoThreads have a direction each, and wait in their calls.
	twoThreads threads = 2
)

// ForwardOptions is what a forwarder is told.
type ForwardOptions struct {
	// From is where it receives, To where the other end does, which has Subnet.
	From, To netip.Addr
	Subnet   netip.Prefix
	// Threads are 1 or 2.
	Threads int
}

// Forward carries packets, one per call. With two threads it is the floor: per direction
// one that blocks, and nothing else; no source is checked, no TTL counted, and there is
// one peer. With one thread it is flannel's loop, see turns. It returns when ctx ends or a
// call fails; its threads end with the process, since nothing else interrupts a blocked
// read of a TUN device.
func Forward(ctx context.Context, o ForwardOptions) error {
	tun, err := openTUN(forwardDevice)
	if err != nil {
		return fmt.Errorf("forward: open %s: %w", forwardDevice, err)
	}
	defer unix.Close(tun) //nolint:errcheck // the process ends
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("forward: open socket: %w", err)
	}
	defer unix.Close(sock) //nolint:errcheck // the process ends
	if err := unix.Bind(sock, &unix.SockaddrInet4{Port: forwardPort, Addr: o.From.As4()}); err != nil {
		return fmt.Errorf("forward: bind: %w", err)
	}
	ended := make(chan error, 2)
	if threads(o.Threads) == oneThread {
		t := newTurns(tun, sock, o)
		go func() { ended <- t.run() }()
	} else {
		peer := &unix.SockaddrInet4{Port: forwardPort, Addr: o.To.As4()}
		go func() {
			ended <- copyPackets(tun, func(packet []byte) error { return unix.Sendto(sock, packet, 0, peer) })
		}()
		go func() {
			ended <- copyPackets(sock, func(packet []byte) error {
				_, err := unix.Write(tun, packet)
				return err
			})
		}()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return fmt.Errorf("forward: %w", err)
	}
}

// copyPackets hands every packet that it reads to write.
func copyPackets(from int, write func([]byte) error) error {
	runtime.LockOSThread()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(from, buf)
		if err == nil {
			err = write(buf[:n])
		}
		if err != nil && !passes(err) {
			return err
		}
	}
}

// passes reports whether an error is the loss of a packet, not the end: a device
// that is not up yet, a full queue, a peer that does not listen yet.
func passes(err error) bool {
	for _, e := range []unix.Errno{unix.EIO, unix.EINTR, unix.ENOBUFS, unix.ECONNREFUSED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func openTUN(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}
