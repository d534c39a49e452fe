package subnet_test

import (
	"context"
	"fmt"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// crowdOf is a store in which so many hosts have leases that loads are spread over
// five seconds.
func crowdOf(t *testing.T) *memstore.Store {
	t.Helper()
	data := newStore(config)
	for i := range 1000 {
		put(t, data, fmt.Sprintf("10.5.%d.%d-28", 16+i/16, i%16*16), attrs("a", "198.18.0.2"), 0)
	}
	return data
}

func (w *watcher) loads() int64 { return w.requests["Load"].Load() }

func (w *watcher) has(key string) bool {
	_, ok := w.view.Snapshot().Stored(sub(w.t, key))
	return ok
}

// Where hosts are many, etcd coming back costs it what has changed meanwhile, and
// the full loads come one after the other.
func TestViewGoesOnAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, crowdOf(t), func(o *subnet.ViewOptions) { o.Random = func() float64 { return 0.9 } })
		before := w.loads()
		w.store.SetUnavailable(errDown)
		synctest.Wait()
		w.synced(false, "etcd is down")
		w.put("10.5.1.0-28", "b")
		w.data.DeleteKey("10.5.16.0-28")
		after(time.Minute)
		w.store.SetUnavailable(nil)
		for tries := 0; !w.view.Snapshot().Synced && tries < 100; tries++ {
			after(100 * time.Millisecond)
		}
		w.synced(true, "")
		if !w.has("10.5.1.0-28") || w.has("10.5.16.0-28") {
			t.Error("what changed during the outage is not known")
		}
		after(4 * time.Second)
		if got := w.loads() - before; got != 0 {
			t.Errorf("%d loads within 4.5 s, want none", got)
		}
		after(time.Second)
		if got := w.loads() - before; got != 1 {
			t.Errorf("%d loads after 5 s, want 1", got)
		}
		after(5 * time.Minute)
		if got := w.loads() - before; got != 1 {
			t.Errorf("%d loads after 5 min, want 1", got)
		}
		w.finish()
	})
}

// patientStore is a Store whose watches wait for one that is away, as those of etcd
// do, before they give up.
type patientStore struct{ subnet.Store }

func (s patientStore) Watch(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
	return func(yield func(subnet.Batch, error) bool) {
		for b, err := range s.Store.Watch(ctx, after) {
			if err != nil {
				timer := time.NewTimer(5 * time.Second)
				select {
				case <-timer.C:
				case <-ctx.Done():
					timer.Stop()
				}
			}
			if !yield(b, err) {
				return
			}
		}
	}
}

// The time until the load counts from when etcd is back, and not from when a watch
// began to wait for it.
func TestViewDoesNotLoadFromAStoreThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, crowdOf(t), func(o *subnet.ViewOptions) {
			o.Store, o.Random = patientStore{o.Store}, func() float64 { return 0.5 }
		})
		before := w.loads()
		w.store.SetUnavailable(errDown)
		after(time.Minute)
		if got := w.loads() - before; got != 0 {
			t.Errorf("%d loads of a store that is away, want none", got)
		}
		w.store.SetUnavailable(nil)
		for tries := 0; !w.view.Snapshot().Synced && tries < 200; tries++ {
			after(100 * time.Millisecond)
		}
		w.synced(true, "")
		if got := w.loads() - before; got != 0 {
			t.Errorf("%d loads until it was followed again, want none", got)
		}
		after(3 * time.Second)
		if got := w.loads() - before; got != 1 {
			t.Errorf("%d loads 3 s later, want 1", got)
		}
		w.finish()
	})
}

// What a watch cannot tell, that load does: a store that was restored meanwhile,
// and is past its old revision.
func TestViewFindsAnotherPastAfterItWentOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := crowdOf(t)
		load(t, data)
		backup := data.Snapshot()
		w := watch(t, data, nil)
		w.put("10.5.1.0-28", "b")
		synctest.Wait()
		w.store.SetUnavailable(errDown)
		synctest.Wait()
		data.Restore(backup)
		// Only this key, of a revision that the view believes to know, gives
		// it away.
		if _, err := data.Put("readme", "", 0); err != nil {
			t.Error(err)
		}
		for range 5 {
			data.OverwriteConfig(config)
		}
		w.store.SetUnavailable(nil)
		after(20 * time.Second)
		w.synced(true, "")
		if _, ok := w.view.Snapshot().Stored(sub(t, "10.5.1.0-28")); ok {
			t.Error("a lease that the store has lost is shown as stored")
		}
		if got := w.view.Snapshot().Len(); got != 1001 {
			t.Errorf("%d leases in effect, want that one held", got)
		}
		w.finish()
	})
}

// A compaction that all hosts run into makes each of them load, at a time of its
// own within what so many take.
func TestViewSpreadsLoadsBehindACompaction(t *testing.T) {
	for random, within := range map[float64][2]time.Duration{
		0:   {0, 200 * time.Millisecond},
		0.5: {2500 * time.Millisecond, 3 * time.Second},
		0.9: {4500 * time.Millisecond, 5 * time.Second},
	} {
		t.Run(fmt.Sprint(random), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := watch(t, crowdOf(t), func(o *subnet.ViewOptions) { o.Random = func() float64 { return random } })
				before := w.loads()
				w.store.SetUnavailable(errDown)
				synctest.Wait()
				w.put("10.5.1.0-28", "b")
				w.put("10.5.1.16-28", "b")
				w.data.Compact(w.data.Revision())
				w.store.SetUnavailable(nil)
				// The first try, that finds the compaction, comes after a pause
				// of 200 ms at most.
				after(within[0])
				if got := w.loads() - before; got != 0 {
					t.Errorf("%d loads within %s", got, within[0])
				}
				after(within[1] - within[0] + 400*time.Millisecond)
				if got := w.loads() - before; got != 1 {
					t.Errorf("%d loads after %s, want 1", got, within[1])
				}
				w.synced(true, "")
				if !w.has("10.5.1.16-28") {
					t.Error("what was compacted away is not known")
				}
				w.finish()
			})
		})
	}
}

// The store promises less where hosts are many, and the view waits for as long.
func TestViewPatienceGrows(t *testing.T) {
	for leases, want := range map[int]time.Duration{0: 10 * time.Second, 2500: 10 * time.Second, 10_000: 40 * time.Second, 65_000: 260 * time.Second} {
		if got := subnet.ProgressWithin(leases); got != want {
			t.Errorf("ProgressWithin(%d) = %s, want %s", leases, got, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		data := crowdOf(t)
		for i := range 4000 {
			put(t, data, fmt.Sprintf("10.6.%d.%d-28", i/16, i%16*16), attrs("a", "198.18.0.2"), 0)
		}
		deaf := &deafStore{}
		w := watch(t, data, func(o *subnet.ViewOptions) { deaf.Store = o.Store; o.Store = deaf })
		after(59 * time.Second)
		w.synced(true, "")
		after(time.Second)
		w.synced(false, "the watch made no progress for 1m0s")
		w.finish()
	})
}

// A lease that Acquire has just created is not renewed at once: the view shows that
// it is ours, and when its time began is known.
func TestKeeperTrustsAFreshLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		v := watch(t, data, nil)
		h := start(t, data, func(o *subnet.KeeperOptions) {
			o.View = v.view
			after(time.Second)
			w := load(t, o.Store)
			o.Identity, o.Asked = w.Identity, o.Clock.Uptime()
			var err error
			if o.Lease, err = subnet.Acquire(t.Context(), o.Store, w, o.Claim); err != nil {
				t.Fatal(err)
			}
		})
		if got, want := h.keeper.Status().Expires, time.Second+ttl; got != want {
			t.Errorf("the lease's time ends at %s, want %s", got, want)
		}
		after(18 * time.Minute)
		if got := h.requests["Renew"].Load(); got != 0 {
			t.Errorf("%d renewals in 18 minutes, want none", got)
		}
		after(2 * time.Minute)
		if got := h.requests["Renew"].Load(); got != 1 {
			t.Errorf("%d renewals in 20 minutes, want 1", got)
		}
		h.want(subnet.StateValid, home, "")
		data.DeleteKey(home)
		synctest.Wait()
		h.want(subnet.StateValid, home, "")
		h.end(v)
	})
}

// Silence is no outage after which a watch goes on: whatever the store lost meanwhile, its
// revision may be past ours again. So hosts load at once then, however many they are.
func TestViewLoadsAfterASilenceAmongMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deaf := &deafStore{}
		w := watch(t, crowdOf(t), func(o *subnet.ViewOptions) { deaf.Store = o.Store; o.Store = deaf })
		before := w.loads()
		for tries := 0; w.view.Snapshot().Synced && tries < 600; tries++ {
			after(100 * time.Millisecond)
		}
		w.synced(false, "the watch made no progress for 30s")
		after(time.Second)
		if got := w.loads() - before; got != 1 {
			t.Errorf("%d loads within a second, want 1", got)
		}
		w.finish()
	})
}
