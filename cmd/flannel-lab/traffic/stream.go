package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// sendStreams writes to TCP connections until their time is over.
func sendStreams(ctx context.Context, q Streams) error {
	conns := make([]net.Conn, 0, q.Count)
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	for range q.Count {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", netip.AddrPortFrom(q.To, sinkPort).String())
		if err != nil {
			return fmt.Errorf("open stream: %w", err)
		}
		conns = append(conns, conn)
	}
	end := time.Now().Add(q.For)
	g := new(errgroup.Group)
	for _, conn := range conns {
		g.Go(func() error { return fill(ctx, conn, end) })
	}
	return g.Wait()
}

// fill writes until a time, or until ctx ends.
func fill(ctx context.Context, conn net.Conn, end time.Time) error {
	if err := conn.SetDeadline(end); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, chunk)
	for {
		if _, err := conn.Write(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			return ctx.Err()
		} else if err != nil {
			return fmt.Errorf("send stream: %w", err)
		}
	}
}
