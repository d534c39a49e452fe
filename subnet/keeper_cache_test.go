package subnet_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// From the cache a lease is unproven until the store has confirmed it. An
// earlier process of this host may have written the key since.
func TestKeeperFromCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		former := claim("me", "198.18.0.1")
		former.Instance = "me-0"
		cached := acquire(t, data, former)
		put(t, data, home, cached.Attrs, ttl)
		h := start(t, data, func(o *subnet.KeeperOptions) {
			o.Lease, o.Cached, o.Identity = cached, true, load(t, data).Identity
			o.Store.(*memstore.Store).SetUnavailable(errDown)
		})
		h.want(subnet.StateUnproven, home, "etcd is down")
		h.store.SetUnavailable(nil)
		after(time.Second)
		h.want(subnet.StateValid, home, "")
		h.end()
	})
}

// A machine that was cloned with its cache, and starts without etcd, has the
// other's lease in it to the last revision. It asks before it believes that.
func TestKeeperFromTheCacheOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		original, w := viewed(t, data, claim("me", "198.18.0.1"))
		cached := load(t, data)
		cloned := watch(t, data, func(o *subnet.ViewOptions) {
			o.World, o.Cached, o.Node = cached, true, "me"
			o.Store.(*memstore.Store).SetUnavailable(errDown)
		})
		h := start(t, data, func(o *subnet.KeeperOptions) {
			o.Claim, o.View, o.Store = clone("me-2", "198.18.0.2"), cloned.view, cloned.store
			o.Lease, o.Cached, o.Identity = original.keeper.Lease(), true, cached.Identity
		})
		after(time.Minute)
		h.is(subnet.StateUnproven)
		cloned.store.SetUnavailable(nil)
		after(time.Minute)
		h.is(subnet.StateEnded)
		original.is(subnet.StateValid)
		h.stop()
		foreigner(t, <-h.result, "10.5.125.0/24", "198.18.0.1 (instance me-1)", "198.18.0.2 (instance me-2)")
		after(time.Minute)
		original.want(subnet.StateValid, home, "")
		unchallenged(t, data, home, "me-1")
		original.stop()
		<-original.result
		cloned.finish()
		w.finish()
	})
}

// Decision 4: one Load is enough for the view and for the lease, also when it comes
// late, after a start from the cache. Until then the lease is unproven, and what the
// cache says counts for nothing after it.
func TestOneLoadAfterAStartFromTheCache(t *testing.T) {
	for _, tt := range []struct {
		name      string
		meanwhile func(*testing.T, *memstore.Store)
		restore   bool
		state     subnet.State
		key, why  string
	}{
		{name: "nothing happened", key: home, state: subnet.StateValid},
		{name: "the key ran out", meanwhile: func(_ *testing.T, s *memstore.Store) { s.DeleteKey(home) }, key: home, state: subnet.StateValid},
		{
			name: "another has it", key: home, state: subnet.StateConflict, why: "node b at 198.18.0.2 (10.5.125.0/24) holds it",
			meanwhile: func(t *testing.T, s *memstore.Store) { put(t, s, home, attrs("b", "198.18.0.2"), ttl) },
		},
		{
			name: "an older lease overlaps it", key: home, state: subnet.StateConflict, why: "overlaps it",
			meanwhile: func(t *testing.T, s *memstore.Store) {
				put(t, s, "10.5.112.0-20", attrs("b", "198.18.0.2"), ttl)
				s.DeleteKey(home)
				put(t, s, home, attrs("me", "198.18.0.1"), ttl)
			},
		},
		{
			name: "there is no config", key: home, state: subnet.StateLost, why: "no network config",
			meanwhile: func(_ *testing.T, s *memstore.Store) {
				s.DeleteConfig()
				s.DeleteKey(home)
			},
		},
		{name: "there is no config, and the key is there", key: home, state: subnet.StateValid, meanwhile: func(_ *testing.T, s *memstore.Store) { s.DeleteConfig() }},
		{name: "restored from before the key was written", key: home, state: subnet.StateValid, restore: true},
		{
			name: "wiped, and the config is back", key: home, state: subnet.StateValid,
			meanwhile: func(_ *testing.T, s *memstore.Store) {
				s.Wipe()
				s.OverwriteConfig(config)
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				former := claim("me", "198.18.0.1")
				former.Instance, former.TTL = "me-0", 24*time.Hour
				world := load(t, data)
				backup := data.Snapshot()
				cached := acquire(t, data, former)
				w := watch(t, data, func(o *subnet.ViewOptions) {
					o.World, o.Cached, o.Node = world, true, "me"
					o.Store.(*memstore.Store).SetUnavailable(errDown)
				})
				h := start(t, data, func(o *subnet.KeeperOptions) {
					o.View, o.Store, o.OnConflict = w.view, w.store, subnet.Keep
					o.Lease, o.Cached, o.Identity = cached, true, world.Identity
				})
				if tt.meanwhile != nil {
					tt.meanwhile(t, data)
				}
				if tt.restore {
					data.Restore(backup)
				}
				after(10 * time.Minute)
				if s := h.keeper.Status(); s.State != subnet.StateUnproven || !strings.Contains(s.Why, "etcd is down") {
					t.Errorf("%s (%s), want unproven", s.State, s.Why)
				}
				loads := w.requests["Load"].Load()
				w.store.SetUnavailable(nil)
				synced := w.view.Snapshot().Changed()
				<-synced
				w.synced(true, "")
				synctest.Wait()
				h.want(tt.state, tt.key, tt.why)
				if got := w.requests["Load"].Load() - loads; got != 1 {
					t.Errorf("%d loads, want 1", got)
				}
				h.end(w)
			})
		})
	}
}

// The view that the first look is at may lag behind by the second: that is at the
// store. So are all of a keeper that has a lease, whose view may have none.
func TestKeeperLooksBehindItsView(t *testing.T) {
	for _, cached := range []bool{true, false} {
		t.Run(fmt.Sprintf("cached %t", cached), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				former := claim("me", "198.18.0.1")
				former.TTL = ttl
				lease := acquire(t, data, former)
				w := watch(t, data, func(o *subnet.ViewOptions) {
					if cached {
						o.Store = &deafStore{Store: o.Store}
					} else {
						o.Store.(*memstore.Store).SetUnavailable(errDown)
					}
				})
				h := start(t, data, func(o *subnet.KeeperOptions) {
					o.Lease, o.Cached, o.Identity = lease, cached, load(t, data).Identity
					o.View, o.OnConflict = w.view, subnet.Keep
					var once sync.Once
					o.Store = data.Open(memstore.Options{Before: func(method string) error {
						if method == "Renew" {
							once.Do(func() { put(t, data, home, attrs("b", "198.18.0.2"), ttl) })
						}
						return nil
					}})
				})
				if synced := w.view.Snapshot().Synced; synced != cached {
					t.Errorf("the view is in sync: %t", synced)
				}
				h.want(subnet.StateConflict, home, "node b")
				h.end(w)
			})
		})
	}
}
