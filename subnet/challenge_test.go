package subnet_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// clone is another machine with the node id "me".
func clone(instance, ip string) subnet.Claim {
	c := claim("me", ip)
	c.Instance = instance
	return c
}

// acquired is what one Acquire came to, and how long it took.
type acquired struct {
	lease subnet.Lease
	err   error
	took  time.Duration
}

// seek loads and acquires, again as long as the world is out of date.
func seek(t *testing.T, s subnet.Store, c subnet.Claim) acquired {
	t.Helper()
	begin := time.Now()
	for {
		l, err := subnet.Acquire(t.Context(), s, load(t, s), c)
		if !errors.Is(err, subnet.ErrLeaseLost) {
			return acquired{l, err, time.Since(begin)}
		}
	}
}

// foreigner checks that err names both machines and what to do.
func foreigner(t *testing.T, err error, subnets, theirs, ours string) {
	t.Helper()
	want := "node id me holds " + subnets + " at " + theirs + ", but this host is " + ours +
		": machines that were cloned share one machine id: give each its own /etc/machine-id or --node-id"
	var e *subnet.ForeignInstanceError
	if !errors.As(err, &e) || e.Error() != want {
		t.Errorf("got error %v\nwant %s", err, want)
	}
}

// viewed starts a keeper that follows a view, as the daemon's does.
func viewed(t *testing.T, data *memstore.Store, c subnet.Claim) (*host, *watcher) {
	t.Helper()
	w := watch(t, data, func(o *subnet.ViewOptions) { o.Node = c.Node })
	return start(t, data, func(o *subnet.KeeperOptions) {
		o.View, o.Claim = w.view, c
		o.Claim.TTL = ttl
	}), w
}

// unchallenged checks that the key has no challenge in it and is of an instance.
func unchallenged(t *testing.T, data *memstore.Store, key, instance string) subnet.Lease {
	t.Helper()
	l, ok := stored(t, data, key)
	if !ok || !l.Attrs.Challenge.IsZero() || l.Attrs.Instance != instance {
		t.Errorf("%s holds %+v, want one of %s without a challenge", key, l.Attrs, instance)
	}
	return l
}

func TestChallengeAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		h, w := viewed(t, data, claim("me", "198.18.0.1"))
		before := h.keeper.Lease()
		got := seek(t, data, clone("new", "198.18.0.2"))
		foreigner(t, got.err, "10.5.125.0/24", "198.18.0.1 (instance me-1)", "198.18.0.2 (instance new)")
		if got.took != subnet.ChallengeWait {
			t.Errorf("waited %s", got.took)
		}
		if l := unchallenged(t, data, home, "me-1"); l.ID != before.ID {
			t.Errorf("hangs on %d, before on %d", l.ID, before.ID)
		}
		h.want(subnet.StateValid, home, "")
		h.end(w)
	})
}

// The host moved: it gets its subnet back, on the lease that the key hangs on.
func TestChallengeInSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		old := acquire(t, data, clone("old", "198.18.0.1"))
		got := seek(t, data, clone("new", "198.18.0.2"))
		if got.err != nil || got.lease.Subnet != old.Subnet || got.lease.ID != old.ID || got.took != subnet.ChallengeWait {
			t.Errorf("got %+v after %s, %v; want %s", got.lease, got.took, got.err, old.Subnet)
		}
		if l := unchallenged(t, data, home, "new"); l.Attrs.PublicIP != addr4("198.18.0.2") {
			t.Errorf("published at %s", l.Attrs.PublicIP)
		}
		data.Wipe()
	})
}

// A challenge whose author died is no obstacle: not for the author's own host,
// not for another claimant, and the owner removes it.
func TestChallengeLeftBehind(t *testing.T) {
	for _, tt := range []struct {
		name string
		next subnet.Claim
		took time.Duration
	}{
		{"the same host again", clone("again", "198.18.0.2"), subnet.ChallengeWait},
		{"another host", clone("third", "198.18.0.3"), 2 * subnet.ChallengeWait},
	} {
		synctest.Test(t, func(t *testing.T) {
			data := newStore(config)
			acquire(t, data, clone("old", "198.18.0.1"))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := subnet.Acquire(ctx, data, load(t, data), clone("dies", "198.18.0.2")); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("%s: %v", tt.name, err)
			}
			l, _ := stored(t, data, home)
			if want := (subnet.Challenge{Instance: "dies", PublicIP: addr4("198.18.0.2")}); l.Attrs.Challenge != want || l.Attrs.Instance != "old" {
				t.Errorf("%s: the key holds %+v", tt.name, l.Attrs)
			}
			got := seek(t, data, tt.next)
			if got.err != nil || got.took != tt.took {
				t.Errorf("%s: %v after %s, want success after %s", tt.name, got.err, got.took, tt.took)
			}
			unchallenged(t, data, home, tt.next.Instance)
			data.Wipe()
		})
	}
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		h, w := viewed(t, data, claim("me", "198.18.0.1"))
		l := h.keeper.Lease()
		l.Attrs.Challenge = subnet.Challenge{Instance: "dies", PublicIP: addr4("198.18.0.2")}
		put(t, data, home, l.Attrs, ttl)
		synctest.Wait()
		unchallenged(t, data, home, "me-1")
		h.want(subnet.StateValid, home, "")
		h.end(w)
	})
}

// Of two newcomers one gets the subnet of the machine that is gone; as long as
// it lives it answers the other.
func TestChallengeByTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, apart := range []time.Duration{0, time.Millisecond, time.Second, 2999 * time.Millisecond, 3 * time.Second} {
			data := newStore(config)
			acquire(t, data, clone("old", "198.18.0.1"))
			results := make(chan acquired, 2)
			claims := map[string]subnet.Claim{}
			for i, c := range []subnet.Claim{clone("a", "198.18.0.2"), clone("b", "198.18.0.3")} {
				after(time.Duration(i) * apart)
				claims[c.Instance] = c
				go func() { results <- seek(t, data, c) }()
			}
			first := <-results
			if first.err != nil || first.lease.Subnet.Key() != home {
				t.Fatalf("%s apart: first %+v, %v", apart, first.lease, first.err)
			}
			winner := first.lease.Attrs.Instance
			w := watch(t, data, nil)
			h := start(t, data, func(o *subnet.KeeperOptions) {
				o.Claim, o.Lease, o.Identity, o.View = claims[winner], first.lease, load(t, data).Identity, w.view
				o.Claim.TTL = ttl
			})
			second := <-results
			var e *subnet.ForeignInstanceError
			if !errors.As(second.err, &e) || e.Lease.Attrs.Instance != winner {
				t.Errorf("%s apart: second %+v, %v", apart, second.lease, second.err)
			}
			unchallenged(t, data, home, winner)
			h.is(subnet.StateValid)
			h.end(w)
			data.Wipe()
		}
	})
}

// An owner that was away for too long finds another in its place. It asks in its
// turn, is answered, and ends naming the other.
func TestChallengeByTheOneWhoWasAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		paused, w := viewed(t, data, clone("old", "198.18.0.1"))
		paused.store.SetUnavailable(errDown)
		w.store.SetUnavailable(errDown)
		present, w2 := viewed(t, data, clone("new", "198.18.0.2"))
		after(time.Minute)
		present.is(subnet.StateValid)
		revision := data.Revision()

		paused.store.SetUnavailable(nil)
		w.store.SetUnavailable(nil)
		err := <-paused.result
		foreigner(t, err, "10.5.125.0/24", "198.18.0.2 (instance new)", "198.18.0.1 (instance old)")
		if s := paused.keeper.Status(); s.State != subnet.StateEnded || s.Why != err.Error() {
			t.Errorf("%s: %s", s.State, s.Why)
		}
		if got := data.Revision() - revision; got != 2 {
			t.Errorf("%d writes, want the question and the answer", got)
		}
		present.is(subnet.StateValid)
		unchallenged(t, data, home, "new")
		for _, h := range []*host{paused, present} {
			h.stop()
		}
		<-present.result
		w.finish()
		w2.finish()
	})
}

// The same with nobody there to answer: the subnet is its own again. The dead
// one's address, or that of its own past in a restored store, makes no
// difference.
func TestKeeperChallengesInSilence(t *testing.T) {
	for _, policy := range []subnet.OnConflict{subnet.Renumber, subnet.Fence, subnet.Keep} {
		synctest.Test(t, func(t *testing.T) {
			data := newStore(config)
			w := watch(t, data, func(o *subnet.ViewOptions) { o.Node = "me" })
			h := start(t, data, func(o *subnet.KeeperOptions) { o.View, o.OnConflict = w.view, policy })
			put(t, data, home, attrs("me", "198.18.0.2"), ttl)
			synctest.Wait()
			h.want(subnet.StateLost, home, "node id me holds 10.5.125.0/24 at 198.18.0.2 (instance theirs), but this host is 198.18.0.1 (instance me-1)")
			l, _ := stored(t, data, home)
			if want := (subnet.Challenge{Instance: "me-1", PublicIP: addr4("198.18.0.1")}); l.Attrs.Challenge != want {
				t.Errorf("the key holds %+v", l.Attrs)
			}
			after(2500 * time.Millisecond)
			h.want(subnet.StateLost, home, "node id me holds")
			after(500 * time.Millisecond)
			h.want(subnet.StateValid, home, "")
			unchallenged(t, data, home, "me-1")
			h.end(w)
		})
	}
}

// Who let go of a subnet for the sake of another does not use it before the
// challenge of the next one is over: that one may live.
func TestKeeperStaysFencedWhileItAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		w := watch(t, data, func(o *subnet.ViewOptions) { o.Node = "me" })
		h := start(t, data, func(o *subnet.KeeperOptions) { o.View, o.OnConflict = w.view, subnet.Fence })
		put(t, data, home, attrs("b", "198.18.0.2"), ttl)
		synctest.Wait()
		h.want(subnet.StateConflict, home, "node b")
		put(t, data, home, attrs("me", "198.18.0.3"), ttl)
		after(2500 * time.Millisecond)
		h.want(subnet.StateConflict, home, "node id me holds")
		if !h.keeper.Status().Withdraw {
			t.Error("the subnet may be used while another machine may have it")
		}
		after(500 * time.Millisecond)
		h.want(subnet.StateValid, home, "")
		h.end(w)
	})
}

// What happens during the wait is taken for nothing that it is not.
func TestChallengeInterrupted(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*memstore.Store, *subnet.Lease)
		want error
	}{
		{"store down", func(s *memstore.Store, _ *subnet.Lease) { s.SetUnavailable(errDown) }, errDown},
		{"config changed", func(s *memstore.Store, _ *subnet.Lease) { s.OverwriteConfig(`{"Network":"10.5.0.0/17"}`) }, subnet.ErrConfigChanged},
		{"store wiped", func(s *memstore.Store, _ *subnet.Lease) { s.Wipe(); s.OverwriteConfig(config) }, subnet.ErrStoreChanged},
		{"store wiped, and looked like before", func(s *memstore.Store, _ *subnet.Lease) {
			s.Wipe()
			s.OverwriteConfig(config)
			load(t, s)
			s.OverwriteConfig(config)
		}, subnet.ErrStoreChanged},
		{"an older snapshot restored", nil, subnet.ErrStoreChanged},
		{"key deleted", func(s *memstore.Store, _ *subnet.Lease) { s.DeleteKey(home) }, nil},
		{"key another's", func(s *memstore.Store, _ *subnet.Lease) { put(t, s, home, attrs("b", "198.18.0.9"), ttl) }, nil},
		{"key flannel's of this host", func(s *memstore.Store, _ *subnet.Lease) { put(t, s, home, attrs("", "198.18.0.2"), ttl) }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				old := acquire(t, data, clone("old", "198.18.0.1"))
				backup := data.Snapshot()
				put(t, data, "10.5.9.0-24", attrs("b", "198.18.0.9"), 0)
				ours := data.Open(memstore.Options{})
				results := make(chan acquired, 1)
				w := load(t, ours)
				go func() {
					l, err := subnet.Acquire(t.Context(), ours, w, clone("new", "198.18.0.2"))
					results <- acquired{lease: l, err: err}
				}()
				after(time.Second)
				other := data
				if errors.Is(tt.want, errDown) {
					other = ours
				}
				if tt.do == nil {
					data.Restore(backup)
				} else {
					tt.do(other, &old)
				}
				got := <-results
				if !errors.Is(got.err, tt.want) {
					t.Errorf("got %+v, %v, want %v", got.lease, got.err, tt.want)
				}
				ours.SetUnavailable(nil)
				again := seek(t, ours, clone("new", "198.18.0.2"))
				if again.err != nil || tt.want == nil && again.lease.Subnet != got.lease.Subnet {
					t.Errorf("then %+v, %v", again.lease, again.err)
				}
				data.Wipe()
			})
		})
	}
}

// A takeover is a compare-and-swap on the revision that was waited for: an
// answer in the last moment is not overwritten.
func TestChallengeAnsweredInTheLastMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		old := acquire(t, data, clone("old", "198.18.0.1"))
		loads := 0
		ours := data.Open(memstore.Options{After: func(method string) error {
			if method != "Load" {
				return nil
			}
			if loads++; loads == 2 {
				put(t, data, home, old.Attrs, ttl)
			}
			return nil
		}})
		if got := seek(t, ours, clone("new", "198.18.0.2")); got.err != nil || got.took != 2*subnet.ChallengeWait {
			t.Errorf("%v after %s, want one more challenge", got.err, got.took)
		}
		data.Wipe()
	})
}

// Everything with our node id is asked before anything is taken, released or
// created, and all at once.
func TestChallengeOfSeveral(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config string
		prior  []prior
		alive  bool
		want   string
		left   []string
	}{
		{
			name: "beside a reservation", prior: []prior{{"10.5.7.0-24", subnet.Attrs{Owner: "me"}, 0}, {"10.5.8.0-24", attrs("me", "198.18.0.2"), ttl}},
			want: "10.5.7.0-24", left: []string{"10.5.7.0-24"},
		},
		{
			name: "beside a reservation, and it lives", prior: []prior{{"10.5.7.0-24", subnet.Attrs{Owner: "me"}, 0}, {"10.5.8.0-24", attrs("me", "198.18.0.2"), ttl}},
			alive: true, left: []string{"10.5.7.0-24", "10.5.8.0-24"},
		},
		{
			name: "a reservation that another process used", prior: []prior{{"10.5.8.0-24", attrs("me", "198.18.0.2"), 0}, {"10.5.9.0-24", attrs("me", "198.18.0.3"), ttl}},
			want: "10.5.8.0-24", left: []string{"10.5.8.0-24"},
		},
		{
			name: "one that does not fit", config: `{"Network":"10.5.0.0/16","SubnetLen":25}`, prior: []prior{{"10.5.8.0-24", attrs("me", "198.18.0.2"), ttl}},
			want: "10.5.147.128-25", left: []string{"10.5.147.128-25"},
		},
		{
			name: "one that does not fit, and it lives", config: `{"Network":"10.5.0.0/16","SubnetLen":25}`, prior: []prior{{"10.5.8.0-24", attrs("me", "198.18.0.2"), ttl}},
			alive: true, left: []string{"10.5.8.0-24"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(cmpOr(tt.config, config))
				for _, p := range tt.prior {
					put(t, data, p.key, p.attrs, p.ttl)
				}
				if tt.alive {
					time.AfterFunc(time.Second, func() { put(t, data, "10.5.8.0-24", attrs("me", "198.18.0.2"), ttl) })
				}
				got := seek(t, data, claim("me", "198.18.0.1"))
				var e *subnet.ForeignInstanceError
				if errors.As(got.err, &e) != tt.alive || got.lease.Subnet != (subnet.Subnet{}) && got.lease.Subnet.Key() != tt.want || got.took != subnet.ChallengeWait {
					t.Errorf("got %s, %v after %s", got.lease.Subnet, got.err, got.took)
				}
				var left []string
				for _, l := range load(t, data).Leases {
					left = append(left, l.Subnet.Key())
					if want := !tt.alive; l.Attrs.Instance == "me-1" != want {
						t.Errorf("%s is of %q", l.Subnet, l.Attrs.Instance)
					}
				}
				if d := cmp.Diff(tt.left, left); d != "" {
					t.Errorf("left: -want +got\n%s", d)
				}
				data.Wipe()
			})
		})
	}
}

// The answer is one write after one look at the view: in time even where a
// request takes two seconds. So is that of an owner that is about to renew.
func TestChallengeAnsweredFromAfar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		far := func(s subnet.Store) subnet.Store { return slowStore{s, time.Second} }
		w := watch(t, data, func(o *subnet.ViewOptions) { o.Store = far(o.Store) })
		h := start(t, data, func(o *subnet.KeeperOptions) {
			o.View = w.view
			o.Claim.TTL = ttl
			world := load(t, o.Store)
			var err error
			if o.Lease, err = subnet.Acquire(t.Context(), o.Store, world, o.Claim); err != nil {
				t.Fatal(err)
			}
			o.Identity, o.Store = world.Identity, far(o.Store)
		})
		after(20*time.Minute - 200*time.Millisecond)
		got := seek(t, data, clone("new", "198.18.0.2"))
		foreigner(t, got.err, "10.5.125.0/24", "198.18.0.1 (instance me-1)", "198.18.0.2 (instance new)")
		after(10 * time.Second)
		h.want(subnet.StateValid, home, "")
		h.end(w)
	})
}
