package kernel

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// scripted is a conn whose kernel is a function: request messages in, datagrams
// out. What the function gathers may be read after end.
func scripted(t *testing.T, kernel func(requests []message) [][]byte) (c *conn, end func()) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, datagram)
		for {
			n, err := unix.Read(fds[1], buf)
			if err != nil || n == 0 {
				return
			}
			var ms []message
			for b := buf[:n]; len(b) > 0; {
				var m message
				if m, b, err = nextMessage(b); err != nil {
					t.Errorf("request: %v", err)
					return
				}
				ms = append(ms, m)
			}
			for _, answer := range kernel(ms) {
				if _, err := unix.Write(fds[1], answer); err != nil {
					return
				}
			}
		}
	}()
	end = sync.OnceFunc(func() {
		_ = unix.Close(fds[0])
		<-done
		_ = unix.Close(fds[1])
	})
	t.Cleanup(end)
	return &conn{fd: fds[0], batch: batchMessages, buf: make([]byte, datagram)}, end
}

var noEcho = make([]byte, unix.SizeofNlMsghdr)

func acknowledge(m message, code unix.Errno) []byte {
	return ack(m.seq, int32(code), unix.NLM_F_CAPPED, noEcho, "")
}

// part is a message of a dump.
func part(m message, typ, flags uint16, data ...byte) []byte {
	var e encoder
	e.begin(typ, 0, data)
	e.addFlags(flags | unix.NLM_F_MULTI)
	e.end(m.seq)
	return e.b
}

func encodeAny(e *encoder, _ int) { e.begin(unix.RTM_NEWROUTE, 0, make([]byte, unix.SizeofRtMsg)) }

func TestDoAsksForOneAnswer(t *testing.T) {
	var sizes []int
	c, end := scripted(t, func(ms []message) (out [][]byte) {
		sizes = append(sizes, len(ms))
		// A late answer to something older, and then in the kernel's way:
		// refusals always, success only where it is asked for.
		out = append(out, ack(ms[0].seq-1, int32(unix.EPERM), unix.NLM_F_CAPPED, noEcho, ""))
		for i, m := range ms {
			last := i == len(ms)-1
			if last != (m.flags&unix.NLM_F_ACK != 0) {
				t.Errorf("message %d of %d has flags %#x", i, len(ms), m.flags)
			}
			if m.seq%100 == 0 {
				out = append(out, acknowledge(m, unix.EINVAL))
			} else if last {
				out = append(out, acknowledge(m, 0))
			}
		}
		return out
	})
	failed, sent, err := c.do(t.Context(), requests{n: 600, encode: encodeAny})
	end()
	if err != nil || sent != 600 {
		t.Fatalf("sent %d, %v", sent, err)
	}
	var got []int
	for _, f := range failed {
		if !errors.Is(f.err, unix.EINVAL) {
			t.Errorf("message %d: %v", f.i, f.err)
		}
		got = append(got, f.i)
	}
	// The first sequence number is 1.
	if want := []int{99, 199, 299, 399, 499, 599}; !slices.Equal(got, want) {
		t.Errorf("failed %v, want %v", got, want)
	}
	if want := []int{256, 256, 88}; !slices.Equal(sizes, want) {
		t.Errorf("datagrams of %v messages, want %v", sizes, want)
	}
}

func TestDoStopsBetweenDatagrams(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c, _ := scripted(t, func(ms []message) [][]byte {
		cancel()
		return [][]byte{acknowledge(ms[len(ms)-1], 0)}
	})
	_, sent, err := c.do(ctx, requests{n: 600, encode: encodeAny})
	if sent != 256 || !errors.Is(err, context.Canceled) {
		t.Errorf("sent %d, %v, want 256 and context.Canceled", sent, err)
	}
}

func TestDoMalformed(t *testing.T) {
	c, _ := scripted(t, func([]message) [][]byte { return [][]byte{{1, 2, 3}} })
	if _, _, err := c.do(t.Context(), requests{n: 1, encode: encodeAny}); !errors.Is(err, errMalformed) {
		t.Errorf("error %v, want errMalformed", err)
	}
}

func TestNoAnswer(t *testing.T) {
	c, _ := scripted(t, func([]message) [][]byte { return nil })
	tv := unix.Timeval{Usec: 1000}
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.do(t.Context(), requests{n: 1, encode: encodeAny}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v, want os.ErrDeadlineExceeded", err)
	}
}

// dumpOnce reads a dump of one-byte messages.
func dumpOnce(ctx context.Context, c *conn) (string, error) {
	var got []byte
	err := c.dump(ctx, func(e *encoder) { encodeAny(e, 0) }, func() { got = got[:0] }, func(m message) error {
		got = append(got, m.data[0])
		return nil
	})
	return string(got), err
}

func TestDumpIsReadAgain(t *testing.T) {
	calls := 0
	c, end := scripted(t, func(ms []message) [][]byte {
		m := ms[0]
		if m.flags&unix.NLM_F_DUMP != unix.NLM_F_DUMP {
			t.Errorf("flags %#x", m.flags)
		}
		if calls++; calls < 3 {
			return [][]byte{part(m, unix.RTM_NEWROUTE, 0, 'x'), part(m, unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, 0, 0, 0, 0)}
		}
		return [][]byte{
			append(part(m, unix.RTM_NEWROUTE, 0, 'a'), part(m, unix.RTM_NEWROUTE, 0, 'b')...),
			part(m, unix.RTM_NEWROUTE, 0, 'c'), part(m, unix.NLMSG_DONE, 0, 0, 0, 0, 0),
		}
	})
	got, err := dumpOnce(t.Context(), c)
	end()
	if got != "abc" || err != nil || calls != 3 {
		t.Errorf("got %q, %v after %d dumps, want abc after 3", got, err, calls)
	}
}

func TestDumpFails(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(m message) [][]byte
		want   error
	}{
		"never whole": {
			func(m message) [][]byte { return [][]byte{part(m, unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, 0, 0, 0, 0)} },
			errInterrupted,
		},
		"refused": {
			func(m message) [][]byte { return [][]byte{acknowledge(m, unix.EPERM)} },
			ErrPermission,
		},
		"ends with a failure": {
			func(m message) [][]byte {
				return [][]byte{part(m, unix.RTM_NEWROUTE, 0, 'a'), part(m, unix.NLMSG_DONE, 0, nativeU32(^uint32(unix.ENOMEM)+1)...)}
			},
			unix.ENOMEM,
		},
		"cut off": {
			func(m message) [][]byte { return [][]byte{part(m, unix.RTM_NEWROUTE, 0, 'a')[:17]} },
			errMalformed,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := scripted(t, func(ms []message) [][]byte { return tc.answer(ms[0]) })
			if got, err := dumpOnce(t.Context(), c); !errors.Is(err, tc.want) {
				t.Errorf("got %q, %v, want %v", got, err, tc.want)
			}
		})
	}
}

// TestDumpUnreadable: a part that cannot be read fails the dump, and the socket
// serves the next.
func TestDumpUnreadable(t *testing.T) {
	c, _ := scripted(t, func(ms []message) [][]byte {
		return [][]byte{
			part(ms[0], unix.RTM_NEWROUTE, 0, unix.AF_INET, 24), part(ms[0], unix.RTM_NEWROUTE, 0, unix.AF_INET, 24),
			part(ms[0], unix.NLMSG_DONE, 0, 0, 0, 0, 0),
		}
	})
	n := &Netlink{turn: make(chan *conn, 1)}
	n.turn <- c
	if got, err := n.Routes().List(t.Context()); !errors.Is(err, errMalformed) {
		t.Errorf("got %v, %v, want errMalformed", got, err)
	}
	if got, err := dumpOnce(t.Context(), c); got != "\x02\x02" || err != nil {
		t.Errorf("the next dump: %q, %v", got, err)
	}
}

func TestProbeNexthopObjects(t *testing.T) {
	for name, tc := range map[string]struct {
		answers []unix.Errno
		want    string // of the last call's error
		asked   int
	}{
		"supported":                     {[]unix.Errno{unix.ENOENT, unix.EIO}, "", 1},
		"an old kernel":                 {[]unix.Errno{unix.EOPNOTSUPP, unix.EIO}, "nexthop objects: not supported by this kernel (needs 5.3)", 1},
		"no answer, then an old one":    {[]unix.Errno{unix.EPERM, unix.EOPNOTSUPP}, "nexthop objects: not supported by this kernel (needs 5.3)", 2},
		"no answer, and again no other": {[]unix.Errno{unix.EPERM, unix.EPERM}, "probe nexthop objects: operation not permitted", 2},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			c, end := scripted(t, func(ms []message) [][]byte {
				asked++
				return [][]byte{acknowledge(ms[0], tc.answers[asked-1])}
			})
			n := &Netlink{turn: make(chan *conn, 1)}
			n.turn <- c
			var err error
			for range 2 {
				err = n.NexthopObjects(t.Context())
			}
			end()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if asked != tc.asked {
				t.Errorf("asked %d times, want %d", asked, tc.asked)
			}
			if unsupported := errors.Is(err, errors.ErrUnsupported); unsupported != strings.Contains(tc.want, "not supported") {
				t.Errorf("%v is ErrUnsupported: %v", err, unsupported)
			}
		})
	}
}

// TestOldKernel: without nexthop objects routes go out in the classic form.
func TestOldKernel(t *testing.T) {
	var sent []uint16
	c, end := scripted(t, func(ms []message) (out [][]byte) {
		for _, m := range ms {
			sent = append(sent, m.typ)
			switch m.typ {
			case unix.RTM_GETNEXTHOP, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
				out = append(out, acknowledge(m, unix.EOPNOTSUPP))
			case unix.RTM_GETROUTE:
				out = append(out, part(m, unix.NLMSG_DONE, 0, 0, 0, 0, 0))
			case unix.RTM_NEWROUTE:
				r, ok, err := parseRoute(m)
				if !ok || err != nil || r.nhid != 0 || !r.OnLink || r.Link != 4 {
					t.Errorf("route %+v, %v, %v", r, ok, err)
				}
				out = append(out, acknowledge(m, 0))
			}
		}
		return out
	})
	n := &Netlink{turn: make(chan *conn, 1)}
	n.turn <- c
	r := Route{Dst: netip.MustParsePrefix("10.5.3.0/24"), Gateway: netip.MustParseAddr("10.5.3.0"), Link: 4, OnLink: true}
	for range 2 {
		if err := n.Routes().Put(t.Context(), []Route{r}); err != nil {
			t.Fatal(err)
		}
	}
	end()
	want := []uint16{
		unix.RTM_GETNEXTHOP, unix.RTM_GETROUTE, unix.RTM_GETROUTE, // what is there
		unix.RTM_GETNEXTHOP, unix.RTM_NEWROUTE, // can it be used, no
		unix.RTM_NEWROUTE,
	}
	if !slices.Equal(sent, want) {
		t.Errorf("sent %v, want %v", sent, want)
	}
}
