package udp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// handle is a descriptor of the packet path: one queue of the device, or a socket. It
// is in Go's poller while its reader sleeps, and out of it under load:
//
//	reader:          moves packets | nothing there: sleeps | moves packets
//	the poller has:                | waiter -> descriptor  |
//
// For what is in a poller (epoll(7)) the kernel calls that with every packet that comes,
// and with every packet that has left a socket, which wakes a thread of Go's scheduler
// that finds nothing to do. Under load this cost as much as a tenth of all. Where packets
// come seldom it stays in, for to enter and to leave costs, too: a twentieth of a ping.
//
// It is a [syscall.RawConn]. One goroutine may be in Read while others are in Write; any
// may call the rest.
type handle struct {
	fd int
	// calls is held for reading by who uses fd, so that closing comes after them.
	calls  sync.RWMutex
	closed atomic.Bool
	// ended: reads are over.
	ended  atomic.Bool
	waiter *waiter // nil: nobody reads
	// linger is of the reader, whose function asks it.
	linger linger
}

var _ syscall.RawConn = (*handle)(nil)

// newHandle takes over fd, which must be non-blocking. It is for writing only unless
// reads.
func newHandle(fd int, reads bool) (*handle, error) {
	h := &handle{fd: fd}
	if reads {
		var err error
		if h.waiter, err = newWaiter(fd); err != nil {
			return nil, errors.Join(err, unix.Close(fd))
		}
	}
	return h, nil
}

// duplicate makes a handle of a duplicate of f, which stays as it is.
func duplicate(f *os.File) (*handle, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	err = control(raw, func(from int) (err error) {
		fd, err = unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return newHandle(fd, true)
}

// Control implements [syscall.RawConn].
func (h *handle) Control(f func(fd uintptr)) error {
	h.calls.RLock()
	defer h.calls.RUnlock()
	if h.closed.Load() {
		return net.ErrClosed
	}
	f(uintptr(h.fd))
	return nil
}

// Read calls f until it is true, and sleeps while there is nothing to read.
func (h *handle) Read(f func(fd uintptr) bool) error {
	h.calls.RLock()
	defer h.calls.RUnlock()
	for slept := false; ; slept = true {
		switch {
		case h.closed.Load():
			return net.ErrClosed
		case h.ended.Load():
			return os.ErrDeadlineExceeded
		case f(uintptr(h.fd)):
			if !slept || !h.linger.seldom() {
				h.waiter.leave()
			}
			return nil
		}
		if h.waiter.wait() == nil || h.closed.Load() || h.ended.Load() {
			continue
		}
		// The poller cannot have it, such as where all of max_user_watches are in use
		// (epoll(7)), by whatever program.
		if err := h.pause(unix.POLLIN); err != nil {
			return fmt.Errorf("wait for packets: %w", err)
		}
	}
}

// Write calls f until it is true, and sleeps while there is no room, which is seldom and
// short.
func (h *handle) Write(f func(fd uintptr) bool) error {
	h.calls.RLock()
	defer h.calls.RUnlock()
	for {
		switch {
		case h.closed.Load():
			return net.ErrClosed
		case f(uintptr(h.fd)):
			return nil
		}
		if err := h.pause(unix.POLLOUT); err != nil {
			return fmt.Errorf("wait for room: %w", err)
		}
	}
}

// pause sleeps in poll(2) until there is one of events, but not for long: nothing else
// tells the caller that the handle is closed.
func (h *handle) pause(events int16) error {
	const most = 50 // ms

	fds := []unix.PollFd{{Fd: int32(h.fd), Events: events}} //nolint:gosec // descriptors are small
	if _, err := unix.Poll(fds, most); err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	return nil
}

// endReads makes the pending Read and all later ones fail.
func (h *handle) endReads() error {
	h.ended.Store(true)
	return h.waiter.end()
}

// Close ends pending calls and returns when the descriptor is closed. It is idempotent.
func (h *handle) Close() error {
	if h.closed.Swap(true) {
		return nil
	}
	var err error
	if h.waiter != nil {
		err = h.waiter.end()
	}
	h.calls.Lock() // they have seen it
	defer h.calls.Unlock()
	if h.waiter != nil {
		err = errors.Join(err, h.waiter.close())
	}
	return errors.Join(err, unix.Close(h.fd))
}

// waiter is an epoll instance in Go's poller, which the descriptor that is waited for
// enters and leaves.
type waiter struct {
	fd   int // that is waited for
	file *os.File
	raw  syscall.RawConn
	// entered: fd is in the instance. slept: poll was called before.
	entered, slept bool
	// event is what is waited for, came what there is already.
	event, came unix.EpollEvent
	err         error
	// ready and remove are poll and a call of control, made once, so that a sleep
	// allocates nothing.
	ready  func(epoll uintptr) bool
	remove func(epoll uintptr)
}

func newWaiter(fd int) (*waiter, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open epoll instance: %w", err)
	}
	if err := unix.SetNonblock(epoll, true); err != nil { // or Go's poller would not take it
		return nil, errors.Join(err, unix.Close(epoll))
	}
	w := &waiter{fd: fd, file: os.NewFile(uintptr(epoll), "epoll"), event: unix.EpollEvent{Events: unix.EPOLLIN}}
	if w.raw, err = w.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	w.ready = w.poll
	w.remove = func(epoll uintptr) { w.control(epoll, unix.EPOLL_CTL_DEL) }
	return w, nil
}

// wait sleeps until there is something to read, or end is called.
func (w *waiter) wait() error {
	w.slept, w.err = false, nil
	err := w.raw.Read(w.ready)
	return errors.Join(err, w.err)
}

// poll is called before the sleep and after it. No event is lost between the two calls:
// the poller takes note of those that come before the sleep. True: there is no need.
func (w *waiter) poll(epoll uintptr) bool {
	switch {
	case w.slept:
		return true
	case w.entered: // perhaps there was an event before the poller was asked to take note
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, epoll, uintptr(unsafe.Pointer(&w.came)), 1, 0, 0, 0)
		w.slept = true
		return errno != 0 || n > 0
	}
	w.control(epoll, unix.EPOLL_CTL_ADD)
	w.slept, w.entered = true, w.err == nil
	return !w.entered
}

// leave ends that the poller has the descriptor.
func (w *waiter) leave() {
	if w.entered {
		// It fails only where the instance is closed, and empty.
		_ = w.raw.Control(w.remove)
		w.entered = false
	}
}

func (w *waiter) control(epoll uintptr, op int) {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, epoll, uintptr(op), uintptr(w.fd), uintptr(unsafe.Pointer(&w.event)), 0, 0)
	if errno != 0 {
		w.err = errno
	}
}

// end wakes who waits, now and later.
func (w *waiter) end() error { return w.file.SetReadDeadline(time.Unix(1, 0)) }

func (w *waiter) close() error { return w.file.Close() }
