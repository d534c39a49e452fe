package subnet_test

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// deafStore is a Store whose watches say nothing.
type deafStore struct {
	subnet.Store
	watches atomic.Int64
}

func (s *deafStore) Watch(ctx context.Context, _ subnet.Revision) iter.Seq2[subnet.Batch, error] {
	return func(yield func(subnet.Batch, error) bool) {
		s.watches.Add(1)
		<-ctx.Done()
		yield(subnet.Batch{}, ctx.Err())
	}
}

func TestViewReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, newStore(config), nil)
		w.put("10.5.1.0-24", "a")
		synctest.Wait()
		loads := w.requests["Load"].Load()
		w.store.SetUnavailable(errDown)
		synctest.Wait()
		w.synced(false, "etcd is down")
		since := w.view.Snapshot().Since
		w.put("10.5.2.0-24", "b")
		w.data.DeleteKey("10.5.1.0-24")
		after(10 * time.Minute)
		w.synced(false, "etcd is down")
		w.want("10.5.1.0/24 a")
		if got := w.view.Snapshot().Since; !got.Equal(since) {
			t.Errorf("out of sync since %s, later since %s", since, got)
		}
		if got := w.requests["Load"].Load() - loads; got < 10 || got > 100 {
			t.Errorf("tried %d times in 10 minutes", got)
		}
		w.store.SetUnavailable(nil)
		after(10 * time.Second)
		w.synced(true, "")
		w.want("10.5.2.0/24 b")
		// The next outage is another one: no long pause is left from the last.
		after(10 * time.Second)
		w.store.SetUnavailable(errDown)
		synctest.Wait()
		w.store.SetUnavailable(nil)
		after(300 * time.Millisecond)
		w.synced(true, "")
		w.finish()
	})
}

// What was deleted before the store went away ends although it is away.
func TestViewHoldEndsDuringOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, newStore(config), nil)
		w.put("10.5.1.0-24", "a")
		w.data.DeleteKey("10.5.1.0-24")
		synctest.Wait()
		w.store.SetUnavailable(errDown)
		synctest.Wait()
		w.want("10.5.1.0/24 a")
		s := w.view.Snapshot()
		after(2100 * time.Millisecond)
		w.want()
		w.synced(false, "etcd is down")
		select {
		case <-s.Changed():
		default:
			t.Error("nobody was told")
		}
		w.finish()
	})
}

// Decision 8: a store that lost its past deletes no peer for one TTL, unless a
// new lease is in its place.
func TestViewAfterDisaster(t *testing.T) {
	for _, tt := range []struct {
		name     string
		disaster func(*watcher, memstore.Snapshot)
	}{
		{"wiped", func(w *watcher, _ memstore.Snapshot) {
			w.data.Wipe()
			w.data.OverwriteConfig(config)
			load(w.t, w.data)
		}},
		{"restored", func(w *watcher, empty memstore.Snapshot) { w.data.Restore(empty) }},
		{"restored while it was away", func(w *watcher, empty memstore.Snapshot) {
			w.store.SetUnavailable(errDown)
			synctest.Wait()
			w.data.Restore(empty)
			w.store.SetUnavailable(nil)
		}},
		{"restored, and past its old revision already", func(w *watcher, empty memstore.Snapshot) {
			w.data.Restore(empty)
			for range 50 {
				w.data.OverwriteConfig(config)
			}
		}},
		// Nothing but what the keys say gives this one away.
		{"restored while it was away, and past its old revision already", func(w *watcher, empty memstore.Snapshot) {
			w.store.SetUnavailable(errDown)
			synctest.Wait()
			w.data.Restore(empty)
			if _, err := w.data.Put("readme", "", 0); err != nil {
				w.t.Error(err)
			}
			for range 50 {
				w.data.OverwriteConfig(config)
			}
			w.store.SetUnavailable(nil)
		}},
		{"another identity", func(w *watcher, _ memstore.Snapshot) {
			w.store.SetUnavailable(errDown)
			synctest.Wait()
			w.data.DeleteIdentity()
			w.data.DeleteKey("10.5.1.0-24")
			w.data.DeleteKey("10.5.2.0-24")
			w.store.SetUnavailable(nil)
		}},
		{"config and leases deleted", func(w *watcher, _ memstore.Snapshot) {
			w.data.DeleteConfig()
			w.data.DeleteKey("10.5.1.0-24")
			w.data.DeleteKey("10.5.2.0-24")
		}},
		// Who is about to create his key again cannot any more.
		{"leases deleted, and the config a second later", func(w *watcher, _ memstore.Snapshot) {
			w.data.DeleteKey("10.5.1.0-24")
			w.data.DeleteKey("10.5.2.0-24")
			after(time.Second)
			w.data.DeleteConfig()
		}},
		{"leases deleted, and the config while it was away", func(w *watcher, _ memstore.Snapshot) {
			w.data.DeleteKey("10.5.1.0-24")
			w.data.DeleteKey("10.5.2.0-24")
			synctest.Wait()
			w.store.SetUnavailable(errDown)
			synctest.Wait()
			w.data.DeleteConfig()
			w.store.SetUnavailable(nil)
		}},
		{"leases deleted, and restored a second later", func(w *watcher, empty memstore.Snapshot) {
			w.data.DeleteKey("10.5.1.0-24")
			w.data.DeleteKey("10.5.2.0-24")
			after(time.Second)
			w.data.Restore(empty)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				load(t, data)
				empty := data.Snapshot()
				w := watch(t, data, nil)
				w.put("10.5.1.0-24", "a")
				w.put("10.5.2.0-24", "b")
				synctest.Wait()
				tt.disaster(w, empty)
				after(10 * time.Minute)
				w.synced(true, "")
				w.want("10.5.1.0/24 a", "10.5.2.0/24 b")
				w.put("10.5.2.0-24", "c")
				synctest.Wait()
				w.want("10.5.1.0/24 a", "10.5.2.0/24 c")
				after(51 * time.Minute)
				w.want("10.5.2.0/24 c")

				// Afterwards a deletion is a deletion again.
				w.data.OverwriteConfig(config)
				w.data.DeleteKey("10.5.2.0-24")
				after(2 * time.Second)
				w.want()
				w.finish()
			})
		})
	}
}

// A dead connection that nobody reset is noticed within 30 s.
func TestViewSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deaf := &deafStore{}
		w := watch(t, newStore(config), func(o *subnet.ViewOptions) { deaf.Store = o.Store; o.Store = deaf })
		w.put("10.5.1.0-24", "a")
		after(29 * time.Second)
		w.synced(true, "")
		w.want()
		after(time.Second)
		w.synced(false, "the watch made no progress for 30s")
		after(time.Second)
		w.synced(true, "")
		w.want("10.5.1.0/24 a")
		if deaf.watches.Load() != 2 {
			t.Errorf("%d watches", deaf.watches.Load())
		}
		w.finish()
	})
}

// pacedStore is a Store whose watches report nothing but progress, when told.
type pacedStore struct {
	subnet.Store
	report chan struct{}
}

func (s *pacedStore) Watch(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
	return func(yield func(subnet.Batch, error) bool) {
		for {
			select {
			case <-s.report:
				yield(subnet.Batch{Revision: after}, nil)
			case <-ctx.Done():
				yield(subnet.Batch{}, ctx.Err())
				return
			}
		}
	}
}

// What arrives first after a sleep is no sign that nothing was missed.
func TestViewAfterSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		paced := &pacedStore{report: make(chan struct{})}
		w := watch(t, newStore(config), func(o *subnet.ViewOptions) { paced.Store = o.Store; o.Store = paced })
		w.put("10.5.1.0-24", "a")
		w.clock.suspend(time.Minute)
		paced.report <- struct{}{}
		after(time.Second)
		w.synced(true, "")
		w.want("10.5.1.0/24 a")
		w.finish()
	})
}

// Progress keeps a quiet watch alive, wakes nobody, and moves the revision; now
// and then everything is loaded again, which wakes nobody either.
func TestViewQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, newStore(config), nil)
		s := w.view.Snapshot()
		after(time.Hour)
		select {
		case <-s.Changed():
			t.Error("woken by nothing")
		default:
		}
		if loads, watches := w.requests["Load"].Load(), w.requests["Watch"].Load(); loads != 7 || watches != loads {
			t.Errorf("%d loads and %d watches in an hour, want 7", loads, watches)
		}
		w.finish()
	})
}

// What a watch has kept quiet about shows when everything is loaded again: every ten
// minutes, or half a second for each host where they are more than 1,200, and up to a
// fifth earlier, so that they do not do it together.
func TestViewLoadsAllAnyway(t *testing.T) {
	for _, tt := range []struct {
		hosts  int
		random float64
		at     time.Duration
	}{
		{1, 0, 10 * time.Minute},
		{1, 0.999, 8*time.Minute + time.Second},
		{1200, 0, 10 * time.Minute},
		{2400, 0, 20 * time.Minute},
		{2400, 0.5, 18 * time.Minute},
	} {
		t.Run(fmt.Sprintf("%d hosts, random %g", tt.hosts, tt.random), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				for i := range tt.hosts {
					put(t, data, fmt.Sprintf("10.5.%d.%d-28", i/16, i%16*16), attrs("a", "198.18.0.2"), 0)
				}
				w := watch(t, data, func(o *subnet.ViewOptions) {
					good := o.Store
					o.Random = func() float64 { return tt.random }
					o.Store = brokenStore{Store: good, watch: func(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
						return func(yield func(subnet.Batch, error) bool) {
							for b, err := range good.Watch(ctx, after) {
								if !yield(subnet.Batch{Revision: b.Revision}, err) {
									return
								}
							}
						}
					}}
				})
				data.DeleteKey("10.5.0.0-28")
				w.put("10.5.0.0-28", "b")
				seen := func() bool {
					l, _ := w.view.Snapshot().Stored(sub(t, "10.5.0.0-28"))
					return l.Attrs.Owner == "b"
				}
				after(tt.at - 2*time.Second)
				if seen() {
					t.Error("loaded too early, or told by the watch")
				}
				after(2 * time.Second)
				if !seen() {
					t.Error("not loaded")
				}
				w.synced(true, "")
				w.finish()
			})
		})
	}
}

// The Load that Acquire needed is enough to start from.
func TestViewSeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		put(t, data, "10.5.1.0-24", attrs("a", "198.18.0.2"), 0)
		world := load(t, data)
		w := watch(t, data, func(o *subnet.ViewOptions) { o.World = world })
		w.want("10.5.1.0/24 a")
		w.put("10.5.2.0-24", "b")
		synctest.Wait()
		w.want("10.5.1.0/24 a", "10.5.2.0/24 b")
		w.synced(true, "")
		if got := w.requests["Load"].Load(); got != 0 {
			t.Errorf("%d loads", got)
		}
		w.finish()
	})
}

// withoutB is a store that has lost a peer of the two that it had, and what it held before.
func withoutB(t *testing.T) (*memstore.Store, subnet.World) {
	t.Helper()
	data := newStore(config)
	put(t, data, "10.5.1.0-24", attrs("a", "198.18.0.2"), 0)
	put(t, data, "10.5.2.0-24", attrs("b", "198.18.0.3"), 0)
	world := load(t, data)
	data.DeleteKey("10.5.2.0-24")
	return data, world
}

// From the cache a view has peers to show before there is a store.
func TestViewFromCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, world := withoutB(t)
		w := watch(t, data, func(o *subnet.ViewOptions) {
			o.World, o.Cached = world, true
			o.Store.(*memstore.Store).SetUnavailable(errDown)
		})
		after(time.Minute)
		w.want("10.5.1.0/24 a", "10.5.2.0/24 b")
		w.synced(false, "etcd is down")
		w.store.SetUnavailable(nil)
		after(13 * time.Second)
		w.want("10.5.1.0/24 a")
		w.synced(true, "")
		w.finish()
	})
}

// A peer that changed its address and its MAC where the log is compacted is seen
// as it is now: nothing is assumed of what the gap hides.
func TestViewAfterChangesInAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		w := watch(t, data, nil)
		before := subnet.Attrs{PublicIP: addr4("198.18.0.2"), Owner: "a", BackendData: subnet.ByFamily[subnet.RawJSON]{`{"VtepMAC":"02:00:00:00:00:01"}`}}
		put(t, data, "10.5.1.0-24", before, 0)
		put(t, data, "10.5.2.0-24", before, 0)
		synctest.Wait()
		w.store.SetUnavailable(errDown)
		synctest.Wait()
		mac, ip := before, before
		mac.BackendData[subnet.IPv4] = `{"VtepMAC":"02:00:00:00:00:02"}`
		ip.PublicIP = addr4("198.18.0.3")
		put(t, data, "10.5.1.0-24", mac, 0)
		put(t, data, "10.5.2.0-24", ip, 0)
		data.Compact(data.Revision())
		old := w.view.Snapshot()
		w.store.SetUnavailable(nil)
		after(time.Second)
		for i, want := range []subnet.Attrs{mac, ip} {
			if got := leasesOf(w.view.Snapshot())[i].Attrs; got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		}
		select {
		case <-old.Changed():
		default:
			t.Error("nobody was told")
		}
		w.finish()
	})
}

// A host restarted while its peers' keys are gone, all of them having run out with
// its own, waits for them as the earlier process would have.
func TestViewAfterARestart(t *testing.T) {
	deleted := func(data *memstore.Store) { data.DeleteKey("10.5.2.0-24") }
	wiped := func(data *memstore.Store) { data.Wipe(); data.OverwriteConfig(config) }
	tests := []struct {
		name string
		lose func(data *memstore.Store)
		// What the earlier process noted.
		unheard, holding time.Duration
		held             time.Duration
	}{
		{"deleted", deleted, 0, 0, 2 * time.Second},
		{"wiped", wiped, 0, 0, ttl},
		{"deleted, heard until a while ago", deleted, ttl/2 - 1, 0, 2 * time.Second},
		{"deleted, not heard for half of a TTL", deleted, ttl / 2, 0, ttl},
		{"deleted long ago, and held", deleted, time.Second, 30 * time.Second, 30 * time.Second},
		{"deleted, held for a moment more", deleted, time.Second, time.Second, 2 * time.Second},
		{"held, of a longer TTL", deleted, time.Second, 3 * ttl, ttl},
		{"held, and not heard", deleted, ttl, 30 * time.Second, ttl},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				put(t, data, "10.5.2.0-24", attrs("b", "198.18.0.3"), 0)
				former := load(t, data)
				tt.lose(data)
				put(t, data, "10.5.1.0-24", attrs("a", "198.18.0.2"), 0)
				world := load(t, data)
				w := watch(t, data, func(o *subnet.ViewOptions) {
					o.Former, o.World, o.Unheard, o.Holding = former, world, tt.unheard, tt.holding
				})
				if got, want := w.view.Snapshot().Held, w.clock.Uptime()+tt.held; got != want {
					t.Errorf("held until %s, want %s", got, want)
				}
				after(tt.held - time.Millisecond)
				w.want("10.5.1.0/24 a", "10.5.2.0/24 b")
				w.synced(true, "")
				after(2 * time.Millisecond)
				w.want("10.5.1.0/24 a")
				w.finish()
			})
		})
	}
}

// A start after a silence is wary of what is deleted right after it, like a process
// that went through the silence, and not for longer.
func TestViewWaryAfterARestart(t *testing.T) {
	for _, tt := range []struct {
		name           string
		unheard, later time.Duration
		held           time.Duration
	}{
		{"heard", time.Second, 10 * time.Second, 2 * time.Second},
		{"not heard", ttl, 10 * time.Second, ttl},
		{"not heard, deleted later", ttl, 2 * time.Minute, 2 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				put(t, data, "10.5.2.0-24", attrs("b", "198.18.0.3"), 0)
				world := load(t, data)
				w := watch(t, data, func(o *subnet.ViewOptions) { o.Former, o.World, o.Unheard = world, world, tt.unheard })
				after(tt.later)
				data.DeleteKey("10.5.2.0-24")
				after(tt.held - time.Millisecond)
				w.want("10.5.2.0/24 b")
				after(2 * time.Millisecond)
				w.want()
				w.finish()
			})
		})
	}
}

// Who starts from the cache, too, adds to the silence that it heard itself that of the
// earlier process, and lets go of what that one held when that would have.
func TestViewFromCacheAfterSilence(t *testing.T) {
	for _, tt := range []struct {
		name                     string
		unheard, silent, holding time.Duration
		// From when etcd answers, or from the start, if it is held since before.
		held, heldSinceStart time.Duration
	}{
		{"short", time.Second, 3 * time.Second, 0, 2 * time.Second, 0},
		{"long, together", ttl / 4, ttl / 4, 0, ttl, 0},
		{"long before", ttl, time.Second, 0, ttl, 0},
		{"held", time.Second, 3 * time.Second, 40 * time.Second, 2 * time.Second, 40 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data, world := withoutB(t)
				w := watch(t, data, func(o *subnet.ViewOptions) {
					o.World, o.Cached, o.Unheard, o.Holding = world, true, tt.unheard, tt.holding
					o.Store.(*memstore.Store).SetUnavailable(errDown)
				})
				began := w.clock.Uptime()
				after(tt.silent)
				if got := w.view.Unheard(); got != tt.unheard+tt.silent {
					t.Errorf("not heard for %s, want %s", got, tt.unheard+tt.silent)
				}
				w.store.SetUnavailable(nil)
				for !w.view.Snapshot().Synced { // The longest pause is of 10 s.
					after(time.Millisecond)
				}
				until := max(w.clock.Uptime()+tt.held, began+tt.heldSinceStart)
				after(until - w.clock.Uptime() - 2*time.Millisecond)
				w.want("10.5.1.0/24 a", "10.5.2.0/24 b")
				after(3 * time.Millisecond)
				w.want("10.5.1.0/24 a")
				w.finish()
			})
		})
	}
}

// What the store was found to hold when a view began with the cache, is not loaded a
// second time, and not before the cache was shown.
func TestViewFromCacheAndWhatWasFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, world := withoutB(t)
		data.DeleteConfig()
		found := load(t, data)
		var first *subnet.Snapshot
		w := watch(t, data, func(o *subnet.ViewOptions) {
			o.World, o.Cached, o.Found = world, true, found
			first = subnet.NewView(*o).Snapshot()
		})
		if first.Synced || first.Config != world.Config || first.Len() != 2 {
			t.Errorf("first shown is %+v", first)
		}
		w.synced(true, "")
		if got := w.view.Snapshot().Config; got != (subnet.Document{}) {
			t.Errorf("config %+v, want none", got)
		}
		after(time.Minute)
		if got := w.requests["Load"].Load(); got != 0 {
			t.Errorf("%d loads", got)
		}
		after(ttl - time.Minute - time.Second)
		w.want("10.5.1.0/24 a", "10.5.2.0/24 b")
		w.put("10.5.3.0-24", "c")
		after(2 * time.Second)
		w.want("10.5.1.0/24 a", "10.5.3.0/24 c")
		if w.requests["Load"].Load() == 0 {
			t.Error("nothing was loaded in an hour")
		}
		w.finish()
	})
}
