package native

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// reading counts how often a door is read.
type reading struct {
	door
	reads *int
}

func (r reading) read(f subnet.Family) (table, error) {
	*r.reads++
	return r.door.read(f)
}

// Peers that are followed are in the kernel as an Apply would have put them, nothing is
// read for it, and the next Apply finds nothing to do without reading either.
func TestFollow(t *testing.T) {
	h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
	reads := 0
	h.t.door = reading{h.t.door, &reads}
	d := many(50)
	h.apply(t, d)
	h.apply(t, d)
	reads, *h.written = 0, 0
	moved := d.Peers[7]
	moved.PublicIP[subnet.IPv4] = netip.MustParseAddr("198.18.9.9")
	joined := many(60).Peers[59]
	for _, step := range []struct {
		name        string
		gone, fresh []Peer
		writes      int
	}{
		{"one joins", nil, []Peer{joined}, 1},
		{"one moves", []Peer{d.Peers[7]}, []Peer{moved}, 1},
		{"one leaves", []Peer{d.Peers[20]}, nil, 1},
		{"one is as it was", []Peer{moved}, []Peer{moved}, 0},
	} {
		before := *h.written
		var err error
		h.Do(t, func() { err = h.t.Follow(t.Context(), step.gone, step.fresh) })
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if n := *h.written - before; n != step.writes {
			t.Errorf("%s: %d transactions, want %d", step.name, n, step.writes)
		}
		undisturbed := false
		h.Do(t, func() { undisturbed = h.t.Undisturbed() })
		if !undisturbed {
			t.Errorf("%s: our own transaction disturbed us", step.name)
		}
	}
	d.Peers[7] = moved
	d.Peers = append(slices.Delete(d.Peers, 20, 21), joined)
	h.apply(t, d)
	if reads != 0 || *h.written != 3 {
		t.Errorf("read %d times, %d transactions, want none and 3", reads, *h.written)
	}
	var have, want table
	var err error
	h.Do(t, func() { have, err = h.t.door.read(subnet.IPv4) })
	if err != nil {
		t.Fatal(err)
	}
	if want, err = compile(d, subnet.IPv4, lacks{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(find(want.sets, set.id, senderName(d.Tunnel.Encapsulation, subnet.IPv4, 24)).keys, find(have.sets, set.id, senderName(d.Tunnel.Encapsulation, subnet.IPv4, 24)).keys); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}

// What others did since, and what needs another rule, is Apply's.
func TestNotFollowed(t *testing.T) {
	h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
	d := many(3)
	longer := many(9).Peers[8]
	longer.Subnet[subnet.IPv4] = netip.MustParsePrefix("10.9.9.0/25")
	for _, tc := range []struct {
		name  string
		harm  func()
		fresh Peer
	}{
		{"nothing was applied", func() {}, many(9).Peers[8]},
		{"somebody's table", func() {
			h.apply(t, d)
			h.apply(t, d)
			h.Run(t, "nft", "add", "table", "ip", "other")
		}, many(9).Peers[8]},
		{"another length", func() { h.apply(t, d) }, longer},
	} {
		tc.harm()
		written := *h.written
		var err error
		h.Do(t, func() { err = h.t.Follow(t.Context(), nil, []Peer{tc.fresh}) })
		if !errors.Is(err, ErrNotFollowed) || *h.written != written {
			t.Errorf("%s: %v, %d transactions", tc.name, err, *h.written-written)
		}
	}
	undisturbed := true
	h.Run(t, "nft", "flush", "ruleset")
	h.Do(t, func() { undisturbed = h.t.Undisturbed() })
	if undisturbed {
		t.Error("flushed rules are not noticed")
	}
}

// What this host itself does elsewhere does not end the trust in what is in place; what
// was not alone does.
func TestPassed(t *testing.T) {
	for name, tc := range map[string]struct {
		tables []string
		want   error
	}{
		"one transaction": {[]string{"a"}, nil},
		"two":             {[]string{"a", "b"}, ErrNotFollowed},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
			d := many(3)
			h.apply(t, d)
			h.apply(t, d)
			generation := func() (g Generation) {
				var err error
				h.Do(t, func() { g, err = CurrentGeneration() })
				if err != nil {
					t.Fatal(err)
				}
				return g
			}
			before := generation()
			for _, other := range tc.tables {
				h.Run(t, "nft", "add", "table", "ip", other)
			}
			h.t.Passed(Step{before, generation()})
			var err error
			h.Do(t, func() { err = h.t.Follow(t.Context(), nil, []Peer{many(9).Peers[8]}) })
			if !errors.Is(err, tc.want) {
				t.Errorf("Follow: %v, want %v", err, tc.want)
			}
		})
	}
}
