package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// followingTable is a table that follows, and remembers what.
type followingTable struct {
	mu          sync.Mutex
	gone, fresh []string
	applied     int
	followed    int
	// peers are those of the last Apply.
	peers int
	// takes is how long Apply does.
	takes time.Duration
}

func (f *followingTable) Apply(_ context.Context, d native.Desired) error {
	time.Sleep(f.takes)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied++
	f.peers = len(d.Peers)
	return nil
}

func (f *followingTable) appliedPeers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.peers
}

func (f *followingTable) appliedTimes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied
}

func (f *followingTable) Follow(_ context.Context, gone, fresh []native.Peer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.followed++
	for _, p := range gone {
		f.gone = append(f.gone, p.Subnet.String()+" "+p.PublicIP[subnet.IPv4].String())
	}
	for _, p := range fresh {
		f.fresh = append(f.fresh, p.Subnet.String()+" "+p.PublicIP[subnet.IPv4].String())
	}
	return nil
}

func (*followingTable) Passed(native.Step)               {}
func (*followingTable) Wrote() native.Step               { return native.Step{} }
func (*followingTable) Undisturbed(context.Context) bool { return true }
func (*followingTable) Cleanup(context.Context) error    { return nil }
func (*followingTable) Counters(context.Context) (map[string]uint64, error) {
	return map[string]uint64{}, nil
}

func (f *followingTable) told() (gone, fresh []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.gone), slices.Clone(f.fresh)
}

// followingHost is a host that has been ready for a while.
func followingHost(t *testing.T, table *followingTable) *testHost {
	t.Helper()
	h := newHost(t)
	h.table = table
	h.data.OverwriteConfig(networkConfig)
	h.start()
	h.ready()
	h.peer("10.5.100.0-24", "198.18.0.100")
	time.Sleep(12 * time.Second)
	synctest.Wait()
	return h
}

// A peer that comes, moves and goes is followed without a round; one comes soon after.
func TestPeersAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &followingTable{}
		h := followingHost(t, table)
		defer h.stop()
		goneBefore, freshBefore := table.told()
		step := func(what string, change func(), routes int) {
			t.Helper()
			runs := h.board.Snapshot().Sync.Runs
			change()
			synctest.Wait()
			s := h.board.Snapshot()
			if n := len(h.routes()); n != routes || len(s.Peers) != routes || s.PeerCount != routes {
				t.Errorf("%s: %d routes, %d peers in the status, want %d: %v", what, n, len(s.Peers), routes, h.routes())
			}
			if s.Sync.Runs != runs {
				t.Errorf("%s: %d rounds before, %d after", what, runs, s.Sync.Runs)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			// The firewall is tried again and again: this machine has none.
			if got := h.board.Snapshot().Sync.Runs; got == runs {
				t.Errorf("%s: no round in the second after", what)
			}
			time.Sleep(11 * time.Second) // between two rounds that come by themselves
			synctest.Wait()
		}
		step("one joins", func() { h.owned("10.5.200.0-24", "198.18.0.2", "x") }, 2)
		step("one moves", func() { h.owned("10.5.200.0-24", "198.18.0.3", "x") }, 2)
		if !slices.ContainsFunc(h.routes(), func(r string) bool { return r == "10.5.200.0/24 via 198.18.0.3" }) {
			t.Errorf("routes %v, want one by the new address", h.routes())
		}
		cache, err := statedir.Dir(h.opts.stateDir).LoadCache()
		if err != nil || len(cache.Peers) != 2 {
			t.Errorf("cache %+v, %v", cache.Peers, err)
		}
		h.data.DeleteKey("10.5.200.0-24")
		h.eventually(soon+2*time.Second, "one leaves", func() bool { return len(h.routes()) == 1 })
		if n := h.log.count("somebody else"); n > 0 {
			t.Errorf("what was followed is said %d times to be somebody else's doing:\n%s", n, h.log.buf.String())
		}
		gone, fresh := table.told()
		// From where it was before it moved, a peer may send for a while: then that
		// goes, and what it has is told once more.
		if diff := cmp.Diff([]string{"10.5.200.0/24 198.18.0.2", "10.5.200.0/24 198.18.0.3", "10.5.200.0/24 198.18.0.3"}, gone[len(goneBefore):]); diff != "" {
			t.Errorf("gone (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"10.5.200.0/24 198.18.0.2", "10.5.200.0/24 198.18.0.3", "10.5.200.0/24 198.18.0.3"}, fresh[len(freshBefore):]); diff != "" {
			t.Errorf("fresh (-want +got):\n%s", diff)
		}
	})
}

// Where peers were before they moved ceases to count without a round for each.
func TestFormerAddressesAreLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &followingTable{}
		h := followingHost(t, table)
		defer h.stop()
		move := func(ip string) {
			h.owned("10.5.200.0-24", ip, "x")
			time.Sleep(time.Second)
			synctest.Wait()
		}
		move("198.18.0.2")
		time.Sleep(12 * time.Second) // between two rounds that come by themselves
		synctest.Wait()
		for _, ip := range []string{"198.18.0.3", "198.18.0.4", "198.18.0.3"} {
			move(ip)
		}
		gone, _ := table.told()
		time.Sleep(moveLinger - 3*time.Second - time.Millisecond)
		for range 3 {
			synctest.Wait()
			runs := h.board.Snapshot().Sync.Runs
			time.Sleep(2 * time.Millisecond)
			synctest.Wait()
			if got := h.board.Snapshot().Sync.Runs; got != runs {
				t.Errorf("%d rounds before, %d after", runs, got)
			}
			time.Sleep(time.Second - 2*time.Millisecond)
		}
		after, fresh := table.told()
		// .3 is where it is at last, and .4 counts for longer than .2.
		at := func(ips ...string) []string {
			var list []string
			for _, ip := range ips {
				list = append(list, "10.5.200.0/24 198.18.0."+ip)
			}
			return list
		}
		if diff := cmp.Diff(at("2", "3", "3", "4", "3", "3", "4", "4", "3"), after[len(gone):]); diff != "" {
			t.Errorf("gone (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(at("3", "3", "4", "3", "4", "3"), fresh[len(fresh)-6:]); diff != "" {
			t.Errorf("fresh (-want +got):\n%s", diff)
		}
	})
}

// One change goes out at once; of many in a row some at a time.
func TestChangesAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &followingTable{takes: 200 * time.Millisecond}
		h := unhurriedHost(t, table)
		defer h.stop()
		table.mu.Lock()
		table.followed = 0
		table.mu.Unlock()
		const count = 40
		for n := range count {
			h.peer(fmt.Sprintf("10.5.%d.0-24", 150+n), fmt.Sprintf("198.18.0.%d", 150+n))
			synctest.Wait()
			if n == 0 && len(h.routes()) != hurried+1 {
				t.Error("the first did not go out at once")
			}
			time.Sleep(followEvery / 8)
		}
		time.Sleep(followEvery)
		synctest.Wait()
		if n := len(h.routes()); n != hurried+count {
			t.Errorf("%d routes, want %d", n, hurried+count)
		}
		table.mu.Lock()
		defer table.mu.Unlock()
		if table.followed < 3 || table.followed > count/8+1 {
			t.Errorf("%d changes were followed %d times", count, table.followed)
		}
	})
}

// One change waits for nothing, one of many in a row for the others that are read with
// it, and none for longer than that.
func TestGather(t *testing.T) {
	for name, tc := range map[string]struct{ after, rest time.Duration }{
		"right after another":       {time.Millisecond, followEvery},
		"in a row":                  {followEvery - 1, followEvery - 1 + followSoon},
		"the last of a row":         {2*followEvery - 1, 2*followEvery - 1 + followSoon},
		"after a pause":             {2 * followEvery, 0},
		"with others a little late": {followEvery + followSoon, followEvery + 2*followSoon},
	} {
		t.Run(name, func(t *testing.T) {
			var f followState
			const first = time.Hour
			if f.gather(first) {
				t.Fatal("the first waits")
			}
			f.followed = first
			if waits := f.gather(first + tc.after); waits != (tc.rest > 0) || waits && f.rest != first+tc.rest {
				t.Errorf("waits: %t, until %s after the first, want %s", waits, f.rest-first, tc.rest)
			}
			if tc.rest > 0 && f.gather(first+tc.rest) {
				t.Error("what has waited waits again")
			}
		})
	}
}

// noVariants are tools of a host whose iptables has nothing to do.
type noVariants struct{ noTools }

func (noVariants) Variants(context.Context, subnet.Family) ([]firewall.Variant, error) {
	return nil, nil
}

// hurried is after how many changes in a row a round takes 200 ms of the time too often
// for the next one's to be soon.
const hurried = 5

// unhurriedHost is a host whose firewall takes its time, with hurried peers, after whose
// rounds the next change's is not soon.
func unhurriedHost(t *testing.T, table *followingTable) *testHost {
	t.Helper()
	h := newHost(t)
	h.table, h.tools = table, noVariants{}
	h.opts.iptablesResync = 3 * time.Second
	h.data.OverwriteConfig(networkConfig)
	h.start()
	h.ready()
	h.kernel.Hush()
	time.Sleep(time.Second)
	for i := range hurried {
		h.peer(fmt.Sprintf("10.5.%d.0-24", 100+i), fmt.Sprintf("198.18.0.%d", 100+i))
		h.eventually(roundLatest+soon, "let in", func() bool { return table.appliedPeers() == i+1 })
	}
	return h
}

// While peers change, rounds that are made for other reasons leave the firewall to the
// one that the change has coming, which is the later the longer it takes.
func TestRoundsLeaveTheFirewallToTheDueOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &followingTable{takes: 200 * time.Millisecond}
		h := unhurriedHost(t, table)
		defer h.stop()
		const due = roundPause << (hurried - 1)
		h.peer("10.5.200.0-24", "198.18.0.2")
		synctest.Wait()
		applied, runs := table.appliedTimes(), h.board.Snapshot().Sync.Runs
		time.Sleep(due - 2*time.Second)
		synctest.Wait()
		if got := h.board.Snapshot().Sync.Runs; got == runs {
			t.Errorf("%d rounds before, %d after", runs, got)
		}
		if got := table.appliedTimes(); got != applied {
			t.Errorf("the firewall was applied %d times before it was due", got-applied)
		}
		time.Sleep(2*time.Second + table.takes)
		synctest.Wait()
		if got := table.appliedTimes(); got != applied+1 {
			t.Errorf("the firewall was applied %d times when it was due, want once", got-applied)
		}
	})
}

// However long a round took, a change's is not put off for longer than roundLatest.
func TestDueRoundIsNotPutOffForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &followingTable{takes: 2 * time.Second}
		h := unhurriedHost(t, table)
		defer h.stop()
		h.peer("10.5.200.0-24", "198.18.0.2")
		synctest.Wait()
		applied := table.appliedTimes()
		time.Sleep(roundLatest + table.takes)
		synctest.Wait()
		if table.appliedTimes() == applied {
			t.Errorf("the firewall was not applied for %s", roundLatest+table.takes)
		}
	})
}

// Rounds that changes ask for take their share of the time in the end. A lone change has
// its round soon, whatever rounds were made for other reasons before, and of many in a row
// each soon for how long it has gone on.
func TestRoundsOfChanges(t *testing.T) {
	for name, takes := range map[string]time.Duration{"short": 4 * time.Millisecond, "as a rule": 30 * time.Millisecond, "many peers": 100 * time.Millisecond, "busy": 2 * time.Second} {
		t.Run(name, func(t *testing.T) {
			var f followState
			const lasting = time.Hour
			start, made := lasting, 0
			now := start
			f.rounded(now-takes, now)
			for f.ask(now); f.due < start+lasting; f.ask(now) {
				if pause := f.due - now; made == 0 && pause != roundSoon || pause > max(2*(now-start), roundPause, takes) || pause > roundLatest {
					t.Fatalf("the round of change %d is made %s after it, in a row that has lasted for %s", made+1, pause, now-start)
				}
				if pause := f.due - now; made > 0 && pause < min(max(roundPause, takes), roundShare*takes, roundLatest) {
					t.Fatalf("the round of change %d is made %s after the one before", made+1, pause)
				}
				now = f.due + takes
				f.rounded(f.due, now)
				made++
				f.rounded(now, now+takes) // for another reason
			}
			const ahead = 6 // until the pauses have grown to the share
			share := min(roundShare*takes, roundLatest)
			if least, most := int(lasting/(share+takes)), int(lasting/share)+ahead; made < least || made > most {
				t.Errorf("%d rounds in an hour of changes, want %d to %d", made, least, most)
			}
			now, f.due = now+time.Hour, 0
			f.ask(now)
			if f.due != now+roundSoon {
				t.Errorf("after a quiet time a round is made %s after a change, want %s", f.due-now, roundSoon)
			}
		})
	}
}

// Many who join within a second are let in soon, each of them: without a round of their
// own, yet not so late as if they had been joining all the time.
func TestManyWhoJoinAreLetIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &followingTable{takes: 200 * time.Millisecond}
		h := newHost(t)
		h.table, h.tools = table, noVariants{}
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		time.Sleep(resync)
		synctest.Wait()
		const joining = 10
		before := table.appliedTimes()
		for n := range joining {
			h.peer(fmt.Sprintf("10.5.%d.0-24", 150+n), fmt.Sprintf("198.18.0.%d", 150+n))
			time.Sleep(time.Second / joining)
		}
		h.eventually(2*time.Second, "all are let in", func() bool { return table.appliedPeers() == joining })
		if got := table.appliedTimes() - before; got > 4 {
			t.Errorf("%d joined in %d rounds of the firewall, want fewer", joining, got)
		}
	})
}

// What only a round found, the firewall was not told by following: it does not wait for
// the round of an earlier change, or who is new would be dropped as forged until then.
func TestNewsOfARoundDoesNotWait(t *testing.T) {
	for name, news := range map[string]func(h *testHost){
		"a config":               func(h *testHost) { h.data.OverwriteConfig(networkConfig + " ") },
		"a key that is no lease": func(h *testHost) { h.put("10.5.203.0-24", "{") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := &followingTable{takes: 200 * time.Millisecond}
				h := unhurriedHost(t, table)
				defer h.stop()
				h.peer("10.5.200.0-24", "198.18.0.2")
				synctest.Wait()
				applied := table.appliedTimes()
				news(h)
				h.peer("10.5.201.0-24", "198.18.0.3")
				time.Sleep(time.Second)
				synctest.Wait()
				if n := len(h.routes()); n != hurried+2 {
					t.Errorf("%d routes, want %d", n, hurried+2)
				}
				if table.appliedTimes() == applied {
					t.Error("the firewall was left to the round of an earlier change")
				}
			})
		})
	}
}

// While peers change all the time rounds follow, too, and compare the kernel no more often
// than without changes.
func TestRoundsFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &followingTable{takes: 200 * time.Millisecond}
		h := unhurriedHost(t, table)
		defer h.stop()
		var lists, puts atomic.Int32
		h.kernel.OnOp(func(o kerneltest.Op) error {
			switch o.String() {
			case "list route":
				lists.Add(1)
			case "list link", "list addr", "list resolved", "list neighbour", "list fdb":
			default:
				puts.Add(1)
			}
			return nil
		})
		runs := h.board.Snapshot().Sync.Runs
		const churn = 9 * time.Second // less than resyncEvery
		n := 0
		for began := time.Now(); time.Since(began) < churn; n++ {
			h.peer(fmt.Sprintf("10.5.%d.0-24", 150+n%2), fmt.Sprintf("198.18.0.%d", 150+n%100))
			time.Sleep(7 * time.Millisecond)
		}
		time.Sleep(followEvery)
		synctest.Wait()
		if got := h.board.Snapshot().Sync.Runs; got == runs {
			t.Errorf("%d rounds before, %d after", runs, got)
		}
		if lists.Load() > 0 {
			t.Errorf("%d rounds compared the kernel", lists.Load())
		}
		if want := []string{"10.5.150.0/24 via", "10.5.151.0/24 via"}; !slices.EqualFunc(want, h.routes()[hurried:], func(w, r string) bool { return strings.HasPrefix(r, w) }) {
			t.Errorf("routes %v, want %v", h.routes(), want)
		}
		if puts.Load() < int32(churn/followEvery/2) {
			t.Errorf("%d entries were written for %d changes", puts.Load(), n)
		}
		time.Sleep(resyncEvery)
		synctest.Wait()
		if lists.Load() == 0 {
			t.Error("the kernel is never compared")
		}
	})
}

// What means more than a path is a round's.
func TestNotFollowed(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(h *testHost)
		want   func(h *testHost) bool
	}{
		"a subnet that overlaps a peer's": {
			func(h *testHost) { h.peer("10.5.100.128-25", "198.18.0.2") },
			func(h *testHost) bool { return h.problem(status.ComponentPeers).Message != "" && len(h.routes()) == 1 },
		},
		"an address that two publish": {
			func(h *testHost) {
				h.owned("10.5.201.0-24", "198.18.0.7", "a")
				h.owned("10.5.202.0-24", "198.18.0.7", "b")
			},
			func(h *testHost) bool { return len(h.board.Snapshot().SharedAddresses) == 1 && len(h.routes()) == 3 },
		},
		"a key that is no lease": {
			func(h *testHost) { h.put("10.5.203.0-24", "{") },
			func(h *testHost) bool { return len(h.board.Snapshot().BadKeys) == 1 },
		},
		"a peer on another segment": {
			func(h *testHost) { h.peer("10.5.204.0-24", "203.0.113.1") },
			func(h *testHost) bool { return h.problem(status.ComponentPeers).Message != "" && len(h.routes()) == 1 },
		},
		"somebody else's route": {
			func(h *testHost) {
				list, err := h.kernel.Routes().List(h.t.Context())
				if err != nil {
					h.t.Fatal(err)
				}
				mine := slices.DeleteFunc(slices.Clone(list), func(r kernel.Route) bool { return r.Protocol != kernel.Protocol })
				if err := h.kernel.Routes().Delete(h.t.Context(), mine); err != nil {
					h.t.Fatal(err)
				}
				h.peer("10.5.205.0-24", "198.18.0.5")
			},
			func(h *testHost) bool { return len(h.routes()) == 2 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := followingHost(t, &followingTable{})
				defer h.stop()
				runs := h.board.Snapshot().Sync.Runs
				tc.change(h)
				h.eventually(soon, name, func() bool { return tc.want(h) })
				if h.board.Snapshot().Sync.Runs == runs {
					t.Error("no round was made")
				}
			})
		})
	}
}

func TestReplacePeers(t *testing.T) {
	named := func(key, ip string) subnet.Lease {
		s, err := subnet.ParseSubnet(key)
		if err != nil {
			t.Fatal(err)
		}
		return subnet.Lease{Subnet: s, Attrs: subnet.Attrs{Instance: ip}}
	}
	peers := []subnet.Lease{named("10.5.1.0-24", "a"), named("10.5.3.0-24", "b"), named("10.5.5.0-24", "c")}
	got := replacePeers(slices.Collect(subnet.Each(peers)), backend.Change{
		Old: []subnet.Lease{named("10.5.1.0-24", "a"), named("10.5.3.0-24", "b"), named("10.5.9.0-24", "x")},
		New: []subnet.Lease{named("10.5.3.0-24", "d"), named("10.5.4.0-24", "e"), named("10.5.0.0-24", "f")},
	})
	var text []string
	for _, p := range got {
		text = append(text, p.Subnet.String()+" "+p.Attrs.Instance)
	}
	want := []string{"10.5.0.0/24 f", "10.5.3.0/24 d", "10.5.4.0/24 e", "10.5.5.0/24 c"}
	if diff := cmp.Diff(want, text); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// While a former uplink counts beside the present one, a change of peers is a round's:
// also the firewall and others must hear of both.
func TestNothingIsFollowedWhileMoving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := followingHost(t, &followingTable{})
		defer h.stop()
		eth1 := h.kernel.Plug(kernel.Link{Name: "eth1", MTU: 1500}, netip.MustParsePrefix("198.18.0.200/24"))
		h.defaultRoute(h.eth0.Index, false, "198.18.0.254", 0)
		h.defaultRoute(eth1.Index, true, "198.18.0.254", 0)
		h.eventually(5*time.Second, "the move", func() bool { return h.board.Snapshot().Uplink.Name == "eth1" })
		for _, step := range []struct {
			name   string
			after  time.Duration
			rounds bool
		}{{"while the former one counts", moveLinger / 2, true}, {"when it counts no longer", moveLinger, false}} {
			time.Sleep(step.after)
			synctest.Wait()
			runs, routes := h.board.Snapshot().Sync.Runs, len(h.routes())
			h.peer(fmt.Sprintf("10.5.%d.0-24", 210+routes), fmt.Sprintf("198.18.0.%d", 20+routes))
			synctest.Wait()
			if n := len(h.routes()); n != routes+1 {
				t.Errorf("%s: %d routes, want %d", step.name, n, routes+1)
			}
			if made := h.board.Snapshot().Sync.Runs != runs; made != step.rounds {
				t.Errorf("%s: a round was made: %t", step.name, made)
			}
		}
	})
}
