package kernel

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// overrun makes the kernel answer more than a socket can hold: its next read fails with
// ENOBUFS, and some answers are left. Only links that do not exist are asked for.
func overrun(t *testing.T, fd int) {
	t.Helper()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		t.Fatal(err)
	}
	const nowhere, enough = 1 << 30, 256
	var e encoder
	for range enough {
		e.beginLink(unix.RTM_GETLINK, 0, nowhere, 0, 0)
		e.end(0)
	}
	if err := unix.Sendto(fd, e.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
		t.Fatal(err)
	}
}

// waits reports whether there is something to read.
func waits(t *testing.T, fd int) bool {
	t.Helper()
	_, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	return err == nil
}

// openAlone opens a socket of a namespace in which nobody else makes links. Its thread
// comes home: it may be the main one, which does not end with its goroutine.
func openAlone(t *testing.T) *conn {
	t.Helper()
	var c *conn
	err := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, e := os.Open("/proc/thread-self/ns/net")
		if e != nil {
			err <- e
			return
		}
		defer home.Close()
		if e = unix.Unshare(unix.CLONE_NEWNET); e == nil {
			c, e = openConn()
		}
		if e = errors.Join(e, unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)); e == nil {
			runtime.UnlockOSThread()
		}
		err <- e
	}()
	if e := <-err; e != nil {
		t.Fatal(e)
	}
	t.Cleanup(func() { _ = unix.Close(c.fd) })
	return c
}

// A list whose answers were lost is read again.
func TestDumpAfterOverrun(t *testing.T) {
	c := openAlone(t)
	want := 0
	for i := range 2 {
		got := 0
		err := c.dump(t.Context(), func(e *encoder) { e.beginLink(unix.RTM_GETLINK, 0, 0, 0, 0) }, func() { got = 0 }, func(message) error {
			got++
			return nil
		})
		if err != nil || got == 0 {
			t.Fatalf("%d links, %v", got, err)
		}
		if i == 0 {
			want = got
			overrun(t, c.fd)
		} else if got != want {
			t.Errorf("%d links behind an overrun, %d before", got, want)
		}
	}
	if waits(t, c.fd) {
		t.Error("something of before is left")
	}
}

// Until the socket is empty the kernel drops events without a word. So whoever is told of
// an overrun, and reads the state, must not be told before; and what was heard of
// neighbours until then is in doubt.
func TestOverrunIsToldWhenNothingIsLost(t *testing.T) {
	fd, err := openSocket(unix.SOCK_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	overrun(t, fd)
	sock := os.NewFile(uintptr(fd), "rtnetlink")
	defer sock.Close()
	class := newClassifier(nil, nil, nil)
	class.resolved.learn(NeighbourKey{1, netip.MustParseAddr("192.0.2.1")}, MAC{1})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := sock.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	told := 0
	readEvents(ctx, sock, class, func(e Event) {
		defer cancel()
		told++
		if e.Topic != TopicOverrun {
			t.Errorf("told of %v, want an overrun", e)
		}
		if waits(t, fd) {
			t.Error("told before all that was left was read")
		}
		if len(class.resolved) > 0 {
			t.Errorf("%d neighbours are believed", len(class.resolved))
		}
		_ = sock.SetReadDeadline(time.Unix(1, 0)) // ends readEvents
	})
	if told != 1 {
		t.Errorf("told %d times, want once", told)
	}
}
