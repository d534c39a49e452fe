package subnet_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// What a store has deleted that was silent for half of a TTL may belong to hosts that
// live, and could not renew. It is held for a TTL, as after a disaster.
func TestViewAfterSilence(t *testing.T) {
	const brief = 2 * time.Second
	for _, tt := range []struct {
		name string
		// silent is for how long, later how long afterwards the key is deleted;
		// negative: while it is.
		silent, later time.Duration
		held          time.Duration
	}{
		{"short", ttl/2 - 20*time.Second, -time.Second, brief},
		{"long", ttl / 2, -time.Second, ttl},
		{"deleted long before the end", ttl, -ttl / 2, ttl},
		{"short, deleted after it", ttl/2 - 20*time.Second, time.Second, brief},
		{"long, deleted right after it", ttl / 2, time.Second, ttl},
		{"long, deleted a minute after it", ttl / 2, 50 * time.Second, ttl},
		{"long, deleted later", ttl / 2, 71 * time.Second, brief},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := watch(t, newStore(config), nil)
				w.put("10.5.1.0-24", "a")
				w.put("10.5.2.0-24", "b")
				synctest.Wait()
				w.store.SetUnavailable(errDown)
				synctest.Wait()
				if tt.later < 0 {
					after(tt.silent + tt.later)
					w.data.DeleteKey("10.5.1.0-24")
					w.data.DeleteKey("10.5.2.0-24")
					after(-tt.later)
				} else {
					after(tt.silent)
				}
				w.store.SetUnavailable(nil)
				after(10 * time.Second) // The longest pause of a view.
				w.synced(true, "")
				if tt.later >= 0 {
					after(tt.later - time.Second)
					w.want("10.5.1.0/24 a", "10.5.2.0/24 b")
					w.data.DeleteKey("10.5.1.0-24")
					w.data.DeleteKey("10.5.2.0-24")
					after(time.Second)
				}
				if tt.held == brief {
					after(brief)
					w.want()
					w.finish()
					return
				}
				after(tt.held - 20*time.Second)
				w.want("10.5.1.0/24 a", "10.5.2.0/24 b")
				w.put("10.5.2.0-25", "c") // It is at an end whatever was awaited.
				synctest.Wait()
				w.want("10.5.1.0/24 a", "10.5.2.0/25 c")
				after(21 * time.Second)
				w.want("10.5.2.0/25 c")
				w.finish()
			})
		})
	}
}

// Whatever is heard between two silences makes them two: a load as well.
func TestViewLoadEndsASilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		w := watch(t, data, func(o *subnet.ViewOptions) { o.Store = &deafStore{Store: o.Store} })
		w.put("10.5.1.0-24", "a")
		synctest.Wait()
		for range 2 {
			w.store.SetUnavailable(errDown)
			after(ttl/2 - time.Minute)
			w.store.SetUnavailable(nil)
			after(20 * time.Second)
			w.want("10.5.1.0/24 a")
		}
		w.data.DeleteKey("10.5.1.0-24")
		after(33 * time.Second) // The next load, and a brief hold.
		w.synced(true, "")
		w.want()
		w.finish()
	})
}

// At a TTL of seconds a watch that is well says too little: what counts is whether our
// lease is renewed. That the store deletes is no sign that it has time for anybody.
func TestViewSilenceOfRenewals(t *testing.T) {
	const short = 6 * time.Second
	for _, tt := range []struct {
		name string
		ttl  time.Duration
		// silent is for how long the keeper gets no answer.
		silent time.Duration
		held   bool
	}{
		{"lease", short, 5 * time.Second, true},
		{"reservation", 0, 5 * time.Second, true},
		{"lease, answered", short, 0, false},
		{"reservation, answered", 0, 0, false},
		// Its renewals say nothing, and the watch not enough.
		{"lease of a day", 24 * time.Hour, 5 * time.Second, false},
		// Who waits for his subnet looks as often.
		{"another's", -short, 0, false},
		{"another's, silent", -short, 5 * time.Second, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				put(t, data, home, attrs("me", "198.18.0.1"), max(tt.ttl, -tt.ttl))
				w := watch(t, data, func(o *subnet.ViewOptions) {
					o.TTL, o.Store = short, data.Open(memstore.Options{Progress: 10 * time.Second})
				})
				h := start(t, data, func(o *subnet.KeeperOptions) { o.View, o.Claim.TTL, o.OnConflict = w.view, short, subnet.Fence })
				for i := range 9 {
					w.put(fmt.Sprintf("10.5.%d.0-24", i+1), "a")
				}
				after(time.Minute + time.Second) // The watch has just made progress.
				if tt.ttl < 0 {
					put(t, data, home, attrs("b", "198.18.0.9"), 0)
					after(time.Minute)
				}
				if tt.silent > 0 {
					h.store.SetUnavailable(errDown)
				}
				for i := range 8 { // One by one, as they run out.
					data.DeleteKey(fmt.Sprintf("10.5.%d.0-24", i+1))
					after(tt.silent / 8)
				}
				data.DeleteKey("10.5.9.0-24")
				after(short - 10*time.Millisecond)
				want := []string{"10.5.125.0/24 me"}
				if tt.ttl < 0 {
					want = []string{"10.5.125.0/24 b"}
				}
				if tt.held {
					want = append([]string{"10.5.9.0/24 a"}, want...)
				}
				w.want(want...)
				h.end(w)
			})
		})
	}
}

// A store that answers nobody for a while, and so lets leases run out, costs nobody
// his path to a host that lives: who is back has his key before his peers let go.
func TestNobodyLetsGoAfterSilence(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		silent := rapid.Int64Range(0, int64(3*walkTTL)).Draw(rt, "silent")
		before := rapid.Int64Range(0, int64(walkTTL)).Draw(rt, "before")
		slow := rapid.Int64Range(2, 400).Draw(rt, "slow")
		// When in the silence, if at all, one of them is started anew.
		restart := rapid.Int64Range(-1, silent).Draw(rt, "restart")
		random := rapid.SliceOfN(rapid.Float64Range(0, 0.999), 3, 3).Draw(rt, "random")
		synctest.Test(t, func(t *testing.T) {
			w := &walker{t: t, data: newStore(walkConfigs()[0])}
			w.audit = newAuditor(w.data)
			for i := range 3 {
				h := newMachine(w, fmt.Sprintf("host%d", i), fmt.Sprintf("198.18.0.%d", i+1), subnet.Renumber)
				h.random = random[i]
				h.oneWay.Store(slow * int64(time.Millisecond))
				w.hosts = append(w.hosts, h)
				h.start()
				after(time.Duration(before) / 3)
			}
			after(walkTTL)
			for _, h := range w.hosts {
				h.mem.SetUnavailable(errDown)
			}
			after(time.Duration(max(restart, 0)))
			if restart >= 0 {
				w.hosts[0].kill()
				w.hosts[0].start()
			}
			after(time.Duration(silent - max(restart, 0)))
			for _, h := range w.hosts {
				h.mend()
			}
			for range int(2 * walkTTL / time.Second) {
				after(time.Second)
				for _, h := range w.hosts {
					if n := h.view.Load().Snapshot().Len(); n != 3 {
						t.Errorf("%s has paths to %d of 3 hosts", h.name, n)
					}
				}
			}
			for _, h := range w.hosts {
				h.kill()
			}
			w.data.Wipe()
		})
		if t.Failed() {
			rt.Fatal("see above")
		}
	})
}
