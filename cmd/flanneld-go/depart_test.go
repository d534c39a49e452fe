package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// stored returns what etcd holds for a key; false: nothing.
func (h *testHost) stored(key string) (subnet.Lease, bool) {
	h.t.Helper()
	w, err := h.data.Load(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, l := range w.Leases {
		if l.Subnet.Key() == key {
			return l, true
		}
	}
	return subnet.Lease{}, false
}

// A signal leaves everything in place, unless it is asked for otherwise.
func TestStopLeavesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(vxlanConfig)
		h.start()
		h.ready()
		prefix, key := h.subnet()
		h.stop()
		if by := h.uses(prefix); len(by) != 3 {
			t.Errorf("in use: %v; want address and files", by)
		}
		if _, ok := h.stored(key); !ok {
			t.Error("the lease is gone")
		}
		h.line(`msg="stopped; devices, routes and rules stay in place"`)
	})
}

// With --release-on-exit nothing of the subnet is in use when the lease is given
// back, and the next start asks for the same one.
func TestReleaseOnExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.opts.releaseOnExit = true
		used := -1
		var prefix string
		h.store = h.data.Open(memstore.Options{Before: func(method string) error {
			if method == "Release" {
				used = len(h.uses(prefix))
			}
			return nil
		}})
		h.data.OverwriteConfig(vxlanConfig)
		// The host's first choice is taken, so that what it returns to is not
		// only what it would choose anyway.
		h.owned("10.5.125.0-24", "198.18.0.2", "other")
		h.start()
		h.ready()
		var key string
		prefix, key = h.subnet()
		if key == "10.5.125.0-24" {
			t.Fatal("the first choice was free")
		}
		h.stop()
		if _, ok := h.stored(key); ok || used != 0 {
			t.Errorf("lease there %t, used by %d at its release; want neither", ok, used)
		}
		if by := h.uses(prefix); len(by) > 0 {
			t.Errorf("in use: %v", by)
		}
		h.line(`msg="stopped; lease released, data path and files withdrawn"`)

		h.store.SetUnavailable(errors.New("etcd is down"))
		h.start()
		h.eventually(cacheAfter+soon, "waits for etcd", func() bool {
			return h.problem(status.ComponentLease).Message == "waiting for etcd: this host's former subnet "+prefix+" is not its own any more: released"
		})
		if by := h.uses(prefix); len(by) > 0 {
			t.Errorf("in use without a lease: %v", by)
		}
		h.stop()
		h.data.DeleteKey("10.5.125.0-24")
		h.store.SetUnavailable(nil)
		h.start()
		defer h.stop()
		h.ready()
		if now, _ := h.subnet(); now != prefix {
			t.Errorf("subnet %s, want the former %s", now, prefix)
		}
	})
}

// What --release-on-exit cannot or must not release, it says, and exits.
func TestReleaseOnExitKeepsTheLease(t *testing.T) {
	tests := []struct {
		name    string
		before  func(h *testHost)
		running func(h *testHost, key string)
		// holder is who has the key at last, used how much of it is in use.
		holder, said string
		used         int
	}{
		{
			name: "a reservation", holder: "me", said: `msg="stopped; data path and files are withdrawn, the reservation stays"`,
			before: func(h *testHost) {
				if _, err := h.data.Put("10.5.30.0-24", `{"PublicIP":"198.18.0.1","Owner":"me"}`, 0); err != nil {
					h.t.Fatal(err)
				}
			},
		},
		{
			name: "without etcd", holder: "me", said: `msg="stopped; data path and files are withdrawn, but etcd did not say that the lease is released: it ends by itself at the latest"`,
			running: func(h *testHost, _ string) { h.store.SetUnavailable(errors.New("etcd is down")) },
		},
		{
			name: "another's", holder: "other", said: `msg="stopped; the subnet is not ours, there is nothing to release"`,
			before: func(h *testHost) { h.opts.onConflict = subnet.Fence },
			running: func(h *testHost, _ string) {
				h.lose()
				h.eventually(promise, "withdrawn", func() bool { return len(h.addrs("flannel.1")) == 0 })
			},
		},
		{
			name: "another's, and kept", holder: "other", said: `msg="stopped; data path and files are withdrawn, the subnet is not ours to release"`,
			before: func(h *testHost) { h.opts.onConflict = subnet.Keep },
			running: func(h *testHost, _ string) {
				h.lose()
				h.eventually(promise, "in conflict", func() bool { return h.problem(status.ComponentLease).Blocking })
			},
		},
		{
			name: "another's at the last moment", holder: "other",
			said: `msg="stopped; data path and files are withdrawn, the lease is not ours any more"`,
			before: func(h *testHost) {
				h.store = h.data.Open(memstore.Options{Before: func(method string) error {
					if method == "Release" {
						h.lose()
					}
					return nil
				}})
			},
		},
		{
			name: "still in use", holder: "me", said: `msg="stopped; the lease is not released, since not all that uses it could be withdrawn"`, used: 1,
			running: func(h *testHost, _ string) { h.writeFile("state/docker.json", "{") },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.releaseOnExit = true
				h.data.OverwriteConfig(vxlanConfig)
				if tt.before != nil {
					tt.before(h)
				}
				h.start()
				h.ready()
				prefix, key := h.subnet()
				reserved := h.board.Snapshot().Lease.Reservation
				if tt.running != nil {
					tt.running(h, key)
				}
				h.stop()
				l, ok := h.stored(key)
				if !ok || string(l.Attrs.Owner) != tt.holder || l.Reservation() != reserved {
					t.Errorf("etcd has %+v, %t; want it as it was, of %s", l, ok, tt.holder)
				}
				if by := h.uses(prefix); len(by) != tt.used {
					t.Errorf("in use: %v; want %d", by, tt.used)
				}
				h.line(tt.said)
			})
		})
	}
}

// When nobody says what became of the release, the subnet may be anybody's: a
// start without etcd waits, and one with etcd asks.
func TestReleaseWithoutAnAnswer(t *testing.T) {
	down := errors.New("etcd is down")
	tests := []struct {
		name string
		// asked and done are what happens before etcd carries the release out, and
		// after.
		asked, done func(h *testHost) error
		// again: the host gets its subnet back.
		again bool
	}{
		{name: "the request is lost", again: true, asked: func(h *testHost) error {
			h.store.SetUnavailable(down)
			return down
		}},
		{name: "the answer is lost", again: true, done: func(h *testHost) error {
			h.store.SetUnavailable(down)
			return down
		}},
		{name: "the answer is lost, and another has the subnet", done: func(h *testHost) error {
			h.store.SetUnavailable(down)
			_, key := h.subnet()
			h.owned(key, "198.18.0.9", "other")
			return down
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.releaseOnExit = true
				during := func(f func(*testHost) error) func(string) error {
					return func(method string) error {
						if f == nil || method != "Release" {
							return nil
						}
						if !strings.Contains(h.file("state/cache.json"), "its release was asked for") {
							t.Error("a process killed now would leave a cache that says the subnet is ours")
						}
						return f(h)
					}
				}
				h.store = h.data.Open(memstore.Options{Before: during(tt.asked), After: during(tt.done)})
				h.data.OverwriteConfig(vxlanConfig)
				h.start()
				h.ready()
				prefix, _ := h.subnet()
				h.stop()
				h.line(`msg="stopped; data path and files are withdrawn, but etcd did not say that the lease is released: it ends by itself at the latest"`)
				h.start()
				h.eventually(cacheAfter+soon, "waits for etcd", func() bool {
					return strings.HasPrefix(h.problem(status.ComponentLease).Message, "waiting for etcd: this host's former subnet "+prefix+" is not its own any more: its release was asked for")
				})
				time.Sleep(time.Minute)
				if by := h.uses(prefix); len(by) > 0 {
					t.Errorf("in use: %v", by)
				}
				h.loop.opts.releaseOnExit = false // one such end is enough
				h.store.SetUnavailable(nil)
				defer h.stop()
				h.eventually(time.Minute, "a subnet", func() bool { return h.board.Snapshot().Ready })
				now, _ := h.subnet()
				if now == prefix != tt.again || len(h.uses(now)) != 3 {
					t.Errorf("subnet %s, before %s, in use %v", now, prefix, h.uses(now))
				}
			})
		})
	}
}

// What the cache says of a lease must be true: while that cannot be written, the
// lease is not given back.
func TestNoReleaseWithoutACache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.opts.releaseOnExit = true
		h.data.OverwriteConfig(vxlanConfig)
		h.start()
		h.ready()
		_, key := h.subnet()
		h.blockCache()
		h.stop()
		if _, ok := h.stored(key); !ok {
			t.Error("the lease is gone")
		}
		h.line(`msg="stopped; data path and files are withdrawn, but the lease is not released: a start without etcd would go on with it, since the cache cannot be written"`)
	})
}

// A lease that was not released, since not all that uses it could be withdrawn, is
// in use: a start without etcd goes on with it.
func TestStartAfterNoRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.opts.releaseOnExit = true
		h.data.OverwriteConfig(vxlanConfig)
		h.start()
		h.ready()
		prefix, _ := h.subnet()
		h.writeFile("state/docker.json", "{")
		h.stop()
		if err := os.Remove(h.path("state/docker.json")); err != nil {
			t.Fatal(err)
		}
		h.store.SetUnavailable(errors.New("etcd is down"))
		h.start()
		h.eventually(cacheAfter+soon, "ready", func() bool { return h.board.Snapshot().Ready && len(h.uses(prefix)) == 3 })
		h.stop()
	})
}

// answer plays a living daemon of another machine, instance i2: it writes its key
// again whenever somebody else did.
func (h *testHost) answer(ctx context.Context, key string) {
	for {
		if l, ok := h.stored(key); !ok || l.Attrs.Instance != "i2" || !l.Attrs.Challenge.IsZero() {
			h.put(key, `{"PublicIP":"198.18.0.9","Owner":"me","Instance":"i2"}`)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// A cloned machine that starts ends with an error that names both, takes away
// what says that it has the other's subnet, and leaves the other alone.
func TestCloneStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(vxlanConfig)
		h.start()
		defer h.stop()
		h.ready()
		prefix, key := h.subnet()
		before, _ := h.stored(key)

		c := newHostOn(t, h.data, "198.18.0.9/24")
		c.instance = "i2"
		c.writeFile("run/subnet.env", h.file("run/subnet.env"))
		c.start()
		err := c.end()
		var foreign *subnet.ForeignInstanceError
		if !errors.As(err, &foreign) {
			t.Fatalf("ended with %v, want a ForeignInstanceError", err)
		}
		for _, part := range []string{"node id me", prefix, "198.18.0.1", "198.18.0.9", "i1", "i2", "--node-id"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not name %s", err, part)
			}
		}
		if exitCode(err, &strings.Builder{}) != exitFatal {
			t.Error("exit code is not 1")
		}
		if by := c.uses(prefix); len(by) > 0 {
			t.Errorf("the clone uses %v", by)
		}
		time.Sleep(resync)
		synctest.Wait()
		after, ok := h.stored(key)
		if diff := cmp.Diff([]any{before.ID, before.Attrs.Owner, before.Attrs.Instance}, []any{after.ID, after.Attrs.Owner, after.Attrs.Instance}); diff != "" || !ok || !h.board.Snapshot().Ready {
			t.Errorf("the first host: ready %t, lease (-before +after):\n%s", h.board.Snapshot().Ready, diff)
		}
		if n := len(h.uses(prefix)); n != 3 {
			t.Errorf("the first host uses its subnet by %d, want 3", n)
		}
	})
}

// A clone that finds out while it runs ends too, and what it leaves does not go
// on in the other's name, whatever the policy is.
func TestCloneRuns(t *testing.T) {
	for _, policy := range []subnet.OnConflict{subnet.Renumber, subnet.Fence, subnet.Keep} {
		t.Run(policy.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.onConflict = policy
				h.data.OverwriteConfig(vxlanConfig)
				h.start()
				h.ready()
				prefix, key := h.subnet()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				began := time.Now()
				go h.answer(ctx, key)
				err := h.end()
				var foreign *subnet.ForeignInstanceError
				if !errors.As(err, &foreign) {
					t.Fatalf("ended with %v, want a ForeignInstanceError", err)
				}
				if by := h.uses(prefix); len(by) > 0 || time.Since(began) > promise {
					t.Errorf("after %s in use: %v", time.Since(began), by)
				}
				h.line(`msg="stopped; the subnet is another machine's, data path and files are withdrawn"`)
			})
		})
	}
}

// A second daemon of this host goes on with what the first leaves.
func TestSupersededLeavesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.opts.releaseOnExit = true
		h.data.OverwriteConfig(vxlanConfig)
		h.start()
		h.ready()
		prefix, key := h.subnet()
		h.put(key, `{"PublicIP":"198.18.0.1","Owner":"me","Instance":"i2"}`)
		err := h.end()
		var superseded *subnet.SupersededError
		if !errors.As(err, &superseded) {
			t.Fatalf("ended with %v, want a SupersededError", err)
		}
		if by := h.uses(prefix); len(by) != 3 {
			t.Errorf("in use: %v; want address and files", by)
		}
		if l, ok := h.stored(key); !ok || l.Attrs.Instance != "i2" {
			t.Errorf("etcd has %+v, %t", l, ok)
		}
	})
}
