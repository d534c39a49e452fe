package subnet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// A walk is several hosts at work, each with everything that keeps a lease, and
// a list of things done to them and to the store. An auditor looks at every
// revision.

// errFull is a store without space.
var errFull = errors.New("no space")

// walkTTL is the hosts' TTL, walkConfigs what the operator may configure: little
// room, so that hosts meet.
const walkTTL = time.Minute

func walkConfigs() []string {
	return []string{
		`{"Network":"10.5.0.0/26","SubnetLen":29}`,
		`{"Network":"10.5.0.0/26","SubnetLen":28}`,
		`{"Network":"10.5.0.0/26","SubnetLen":29,"SubnetMin":"10.5.0.16","SubnetMax":"10.5.0.32"}`,
		`{"Network":"10.5.0.0/26","SubnetLen":29,"EnableIPv6":true,"IPv6Network":"fd05::/60"}`,
	}
}

// deed is what is done: of a kind, to a host, and which or how much of it.
type deed struct {
	kind string
	host int
	n    int
}

func (d deed) String() string { return fmt.Sprintf("%s(%d,%d)", d.kind, d.host, d.n) }

func deedsOf(kinds ...string) *rapid.Generator[[]deed] {
	one := rapid.Custom(func(t *rapid.T) deed {
		return deed{rapid.SampledFrom(kinds).Draw(t, "kind"), rapid.IntRange(0, 2).Draw(t, "host"), rapid.IntRange(0, 7).Draw(t, "n")}
	})
	return rapid.SliceOfN(one, 5, 60)
}

func allDeeds() *rapid.Generator[[]deed] {
	return deedsOf("kill", "stop", "start", "cut", "mend", "fill", "lose answers", "delay writes", "slow", "suspend", "boot all", "move",
		"wait", "wait", "wait", "wait", "wait", "snapshot", "restore", "wipe", "config", "no config", "compact",
		"delete", "revoke", "detach", "attach", "overwrite", "flannel", "reserve", "spoil")
}

// walker is one walk.
type walker struct {
	t     *testing.T
	data  *memstore.Store
	hosts []*machine
	audit *auditor
	// backup is what restore restores.
	backup memstore.Snapshot
	// full: the store takes no writes, for want of space.
	full atomic.Bool
	// disturbed is when something was done the last time.
	disturbed time.Time
}

// settled is how long after the last deed every host that can reach the store
// knows the truth: the longest pause of a view that reconnects, a challenge, and
// a little.
const settled = 15 * time.Second

// known is how long after a change of the store, a lease that ran out say, every host
// that follows it knows, and has done what it makes of it: some ways there and back.
const known = 3 * time.Second

// runWalk does all of it in a bubble and returns the first thing that is wrong.
func runWalk(t *testing.T, deeds []deed, broken func(*machine, subnet.Store) subnet.Store) (violation string) {
	synctest.Test(t, func(t *testing.T) {
		w := &walker{t: t, data: newStore(walkConfigs()[0])}
		load(t, w.data)
		w.backup = w.data.Snapshot()
		w.audit = newAuditor(w.data)
		ctx, stop := context.WithCancel(context.Background())
		audited := make(chan struct{})
		go func() { defer close(audited); w.audit.run(ctx) }()
		for i, policy := range []subnet.OnConflict{subnet.Renumber, subnet.Fence, subnet.Keep} {
			h := newMachine(w, fmt.Sprintf("host%d", i), fmt.Sprintf("198.18.0.%d", i+1), policy)
			if broken != nil {
				h.store = broken(h, h.store)
			}
			w.hosts = append(w.hosts, h)
			h.start()
		}
		synctest.Wait()
		for i, d := range deeds {
			w.audit.doing.Store(fmt.Sprintf("%d: %s", i, d))
			if d.kind != "wait" {
				w.disturbed = time.Now()
			}
			w.do(d)
			synctest.Wait()
			if time.Since(w.disturbed) >= settled {
				w.compare()
			}
			if w.audit.found() != "" {
				break
			}
		}
		if w.audit.found() == "" {
			w.heal()
		}
		for _, h := range w.hosts {
			h.kill()
		}
		stop()
		<-audited
		after(10 * time.Second) // What was delayed ends.
		w.data.Wipe()
		violation = w.audit.found()
	})
	return violation
}

// victim is a lease to do something to: of the host if it has one, or else any.
func (w *walker) victim(d deed) (subnet.Lease, bool) {
	all := load(w.t, w.data).Leases
	for _, l := range all {
		if k := w.hosts[d.host].keeper.Load(); k != nil && d.n > 1 && l.Subnet == k.Lease().Subnet {
			return l, true
		}
	}
	if len(all) == 0 {
		return subnet.Lease{}, false
	}
	return all[d.n%len(all)], true
}

func (w *walker) do(d deed) {
	h := w.hosts[d.host]
	switch d.kind {
	case "wait":
		after([]time.Duration{time.Millisecond, 100 * time.Millisecond, time.Second, 3 * time.Second, 16 * time.Second, walkTTL / 2, walkTTL, 3 * walkTTL}[d.n])
	case "kill":
		h.kill()
	case "stop":
		h.leave()
	case "start":
		h.start()
	case "cut":
		h.mem.SetUnavailable(errDown)
		h.faulty = true
	case "mend":
		h.mend()
	case "lose answers":
		h.lose.Store(int64(d.n))
		h.faulty = true
	case "delay writes":
		h.delay.Store(int64(d.n))
		h.faulty = true
	case "slow":
		h.oneWay.Store(int64([]time.Duration{2, 5, 20, 400}[d.n%4] * time.Millisecond))
	case "fill":
		w.full.Store(!w.full.Load())
	case "boot all":
		for _, h := range w.hosts {
			h.kill()
		}
		for _, h := range w.hosts {
			h.start()
		}
	case "suspend":
		h.clock.suspend(time.Duration(d.n+1) * walkTTL / 4)
	case "move":
		h.move(fmt.Sprintf("198.18.%d.%d", d.n+1, d.host+1))
	default:
		w.operate(d)
	}
}

// operate is what operators and etcd itself do, each a revision that the auditor
// is told of before.
func (w *walker) operate(d deed) {
	l, ok := w.victim(d)
	switch d.kind {
	case "snapshot":
		w.backup = w.data.Snapshot()
		return
	case "restore":
		w.audit.forget()
		w.data.Restore(w.backup)
		return
	case "wipe":
		w.audit.forget()
		w.data.Wipe()
		if d.n > 2 {
			w.data.OverwriteConfig(walkConfigs()[d.n%len(walkConfigs())])
		}
		return
	case "compact":
		w.data.Compact(w.data.Revision())
		return
	case "config", "no config":
		w.audit.expect(w.data)
		if d.kind == "config" {
			w.data.OverwriteConfig(walkConfigs()[d.n%len(walkConfigs())])
		} else {
			w.data.DeleteConfig()
		}
		return
	}
	if !ok {
		return
	}
	w.audit.expect(w.data)
	key := l.Subnet.Key()
	value, err := json.Marshal(l.Attrs)
	if err != nil {
		w.t.Error(err)
	}
	lease := func() subnet.LeaseID { return w.data.Grant(walkTTL) }
	switch d.kind {
	case "delete":
		w.data.DeleteKey(key)
	case "revoke":
		w.data.Revoke(l.ID)
	case "detach":
		_, _ = w.data.Put(key, string(value), 0)
	case "attach":
		_, _ = w.data.Put(key, string(value), lease())
	case "overwrite":
		put(w.t, w.data, key, attrs("stranger", "198.18.9.9"), walkTTL)
	case "flannel":
		a := l.Attrs
		a.Owner, a.Instance = "", ""
		put(w.t, w.data, key, a, walkTTL)
	case "spoil":
		_, _ = w.data.Put(key, "nonsense", lease())
	case "reserve":
		// Losing is part of it: the holder's value is somebody else's by now.
		_, _ = subnet.Reserve(w.t.Context(), w.data, load(w.t, w.data), l.Subnet, subnet.Attrs{Owner: w.hosts[d.host].claim.Node})
	default:
		w.t.Errorf("unknown deed %s", d.kind)
	}
}

// compare checks what the hosts believe: one that can reach the store takes no
// other's lease for its own.
func (w *walker) compare() {
	for tries := 0; w.audit.unchanged() < known && tries < 10; tries++ {
		after(known - w.audit.unchanged())
	}
	for _, h := range w.hosts {
		k := h.keeper.Load()
		if k == nil || h.faulty {
			continue
		}
		s := k.Status()
		if s.State != subnet.StateValid {
			continue
		}
		if s.Expires != 0 && h.clock.Uptime() > s.Expires+11*time.Second { // A timer's slice.
			w.audit.report("%s believes in a lease that expired at %s, now %s", h.name, s.Expires, h.clock.Uptime())
		}
		w.comparePeers(h)
		if l, ok := stored(w.t, w.data, s.Lease.Subnet.Key()); !ok || l.Modified != s.Lease.Modified || l.ID != s.Lease.ID || l.Attrs != s.Lease.Attrs {
			w.audit.report("%s believes in %+v, the store holds %+v (%v)", h.name, s.Lease, l, ok)
		}
	}
}

// comparePeers checks what a host routes by: the leases in the store, each as it is
// there, and others only where nobody has leased what they cover.
func (w *walker) comparePeers(h *machine) {
	snap, now := h.view.Load().Snapshot(), load(w.t, w.data)
	if !snap.Synced || snap.Identity != now.Identity {
		return // it looks for the store, later and later
	}
	for _, l := range now.Leases {
		if got, ok := snap.Stored(l.Subnet); !ok || got != l {
			w.audit.report("%s takes %+v for %+v (%v)", h.name, l, got, ok)
		}
		for old := range snap.Leases() {
			if _, ok := snap.Stored(old.Subnet); !ok && old.Subnet.Overlaps(l.Subnet) {
				w.audit.report("%s routes by %+v, which is gone, into %+v", h.name, *old, l)
			}
		}
	}
	// What runs out does so within one TTL, and is held for another at the most.
	if now.Config.Text != "" && len(now.Bad) == 0 && time.Since(w.disturbed) > 2*walkTTL+settled && snap.Len() > len(now.Leases) {
		w.audit.report("%s holds on to %+v, of which %+v are left", h.name, leasesOf(snap), now.Leases)
	}
}

// heal ends all faults and demands that every host has a subnet of its own soon.
func (w *walker) heal() {
	w.audit.doing.Store("healing")
	w.full.Store(false)
	for _, h := range w.hosts {
		h.mend()
	}
	w.audit.expect(w.data)
	w.data.OverwriteConfig(walkConfigs()[0])
	after(settled)
	for _, l := range load(w.t, w.data).Leases {
		if !w.inUse(l) {
			w.audit.expect(w.data)
			w.data.DeleteKey(l.Subnet.Key())
			after(time.Millisecond)
		}
	}
	for _, b := range load(w.t, w.data).Bad {
		w.audit.expect(w.data)
		w.data.DeleteKey(b.Key)
		after(time.Millisecond)
	}
	for _, h := range w.hosts {
		h.start()
	}
	after(walkTTL)
	for _, h := range w.hosts {
		// Those that shall not renumber by themselves do so at a restart.
		if k := h.keeper.Load(); k != nil && h.policy != subnet.Renumber && k.Status().State == subnet.StateConflict {
			h.kill()
			h.start()
		}
	}
	after(settled)
	w.compare()
	for _, h := range w.hosts {
		k := h.keeper.Load()
		if k == nil || k.Status().State != subnet.StateValid {
			state := "no lease"
			if k != nil {
				state = k.Status().State.String() + ": " + k.Status().Why
			}
			w.audit.report("%s has not recovered: %s", h.name, state)
		}
	}
}

// inUse reports whether a host keeps l.
func (w *walker) inUse(l subnet.Lease) bool {
	for _, h := range w.hosts {
		if k := h.keeper.Load(); k != nil && k.Lease().Subnet == l.Subnet && h.claim.Node == l.Attrs.Owner {
			return true
		}
	}
	return false
}

func TestHostsRandomWalk(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		deeds := allDeeds().Draw(rt, "deeds")
		if v := runWalk(t, deeds, nil); v != "" {
			rt.Fatal(v)
		}
	})
}
