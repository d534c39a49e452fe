package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// The bounds of docs/operations.md for a host without etcd, per minute.
const (
	mostLines    = 20
	mostRequests = 30
)

// perMinute watches ten minutes and fails the test for each in which more was
// counted than allowed.
func (h *testHost) perMinute(what string, most int, count func() int) {
	h.t.Helper()
	for minute := range 10 {
		before := count()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := count() - before; n >= most {
			h.t.Errorf("minute %d: %d %s, want less than %d\n%s", minute+1, n, what, most, h.log.buf.String())
		}
	}
}

// Whatever etcd does to us, for however long: the log says it in the first minute
// and then goes quiet, etcd is not beaten, the data path stays.
func TestTenMinutesWithoutEtcd(t *testing.T) {
	var calls atomic.Int64
	// Every failure reads different, as those of a bad network do.
	failing := func(method string) error {
		return fmt.Errorf("%s: connection %d reset", method, calls.Add(1))
	}
	tests := []struct {
		name string
		fail func(method string) error
		ttl  time.Duration
		said []string
	}{
		{name: "unreachable", fail: failing, ttl: 24 * time.Hour, said: []string{"msg=problem", "component=etcd"}},
		{name: "unreachable past the ttl", fail: failing, ttl: 30 * time.Second, said: []string{"component=etcd", "component=lease", "is unproven"}},
		{
			name: "every watch is cut", ttl: 24 * time.Hour, said: []string{"component=etcd"},
			fail: func(method string) error {
				calls.Add(1)
				if method == "Watch" {
					return errors.New("stream reset")
				}
				return nil
			},
		},
		{
			name: "every other request is lost", ttl: 30 * time.Second, said: []string{"component=etcd"},
			fail: func(method string) error {
				if n := calls.Add(1); n%2 == 0 || method == "Watch" {
					return fmt.Errorf("%s: request %d lost", method, n)
				}
				return nil
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.leaseTTL = tt.ttl
				var broken atomic.Bool
				h.store = h.data.Open(memstore.Options{Before: func(method string) error {
					if broken.Load() {
						return tt.fail(method)
					}
					return nil
				}})
				h.data.OverwriteConfig(networkConfig)
				h.peer("10.5.200.0-24", "198.18.0.2")
				h.start()
				defer h.stop()
				h.ready()
				prefix, _ := h.subnet()
				broken.Store(true)
				calls.Store(0)
				// Ends the watch that runs; what comes next fails by itself.
				h.store.SetUnavailable(errors.New("watch ended"))
				synctest.Wait()
				h.store.SetUnavailable(nil)
				lines := h.log.count("\n")
				h.perMinute("log lines", mostLines, func() int {
					return h.log.count("\n") - lines
				})
				if n := int(calls.Load()); n > 10*mostRequests {
					t.Errorf("%d requests in 10 minutes, want at most %d", n, 10*mostRequests)
				}
				t.Logf("%d lines and %d requests in 10 minutes", h.log.count("\n")-lines, calls.Load())
				for _, part := range tt.said {
					if h.log.count(part) == 0 {
						t.Errorf("the log does not say %s", part)
					}
				}
				if s := h.board.Snapshot(); s.Lease.Subnet != prefix || len(h.routes()) != 1 || len(h.uses(prefix)) != 2 {
					t.Errorf("%s, routes %v, in use %v; want all as before", s.Line(), h.routes(), h.uses(prefix))
				}
				broken.Store(false)
				h.eventually(time.Minute, "all is well again", func() bool {
					s := h.board.Snapshot()
					return s.Ready && s.Etcd.Connected && s.Lease.State == "valid" && s.Lease.Subnet == prefix
				})
			})
		})
	}
}

// The first minute says what is wrong, since when, and what to look at; status and
// log agree.
func TestOutageIsSaidAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.opts.leaseTTL = 30 * time.Second
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		time.Sleep(time.Minute)
		began := time.Now()
		h.store.SetUnavailable(errors.New("etcd http://192.0.2.10:2379: connection refused"))
		h.eventually(soon, "etcd is a problem", func() bool {
			p := h.problem(status.ComponentEtcd)
			return strings.Contains(p.Message, "connection refused") && p.Hint != "" && p.Since.Sub(began) < soon && !p.Blocking
		})
		h.eventually(30*time.Second, "the lease is degraded", func() bool {
			s := h.board.Snapshot()
			return s.Lease.State == "degraded" && s.Ready && strings.Contains(s.Lease.Reason, "connection refused") && s.Lease.Since.After(began)
		})
		h.eventually(time.Minute, "the lease is unproven", func() bool {
			p := h.problem(status.ComponentLease)
			return h.board.Snapshot().Lease.State == "unproven" && !p.Blocking && p.Since.After(began) &&
				strings.HasPrefix(p.Message, "lease of ") && strings.Contains(p.Message, " is unproven: ") && strings.Contains(p.Message, "connection refused")
		})
		if s := h.board.Snapshot(); !s.Ready || s.State != status.StateDegraded {
			t.Errorf("%s, ready %t; want degraded, ready", s.Line(), s.Ready)
		}
		// Etcd's problem has two texts: how the watch ended, and how loads fail.
		for part, most := range map[string]int{"component=etcd": 2, "state=degraded": 1, "state=unproven": 1, "component=lease": 1} {
			if n := h.log.count(part); n < 1 || n > most {
				t.Errorf("the log says %d times %s, want 1 to %d", n, part, most)
			}
		}
		h.store.SetUnavailable(nil)
		h.eventually(time.Minute, "all is well again", func() bool { return h.board.Snapshot().Lease.State == "valid" && h.board.Snapshot().Etcd.Connected })
		if !strings.Contains(h.line("msg=recovered component=etcd"), "duration=") {
			t.Error("the recovery does not say how long it was")
		}
	})
}

// An etcd that was emptied costs nobody his subnet: without a config hosts go on
// and say so, and with it they have what they had.
func TestWipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.owned("10.5.125.0-24", "198.18.0.2", "other") // the host's first choice
		h.start()
		defer h.stop()
		h.ready()
		prefix, key := h.subnet()
		env := h.file("run/subnet.env")
		h.eventually(soon, "a route", func() bool { return len(h.routes()) == 1 })
		h.data.Wipe()
		h.eventually(promise, "the loss is said", func() bool {
			p := h.problem(status.ComponentLease)
			return p.Blocking && strings.HasPrefix(p.Message, "lease of "+prefix+" is lost: ") && strings.Contains(p.Message, "no network config") &&
				strings.HasPrefix(h.problem(status.ComponentConfig).Message, "the network config is gone from /coreos.com/network/config at ")
		})
		h.perMinute("log lines", mostLines, func() int { return h.log.count("\n") })
		if now, _ := h.subnet(); now != prefix || len(h.routes()) != 1 || h.file("run/subnet.env") != env {
			t.Errorf("subnet %s, routes %v, subnet.env %q; want all as before", now, h.routes(), h.file("run/subnet.env"))
		}
		h.data.OverwriteConfig(networkConfig)
		h.eventually(soon, "its former subnet", func() bool {
			l, ok := h.stored(key)
			return ok && string(l.Attrs.Owner) == "me" && h.board.Snapshot().Ready && h.board.Snapshot().Lease.State == "valid"
		})
		if h.log.count("msg=renumbered") > 0 || len(h.routes()) != 1 {
			t.Errorf("routes %v, renumbered %d times", h.routes(), h.log.count("msg=renumbered"))
		}
	})
}

// reboot forgets what a reboot does: the kernel's state and /run.
func (h *testHost) reboot() {
	h.t.Helper()
	h.kernel, h.eth0 = h.newKernel("198.18.0.1/24")
	if err := os.RemoveAll(h.path("run")); err != nil {
		h.t.Fatal(err)
	}
}

// A host whose cache holds no subnet of its own has nothing to go on with.
func TestStartWithoutConfigAndLease(t *testing.T) {
	tests := []struct {
		name string
		// before is done to a host that ran and stopped.
		before func(t *testing.T, h *testHost)
	}{
		{name: "no cache", before: func(t *testing.T, h *testHost) {
			if err := os.Remove(h.path("state/cache.json")); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "its subnet was another's", before: func(t *testing.T, h *testHost) {
			c, err := statedir.Dir(h.opts.stateDir).LoadCache()
			if err == nil {
				c.Former = "it is another's"
				err = statedir.Dir(h.opts.stateDir).SaveCache(c)
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.data.OverwriteConfig(networkConfig)
				h.start()
				h.ready()
				h.stop()
				tt.before(t, h)
				h.data.DeleteConfig()
				h.start()
				defer h.stop()
				h.eventually(promise, "waits for a config", func() bool {
					return strings.HasPrefix(h.problem(status.ComponentConfig).Message, "no network config yet: waiting for key ")
				})
				time.Sleep(10 * time.Minute)
				if s := h.board.Snapshot(); s.Lease.Subnet != "" || s.Ready || s.State != status.StateWaiting {
					t.Errorf("%s, ready %t; want it to wait without a lease", s.Line(), s.Ready)
				}
				h.data.OverwriteConfig(networkConfig)
				h.ready()
			})
		})
	}
}

// blockCache keeps the cache from being written until unblock is called: a directory
// in its place refuses every rename, to root as well.
func (h *testHost) blockCache() (unblock func()) {
	h.t.Helper()
	path := h.path("state/cache.json")
	if err := errors.Join(os.Rename(path, path+".kept"), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
		h.t.Fatal(err)
	}
	return func() {
		h.t.Helper()
		if err := errors.Join(os.RemoveAll(path), os.Rename(path+".kept", path)); err != nil {
			h.t.Fatal(err)
		}
	}
}

// A cache that cannot be written, as on a full disk, is named and tried again,
// and what it holds stays readable.
func TestUnwritableCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		cache := h.path("state/cache.json")
		unblock := h.blockCache()
		h.peer("10.5.200.0-24", "198.18.0.2")
		h.eventually(resync, "the cache is a problem", func() bool {
			p := h.problem(status.ComponentCache)
			return strings.HasPrefix(p.Message, "save state: write "+cache+": ") && !p.Blocking
		})
		h.perMinute("log lines", mostLines, func() int { return h.log.count("\n") })
		if h.log.count("component=cache") != 1 || !h.board.Snapshot().Ready {
			t.Errorf("said %d times, ready %t; want once, ready", h.log.count("component=cache"), h.board.Snapshot().Ready)
		}
		unblock()
		h.eventually(resync, "the peer is in the cache", func() bool {
			c, err := statedir.Dir(h.opts.stateDir).LoadCache()
			return err == nil && len(c.Peers) == 1 && h.problem(status.ComponentCache) == status.Problem{}
		})
	})
}

// A lease that had to be leased by a config which this process refused ends it:
// the next one starts by that config.
func TestLeaseOutsideTheNetworkInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(vxlanConfig)
		h.start()
		h.ready()
		prefix, key := h.subnet()
		h.data.OverwriteConfig(strings.Replace(vxlanConfig, "10.5.", "10.6.", 1))
		h.eventually(soon, "the change is refused", func() bool {
			p := h.problem(status.ComponentConfig)
			return strings.Contains(p.Message, "changes Network: this host keeps that of revision") && strings.Contains(p.Message, "its own, "+prefix+", does not fit the new config") &&
				p.Hint == "systemctl restart flanneld-go"
		})
		h.data.DeleteKey(key)
		if err := h.end(); err == nil || !strings.HasSuffix(err.Error(), ", by a network config that only a restart can follow") {
			t.Fatalf("ended with %v", err)
		}
		h.start()
		defer h.stop()
		h.ready()
		now, _ := h.subnet()
		if !strings.HasPrefix(now, "10.6.") || len(h.uses(now)) != 3 || len(h.uses(prefix)) != 0 {
			t.Errorf("subnet %s, by %v; the former is in use by %v", now, h.uses(now), h.uses(prefix))
		}
		if n := len(h.addrs("flannel.1")); n != 1 {
			t.Errorf("%d addresses on the device, want 1", n)
		}
	})
}

// A host that found the pool full follows a config that makes room, with another
// backend even.
func TestRoomIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(`{"Network":"10.5.0.0/16","SubnetMin":"10.5.16.0","SubnetMax":"10.5.16.0","Backend":{"Type":"host-gw"}}`)
		h.owned("10.5.16.0-24", "198.18.0.2", "other")
		h.start()
		defer h.stop()
		h.eventually(soon, "there is no room", func() bool { return h.problem(status.ComponentLease).Blocking })
		h.data.OverwriteConfig(strings.Replace(vxlanConfig, "10.5.", "10.7.", 1))
		h.eventually(promise, "ready in the new network", func() bool {
			now, _ := h.subnet()
			return h.board.Snapshot().Ready && strings.HasPrefix(now, "10.7.") && len(h.uses(now)) == 3
		})
	})
}

// A host that waits for a free subnet asks etcd for nothing while there is none, who
// comes and goes meanwhile, and has one at once when one is free.
func TestWaitingForRoomAsksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loads, writes atomic.Int64
		h := newHost(t)
		h.store = h.data.Open(memstore.Options{Before: func(method string) error {
			switch method {
			case "Load":
				loads.Add(1)
			case "Create", "Update":
				writes.Add(1)
			}
			return nil
		}})
		h.data.OverwriteConfig(`{"Network":"10.5.0.0/16","SubnetMin":"10.5.16.0","SubnetMax":"10.5.16.0","Backend":{"Type":"host-gw"}}`)
		h.owned("10.5.16.0-24", "198.18.0.2", "other")
		h.start()
		defer h.stop()
		h.eventually(soon, "there is no room", func() bool { return h.problem(status.ComponentLease).Blocking })
		if n := loads.Load(); n != 1 {
			t.Errorf("%d loads at the start, want 1", n)
		}
		for range 20 { // Outside of the pool.
			h.owned("10.5.17.0-24", "198.18.0.3", "third")
			time.Sleep(15 * time.Second)
			h.data.DeleteKey("10.5.17.0-24")
			time.Sleep(time.Second)
		}
		if n := loads.Load() + writes.Load(); n != 1 {
			t.Errorf("%d loads and writes in five minutes, want 1", n)
		}
		h.data.DeleteKey("10.5.16.0-24")
		h.ready()
		if n := loads.Load(); n != 1 {
			t.Errorf("%d loads to lease what is free, want 1", n)
		}
	})
}

// A host that is killed while it looks for another subnet does not start with the lost
// one: its cache says at once whose it is, and no longer than it is so.
func TestKilledWhileItRenumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(`{"Network":"10.5.0.0/16","SubnetMin":"10.5.16.0","SubnetMax":"10.5.16.0","Backend":{"Type":"host-gw"}}`)
		h.start()
		defer h.stop()
		h.ready()
		former := func() string {
			c, err := statedir.Dir(h.opts.stateDir).LoadCache()
			if err != nil {
				t.Fatal(err)
			}
			return c.Former
		}
		h.owned("10.5.16.0-24", "198.18.0.2", "other")
		time.Sleep(renumberGrace / 2)
		synctest.Wait()
		if h.file("run/subnet.env") == "" {
			t.Fatal("withdrawn already")
		}
		if got := former(); !strings.Contains(got, "node other") {
			t.Errorf("the cache says %q of the lost subnet", got)
		}
		h.data.DeleteKey("10.5.16.0-24")
		h.ready()
		if got := former(); got != "" {
			t.Errorf("the cache says %q of a subnet that is ours again", got)
		}
	})
}

// Whether a subnet was leased whose answer is lost, etcd is asked before another is:
// the view may not know of it yet.
func TestLostAnswerToALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		var lost atomic.Bool
		h.store = h.data.Open(memstore.Options{After: func(method string) error {
			if method == "Create" && lost.CompareAndSwap(false, true) {
				return errors.New("connection reset")
			}
			return nil
		}})
		h.data.OverwriteConfig(networkConfig)
		h.deaf.Store(true)
		h.start()
		defer h.stop()
		h.ready()
		prefix, key := h.subnet()
		w, err := h.data.Open(memstore.Options{}).Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(w.Leases) != 1 || w.Leases[0].Subnet.Key() != key {
			t.Errorf("leased are %+v, want %s alone", w.Leases, prefix)
		}
	})
}
