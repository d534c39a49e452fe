package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// echoWithin is how long an answer may take before it counts as lost. That is longer
// than many a measurement, so those without an answer go on, up to echoTries.
const (
	echoWithin = time.Second
	echoTries  = 5
)

const (
	echoRequest, echoReply = 8, 0 // RFC 792
	echoID                 = 0x666c
	echoSize               = 64 // bytes of ICMP, as ping(8) sends them
)

// ping measures round trips with blocking calls on a thread of its own: Go's
// poller would add its own wake-up to each of them.
func ping(ctx context.Context, q Pings) (_ Echoes, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("ping %s: %w", q.To, err)
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := blockingSocket(unix.SOCK_RAW, unix.IPPROTO_ICMP, echoWithin)
	if err != nil {
		return Echoes{}, err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing depends on it
	// Connected, it hears of that address alone.
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(q.To, 0))); err != nil {
		return Echoes{}, err
	}
	tick := time.NewTicker(q.Every)
	defer tick.Stop()
	var e Echoes
	end := time.Now().Add(q.For)
	for seq := uint16(0); time.Now().Before(end) || len(e.RTT) == 0 && seq < echoTries; seq++ {
		rtt, err := echo(fd, seq)
		switch {
		case err == nil:
			e.RTT = append(e.RTT, rtt)
		case errors.Is(err, unix.EAGAIN):
			e.Lost++
		default:
			return Echoes{}, err
		}
		select {
		case <-ctx.Done():
			return Echoes{}, ctx.Err()
		case <-tick.C:
		}
	}
	return e, nil
}

// echo sends a request and waits for its answer. It ends with EAGAIN when there
// is none in time.
func echo(fd int, seq uint16) (time.Duration, error) {
	request := echoPacket(seq)
	var buf [2048]byte
	begin := time.Now()
	if _, err := retry(func() (int, error) { return unix.Write(fd, request[:]) }); err != nil {
		return 0, err
	}
	for {
		n, err := retry(func() (int, error) { return unix.Read(fd, buf[:]) })
		if err != nil {
			return 0, err
		}
		if isReply(buf[:n], seq) {
			return time.Since(begin), nil
		}
	}
}

// retry repeats a call that a signal of the runtime interrupted: one that waits
// for a bounded time is not restarted by the kernel.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// echoPacket is a request whose payload is zero, so that its checksum is that of
// the header.
func echoPacket(seq uint16) [echoSize]byte {
	var b [echoSize]byte
	b[0] = echoRequest
	sum := uint32(echoRequest)<<8 + echoID + uint32(seq)
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(b[4:], echoID)
	binary.BigEndian.PutUint16(b[6:], seq)
	return b
}

// isReply reports whether a packet, IPv4 header included, answers a request of
// ours.
func isReply(b []byte, seq uint16) bool {
	if len(b) < 20 {
		return false
	}
	header := int(b[0]&0x0f) * 4
	if len(b) < header+8 {
		return false
	}
	b = b[header:]
	return b[0] == echoReply && binary.BigEndian.Uint16(b[4:]) == echoID && binary.BigEndian.Uint16(b[6:]) == seq
}

// blockingSocket opens a socket whose calls wait, at most for so long.
func blockingSocket(kind, protocol int, within time.Duration) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	wait := unix.NsecToTimeval(within.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait),
	)
	if err != nil {
		return -1, errors.Join(fmt.Errorf("bound waiting: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}
