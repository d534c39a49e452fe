package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// filteringTable knows whose packets would pass, as a real table does.
type filteringTable struct {
	noTable
	mu sync.Mutex
	// known: nobody else has changed it since the last Apply.
	known  bool
	passes map[string]int
	// fails is how many times Apply is going to fail, and failed whether the last one did.
	fails  int
	failed bool
	// disturbed hears of others' changes.
	disturbed chan struct{}
}

func passing(p native.Peer) string {
	return p.Subnet.String() + " via " + p.PublicIP[subnet.IPv4].String()
}

func (f *filteringTable) Apply(_ context.Context, d native.Desired) error {
	time.Sleep(200 * time.Millisecond) // so that the round after a change is long after it
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed = f.fails > 0; f.failed {
		f.fails--
		return errors.New("no memory")
	}
	f.known, f.passes = true, map[string]int{}
	for _, p := range d.Peers {
		f.passes[passing(p)]++
	}
	return nil
}

func (f *filteringTable) Follow(_ context.Context, gone, fresh []native.Peer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.known {
		return native.ErrNotFollowed
	}
	after := maps.Clone(f.passes)
	for _, p := range gone {
		if after[passing(p)]--; after[passing(p)] < 0 {
			return native.ErrNotFollowed
		}
	}
	for _, p := range fresh {
		after[passing(p)]++
	}
	f.passes = after
	return nil
}

func (f *filteringTable) Undisturbed(context.Context) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known
}

func (*filteringTable) Counters(context.Context) (map[string]uint64, error) {
	return map[string]uint64{}, nil
}

// disturb does to it what somebody else does, or has the next Apply fail.
func (f *filteringTable) disturb(flush bool) {
	f.mu.Lock()
	if flush {
		f.known, f.passes = false, map[string]int{}
	} else {
		f.fails++
	}
	f.mu.Unlock()
	if flush {
		f.disturbed <- struct{}{}
	}
}

// mend has no other Apply fail, and reports whether the last one did.
func (f *filteringTable) mend() (failed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails = 0
	return f.failed
}

// list is whose packets pass.
func (f *filteringTable) list() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for p, n := range f.passes {
		if n > 0 {
			list = append(list, p)
		}
	}
	slices.Sort(list)
	return list
}

// eventfulTools are those of a host whose iptables has nothing to do, with events.
type eventfulTools struct {
	noVariants
	changes chan struct{}
}

func (e eventfulTools) Changes(ctx context.Context) (<-chan struct{}, error) {
	out := make(chan struct{})
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case <-e.changes:
			}
			select {
			case <-ctx.Done():
				return
			case out <- struct{}{}:
			}
		}
	}()
	return out, nil
}

// happening is one step of a walk.
type happening struct {
	kind string
	// peer and addr are numbers of subnets and of addresses.
	peer, addr int
	pause      time.Duration
}

func (w happening) String() string {
	return fmt.Sprintf("%s peer %d addr %d, %s", w.kind, w.peer, w.addr, w.pause)
}

// followWalk is a host, and what its peers should be.
type followWalk struct {
	*testHost
	firewall *filteringTable
	peers    map[string]string
	down     bool
	own      int
}

func (w *followWalk) do(what happening) {
	key, prefix := fmt.Sprintf("10.5.%d.0-24", 200+what.peer), fmt.Sprintf("10.5.%d.0/24", 200+what.peer)
	addr := fmt.Sprintf("198.18.0.%d", 10+what.addr)
	switch what.kind {
	case "moves":
		w.owned(key, addr, fmt.Sprint("node", what.peer))
		w.peers[prefix] = addr
	case "another's":
		w.owned(key, addr, fmt.Sprint("other", what.addr))
		w.peers[prefix] = addr
	case "leaves":
		w.data.DeleteKey(key)
		delete(w.peers, prefix)
	case "config":
		w.data.OverwriteConfig(networkConfig + strings.Repeat(" ", what.addr))
	case "no lease":
		w.put("10.5.250.0-24", "{")
	case "a lease no more":
		w.data.DeleteKey("10.5.250.0-24")
	case "etcd down":
		w.down = true
		w.store.SetUnavailable(errors.New("etcd is down"))
	case "routes deleted":
		w.deleteOurs()
	case "firewall flushed", "firewall fails":
		w.firewall.disturb(what.kind == "firewall flushed")
	case "uplink moves":
		w.readdress(fmt.Sprintf("198.18.0.%d/24", w.own), fmt.Sprintf("198.18.0.%d/24", 3-w.own))
		w.own = 3 - w.own
	case "look":
		w.look()
	}
	time.Sleep(what.pause)
}

// deleteOurs is somebody who deletes all routes of this host's.
func (h *testHost) deleteOurs() {
	h.t.Helper()
	list, err := h.kernel.Routes().List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	ours := slices.DeleteFunc(list, func(r kernel.Route) bool { return r.Protocol != kernel.Protocol })
	if err := h.kernel.Routes().Delete(h.t.Context(), ours); err != nil {
		h.t.Fatal(err)
	}
}

// up lets etcd answer and the firewall take what it is told, and waits until the host has
// heard, and has tried again: ever later, after many failures in a row.
func (w *followWalk) up() {
	if w.firewall.mend() {
		time.Sleep(retryMax)
	}
	if w.down {
		w.store.SetUnavailable(nil)
		time.Sleep(20 * time.Second)
		w.down = false
	}
}

// want is each peer's route, sorted.
func (w *followWalk) want() []string {
	var list []string
	for prefix, addr := range w.peers {
		list = append(list, prefix+" via "+addr)
	}
	slices.Sort(list)
	return list
}

// look wants of a host soon after a change that each peer's packets pass both ways. Of
// those that left and moved, something may still be there.
func (w *followWalk) look() {
	w.t.Helper()
	w.up()
	time.Sleep(soon)
	synctest.Wait()
	routes, passes := w.routes(), w.firewall.list()
	for _, p := range w.want() {
		if !slices.Contains(routes, p) {
			w.t.Errorf("no route %s, but %v", p, routes)
		}
		if !slices.Contains(passes, p) {
			w.t.Errorf("packets of %s are dropped, those of %v are not", p, passes)
		}
	}
}

// A walk through all that happens to a host: whatever of it is followed, and whatever is
// a round's, each peer is let in and has its route soon after, and in the end nothing
// else is there.
func TestFollowingAmountsToRounds(t *testing.T) {
	kinds := []string{
		"moves", "moves", "moves", "another's", "leaves", "config", "no lease", "a lease no more",
		"etcd down", "routes deleted", "firewall flushed", "firewall fails", "uplink moves", "look", "look",
	}
	pauses := []time.Duration{0, time.Millisecond, 30 * time.Millisecond, 200 * time.Millisecond, time.Second, 4 * time.Second, 12 * time.Second}
	step := rapid.Custom(func(t *rapid.T) happening {
		return happening{
			rapid.SampledFrom(kinds).Draw(t, "kind"), rapid.IntRange(0, 4).Draw(t, "peer"), rapid.IntRange(0, 6).Draw(t, "addr"),
			rapid.SampledFrom(pauses).Draw(t, "pause"),
		}
	})
	fails := happening{kind: "firewall fails"}
	synctest.Test(t, func(t *testing.T) {
		walkFollowing(t, []happening{{kind: "moves", pause: 4 * time.Second}, fails, fails, fails, fails, {kind: "firewall flushed", pause: 2 * time.Second}, {kind: "look"}})
	})
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(step, 1, 30).Draw(rt, "steps")
		synctest.Test(t, func(t *testing.T) { walkFollowing(t, steps) })
		if t.Failed() {
			rt.FailNow()
		}
	})
}

func walkFollowing(t *testing.T, steps []happening) {
	t.Helper()
	h := newHost(t)
	changes := make(chan struct{}, 64)
	w := &followWalk{testHost: h, firewall: &filteringTable{disturbed: changes}, peers: map[string]string{}, own: 1}
	h.table, h.tools = w.firewall, eventfulTools{changes: changes}
	h.opts.iptablesResync = 5 * time.Minute
	h.data.OverwriteConfig(networkConfig)
	h.start()
	defer h.stop()
	h.ready()
	for _, what := range steps {
		w.do(what)
		if t.Failed() {
			t.Fatalf("after %q of %q\nlog:\n%s", what, steps, h.log.buf.String())
		}
	}
	w.up()
	time.Sleep(time.Minute)
	synctest.Wait()
	if diff := cmp.Diff([][]string{w.want(), w.want()}, [][]string{h.routes(), w.firewall.list()}); diff != "" {
		t.Errorf("routes, then whose packets pass (-want +got):\n%s\nlog:\n%s", diff, h.log.buf.String())
	}
}
