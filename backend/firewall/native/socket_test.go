package native

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
)

var errEnded = errors.New("ended")

// unasked are waits for a kernel that was asked nothing, and so does not answer.
func unasked() map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"a socket that blocks": func(ctx context.Context) error {
			s, err := openSocket(ctx)
			if err != nil {
				return err
			}
			defer s.close()
			_, err = s.receive()
			return err
		},
		"one of the library's": func(ctx context.Context) error {
			return new(netlinkDoor).use(ctx, func(*nftables.Conn) error {
				w := waits{ctx: ctx}
				defer w.end()
				c, err := netlink.Dial(syscall.NETLINK_NETFILTER, nil)
				if err != nil {
					return err
				}
				defer c.Close()
				if err := w.prepare(c); err != nil {
					return err
				}
				_, err = c.Receive()
				return err
			})
		},
	}
}

// Who waits for an answer that does not come hears of the end of its context.
func TestWaitsEndWithTheirContext(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	for name, wait := range unasked() {
		for when, after := range map[string]time.Duration{"before": 0, "meanwhile": 100 * time.Millisecond} {
			t.Run(name+" "+when, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if after == 0 {
					cancel(errEnded)
				} else {
					time.AfterFunc(after, func() { cancel(errEnded) })
				}
				began := time.Now()
				var err error
				ns.Do(t, func() { err = wait(ctx) })
				if !errors.Is(err, errEnded) {
					t.Errorf("%v, want %v", err, errEnded)
				}
				if took := time.Since(began); took >= answerWithin {
					t.Errorf("it took %s", took)
				}
			})
		}
	}
}

// A kernel that does not answer is named, with how long it had.
func TestNoAnswer(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	var err error
	ns.Do(t, func() {
		var s *socket
		if s, err = openSocket(t.Context()); err != nil {
			return
		}
		defer s.close()
		s.within = time.Millisecond
		_, err = s.receive()
	})
	if !errors.Is(err, errNoAnswer) || !strings.HasSuffix(err.Error(), "nf_tables does not answer within 1ms") {
		t.Errorf("%v", err)
	}
}

// Whose context has ended changes nothing, and says why.
func TestNothingIsDoneAfterTheEnd(t *testing.T) {
	h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
	d := many(3)
	h.apply(t, d)
	before := h.list(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errEnded)
	for name, deed := range map[string]func() error{
		"apply":    func() error { return h.t.Apply(ctx, many(4)) },
		"follow":   func() error { return h.t.Follow(ctx, nil, []Peer{many(9).Peers[8]}) },
		"counters": func() error { _, err := h.t.Counters(ctx); return err },
		"generation": func() error {
			_, err := CurrentGeneration(ctx)
			return err
		},
	} {
		var err error
		h.Do(t, func() { err = deed() })
		if !errors.Is(err, errEnded) && !errors.Is(err, ErrNotFollowed) {
			t.Errorf("%s: %v, want %v", name, err, errEnded)
		}
	}
	var undisturbed bool
	h.Do(t, func() { undisturbed = h.t.Undisturbed(ctx) })
	if undisturbed {
		t.Error("what was not asked is said to be undisturbed")
	}
	if got := h.list(t); got != before {
		t.Errorf("listed\n%s\nwant\n%s", got, before)
	}
}

// Of what a use waited for, nothing outlives it.
func TestUsesLeaveNothingBehind(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	ctx := &watched{Context: t.Context(), end: make(chan struct{})}
	ns.Do(t, func() {
		for range 3 {
			if _, err := (&netlinkDoor{table: "flanneld-go"}).counters(ctx, 0); err != nil {
				t.Fatal(err)
			}
		}
	})
	if ctx.asked == 0 || ctx.waiting != 0 {
		t.Errorf("of %d waits %d are left", ctx.asked, ctx.waiting)
	}
}

// watched counts who waits for its end.
type watched struct {
	context.Context
	end            chan struct{}
	asked, waiting int
}

// Done makes it a context of a kind of its own, which is asked.
func (w *watched) Done() <-chan struct{} { return w.end }

// AfterFunc is what [context.AfterFunc] asks, where there is one.
func (w *watched) AfterFunc(f func()) func() bool {
	w.asked++
	w.waiting++
	stop := context.AfterFunc(w.Context, f)
	return func() bool {
		stopped := stop()
		if stopped {
			w.waiting--
		}
		return stopped
	}
}
