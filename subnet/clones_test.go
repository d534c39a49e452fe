package subnet_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// together leases a subnet for every claim in one world, and keeps those whose
// instance is among alive.
func together(t *testing.T, data *memstore.Store, claims []subnet.Claim, alive ...string) (hosts []*host, views []*watcher) {
	t.Helper()
	w := load(t, data)
	for _, c := range claims {
		l, err := subnet.Acquire(t.Context(), data, w, c)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(alive, c.Instance) {
			continue
		}
		view := watch(t, data, func(o *subnet.ViewOptions) { o.Node = c.Node })
		views = append(views, view)
		hosts = append(hosts, start(t, data, func(o *subnet.KeeperOptions) {
			o.Claim, o.Lease, o.Identity, o.View = c, l, w.Identity, view.view
			o.Claim.TTL = ttl
		}))
	}
	return hosts, views
}

// Clones that start at one time have a subnet each. They find one another all
// the same, and the younger lease's owner goes.
func TestClonesThatStartTogether(t *testing.T) {
	claims := []subnet.Claim{clone("a", "198.18.0.1"), clone("b", "198.18.0.2"), clone("c", "198.18.0.3")}
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		hosts, views := together(t, data, claims, "a", "b", "c")
		foreigner(t, <-hosts[1].result, "10.5.125.0/24", "198.18.0.1 (instance a)", "198.18.0.2 (instance b)")
		foreigner(t, <-hosts[2].result, "10.5.125.0/24", "198.18.0.1 (instance a)", "198.18.0.3 (instance c)")
		after(time.Minute)
		hosts[0].is(subnet.StateValid)
		unchallenged(t, data, home, "a")
		revision := data.Revision()
		after(ttl / 2)
		if data.Revision() != revision {
			t.Error("they go on writing")
		}
		for i, h := range hosts {
			h.stop()
			views[i].finish()
		}
		<-hosts[0].result
	})
}

// Where the oldest is dead the next one stays: it asks nobody younger.
func TestClonesWithoutTheOldest(t *testing.T) {
	claims := []subnet.Claim{clone("a", "198.18.0.1"), clone("b", "198.18.0.2"), clone("c", "198.18.0.3")}
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		hosts, views := together(t, data, claims, "b", "c")
		foreigner(t, <-hosts[1].result, "10.5.126.0/24", "198.18.0.2 (instance b)", "198.18.0.3 (instance c)")
		after(time.Minute)
		hosts[0].is(subnet.StateValid)
		unchallenged(t, data, "10.5.126.0-24", "b")
		for i, h := range hosts {
			h.stop()
			views[i].finish()
		}
		<-hosts[0].result
	})
}

// An older lease of ours that nobody keeps is asked once and left to expire.
func TestKeeperAsksAnOlderLeaseOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		hosts, views := together(t, data, []subnet.Claim{clone("old", "198.18.0.9"), claim("me", "198.18.0.1")}, "me-1")
		h, w := hosts[0], views[0]
		after(time.Second)
		if l, _ := stored(t, data, home); l.Attrs.Challenge.Instance != "me-1" {
			t.Errorf("not asked: %+v", l)
		}
		after(10 * time.Minute)
		h.is(subnet.StateValid)
		if updates := h.requests["Update"].Load(); updates != 1 {
			t.Errorf("%d writes, want one question", updates)
		}
		// A younger one is that of a newcomer, who asks.
		loads := h.requests["Load"].Load()
		put(t, data, "10.5.7.0-24", attrs("me", "198.18.0.8"), ttl)
		after(10 * time.Minute)
		if h.requests["Load"].Load() != loads {
			t.Error("a younger lease made us look")
		}
		if l, _ := stored(t, data, "10.5.7.0-24"); !l.Attrs.Challenge.IsZero() {
			t.Errorf("a younger lease was asked: %+v", l)
		}
		h.is(subnet.StateValid)
		h.end(w)
	})
}

// besideAnOlderLease is a store with a lease of ours, and an older one of this machine.
func besideAnOlderLease(t *testing.T) *memstore.Store {
	t.Helper()
	data := newStore(config)
	acquire(t, data, clone("old", "198.18.0.9"))
	ours := claim("me", "198.18.0.1").Attrs
	ours.Owner, ours.Instance = "me", "me-1"
	put(t, data, "10.5.7.0-24", ours, ttl)
	return data
}

// A request that hangs does not put that off by all the time that there is for it.
func TestKeeperAsksAnOlderLeaseThoughALoadHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := besideAnOlderLease(t)
		w := watch(t, data, func(o *subnet.ViewOptions) { o.Node = "me" })
		loads := &hangingLoads{}
		h := start(t, data, func(o *subnet.KeeperOptions) {
			o.Lease, _ = stored(t, o.Store, "10.5.7.0-24")
			o.View, o.Identity = w.view, load(t, o.Store).Identity
			loads.Store, o.Store = o.Store, loads
			loads.hangs.Store(1)
		})
		after(5 * time.Second)
		if l, _ := stored(t, data, home); l.Attrs.Challenge.Instance != "me-1" {
			t.Errorf("not asked: %+v", l)
		}
		if left := loads.hangs.Load(); left >= 0 {
			t.Errorf("%d loads more were to hang", left)
		}
		after(time.Minute)
		h.want(subnet.StateValid, "10.5.7.0-24", "")
		h.end(w)
	})
}

// hangingLoads does not answer so many loads.
type hangingLoads struct {
	subnet.Store
	hangs atomic.Int64
}

func (s *hangingLoads) Load(ctx context.Context) (subnet.World, error) {
	if s.hangs.Add(-1) >= 0 {
		<-ctx.Done()
		return subnet.World{}, ctx.Err()
	}
	return s.Store.Load(ctx)
}

// One whose owner cannot be asked, since the store takes no writes, is asked later
// and later, however often the lease is renewed in between.
func TestKeeperCannotAskAnOlderLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := besideAnOlderLease(t)
		w := watch(t, data, func(o *subnet.ViewOptions) { o.Node = "me" })
		var full atomic.Bool
		full.Store(true)
		var log strings.Builder
		h := start(t, data, func(o *subnet.KeeperOptions) {
			o.Store = data.Open(memstore.Options{Before: func(method string) error {
				if method == "Update" && full.Load() {
					return errors.New("no space")
				}
				return nil
			}})
			o.Lease, _ = stored(t, o.Store, "10.5.7.0-24")
			o.View, o.Identity, o.Log = w.view, load(t, o.Store).Identity, slog.New(slog.NewTextHandler(&log, nil))
		})
		after(10 * time.Minute)
		if lines := strings.Count(log.String(), "\n"); lines > 60 {
			t.Errorf("%d lines in ten minutes, the first:\n%.2000s", lines, log.String())
		}
		if !strings.Contains(log.String(), "challenge the owner of 10.5.125.0/24: ") {
			t.Errorf("the log does not name the older lease:\n%.2000s", log.String())
		}
		full.Store(false)
		after(time.Minute)
		if l, _ := stored(t, data, home); l.Attrs.Challenge.Instance != "me-1" {
			t.Errorf("not asked: %+v", l)
		}
		h.want(subnet.StateValid, "10.5.7.0-24", "")
		h.end(w)
	})
}
