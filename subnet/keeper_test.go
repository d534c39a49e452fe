package subnet_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// host is a keeper at work in a bubble, on its own Store of shared data.
type host struct {
	t      *testing.T
	data   *memstore.Store
	store  *memstore.Store
	clock  *bubbleClock
	keeper *subnet.Keeper
	view   *subnet.View
	result chan error
	stop   context.CancelFunc
	// requests counts the calls of the keeper's store, by method.
	requests map[string]*atomic.Int64
	// fail, when it holds an error, refuses updates.
	fail atomic.Pointer[error]
}

const ttl = time.Hour

func methods() []string {
	return []string{"Load", "Watch", "Create", "Renew", "Update", "Release", "TTL", "PutConfig"}
}

// start leases a subnet and keeps it.
func start(t *testing.T, data *memstore.Store, adjust func(*subnet.KeeperOptions)) *host {
	t.Helper()
	h := &host{t: t, data: data, clock: newClock(), result: make(chan error, 1), requests: map[string]*atomic.Int64{}}
	for _, m := range methods() {
		h.requests[m] = new(atomic.Int64)
	}
	h.store = data.Open(memstore.Options{Before: func(method string) error {
		h.requests[method].Add(1)
		if err := h.fail.Load(); err != nil && method == "Update" {
			return *err
		}
		return nil
	}})
	o := subnet.KeeperOptions{Store: h.store, Clock: h.clock, Claim: claim("me", "198.18.0.1"), Random: func() float64 { return 0.5 }}
	o.Claim.TTL = ttl
	if adjust != nil {
		adjust(&o)
	}
	if o.Lease.Subnet.IsZero() {
		w := load(t, h.store)
		var err error
		if o.Lease, err = subnet.Acquire(t.Context(), h.store, w, o.Claim); err != nil {
			t.Fatal(err)
		}
		o.Identity = w.Identity
	}
	h.view, h.keeper = o.View, subnet.NewKeeper(o)
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	go func() { h.result <- h.keeper.Run(ctx) }()
	synctest.Wait()
	return h
}

// end stops the keeper, which must not have failed, the views, and all timers.
func (h *host) end(views ...*watcher) {
	h.t.Helper()
	h.stop()
	if err := <-h.result; err != nil {
		h.t.Errorf("Run = %v", err)
	}
	for _, w := range views {
		w.finish()
	}
	h.data.Wipe()
}

// is checks the state alone.
func (h *host) is(state subnet.State) {
	h.t.Helper()
	if s := h.keeper.Status(); s.State != state {
		h.t.Errorf("%s (%s), want %s", s.State, s.Why, state)
	}
}

func (h *host) want(state subnet.State, key, why string) {
	h.t.Helper()
	s := h.keeper.Status()
	if s.State != state || s.Lease.Subnet.Key() != key || !strings.Contains(s.Why, why) || why == "" && s.Why != "" {
		h.t.Errorf("%s with %s (%s), want %s with %s (%s)", s.State, s.Lease.Subnet.Key(), s.Why, state, key, why)
	}
	if l, ok := stored(h.t, h.data.Open(memstore.Options{}), key); state == subnet.StateValid && (!ok || l.Modified != s.Lease.Modified || l.ID != s.Lease.ID || l.Attrs.Instance != "me-1") {
		h.t.Errorf("the store holds %+v, the keeper believes in %+v", l, s.Lease)
	}
}

const home = "10.5.125.0-24"

func TestKeeperRenewsForDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, newStore(config), nil)
		revision := h.data.Revision()
		after(48 * time.Hour)
		h.want(subnet.StateValid, home, "")
		// Every 20 minutes less 5 %, for 48 hours, and the first at once.
		if got := h.requests["Renew"].Load(); got != 152 {
			t.Errorf("%d renewals, want 152", got)
		}
		if h.data.Revision() != revision {
			t.Error("a renewal wrote something")
		}
		if since := h.clock.Now().Sub(h.keeper.Status().Since); since != 48*time.Hour {
			t.Errorf("valid since %s", since)
		}
		h.end()
	})
}

func TestKeeperOutages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, newStore(config), nil)
		h.store.SetUnavailable(errDown)
		after(19 * time.Minute)
		h.want(subnet.StateDegraded, home, "etcd is down")
		after(40 * time.Minute)
		h.want(subnet.StateDegraded, home, "etcd is down")
		after(2 * time.Minute)
		h.want(subnet.StateUnproven, home, "etcd is down")
		if asked := h.requests["Renew"].Load(); asked > 120 {
			t.Errorf("asked %d times in an hour", asked)
		}
		// The lease expired meanwhile, and the subnet is free: created again.
		h.store.SetUnavailable(nil)
		after(31 * time.Second)
		h.want(subnet.StateValid, home, "")

		h.store.SetUnavailable(errDown)
		after(30 * time.Minute)
		h.want(subnet.StateDegraded, home, "etcd is down")
		h.store.SetUnavailable(nil)
		after(31 * time.Second)
		h.want(subnet.StateValid, home, "")
		h.end()
	})
}

// A request without an answer does not hide that the lease's time is over, and
// after that another member is asked as soon as before.
func TestKeeperWhoseRequestsHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hanging := &hangingStore{}
		h := start(t, newStore(config), func(o *subnet.KeeperOptions) {
			hanging.Store = o.Store
			o.Store, o.Claim.TTL = hanging, 4*time.Second
		})
		hanging.hangs.Store(1 << 20)
		after(3900 * time.Millisecond)
		h.is(subnet.StateDegraded)
		after(time.Second + 200*time.Millisecond)
		h.is(subnet.StateUnproven)
		after(3 * time.Second)
		hanging.hangs.Store(0)
		after(3 * time.Second)
		h.want(subnet.StateValid, home, "")
		h.end()
	})
}

// A member of the store that is silent costs a lease nothing as long as another
// one is not: there is time to ask it.
func TestKeeperAsksAnotherInTime(t *testing.T) {
	for _, ttl := range []time.Duration{4 * time.Second, 30 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			hanging := &hangingStore{}
			h := start(t, newStore(config), func(o *subnet.KeeperOptions) {
				hanging.Store = o.Store
				o.Store, o.Claim.TTL = hanging, ttl
			})
			for range 5 {
				hanging.hangs.Store(1)
				for range 20 {
					after(ttl / 20)
					if h.keeper.Status().State == subnet.StateUnproven {
						t.Fatalf("TTL %s: the lease ran out: %s", ttl, h.keeper.Status().Why)
					}
				}
				h.want(subnet.StateValid, home, "")
			}
			h.end()
		})
	}
}

// A slow link is no dead one.
func TestKeeperOnASlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, newStore(config), func(o *subnet.KeeperOptions) {
			o.Store, o.Claim.TTL = slowStore{o.Store, 800 * time.Millisecond}, 5*time.Second
		})
		for range 100 {
			after(300 * time.Millisecond)
			h.is(subnet.StateValid)
		}
		h.end()
	})
}

// hangingStore does not answer so many renewals.
type hangingStore struct {
	subnet.Store
	hangs atomic.Int64
}

func (s *hangingStore) Renew(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	if s.hangs.Add(-1) >= 0 {
		<-ctx.Done()
		return l, ctx.Err()
	}
	return s.Store.Renew(ctx, l)
}

// A machine that slept past the TTL asks before it believes.
func TestKeeperAfterSleep(t *testing.T) {
	for _, taken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := start(t, newStore(config), func(o *subnet.KeeperOptions) { o.OnConflict = subnet.Keep })
			h.clock.suspend(2 * ttl)
			h.data.Revoke(h.keeper.Lease().ID)
			if taken {
				put(t, h.data, home, attrs("b", "198.18.0.2"), ttl)
			}
			after(11 * time.Second)
			if taken {
				h.want(subnet.StateConflict, home, "node b")
			} else {
				h.want(subnet.StateValid, home, "")
			}
			h.end()
		})
	}
}

// What the store answers to a release is the end of it, whatever it is.
func TestKeeperRelease(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*host)
		left bool
		want error
	}{
		{"ours", func(*host) {}, false, nil},
		{"gone", func(h *host) { h.data.DeleteKey(home) }, false, subnet.ErrLeaseLost},
		{"another store's", func(h *host) { h.data.Wipe() }, false, subnet.ErrStoreChanged},
		{"another's", func(h *host) { put(h.t, h.data, home, attrs("b", "198.18.0.2"), ttl) }, true, subnet.ErrLeaseLost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data, asked := newStore(config), 0
				h := start(t, data, func(o *subnet.KeeperOptions) {
					o.Store = data.Open(memstore.Options{Before: func(method string) error {
						if method == "Release" {
							asked++
						}
						return nil
					}})
				})
				h.stop()
				<-h.result
				tt.do(h)
				if err := h.keeper.Release(t.Context()); !errors.Is(err, tt.want) {
					t.Errorf("Release = %v, want %v", err, tt.want)
				}
				if asked != 1 {
					t.Errorf("asked %d times for what was answered", asked)
				}
				if _, ok := stored(t, h.data, home); ok != tt.left {
					t.Errorf("the key is there: %v, want %v", ok, tt.left)
				}
				h.data.Wipe()
			})
		})
	}
}

// Whether a release was carried out whose answer was lost, another one tells.
func TestKeeperReleaseUnanswered(t *testing.T) {
	for _, tt := range []struct {
		name string
		// refused and lost are how often a request gets no answer, before and
		// after it is carried out.
		refused, lost int
		taken, ours   bool
		want          error
	}{
		{name: "lost on the way", refused: 3},
		{name: "carried out", lost: 1, want: subnet.ErrLeaseLost},
		{name: "carried out, and leased by another meanwhile", lost: 1, taken: true, want: subnet.ErrLeaseLost},
		{name: "never answered", refused: 1000, want: errDown, ours: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				fail := func(left *int, then func()) func(string) error {
					return func(method string) error {
						if method != "Release" || *left == 0 {
							return nil
						}
						*left--
						then()
						return errDown
					}
				}
				h := start(t, data, func(o *subnet.KeeperOptions) {
					o.Store = data.Open(memstore.Options{Before: fail(&tt.refused, func() {}), After: fail(&tt.lost, func() {
						if tt.taken {
							put(t, data, home, attrs("b", "198.18.0.2"), ttl)
						}
					})})
				})
				h.stop()
				<-h.result
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				err := h.keeper.Release(ctx)
				if !errors.Is(err, tt.want) {
					t.Errorf("Release = %v, want %v", err, tt.want)
				}
				if tt.lost > 0 && !strings.HasPrefix(err.Error(), "an earlier request got no answer") {
					t.Errorf("Release = %v, which does not say that it may have been carried out", err)
				}
				l, ok := stored(t, data, home)
				if ours := ok && l.Attrs.Owner == "me"; ours != tt.ours || !ours && ok != tt.taken {
					t.Errorf("the store holds %+v (%v)", l, ok)
				}
				data.Wipe()
			})
		})
	}
}

// What was achieved while the context ended counts: Release knows it.
func TestKeeperStopsInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *host
		data := newStore(config)
		h = start(t, data, func(o *subnet.KeeperOptions) {
			o.Store = data.Open(memstore.Options{After: func(method string) error {
				if method == "Update" {
					h.stop()
				}
				return nil
			}})
		})
		put(t, data, home, attrs("", "198.18.0.1"), ttl)
		after(ttl / 3)
		if err := <-h.result; err != nil {
			t.Errorf("Run = %v", err)
		}
		if l, _ := stored(t, data, home); l.Attrs.Owner != "me" {
			t.Fatalf("the store holds %+v", l)
		}
		if err := h.keeper.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if l, ok := stored(t, data, home); ok {
			t.Errorf("left behind: %+v", l)
		}
		data.Wipe()
	})
}

// Whoever waits for a change sees it, and is not woken by renewals.
func TestKeeperStatusChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, newStore(config), nil)
		s := h.keeper.Status()
		after(10 * ttl)
		select {
		case <-s.Changed():
			t.Error("a renewal is no change")
		default:
		}
		if now := h.keeper.Status(); now.Expires <= s.Expires {
			t.Errorf("expires at %s, after renewals at %s", s.Expires, now.Expires)
		}
		put(t, h.data, home, attrs("b", "198.18.0.2"), ttl)
		<-s.Changed()
		synctest.Wait()
		h.want(subnet.StateValid, "10.5.126.0-24", "")
		h.end()
	})
}

func TestStateNames(t *testing.T) {
	for s, want := range map[subnet.State]string{
		subnet.StateUnproven: "unproven", subnet.StateValid: "valid", subnet.StateDegraded: "degraded",
		subnet.StateLost: "lost", subnet.StateConflict: "conflict", subnet.StateEnded: "ended", 99: "state(99)",
	} {
		if s.String() != want {
			t.Errorf("%d is %s, want %s", s, s, want)
		}
	}
}
