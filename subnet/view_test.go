package subnet_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// watcher is a view at work in a bubble, on its own Store of shared data.
type watcher struct {
	t        *testing.T
	data     *memstore.Store
	store    *memstore.Store
	clock    *bubbleClock
	view     *subnet.View
	requests map[string]*atomic.Int64
	finish   func()
}

func watch(t *testing.T, data *memstore.Store, adjust func(*subnet.ViewOptions)) *watcher {
	t.Helper()
	w := &watcher{t: t, data: data, clock: newClock(), requests: map[string]*atomic.Int64{}}
	for _, m := range methods() {
		w.requests[m] = new(atomic.Int64)
	}
	w.store = data.Open(memstore.Options{Before: func(method string) error {
		w.requests[method].Add(1)
		return nil
	}})
	o := subnet.ViewOptions{Store: w.store, Clock: w.clock, TTL: ttl, Random: func() float64 { return 0.5 }}
	if adjust != nil {
		adjust(&o)
	}
	w.view = subnet.NewView(o)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.view.Run(ctx) }()
	w.finish = func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		data.Wipe()
	}
	synctest.Wait()
	return w
}

// want compares the leases in effect: "10.5.1.0/24 owner", sorted.
func (w *watcher) want(leases ...string) {
	w.t.Helper()
	got := []string{}
	for l := range w.view.Snapshot().Leases() {
		got = append(got, l.Subnet.String()+" "+string(l.Attrs.Owner))
	}
	if leases == nil {
		leases = []string{}
	}
	if d := cmp.Diff(leases, got); d != "" {
		w.t.Errorf("leases: -want +got\n%s", d)
	}
	if w.view.Snapshot().Len() != len(got) {
		w.t.Errorf("Len = %d of %d", w.view.Snapshot().Len(), len(got))
	}
}

func (w *watcher) synced(want bool, why string) {
	w.t.Helper()
	if s := w.view.Snapshot(); s.Synced != want || (s.Err == nil) != want || !want && !strings.Contains(s.Err.Error(), why) {
		w.t.Errorf("synced %v (%v), want %v (%s)", s.Synced, s.Err, want, why)
	}
}

func (w *watcher) put(key, owner string) subnet.LeaseID {
	w.t.Helper()
	return put(w.t, w.data, key, attrs(owner, "198.18.0.2"), 0)
}

func TestViewFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		put(t, data, "10.5.9.0-24", attrs("i", "198.18.0.9"), 0)
		w := watch(t, data, nil)
		w.want("10.5.9.0/24 i")
		w.put("10.5.10.0-24", "j")
		w.put("10.5.1.0-24", "a")
		synctest.Wait()
		w.want("10.5.1.0/24 a", "10.5.9.0/24 i", "10.5.10.0/24 j")
		w.put("10.5.1.0-24", "b")
		data.OverwriteConfig("{}")
		synctest.Wait()
		w.want("10.5.1.0/24 b", "10.5.9.0/24 i", "10.5.10.0/24 j")
		if s := w.view.Snapshot(); s.Config.Text != "{}" || s.Revision != data.Revision() || s.Identity == "" {
			t.Errorf("%+v at %d of %s, want revision %d", s.Config, s.Revision, s.Identity, data.Revision())
		}
		if got := w.requests["Load"].Load(); got != 1 {
			t.Errorf("%d loads", got)
		}
		w.synced(true, "")
		w.finish()
	})
}

// Decision 6: a deleted lease stays for two seconds, but not a moment in the way
// of another.
func TestViewHoldsDeletedLeases(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*watcher)
		soon []string
		then []string
	}{
		{"deleted", func(w *watcher) { w.data.DeleteKey("10.5.1.0-24") }, []string{"10.5.1.0/24 a", "10.5.2.0/24 b"}, []string{"10.5.2.0/24 b"}},
		{"created again", func(w *watcher) { w.data.DeleteKey("10.5.1.0-24"); w.put("10.5.1.0-24", "a") }, []string{"10.5.1.0/24 a", "10.5.2.0/24 b"}, []string{"10.5.1.0/24 a", "10.5.2.0/24 b"}},
		{"another's now", func(w *watcher) { w.data.DeleteKey("10.5.1.0-24"); w.put("10.5.1.0-24", "c") }, []string{"10.5.1.0/24 c", "10.5.2.0/24 b"}, []string{"10.5.1.0/24 c", "10.5.2.0/24 b"}},
		{"part of another's now", func(w *watcher) { w.data.DeleteKey("10.5.1.0-24"); w.put("10.5.0.0-23", "c") }, []string{"10.5.0.0/23 c", "10.5.2.0/24 b"}, []string{"10.5.0.0/23 c", "10.5.2.0/24 b"}},
		{"a part is another's now", func(w *watcher) { w.data.DeleteKey("10.5.1.0-24"); w.put("10.5.1.128-25", "c") }, []string{"10.5.1.128/25 c", "10.5.2.0/24 b"}, []string{"10.5.1.128/25 c", "10.5.2.0/24 b"}},
		{"was another's before", func(w *watcher) { w.put("10.5.0.0-23", "c"); w.data.DeleteKey("10.5.1.0-24") }, []string{"10.5.0.0/23 c", "10.5.2.0/24 b"}, []string{"10.5.0.0/23 c", "10.5.2.0/24 b"}},
		{"deleted twice", func(w *watcher) {
			w.data.DeleteKey("10.5.1.0-24")
			after(time.Second)
			w.put("10.5.1.0-24", "a")
			w.data.DeleteKey("10.5.1.0-24")
			after(1500 * time.Millisecond)
		}, []string{"10.5.1.0/24 a", "10.5.2.0/24 b"}, []string{"10.5.2.0/24 b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, how := range []string{"watched", "in a compaction gap"} {
				synctest.Test(t, func(t *testing.T) {
					data := newStore(config)
					w := watch(t, data, nil)
					w.put("10.5.1.0-24", "a")
					w.put("10.5.2.0-24", "b")
					synctest.Wait()
					if how != "watched" {
						w.store.SetUnavailable(errDown)
						synctest.Wait()
					}
					tt.do(w)
					if how != "watched" {
						data.Compact(data.Revision())
						w.store.SetUnavailable(nil)
						after(400 * time.Millisecond)
						if tt.name == "deleted twice" {
							after(10 * time.Second)
							w.want(tt.then...)
							w.finish()
							return
						}
					}
					synctest.Wait()
					w.synced(true, "")
					w.want(tt.soon...)
					after(2 * time.Second)
					w.want(tt.then...)
					w.finish()
				})
			}
		})
	}
}

// Each deleted lease has its own two seconds.
func TestViewHoldsEachForItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, newStore(config), nil)
		w.put("10.5.1.0-24", "a")
		w.put("10.5.2.0-24", "b")
		w.data.DeleteKey("10.5.1.0-24")
		after(time.Second)
		w.data.DeleteKey("10.5.2.0-24")
		after(time.Second)
		w.want("10.5.2.0/24 b")
		after(time.Second)
		w.want()
		w.finish()
	})
}

// A held lease is not in the store, and one in the store is.
func TestSnapshotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, newStore(config), nil)
		w.put("10.5.1.0-24", "a")
		synctest.Wait()
		old := w.view.Snapshot()
		if l, ok := old.Stored(sub(t, "10.5.1.0-24")); !ok || l.Attrs.Owner != "a" || l.Modified != w.data.Revision() {
			t.Errorf("%+v, %v", l, ok)
		}
		w.data.DeleteKey("10.5.1.0-24")
		synctest.Wait()
		if l, ok := w.view.Snapshot().Stored(sub(t, "10.5.1.0-24")); ok {
			t.Errorf("deleted, but %+v", l)
		}
		if _, ok := old.Stored(sub(t, "10.5.1.0-24")); !ok {
			t.Error("an older snapshot changed")
		}
		if _, ok := old.Stored(sub(t, "10.5.3.0-24")); ok {
			t.Error("there never was such a key")
		}
		w.finish()
	})
}

// A value that cannot be read occupies its subnet: the peer keeps the last one.
func TestViewBadKeys(t *testing.T) {
	for _, how := range []string{"watched", "in a gap"} {
		synctest.Test(t, func(t *testing.T) {
			data := newStore(config)
			w := watch(t, data, nil)
			w.put("10.5.1.0-24", "a")
			w.put("10.5.2.0-24", "b")
			w.put("10.5.3.0-24", "c")
			synctest.Wait()
			if how != "watched" {
				w.store.SetUnavailable(errDown)
				synctest.Wait()
			}
			data.DeleteKey("10.5.3.0-24")
			for _, key := range []string{"readme", "10.5.1.0-24", "10.5.2.9-24", "10.5.3.9-24", "10.5.7.0-24"} {
				if _, err := data.Put(key, "nonsense", 0); err != nil {
					t.Fatal(err)
				}
			}
			w.store.SetUnavailable(nil)
			after(5 * time.Second)
			w.want("10.5.1.0/24 a", "10.5.2.0/24 b")
			var bad []string
			for _, b := range w.view.Snapshot().Bad {
				bad = append(bad, b.Key)
			}
			if d := cmp.Diff([]string{"10.5.1.0-24", "10.5.2.9-24", "10.5.3.9-24", "10.5.7.0-24", "readme"}, bad); d != "" {
				t.Errorf("bad: -want +got\n%s", d)
			}
			if _, ok := w.view.Snapshot().Stored(sub(t, "10.5.1.0-24")); ok {
				t.Error("an unreadable value counts as stored")
			}
			if _, ok := w.view.Snapshot().Stored(sub(t, "10.5.2.0-24")); !ok {
				t.Error("a key beside an unreadable one does not")
			}
			w.put("10.5.1.0-24", "c")
			data.DeleteKey("readme")
			data.DeleteKey("10.5.2.9-24")
			data.DeleteKey("10.5.3.9-24")
			synctest.Wait()
			w.want("10.5.1.0/24 c", "10.5.2.0/24 b")
			if got := len(w.view.Snapshot().Bad); got != 1 {
				t.Errorf("%d bad keys, want 1", got)
			}
			w.finish()
		})
	}
}

// A reader that is slow, or gone, makes nobody wait, and sees a burst as one
// change.
func TestViewReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, newStore(config), nil)
		first := w.view.Snapshot()
		for i := range 200 {
			w.put(fmt.Sprintf("10.5.%d.0-24", i), "a")
		}
		synctest.Wait()
		<-first.Changed()
		last := w.view.Snapshot()
		if last.Len() != 200 || first.Len() != 0 || len(slices.Collect(first.Leases())) != 0 {
			t.Errorf("first %d, last %d", first.Len(), last.Len())
		}
		select {
		case <-last.Changed():
			t.Error("the latest snapshot is said to be old")
		default:
		}
		var few int
		for l := range last.Leases() {
			if few++; few == 3 {
				if got, ok := last.Stored(l.Subnet); !ok || got != *l {
					t.Errorf("%+v, %v; want %+v", got, ok, *l)
				}
				break
			}
		}
		w.put("10.5.7.0-24", "b")
		synctest.Wait()
		if a, b := slices.Collect(last.Leases()), slices.Collect(w.view.Snapshot().Leases()); a[6] != b[6] || a[8] != b[8] || a[7] == b[7] || a[7].Attrs.Owner != "a" {
			t.Error("snapshots do not share what is the same, or an old one has changed")
		}
		w.finish()
	})
}

func TestViewBeforeItsStart(t *testing.T) {
	v := subnet.NewView(subnet.ViewOptions{Clock: newClock()})
	s := v.Snapshot()
	if s.Synced || s.Err == nil || s.Err.Error() != "the store has not been read yet" || len(slices.Collect(s.Leases())) != 0 {
		t.Errorf("%+v", s)
	}
	world := subnet.World{Identity: "x", Revision: 7}
	v = subnet.NewView(subnet.ViewOptions{Clock: newClock(), World: world, Cached: true})
	if s := v.Snapshot(); s.Synced || s.Err == nil || s.Err.Error() != "this comes from the cache" || s.Revision != 7 {
		t.Errorf("%+v", s)
	}
	v = subnet.NewView(subnet.ViewOptions{Clock: newClock(), World: world})
	if s := v.Snapshot(); !s.Synced || s.Err != nil {
		t.Errorf("%+v", s)
	}
}
