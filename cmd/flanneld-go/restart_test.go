package main

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
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
	}{
		{name: "wiped", lose: func(h *testHost) { h.data.Wipe() }, state: "lost"},
		{name: "wiped, reboot", lose: func(h *testHost) { h.data.Wipe() }, reboot: true, state: "lost"},
		{name: "config deleted", lose: func(h *testHost) { h.data.DeleteConfig() }, state: "valid"},
		{name: "config deleted, reboot", lose: func(h *testHost) { h.data.DeleteConfig() }, reboot: true, state: "valid"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
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
				h.start()
				defer h.stop()
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
