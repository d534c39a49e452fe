package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// handles returns two that are connected, as sockets that keep messages apart.
func handles(t testing.TB) (a, b *handle) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var both [2]*handle
	for i, fd := range fds {
		if both[i], err = newHandle(fd, true); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = both[i].Close() })
	}
	return both[0], both[1]
}

// take reads one message, of which it returns the first byte.
func (h *handle) take() (byte, error) {
	m := newByteMover(h)
	err := m.take()
	return m.b[0], err
}

// give writes one message.
func (h *handle) give(first byte) error {
	m := newByteMover(h)
	m.b[0] = first
	return m.give()
}

// polled reports whether the descriptor is in its epoll instance (proc_pid_fdinfo(5)).
func (h *handle) polled(t testing.TB) bool {
	t.Helper()
	var text []byte
	err := h.waiter.raw.Control(func(fd uintptr) {
		text, _ = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	})
	if err != nil || !strings.Contains(string(text), "flags:") {
		t.Fatalf("%q, %v", text, err)
	}
	return strings.Contains(string(text), "tfd:")
}

// asleep waits until the reader of h sleeps.
func (h *handle) asleep(t testing.TB) {
	t.Helper()
	within(t, func() bool { return h.polled(t) })
}

// within waits until ok is true.
func within(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patient); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time")
		}
	}
}

// TestHandleIsPolledWhileItSleeps: otherwise the kernel calls nobody back. Where packets
// come seldom it stays, until one is read without sleep.
func TestHandleIsPolledWhileItSleeps(t *testing.T) {
	for name, after := range map[string]int{"often": 0, "seldom": lingerSkips} {
		t.Run(name, func(t *testing.T) {
			a, b := handles(t)
			b.linger.after = after
			for i := range byte(3) {
				m, got, empty := newByteMover(b), make(chan error), make(chan struct{}, 1)
				m.empty = func() {
					select {
					case empty <- struct{}{}:
					default:
					}
				}
				go func() { got <- m.take() }()
				<-empty // so it sleeps, or is told at once that it need not
				if err := a.give(i); err != nil {
					t.Fatal(err)
				}
				if err := <-got; m.b[0] != i || err != nil {
					t.Fatalf("read %d, %v, want %d", m.b[0], err, i)
				}
				if b.polled(t) != b.linger.seldom() {
					t.Fatalf("in the poller: %t", b.polled(t))
				}
			}
			for i := range byte(3) { // what is there is read without sleep
				if err := a.give(i); err != nil {
					t.Fatal(err)
				}
				if first, err := b.take(); first != i || err != nil || b.polled(t) {
					t.Fatalf("read %d, %v; in the poller: %t", first, err, b.polled(t))
				}
			}
		})
	}
}

// TestHandleSleeps: nobody looks again and again meanwhile.
func TestHandleSleeps(t *testing.T) {
	for name, after := range map[string]int{"often": 0, "seldom": lingerSkips} {
		t.Run(name, func(t *testing.T) {
			a, b := handles(t)
			b.linger.after = after
			var looks atomic.Int64
			m, got := newByteMover(b), make(chan error)
			m.empty = func() { looks.Add(1) }
			for range 3 {
				go func() { got <- m.take() }()
				b.asleep(t)
				time.Sleep(20 * time.Millisecond)
				if err := errors.Join(a.give(1), <-got); err != nil {
					t.Fatal(err)
				}
			}
			if n := looks.Load(); n > 30 {
				t.Errorf("looked %d times for three messages", n)
			}
		})
	}
}

// TestHandleLosesNoWakeUp: two that wait for each other in turn go on, whatever comes
// between the look, the entry into the poller and the sleep.
func TestHandleLosesNoWakeUp(t *testing.T) {
	for name, after := range map[string]int{"often": 0, "seldom": lingerSkips} {
		t.Run(name, func(t *testing.T) {
			a, b := handles(t)
			a.linger.after, b.linger.after = after, after
			turns(t, a, b)
		})
	}
}

// turns lets two send a byte to and fro.
func turns(t *testing.T, a, b *handle) {
	t.Helper()
	const rounds = 10000
	var g errgroup.Group
	g.Go(func() error {
		for n := range rounds {
			if err := a.give(byte(n)); err != nil {
				return err
			}
			if first, err := a.take(); err != nil || first != byte(n) {
				return fmt.Errorf("answer %d: %d, %w", byte(n), first, err)
			}
		}
		return nil
	})
	g.Go(func() error {
		for n := range rounds {
			first, err := b.take()
			if err != nil || first != byte(n) {
				return fmt.Errorf("request %d: %d, %w", byte(n), first, err)
			}
			for range n % 7 { // so that the other comes to wait, at different places
				runtime.Gosched()
			}
			if err := b.give(first); err != nil {
				return err
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestHandleSleepsWithoutAllocating: of pings, each is a sleep.
func TestHandleSleepsWithoutAllocating(t *testing.T) {
	a, b := handles(t)
	there, back := newByteMover(a), newByteMover(b)
	go func() {
		for back.take() == nil && back.give() == nil {
		}
	}()
	n := testing.AllocsPerRun(500, func() {
		time.Sleep(100 * time.Microsecond) // then b mostly sleeps
		if err := errors.Join(there.give(), there.take()); err != nil {
			t.Error(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for a sleep or two", n)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// byteMover is take and give of a handle without allocations of their own.
type byteMover struct {
	h           *handle
	b           [1]byte
	err         error
	read, write func(fd uintptr) bool
	empty       func() // is called when there is nothing to read
}

func newByteMover(h *handle) *byteMover {
	m := &byteMover{h: h, empty: func() {}}
	m.read = func(fd uintptr) bool {
		if _, m.err = unix.Read(int(fd), m.b[:]); errors.Is(m.err, unix.EAGAIN) {
			m.empty()
			return false
		}
		return true
	}
	m.write = func(fd uintptr) bool {
		_, m.err = unix.Write(int(fd), m.b[:])
		return !errors.Is(m.err, unix.EAGAIN)
	}
	return m
}

func (m *byteMover) take() error {
	if err := m.h.Read(m.read); err != nil {
		return err
	}
	return m.err
}

func (m *byteMover) give() error {
	if err := m.h.Write(m.write); err != nil {
		return err
	}
	return m.err
}

// TestHandleWaitsForRoom: a writer that finds none goes on as soon as there is some.
func TestHandleWaitsForRoom(t *testing.T) {
	a, b := handles(t)
	const count = 5000 // more than the kernel keeps
	wrote := make(chan error, 1)
	go func() {
		for i := range count {
			if err := a.give(byte(i)); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- nil
	}()
	for i := range count {
		if first, err := b.take(); first != byte(i) || err != nil {
			t.Fatalf("read %d, %v, want %d", first, err, byte(i))
		}
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
}

// TestHandleReadsWithoutPoller: where the kernel refuses to have it in there, such as for
// want of memory, it sleeps all the same.
func TestHandleReadsWithoutPoller(t *testing.T) {
	a, b := handles(t)
	b.waiter.fd = -1 // EBADF
	m, got, looks := newByteMover(b), make(chan error), make(chan struct{}, 100)
	m.empty = func() {
		select {
		case looks <- struct{}{}:
		default: // as many as fail the test
		}
	}
	for i := range byte(2) {
		go func() { got <- m.take() }()
		<-looks
		if err := errors.Join(a.give(i), <-got); m.b[0] != i || err != nil {
			t.Fatalf("read %d, %v, want %d", m.b[0], err, i)
		}
	}
	began := time.Now()
	go func() { got <- m.take() }()
	<-looks
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if n, took := len(looks), time.Since(began); n > 10+int(took/(50*time.Millisecond)) {
		t.Errorf("looked %d times in %s", n, took)
	}
}

// TestHandleEnds: pending and later calls end, each in its way.
func TestHandleEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		end   func(*handle) error
		read  error // of pending and later reads
		write error // of later writes
	}{
		"reads only": {(*handle).endReads, os.ErrDeadlineExceeded, nil},
		"closed":     {(*handle).Close, net.ErrClosed, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := handles(t)
			pending := make(chan error, 1)
			go func() {
				_, err := b.take()
				pending <- err
			}()
			b.asleep(t)
			if err := tt.end(b); err != nil {
				t.Fatal(err)
			}
			if err := <-pending; !errors.Is(err, tt.read) {
				t.Errorf("pending read: %v, want %v", err, tt.read)
			}
			_ = a.give(1) // fails where the other end is closed
			if _, err := b.take(); !errors.Is(err, tt.read) {
				t.Errorf("later read: %v, want %v", err, tt.read)
			}
			if err := b.give(2); !errors.Is(err, tt.write) {
				t.Errorf("write: %v, want %v", err, tt.write)
			}
			if err := b.Control(func(uintptr) {}); !errors.Is(err, tt.write) {
				t.Errorf("control: %v, want %v", err, tt.write)
			}
			if err := errors.Join(b.Close(), b.Close()); err != nil {
				t.Errorf("closed again: %v", err)
			}
		})
	}
}

// TestHandleCloseEndsWrite: one that waits for room, too.
func TestHandleCloseEndsWrite(t *testing.T) {
	a, _ := handles(t)
	full, pending := make(chan struct{}), make(chan error, 1)
	go func() {
		looks := 0
		pending <- a.Write(func(fd uintptr) bool {
			for {
				if _, err := unix.Write(int(fd), []byte{1}); err != nil {
					if looks++; looks == 2 {
						close(full) // it has waited once
					}
					return !errors.Is(err, unix.EAGAIN)
				}
			}
		})
	}()
	<-full
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-pending; !errors.Is(err, net.ErrClosed) {
		t.Errorf("pending write: %v", err)
	}
}

// TestHandleIsClosedLast: what is in use stays open, or its number could be another's.
func TestHandleIsClosedLast(t *testing.T) {
	for name, call := range map[string]func(*handle, func(uintptr) bool) error{"read": (*handle).Read, "write": (*handle).Write} {
		t.Run(name, func(t *testing.T) {
			a, _ := handles(t)
			begun, used := make(chan struct{}), make(chan error, 1)
			go func() {
				err := call(a, func(fd uintptr) bool {
					close(begun)
					for !a.closed.Load() {
						time.Sleep(time.Millisecond)
					}
					time.Sleep(10 * time.Millisecond) // for those who would close it now
					_, err := unix.FcntlInt(fd, unix.F_GETFD, 0)
					used <- err
					return true
				})
				used <- err
			}()
			<-begun
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := <-used; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestHandleIsClosedAtOnce: when Close returns the port is free, though a reader slept.
func TestHandleIsClosedAtOnce(t *testing.T) {
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	for range 200 {
		s, err := openSocket(at, true, func(int) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		s.level = new(socketLevel)
		pending := make(chan error, 1)
		go func() {
			_, err := s.ReadBatch(newArrivals(1))
			pending <- err
		}()
		s.raw.asleep(t)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		again, err := openSocket(at, true, func(int) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-pending; !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
}

// TestDuplicate: a file in Go's poller, as the service manager hands over, becomes a
// handle that is in none, and can be closed.
func TestDuplicate(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := control(raw, func(fd int) error { return unix.SetNonblock(fd, false) }); err != nil {
		t.Fatal(err)
	}
	h, err := duplicate(f)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := errors.Join(f.Close(), conn.Close()); err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(h.fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	if in := instances(t, h.fd); len(in) != 0 {
		t.Errorf("in the epoll instances %v", in)
	}
	s, err := newSocket(h)
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.MustParseAddrPort(conn.LocalAddr().String()); s.at != want {
		t.Errorf("bound to %s, want %s", s.at, want)
	}
	if _, err := duplicate(f); err == nil {
		t.Error("of a closed file")
	}
}

// instances are the epoll instances of this process that have fd.
func instances(t testing.TB, fd int) (list []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil || len(all) == 0 {
		t.Fatal(err)
	}
	for _, name := range all {
		text, _ := os.ReadFile(name)
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "tfd:" && f[1] == fmt.Sprint(fd) {
				list = append(list, name)
			}
		}
	}
	return list
}
