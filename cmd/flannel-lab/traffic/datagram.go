package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// sinkHeld is the size of the sink's receive buffer, in bytes as the kernel counts
// them: the path is to be measured, not how soon its end gets a core.
const sinkHeld = 8 << 20

// sinkDatagrams receives and counts what comes over UDP, one with each call.
func (a *Agent) sinkDatagrams(g *errgroup.Group, ctx context.Context) error {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.addr, sinkPort)))
	if err != nil {
		return err
	}
	closeAtEnd(g, ctx, conn)
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	err = raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sinkHeld)
	})
	if err := errors.Join(err, refused); err != nil {
		return fmt.Errorf("enlarge receive buffer: %w", err)
	}
	g.Go(func() error {
		buf := make([]byte, 64<<10)
		return raw.Read(func(fd uintptr) bool {
			for {
				_, err := unix.Read(int(fd), buf)
				switch {
				case err == nil:
					a.datagrams.Add(1)
				case errors.Is(err, unix.EAGAIN):
					// A look at the clock for each would slow them down.
					a.last.Store(int64(monotonic()))
					return false
				}
				// Any other error is news about something that was sent.
			}
		})
	})
	return nil
}

// paceEvery is how often a sender at a rate catches up with it. What is due is
// sent at once, so a burst is this long where the sender is not late.
const paceEvery = 250 * time.Microsecond

// sendDatagrams sends datagrams until their time is over.
func sendDatagrams(ctx context.Context, q Datagrams) (_ Done, err error) {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(q.To, sinkPort)))
	if err != nil {
		return Done{}, fmt.Errorf("send datagrams: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	raw, err := conn.SyscallConn()
	if err != nil {
		return Done{}, fmt.Errorf("send datagrams: %w", err)
	}
	s := datagramSender{payload: make([]byte, q.Size)}
	began, begin := monotonic(), time.Now()
	if q.Rate > 0 {
		err = s.paced(ctx, raw.Write, q, begin)
	} else {
		err = raw.Write(func(fd uintptr) bool {
			s.until(ctx, fd, begin.Add(q.For))
			return true
		})
	}
	if err := errors.Join(err, s.err, ctx.Err()); err != nil {
		return Done{}, fmt.Errorf("send datagrams: %w", err)
	}
	return Done{Count: s.sent, Began: began, Took: time.Since(begin)}, nil
}

// datagramSender sends equal datagrams over a connected socket.
type datagramSender struct {
	payload []byte
	sent    uint64
	err     error
}

// send sends one and reports whether it makes sense to go on.
func (s *datagramSender) send(fd uintptr) bool {
	_, err := unix.Write(int(fd), s.payload)
	switch {
	case err == nil, errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN):
		// A full queue on our own side is a loss like one further on.
		s.sent++
		return true
	case errors.Is(err, unix.EINTR):
		return true
	default:
		s.err = err
		return false
	}
}

// lookEvery is how many datagrams are sent between two looks at the clock.
const lookEvery = 32

// until sends without a pause.
func (s *datagramSender) until(ctx context.Context, fd uintptr, end time.Time) {
	for time.Now().Before(end) && ctx.Err() == nil {
		for range lookEvery {
			if !s.send(fd) {
				return
			}
		}
	}
}

// paced sends at a rate; a sender that was late catches up.
func (s *datagramSender) paced(ctx context.Context, write func(func(uintptr) bool) error, q Datagrams, begin time.Time) error {
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	for now := begin; now.Sub(begin) < q.For && s.err == nil; now = time.Now() {
		due := uint64(q.Rate * now.Sub(begin).Seconds())
		err := write(func(fd uintptr) bool {
			for s.sent < due && s.send(fd) {
			}
			return true
		})
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	return nil
}
