package main

import (
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// What etcd said last is in the cache, however shortly before it fell silent it
// was said, and a process that gets nowhere takes nothing out.
func TestCacheHoldsWhatWasSaidLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.start()
		h.ready()
		h.owned("10.5.200.0-24", "198.18.0.2", "other")
		h.eventually(soon, "a route", func() bool { return len(h.routes()) == 1 })
		h.store.SetUnavailable(errors.New("etcd is down"))
		h.eventually(promise, "the outage is noticed", func() bool { return h.problem(status.ComponentEtcd).Message != "" })
		h.stop()
		h.opts.uplink.Ifaces = []string{"eth7"} // gets no further than this
		h.start()
		h.eventually(promise, "no uplink", func() bool { return h.problem(status.ComponentUplink).Blocking })
		h.stop()
		h.opts.uplink.Ifaces = nil
		h.reboot()
		h.start()
		defer h.stop()
		h.eventually(cacheAfter+soon, "the peer of the cache", func() bool { return len(h.routes()) == 1 })
	})
}

// A host that is killed starts from the cache with all the peers that it had a
// second before, one that came right after it was written included.
func TestCacheAfterAKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.owned("10.5.200.0-24", "198.18.0.2", "other")
		h.start()
		h.ready()
		h.owned("10.5.201.0-24", "198.18.0.3", "third")
		time.Sleep(cacheLeast + settle)
		synctest.Wait()
		kept, err := os.ReadFile(h.path("state/cache.json"))
		if err != nil {
			t.Fatal(err)
		}
		h.store.SetUnavailable(errors.New("etcd is down"))
		h.stop()
		// What the end of the process wrote, a kill would not have.
		h.writeFile("state/cache.json", string(kept))
		h.start()
		defer h.stop()
		time.Sleep(cacheAfter + soon)
		synctest.Wait()
		if got := len(h.routes()); got != 2 {
			t.Errorf("%d routes, want those to both peers", got)
		}
	})
}

// All keys ran out while etcd was silent. Whoever is restarted first, then, has no
// path withdrawn from those who come a moment later; a config that a running host
// would not follow makes another network of it.
func TestRestartBeforeThePeers(t *testing.T) {
	tests := []struct {
		name, config string
		routes       int
	}{
		{"same config", networkConfig, 1},
		{"another range", strings.Replace(networkConfig, "{", `{"SubnetMax":"10.5.220.0",`, 1), 1},
		{"another backend", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.data.OverwriteConfig(networkConfig)
				h.peer("10.5.200.0-24", "198.18.0.2")
				h.start()
				h.ready()
				h.eventually(soon, "a route", func() bool { return len(h.routes()) == 1 })
				h.stop()
				h.data.DeleteKey("10.5.200.0-24")
				h.data.OverwriteConfig(tt.config)
				h.start()
				defer h.stop()
				h.ready()
				if got := len(h.routes()); got != tt.routes {
					t.Errorf("%d routes, want %d", got, tt.routes)
				}
				h.eventually(10*time.Second, "the route is gone", func() bool { return len(h.routes()) == 0 })
			})
		})
	}
}

// What an earlier process of this host knew of etcd's silences, and held because of
// them, holds for the next one: it was killed, so that only what it had noted tells.
func TestRestartAfterASilence(t *testing.T) {
	const ttl = 5 * time.Minute
	silent := func(d time.Duration) func(*testHost) {
		return func(h *testHost) {
			h.store.SetUnavailable(errors.New("etcd is down"))
			time.Sleep(d)
			h.data.DeleteKey("10.5.200.0-24")
		}
	}
	tests := []struct {
		name string
		// lose is what the earlier process sees, and down for how long there is none
		// after it.
		lose func(h *testHost)
		down time.Duration
		// The path to the peer must stay for so long, counted from the restart, and
		// after another while be gone.
		stay, gone time.Duration
	}{
		{"silent for a moment", silent(time.Minute), 0, 0, 10 * time.Second},
		{"silent for long", silent(ttl/2 + time.Minute), 0, ttl - 10*time.Second, 20 * time.Second},
		{"silent, and then down", silent(ttl / 4), ttl / 3, ttl - 10*time.Second, 20 * time.Second},
		{"down for a while", func(h *testHost) {}, ttl / 3, 0, 10 * time.Second},
		{"down for long", func(h *testHost) {}, ttl/2 + time.Second, ttl - 10*time.Second, 20 * time.Second},
		{"emptied a moment before", func(h *testHost) {
			h.data.Wipe()
			h.data.OverwriteConfig(networkConfig)
			time.Sleep(cacheLeast + settle)
		}, 0, ttl - 10*time.Second, 20 * time.Second},
		{"emptied long before", func(h *testHost) {
			h.data.Wipe()
			h.data.OverwriteConfig(networkConfig)
			time.Sleep(ttl / 2)
		}, time.Minute, ttl/2 - time.Minute - 10*time.Second, 20 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.leaseTTL = ttl
				h.data.OverwriteConfig(networkConfig)
				h.owned("10.5.200.0-24", "198.18.0.2", "other")
				h.start()
				h.ready()
				time.Sleep(10 * time.Minute)
				tt.lose(h)
				synctest.Wait()
				kept := h.file("state/cache.json")
				h.stop()
				h.writeFile("state/cache.json", kept)
				time.Sleep(tt.down)
				h.data.DeleteKey("10.5.200.0-24")
				h.store.SetUnavailable(nil)
				h.start()
				defer h.stop()
				h.ready()
				time.Sleep(tt.stay)
				synctest.Wait()
				if n := len(h.routes()); n != 1 {
					t.Errorf("%d routes after %s, want 1", n, tt.stay)
				}
				h.eventually(tt.gone, "the route is gone", func() bool { return len(h.routes()) == 0 })
			})
		})
	}
}

// A host that etcd's silence leaves alone writes its cache no more often than it must
// to say when etcd was heard: what is noted 24 times in a TTL is exact enough.
func TestCacheSaysWhenEtcdWasHeard(t *testing.T) {
	for _, tt := range []struct {
		ttl, every time.Duration
	}{
		{time.Hour, 150 * time.Second},
		{time.Minute, heardLeast},
	} {
		t.Run(tt.ttl.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.leaseTTL, h.opts.iptablesResync = tt.ttl, tt.every/10
				h.data.OverwriteConfig(networkConfig)
				h.start()
				h.ready()
				cache := func() statedir.Cache {
					c, err := statedir.Dir(h.opts.stateDir).LoadCache()
					if err != nil {
						t.Fatal(err)
					}
					return c
				}
				first := cache().Heard
				writes, last := 0, first
				for range 50 {
					time.Sleep(tt.every / 10)
					if heard := cache().Heard; heard != last {
						writes, last = writes+1, heard
					}
				}
				if writes < 3 || writes > 5 {
					t.Errorf("written %d times in %s, want every %s", writes, 5*tt.every, tt.every)
				}
				h.store.SetUnavailable(errors.New("etcd is down"))
				time.Sleep(tt.every)
				last = cache().Heard
				time.Sleep(3 * tt.every)
				h.stop()
				if heard := cache().Heard; heard != last || time.Since(heard) < 4*tt.every {
					t.Errorf("heard at %s while it was silent since %s ago", heard, 4*tt.every)
				}
			})
		})
	}
}

// A host restarted while etcd is empty goes on with what it has, says so, and gets
// it back.
func TestRestartAfterAWipe(t *testing.T) {
	tests := []struct {
		name string
		// lose is what happens to etcd while the daemon is down.
		lose func(h *testHost)
		// reboot: the kernel and /run are new as well.
		reboot bool
		state  string
		// loads is how many there may be: the start's, and one of who has to find out
		// what became of a lease that is not there.
		loads int64
	}{
		{name: "wiped", lose: func(h *testHost) { h.data.Wipe() }, state: "lost", loads: 2},
		{name: "wiped, reboot", lose: func(h *testHost) { h.data.Wipe() }, reboot: true, state: "lost", loads: 2},
		{name: "config deleted", lose: func(h *testHost) { h.data.DeleteConfig() }, state: "valid", loads: 1},
		{name: "config deleted, reboot", lose: func(h *testHost) { h.data.DeleteConfig() }, reboot: true, state: "valid", loads: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				var loads atomic.Int64
				h.store = h.data.Open(memstore.Options{Before: func(method string) error {
					if method == "Load" {
						loads.Add(1)
					}
					return nil
				}})
				// Short enough to end during the test if nobody renews it.
				h.opts.leaseTTL = 5 * time.Minute
				h.data.OverwriteConfig(networkConfig)
				h.owned("10.5.125.0-24", "198.18.0.2", "other") // the host's first choice
				h.start()
				h.ready()
				prefix, key := h.subnet()
				env := h.file("run/subnet.env")
				h.stop()
				tt.lose(h)
				if tt.reboot {
					h.reboot()
				}
				loads.Store(0)
				h.start()
				defer h.stop()
				time.Sleep(settle)
				synctest.Wait()
				if n := loads.Load(); n > tt.loads {
					t.Errorf("%d loads to start, want at most %d", n, tt.loads)
				}
				h.eventually(promise, "it works and says what is wrong", func() bool {
					p := h.problem(status.ComponentConfig)
					now, _ := h.subnet()
					return now == prefix && len(h.routes()) == 1 && len(h.uses(prefix)) == 2 && h.file("run/subnet.env") == env &&
						strings.HasPrefix(p.Message, "the network config is gone from /coreos.com/network/config at ") && strings.Contains(p.Message, "; keeping that of revision ") &&
						strings.Contains(p.Hint, " put /coreos.com/network/config '") && !p.Blocking && h.board.Snapshot().Lease.State == tt.state
				})
				// Peers that etcd has lost stay for a TTL, and this one's lease for ever.
				time.Sleep(4 * time.Minute)
				if len(h.routes()) != 1 {
					t.Errorf("routes %v, want the peer's", h.routes())
				}
				time.Sleep(6 * time.Minute)
				_, stored := h.stored(key)
				if now, _ := h.subnet(); now != prefix || len(h.uses(prefix)) != 2 || stored != (tt.state == "valid") || h.board.Snapshot().Ready != stored {
					t.Errorf("subnet %s, in use %v, in etcd %t, ready %t", now, h.uses(prefix), stored, h.board.Snapshot().Ready)
				}
				h.data.OverwriteConfig(networkConfig)
				h.eventually(soon, "its former subnet", func() bool {
					l, ok := h.stored(key)
					now, _ := h.subnet()
					return ok && l.Attrs.Owner == "me" && now == prefix && h.board.Snapshot().Ready && h.problem(status.ComponentConfig) == status.Problem{}
				})
				if n := h.log.count("msg=renumbered"); n != 0 {
					t.Errorf("renumbered %d times", n)
				}
			})
		})
	}
}

// A config that comes back for another network ends the process that went on
// without: the next one starts by it.
func TestRestartAfterAWipeIntoAnotherNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.start()
		h.ready()
		prefix, _ := h.subnet()
		h.stop()
		h.data.Wipe()
		h.start()
		h.eventually(promise, "it works without a config", func() bool {
			return h.board.Snapshot().Lease.State == "lost" && len(h.uses(prefix)) == 2
		})
		h.data.OverwriteConfig(strings.Replace(networkConfig, "10.5.", "10.6.", 1))
		if err := h.end(); err == nil || !strings.HasSuffix(err.Error(), ", by a network config that only a restart can follow") {
			t.Fatalf("ended with %v", err)
		}
		h.start()
		defer h.stop()
		h.ready()
		if now, _ := h.subnet(); !strings.HasPrefix(now, "10.6.") || len(h.uses(prefix)) != 0 {
			t.Errorf("subnet %s; the former is in use by %v", now, h.uses(prefix))
		}
	})
}
