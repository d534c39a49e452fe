package main

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
)

// paths is all that leads to peers, as text.
func (h *testHost) paths() []string {
	h.t.Helper()
	list := h.routes()
	link, err := h.kernel.LinkByName(h.t.Context(), "flannel.1")
	if errors.Is(err, kernel.ErrNotFound) {
		return list
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return slices.Concat(list, entries(h, h.kernel.Neighbours(link.Index)), entries(h, h.kernel.FDB(link.Index)))
}

func entries[E any](h *testHost, table reconcile.Table[E]) []string {
	h.t.Helper()
	list, err := table.List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	var text []string
	for _, e := range list {
		text = append(text, fmt.Sprintf("%+v", e))
	}
	slices.Sort(text)
	return text
}

// tunnelPeer puts the lease of another host of vxlan.
func (h *testHost) tunnelPeer(number int) {
	h.t.Helper()
	h.put(fmt.Sprintf("10.5.%d.0-24", number),
		fmt.Sprintf(`{"PublicIP":"198.18.0.%d","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"},"Owner":"n%d","Instance":"x"}`, number, number, number))
}

// gatewayPeer puts the lease of another host of host-gw.
func (h *testHost) gatewayPeer(number int) {
	h.t.Helper()
	h.owned(fmt.Sprintf("10.5.%d.0-24", number), fmt.Sprintf("198.18.0.%d", number), fmt.Sprintf("n%d", number))
}

// A host that is killed before it wrote a new peer into the cache, and starts while
// etcd is silent, keeps the path to that peer: the kernel knows it. What becomes of
// the path once etcd answers is decided as if the host had never been away.
func TestKernelKnowsWhatTheCacheLacks(t *testing.T) {
	backends := []struct {
		name, config string
		peer         func(h *testHost, number int)
	}{
		{"host-gw", networkConfig, (*testHost).gatewayPeer},
		{"vxlan", vxlanConfig, (*testHost).tunnelPeer},
		{"direct routing", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`, (*testHost).tunnelPeer},
	}
	ends := []pathEnd{
		{"alive", func(*testHost, string) {}, time.Hour, 0, 2},
		{"gone", func(h *testHost, _ string) { h.data.DeleteKey("10.5.201.0-24") }, time.Second, 5 * time.Second, 1},
		{"wiped", func(h *testHost, config string) {
			h.data.Wipe()
			h.data.OverwriteConfig(config)
		}, 4 * time.Minute, 6 * time.Minute, 0},
	}
	for _, b := range backends {
		for _, end := range ends {
			t.Run(b.name+"/"+end.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := newHost(t)
					h.opts.leaseTTL = 5 * time.Minute
					h.data.OverwriteConfig(b.config)
					b.peer(h, 200)
					h.start()
					h.ready()
					time.Sleep(cacheLeast + settle)
					synctest.Wait()
					kept := h.file("state/cache.json")
					alone := h.paths()
					b.peer(h, 201)
					h.eventually(soon, "a path to the new peer", func() bool { return len(h.paths()) == 2*len(alone) })
					h.store.SetUnavailable(errors.New("etcd is down"))
					h.stop()
					// What the end of the process wrote, a kill would not have.
					h.writeFile("state/cache.json", kept)
					end.meanwhile(h, b.config)
					end.check(h)
				})
			})
		}
	}
}

// pathEnd is what becomes of a path that only the kernel knows.
type pathEnd struct {
	name string
	// meanwhile happens to the store while the host does not see it.
	meanwhile func(h *testHost, config string)
	// From when etcd answers all paths must stay for a while, and after another
	// but left of them must be gone.
	stay, gone time.Duration
	left       int
}

// check starts the host while etcd is silent.
func (end pathEnd) check(h *testHost) {
	h.t.Helper()
	before := h.paths()
	unchanged := func(when string) {
		h.t.Helper()
		synctest.Wait()
		if diff := cmp.Diff(before, h.paths()); diff != "" {
			h.t.Errorf("paths %s (-before +now)\n%s", when, diff)
		}
		for _, o := range h.kernel.Ops() {
			if o.Verb == "delete" {
				h.t.Errorf("done %s: %s", when, o)
			}
		}
	}
	h.kernel.ResetOps()
	h.start()
	defer h.stop()
	h.eventually(cacheAfter+soon, "both peers", func() bool { return len(h.board.Snapshot().Peers) == 2 })
	time.Sleep(time.Minute)
	unchanged("while etcd is silent")
	h.store.SetUnavailable(nil)
	h.eventually(time.Minute, "etcd answers", func() bool { return h.board.Snapshot().Etcd.Connected })
	time.Sleep(end.stay)
	unchanged("once etcd answers")
	h.eventually(end.gone, "the paths that are left", func() bool { return len(h.routes()) == end.left })
}

// So does one that starts while etcd answers, and says of the new peer nothing that can
// be read.
func TestKernelKnowsAPeerWhoseKeyIsUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(vxlanConfig)
		h.tunnelPeer(200)
		h.start()
		h.ready()
		time.Sleep(cacheLeast + settle)
		synctest.Wait()
		kept := h.file("state/cache.json")
		h.tunnelPeer(201)
		h.eventually(soon, "a path to the new peer", func() bool { return len(h.routes()) == 2 })
		before := h.paths()
		h.stop()
		h.writeFile("state/cache.json", kept)
		h.put("10.5.201.0-24", "spoilt")
		h.start()
		defer h.stop()
		h.ready()
		time.Sleep(time.Minute)
		synctest.Wait()
		if diff := cmp.Diff(before, h.paths()); diff != "" {
			t.Errorf("paths (-before +now)\n%s", diff)
		}
	})
}

// Where nothing was noted, or the clock was set back since, the store may have been
// silent for any time.
func TestRecallTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type times struct{ Unheard, Holding time.Duration }
		const ttl = time.Hour
		now := time.Now()
		for _, tt := range []struct {
			name  string
			cache statedir.Cache
			want  times
		}{
			{"no cache", statedir.Cache{}, times{}},
			{"of an older version", statedir.Cache{Identity: "one"}, times{Unheard: ttl}},
			{"heard a while ago", statedir.Cache{Identity: "one", Heard: now.Add(-time.Minute), Held: now.Add(-time.Second)}, times{Unheard: time.Minute}},
			{"heard long ago", statedir.Cache{Identity: "one", Heard: now.Add(-30 * ttl)}, times{Unheard: ttl}},
			{"heard in the future", statedir.Cache{Identity: "one", Heard: now.Add(time.Second)}, times{Unheard: ttl}},
			{"holding", statedir.Cache{Identity: "one", Heard: now, Held: now.Add(time.Minute)}, times{Holding: time.Minute}},
		} {
			l := loop{daemon: &daemon{opts: options{leaseTTL: ttl}, clock: bubbleClock{now}}, cache: tt.cache}
			var got times
			got.Unheard, got.Holding = l.recallTimes()
			if got != tt.want {
				t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
			}
		}
	})
}
