package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// toldTable remembers what it is told.
type toldTable struct {
	mu   sync.Mutex
	last native.Desired
	// dropped is its count of packets with another peer's source.
	dropped uint64
}

func (t *toldTable) Apply(_ context.Context, d native.Desired) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = d
	return nil
}

func (*toldTable) Cleanup(context.Context) error { return nil }

func (*toldTable) Passed(native.Step)               {}
func (*toldTable) Wrote() native.Step               { return native.Step{} }
func (*toldTable) Undisturbed(context.Context) bool { return true }

func (*toldTable) Follow(context.Context, []native.Peer, []native.Peer) error {
	return native.ErrNotFollowed
}

func (t *toldTable) Counters(context.Context) (map[string]uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return map[string]uint64{native.PeerSource: t.dropped}, nil
}

func (t *toldTable) drop(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropped += n
}

// macs are those that it was told last, by the peers' subnets.
func (t *toldTable) macs() map[string]kernel.MAC {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]kernel.MAC{}
	for _, p := range t.last.Peers {
		out[p.Subnet.String()] = p.MAC[subnet.IPv4]
	}
	return out
}

func mac(n byte) kernel.MAC { return kernel.MAC{2, 0, 0, 0, 0, n} }

func segment(n byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, n}) }

// segmentHost is a host with three peers: two on its segment, of which one has no
// MAC yet, and one elsewhere.
func segmentHost(t *testing.T, config string) (*testHost, *toldTable) {
	t.Helper()
	h, table := newHost(t), &toldTable{}
	h.table = table
	h.data.OverwriteConfig(config)
	h.kernel.Resolve(h.eth0.Index, segment(2), mac(2))
	h.kernel.Resolve(h.eth0.Index, segment(77), mac(77))
	h.kernel.Resolve(h.eth0.Index, netip.MustParseAddr("203.0.113.4"), mac(4))
	h.kernel.Resolve(h.eth0.Index+100, segment(3), mac(33))
	for key, public := range map[string]string{"10.5.2.0-24": "198.18.0.2", "10.5.3.0-24": "198.18.0.3", "10.5.4.0-24": "203.0.113.4"} {
		h.put(key, fmt.Sprintf(`{"PublicIP":%q,"BackendType":%q,"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:01"}}`, public, testConfig(t, config).BackendType))
	}
	h.start()
	h.eventually(soon, "three peers", func() bool { return len(h.board.Snapshot().Peers) == 3 })
	return h, table
}

// The firewall knows by their MACs the peers that send plainly, as far as the
// kernel does, and no others.
func TestFirewallKnowsPeersByMAC(t *testing.T) {
	for name, tc := range map[string]struct {
		config string
		want   kernel.MAC
	}{
		"host-gw":       {networkConfig, mac(2)},
		"DirectRouting": {`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`, mac(2)},
		"a tunnel":      {`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`, kernel.MAC{}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, table := segmentHost(t, tc.config)
				defer h.stop()
				want := map[string]kernel.MAC{"10.5.2.0/24": tc.want, "10.5.3.0/24": {}, "10.5.4.0/24": {}}
				h.eventually(soon, "the peers' MACs", func() bool { return cmp.Equal(want, table.macs()) })
			})
		})
	}
}

// A neighbour table that cannot be read is a problem, and no reason to drop or to
// leave the firewall alone.
func TestFirewallWithoutMACs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, table := segmentHost(t, networkConfig)
		defer h.stop()
		h.eventually(soon, "the peers' MACs", func() bool { return table.macs()["10.5.2.0/24"] == mac(2) })
		broken := errors.New("no neighbours today")
		h.kernel.OnOp(func(o kerneltest.Op) error {
			if o.Kind == "resolved" {
				return broken
			}
			return nil
		})
		h.eventually(resync, "no MACs", func() bool { return table.macs()["10.5.2.0/24"] == kernel.MAC{} })
		told := func() bool { return strings.Contains(h.problem(status.ComponentFirewall).Message, broken.Error()) }
		h.eventually(soon, "a problem", told)
		if got := len(table.macs()); got != 3 {
			t.Errorf("%d peers in the firewall, want 3", got)
		}
		h.kernel.OnOp(nil)
		h.eventually(resync, "the peers' MACs again", func() bool { return table.macs()["10.5.2.0/24"] == mac(2) })
		h.eventually(soon, "no problem", func() bool { return !told() })
	})
}

// Only what contradicts the firewall makes a round of its own: at once, and then
// at most one a second, the last change included.
func TestMACsThatMakeARound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, table := segmentHost(t, networkConfig)
		defer h.stop()
		time.Sleep(time.Minute) // what failed is tried every 5 s by now
		runs := func() uint64 {
			synctest.Wait()
			return h.board.Snapshot().Sync.Runs
		}
		// From right behind a round of its own there are some seconds of calm.
		calm := func() uint64 {
			before := runs()
			h.eventually(time.Minute, "the next round", func() bool { return runs() > before })
			return runs()
		}
		for _, tc := range []struct {
			name string
			do   func()
			want uint64 // rounds in the two seconds after
			told map[string]kernel.MAC
		}{
			{"a host that is no peer", func() { h.kernel.Resolve(h.eth0.Index, segment(77), mac(78)) }, 0, nil},
			{"a peer's address on another link", func() { h.kernel.Resolve(h.eth0.Index+100, segment(2), mac(99)) }, 0, nil},
			{"a peer's first MAC", func() { h.kernel.Resolve(h.eth0.Index, segment(3), mac(3)) }, 0, nil},
			{"another MAC", func() { h.kernel.Resolve(h.eth0.Index, segment(2), mac(22)) }, 1, map[string]kernel.MAC{"10.5.2.0/24": mac(22), "10.5.3.0/24": mac(3), "10.5.4.0/24": {}}},
			{"that of another peer", func() { h.kernel.Resolve(h.eth0.Index, segment(2), mac(3)) }, 1, map[string]kernel.MAC{"10.5.2.0/24": mac(3), "10.5.3.0/24": mac(3), "10.5.4.0/24": {}}},
			{"no answer any more", func() { h.kernel.Resolve(h.eth0.Index, segment(3), kernel.MAC{}) }, 0, nil},
			{"an address that two hosts fight for", func() {
				for n := range byte(18) {
					h.kernel.Resolve(h.eth0.Index, segment(2), mac(100+n))
					time.Sleep(50 * time.Millisecond)
					synctest.Wait()
				}
			}, 2, map[string]kernel.MAC{"10.5.2.0/24": mac(117), "10.5.3.0/24": {}, "10.5.4.0/24": {}}},
		} {
			before := calm()
			tc.do()
			time.Sleep(2 * time.Second)
			if got := runs() - before; got != tc.want {
				t.Errorf("%s: %d rounds, want %d", tc.name, got, tc.want)
			}
			if diff := cmp.Diff(tc.told, table.macs()); tc.told != nil && diff != "" {
				t.Errorf("%s: the firewall was told (-want +got):\n%s", tc.name, diff)
			}
		}
	})
}

// While packets are dropped for their MAC the peers that have one are asked for it,
// now and then; a peer that does not answer is no longer judged.
func TestMACsInDoubtAreAskedFor(t *testing.T) {
	for name, tc := range map[string]struct{ config, asks string }{
		"host-gw":  {networkConfig, "confirm resolved 198.18.0.2"},
		"a tunnel": {`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, table := segmentHost(t, tc.config)
				defer h.stop()
				// asked are the questions of a time in which packets were dropped
				// in every round.
				asked := func(d time.Duration, drops uint64) string {
					h.kernel.ResetOps()
					for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(h.opts.iptablesResync) {
						table.drop(drops)
					}
					synctest.Wait()
					var out []string
					for _, o := range h.kernel.Ops() {
						if o.Verb == "confirm" {
							out = append(out, o.String())
						}
					}
					return strings.Join(out, ", ")
				}
				if got := asked(time.Minute, 0); got != "" {
					t.Errorf("asked %q while nothing is dropped", got)
				}
				if got := asked(calmAsking-2*h.opts.iptablesResync, 1); got != tc.asks {
					t.Errorf("asked %q while packets are dropped, want %q", got, tc.asks)
				}
				if got := strings.Count(asked(4*calmAsking, 1), "confirm"); tc.asks != "" && (got < 3 || got > 5) {
					t.Errorf("asked %d times in %s", got, 4*calmAsking)
				}
				h.kernel.Resolve(h.eth0.Index, segment(2), kernel.MAC{})
				h.eventually(resync, "no MAC", func() bool { return table.macs()["10.5.2.0/24"] == kernel.MAC{} })
				if got := asked(2*calmAsking, 1); got != "" {
					t.Errorf("asked %q where no MAC is known", got)
				}
			})
		})
	}
}

// What is held against an event while a round reads may be from before it.
func TestOutdates(t *testing.T) {
	told := &toldMACs{link: 2, macs: map[netip.Addr]kernel.MAC{segment(2): mac(2), segment(3): {}}}
	event := func(link int, addr netip.Addr, m kernel.MAC) kernel.Event {
		return kernel.Event{Topic: kernel.TopicResolved, Link: link, Addr: addr, MAC: m}
	}
	for name, tc := range map[string]struct {
		told    *toldMACs
		reading bool
		event   kernel.Event
		want    bool
	}{
		"nothing told yet":       {nil, false, event(2, segment(2), mac(9)), false},
		"another MAC":            {told, false, event(2, segment(2), mac(9)), true},
		"the same":               {told, false, event(2, segment(2), mac(2)), false},
		"none any more":          {told, false, event(2, segment(2), kernel.MAC{}), false},
		"the first":              {told, false, event(2, segment(3), mac(9)), false},
		"no peer":                {told, false, event(2, segment(4), mac(9)), false},
		"another link":           {told, false, event(3, segment(2), mac(9)), false},
		"the first, but reading": {told, true, event(2, segment(3), mac(9)), true},
	} {
		t.Run(name, func(t *testing.T) {
			var n neighbourState
			n.told.Store(tc.told)
			n.reading.Store(tc.reading)
			if got := n.outdates(tc.event); got != tc.want {
				t.Errorf("outdates: %v, want %v", got, tc.want)
			}
		})
	}
}
