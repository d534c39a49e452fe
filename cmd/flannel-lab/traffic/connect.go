package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// connectWithin is how long each call of a connection may take: several losses.
const connectWithin = 15 * time.Second

// connect opens connections one after the other until their time is over.
func connect(ctx context.Context, q Connects) (Done, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	to := sockaddr(netip.AddrPortFrom(q.To, answerPort))
	d := Done{Began: monotonic()}
	begin := time.Now()
	for ctx.Err() == nil && time.Since(begin) < q.For {
		if err := connectOnce(to); err != nil {
			return Done{}, fmt.Errorf("connect to %s: %w", q.To, err)
		}
		d.Count++
	}
	d.Took = time.Since(begin)
	return d, ctx.Err()
}

func connectOnce(to unix.Sockaddr) (err error) {
	fd, err := blockingSocket(unix.SOCK_STREAM, 0, connectWithin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	// Closed by a reset, it leaves no port waiting: there are only so many.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return fmt.Errorf("set linger: %w", err)
	}
	if _, err := retry(func() (int, error) { return 0, unix.Connect(fd, to) }); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	var b [1]byte
	if _, err := retry(func() (int, error) { return unix.Write(fd, b[:]) }); err != nil {
		return fmt.Errorf("send a byte: %w", err)
	}
	n, err := retry(func() (int, error) { return unix.Read(fd, b[:]) })
	if err != nil {
		return fmt.Errorf("receive a byte: %w", err)
	}
	if n == 0 {
		return errors.New("receive a byte: closed by the other end")
	}
	return nil
}
