package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
)

// ErrName: systemd would refuse a descriptor of that name.
var ErrName = errors.New("name must be 1 to 255 printable ASCII characters without space and colon")

// Kept returns the descriptors that an earlier process of this service gave to
// [Notifier.Keep], each under its name, and sockets that a unit of systemd opened
// for it. They are the caller's to close, which leaves them in the store. A second
// call returns none.
func (n Notifier) Kept() []*os.File { return activation.Files(true) }

// Keep gives the service manager a duplicate of a descriptor, to hand it to the
// next process of this service. It stays there through restarts and crashes, until
// the service is stopped for good or [Notifier.Drop] is called. One that is kept
// already is not kept twice; another of the same name is not replaced.
//
// FDPOLL=0 asks systemd not to drop it because of an error that poll(2) shows: a
// socket has one after an ICMP error (systemd 246; others ignore it).
func (n Notifier) Keep(name string, conn syscall.RawConn) error {
	if !validName(name) {
		return fmt.Errorf("keep descriptor %q: %w", name, ErrName)
	}
	var err error
	controlErr := conn.Control(func(fd uintptr) {
		err = sendFD("FDSTORE=1\nFDNAME="+name+"\nFDPOLL=0", int(fd))
	})
	if err = errors.Join(controlErr, err); err != nil {
		return fmt.Errorf("keep descriptor %s: %w", name, err)
	}
	return nil
}

// Drop makes the service manager close what it keeps under names, and waits until
// it has, or until ctx ends: what a descriptor holds, such as a port, is free then.
func (n Notifier) Drop(ctx context.Context, names ...string) error {
	for _, name := range names {
		if !validName(name) {
			return fmt.Errorf("drop descriptor %q: %w", name, ErrName)
		}
		if err := n.send("drop of descriptor "+name, "FDSTOREREMOVE=1", "FDNAME="+name); err != nil {
			return err
		}
	}
	if err := barrier(ctx); err != nil {
		return fmt.Errorf("drop descriptors: %w", err)
	}
	return nil
}

// barrier returns when the service manager has read all messages sent before: it
// reads them in their order, and closes the pipe that comes with this one. Systemd
// calls that a barrier since 246; those before close what they do not know.
func barrier(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = sendFD("BARRIER=1", int(w.Fd()))
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for the service manager: %w", errors.Join(context.Cause(ctx), err))
	}
	return nil
}

// sendFD sends a message with a descriptor, which go-systemd cannot. Without a
// service manager it does nothing.
func sendFD(state string, fd int) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // what was sent is sent
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	// Not WriteMsgUnix: that refuses connected datagram sockets.
	writeErr := raw.Write(func(to uintptr) bool {
		err = syscall.Sendmsg(int(to), []byte(state), syscall.UnixRights(fd), nil, 0)
		return !errors.Is(err, syscall.EAGAIN)
	})
	return errors.Join(writeErr, os.NewSyscallError("sendmsg", err))
}

// validName is systemd's rule for names of descriptors (sd_listen_fds(3)), less
// the empty one. A newline in it would begin another assignment.
func validName(name string) bool {
	odd := func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }
	return len(name) >= 1 && len(name) <= 255 && !strings.ContainsFunc(name, odd)
}
