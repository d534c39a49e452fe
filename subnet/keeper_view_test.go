package subnet_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// In another cluster behind the same address a former instance is no other process,
// however young it looks.
func TestKeeperInAnotherStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, newStore(config), nil)
		h.data.Wipe()
		for range 50 {
			put(t, h.data, "10.5.9.0-24", attrs("b", "198.18.0.2"), 0)
		}
		put(t, h.data, home, attrs("me", "198.18.0.1"), ttl)
		h.data.OverwriteConfig(config)
		after(ttl / 3)
		h.want(subnet.StateValid, home, "")
		h.end()
	})
}

// A store that takes no writes, for want of space say, still renews: a host that
// starts from its cache keeps the key alive under its former instance.
func TestKeeperWithoutWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		former := claim("me", "198.18.0.1")
		former.Instance = "me-0"
		cached := acquire(t, data, former)
		h := start(t, data, func(o *subnet.KeeperOptions) {
			o.Lease, o.Cached, o.Identity = cached, true, load(t, data).Identity
			o.Store.(*memstore.Store).SetUnavailable(errDown)
		})
		full := errors.New("no space")
		h.fail.Store(&full)
		h.store.SetUnavailable(nil)
		after(3 * ttl)
		h.is(subnet.StateDegraded)
		if got := h.requests["Update"].Load(); got > 600 {
			t.Errorf("tried to write %d times in 3 hours", got)
		}
		if l, ok := stored(t, data.Open(memstore.Options{}), home); !ok || l.Attrs.Instance != "me-0" {
			t.Errorf("the store holds %+v, want the key as it was", l)
		}
		h.fail.Store(nil)
		after(time.Minute)
		h.want(subnet.StateValid, home, "")
		h.end()
	})
}

// So does one that starts with the store in sight: it begins with the lease as it
// is, and writes when it can.
func TestStartWithoutWrites(t *testing.T) {
	for name, leased := range map[string]time.Duration{"lease": ttl, "reservation": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				former := claim("me", "198.18.0.1").Attrs
				former.Owner, former.Instance = "me", "me-0"
				put(t, data, home, former, leased)
				after(ttl / 2)
				var full atomic.Bool
				full.Store(true)
				h := start(t, data, func(o *subnet.KeeperOptions) {
					o.Store = data.Open(memstore.Options{Before: func(method string) error {
						if method == "Update" && full.Load() {
							return errors.New("no space")
						}
						return nil
					}})
					w := load(t, o.Store)
					var err error
					if o.Lease, err = subnet.Acquire(t.Context(), o.Store, w, o.Claim); err != nil {
						t.Fatal(err)
					}
					o.Identity = w.Identity
				})
				after(3 * ttl)
				h.is(subnet.StateDegraded)
				if l, ok := stored(t, data, home); !ok || l.Attrs.Instance != "me-0" {
					t.Errorf("the store holds %+v, want the key as it was", l)
				}
				full.Store(false)
				after(time.Minute)
				h.want(subnet.StateValid, home, "")
				h.end()
			})
		})
	}
}

// Who reads the log learns that somebody deleted the key, and not that something is
// amiss with the lease.
func TestKeeperSaysThatItsKeyWasDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		w := watch(t, data, nil)
		var log strings.Builder
		h := start(t, data, func(o *subnet.KeeperOptions) {
			o.View, o.Log = w.view, slog.New(slog.NewTextHandler(&log, nil))
		})
		said := func() bool { return strings.Contains(log.String(), `reason="key `+home+` was deleted: `) }
		put(t, data, home, h.keeper.Lease().Attrs, ttl)
		synctest.Wait()
		if said() {
			t.Errorf("it was written over:\n%s", log.String())
		}
		data.DeleteKey(home)
		synctest.Wait()
		if !said() {
			t.Errorf("log:\n%s", log.String())
		}
		h.want(subnet.StateValid, home, "")
		h.end(w)
	})
}

// Until it can write, the key has the instance of the process before. Somebody else
// who changes it, a machine that asks whether we live say, is not that process.
func TestChallengedWithoutWrites(t *testing.T) {
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprintf("cached %t", cached), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				former := claim("me", "198.18.0.1").Attrs
				former.Owner, former.Instance = "me", "me-0"
				id := put(t, data, home, former, ttl)
				w := watch(t, data, func(o *subnet.ViewOptions) { o.Node = "me" })
				var full atomic.Bool
				full.Store(true)
				h := start(t, data, func(o *subnet.KeeperOptions) {
					o.Lease, _ = stored(t, data, home)
					o.View, o.Cached, o.Identity = w.view, cached, load(t, data).Identity
					o.Store = data.Open(memstore.Options{Before: func(method string) error {
						if method == "Update" && full.Load() {
							return errors.New("no space")
						}
						return nil
					}})
				})
				after(ttl)
				h.is(subnet.StateDegraded)
				full.Store(false)
				asked := former
				asked.Challenge = subnet.Challenge{Instance: "clone-1", PublicIP: addr4("198.18.0.9")}
				value, err := json.Marshal(asked)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := data.Put(home, string(value), id); err != nil {
					t.Fatal(err)
				}
				after(subnet.ChallengeWait)
				h.want(subnet.StateValid, home, "")
				if l, _ := stored(t, data, home); l.Attrs.Instance != "me-1" || !l.Attrs.Challenge.IsZero() {
					t.Errorf("the store holds %+v, want an answer", l)
				}
				h.end(w)
			})
		})
	}
}

// With a view the keeper notices what is done to its key by itself, at once, and
// does not take its own writes for somebody else's.
func TestKeeperWithView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		w := watch(t, data, nil)
		h := start(t, data, func(o *subnet.KeeperOptions) { o.View, o.OnConflict = w.view, subnet.Keep })
		after(time.Second)
		h.want(subnet.StateValid, home, "")
		if got := h.requests["Renew"].Load(); got > 2 {
			t.Errorf("%d renewals at the start", got)
		}

		for range 3 { // Each time anew, though the view shows the same.
			data.DeleteKey(home)
			synctest.Wait()
			h.want(subnet.StateValid, home, "")
		}

		put(t, data, home, attrs("", "198.18.0.1"), ttl)
		synctest.Wait()
		h.want(subnet.StateValid, home, "")

		put(t, data, home, attrs("b", "198.18.0.2"), ttl)
		synctest.Wait()
		h.want(subnet.StateConflict, home, "node b")
		loads := h.requests["Load"].Load()
		for range 50 {
			put(t, data, "10.5.9.0-24", attrs("c", "198.18.0.3"), 0)
			synctest.Wait()
		}
		if got := h.requests["Load"].Load() - loads; got > 1 {
			t.Errorf("%d loads for 50 changes that do not concern us", got)
		}
		data.DeleteKey(home)
		synctest.Wait()
		h.want(subnet.StateValid, home, "")

		data.Wipe()
		after(time.Minute)
		h.want(subnet.StateLost, home, "no network config")
		data.OverwriteConfig(config)
		synctest.Wait()
		h.want(subnet.StateValid, home, "")

		h.end(w)
	})
}

// A view that lags behind says nothing about a key that is younger.
func TestKeeperWithLaggingView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		w := watch(t, data, func(o *subnet.ViewOptions) { o.Store = &deafStore{Store: o.Store} })
		h := start(t, data, func(o *subnet.KeeperOptions) { o.View = w.view })
		after(20 * time.Second)
		w.synced(true, "")
		if got := h.requests["Renew"].Load(); got != 1 {
			t.Errorf("%d renewals, want 1", got)
		}
		h.end(w)
	})
}

// A restored store whose revisions are behind is no view that lags: the keeper
// looks at once, and has its subnet back before its peers' patience ends.
func TestKeeperWithViewOfRestoredStore(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(*testing.T, *memstore.Store)
	}{
		{"key not in the backup", func(*testing.T, *memstore.Store) {}},
		{"key of an earlier process in it", func(t *testing.T, data *memstore.Store) {
			former := claim("me", "198.18.0.1")
			former.Instance = "me-0"
			acquire(t, data, former)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				tt.before(t, data)
				load(t, data)
				backup := data.Snapshot()
				h, w := viewed(t, data, claim("me", "198.18.0.1"))
				for range 5 {
					put(t, data, "10.5.9.0-24", attrs("b", "198.18.0.2"), 0)
				}
				synctest.Wait()
				data.Restore(backup)
				after(time.Second)
				h.want(subnet.StateValid, home, "")
				w.want("10.5.9.0/24 b", "10.5.125.0/24 me")
				h.end(w)
			})
		})
	}
}

// A store that got another identity is another store, whatever it holds: the
// keeper looks, and knows it from then on. It would not find clones else.
func TestKeeperWithViewOfAnotherIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		w := watch(t, data, nil)
		// One connection for both, as in the daemon: the view's load makes the
		// other identity the known one.
		h := start(t, data, func(o *subnet.KeeperOptions) { o.View, o.Store = w.view, w.store })
		renewals := w.requests["Renew"].Load()
		data.DeleteIdentity()
		after(time.Second)
		h.want(subnet.StateValid, home, "")
		if got, want := h.keeper.Status().Identity, load(t, data).Identity; got != want {
			t.Errorf("the keeper knows the store as %s, it is %s", got, want)
		}
		if n := w.requests["Renew"].Load() - renewals; n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
		h.end(w)
	})
}

// Of two leases that overlap the older holds: the owner of the younger yields as
// soon as its view shows that, by its policy, and the owner of the older does not.
func TestKeeperBesideAnother(t *testing.T) {
	const why = "node b at 198.18.0.2 (10.5.112.0/20) overlaps it, and was leased earlier"
	wide := attrs("b", "198.18.0.2")
	for _, tt := range []struct {
		name   string
		policy subnet.OnConflict
		// before and after are done to the store before and after ours.
		before, after func(*testing.T, *memstore.Store)
		want          subnet.State
		key, why      string
	}{
		{name: "younger", policy: subnet.Fence, after: func(t *testing.T, s *memstore.Store) { put(t, s, "10.5.112.0-20", wide, ttl) }, want: subnet.StateValid, key: home},
		{name: "older, fence", policy: subnet.Fence, before: func(t *testing.T, s *memstore.Store) { put(t, s, "10.5.112.0-20", wide, ttl) }, want: subnet.StateConflict, key: home, why: why},
		{name: "older, keep", policy: subnet.Keep, before: func(t *testing.T, s *memstore.Store) { put(t, s, "10.5.112.0-20", wide, ttl) }, want: subnet.StateConflict, key: home, why: why},
		{name: "older, renumber", before: func(t *testing.T, s *memstore.Store) { put(t, s, "10.5.112.0-20", wide, ttl) }, want: subnet.StateValid, key: "10.5.128.0-24"},
		{name: "older, our own", policy: subnet.Keep, before: func(t *testing.T, s *memstore.Store) {
			put(t, s, "10.5.112.0-20", attrs("", "198.18.0.1"), ttl)
		}, want: subnet.StateValid, key: home},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				w := watch(t, data, func(o *subnet.ViewOptions) { o.Node = "me" })
				// Both are there, as a restored snapshot has it that a creation
				// was faster than.
				if tt.before != nil {
					tt.before(t, data)
				}
				id := put(t, data, home, subnet.Attrs{PublicIP: addr4("198.18.0.1"), Owner: "me", Instance: "me-1"}, ttl)
				mine, _ := stored(t, data, home)
				mine.TTL = ttl
				if mine.ID != id {
					t.Fatalf("%+v", mine)
				}
				h := start(t, data, func(o *subnet.KeeperOptions) {
					o.View, o.OnConflict, o.Lease, o.Identity = w.view, tt.policy, mine, load(t, data).Identity
				})
				if tt.after != nil {
					tt.after(t, data)
				}
				after(time.Second)
				h.want(tt.want, tt.key, tt.why)
				if tt.want == subnet.StateConflict {
					data.DeleteKey("10.5.112.0-20")
					synctest.Wait()
					h.want(subnet.StateValid, home, "")
				}
				h.end(w)
			})
		})
	}
}

// A younger lease that overlaps another runs out, since it does not hold; the
// subnet comes back when the other is gone.
func TestKeeperBesideAnotherForLong(t *testing.T) {
	for _, policy := range []subnet.OnConflict{subnet.Fence, subnet.Keep} {
		t.Run(policy.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				w := watch(t, data, func(o *subnet.ViewOptions) { o.Node = "me" })
				put(t, data, "10.5.112.0-20", attrs("b", "198.18.0.2"), 0)
				put(t, data, home, attrs("me", "198.18.0.1"), ttl)
				h := start(t, data, func(o *subnet.KeeperOptions) {
					o.Lease, _ = stored(t, data, home)
					o.View, o.OnConflict, o.Identity = w.view, policy, load(t, data).Identity
				})
				after(2 * ttl)
				h.is(subnet.StateConflict)
				if l, ok := stored(t, data, home); ok {
					t.Errorf("still there: %+v", l)
				}
				data.DeleteKey("10.5.112.0-20")
				after(time.Second)
				h.want(subnet.StateValid, home, "")
				h.end(w)
			})
		})
	}
}
