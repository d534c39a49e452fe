package native

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// reading counts how often a door is read.
type reading struct {
	door
	reads *int
}

func (r reading) read(ctx context.Context, f subnet.Family) (table, error) {
	*r.reads++
	return r.door.read(ctx, f)
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
		h.Do(t, func() { undisturbed = h.t.Undisturbed(t.Context()) })
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
	h.Do(t, func() { have, err = h.t.door.read(t.Context(), subnet.IPv4) })
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
	absent := many(9).Peers[7]
	for _, tc := range []struct {
		name  string
		harm  func()
		fresh Peer
		gone  []Peer
	}{
		{"nothing was applied", func() {}, many(9).Peers[8], nil},
		{"somebody's table", func() {
			h.apply(t, d)
			h.apply(t, d)
			h.Run(t, "nft", "add", "table", "ip", "other")
		}, many(9).Peers[8], nil},
		{"another length", func() { h.apply(t, d) }, longer, nil},
		{"one who is not there", func() { h.apply(t, d) }, absent, []Peer{absent}},
		{"one who is there once goes twice", func() { h.apply(t, d) }, absent, []Peer{d.Peers[1], d.Peers[1]}},
	} {
		tc.harm()
		written := *h.written
		var err error
		h.Do(t, func() { err = h.t.Follow(t.Context(), tc.gone, []Peer{tc.fresh}) })
		if !errors.Is(err, ErrNotFollowed) || *h.written != written {
			t.Errorf("%s: %v, %d transactions", tc.name, err, *h.written-written)
		}
	}
	undisturbed := true
	h.Run(t, "nft", "flush", "ruleset")
	h.Do(t, func() { undisturbed = h.t.Undisturbed(t.Context()) })
	if undisturbed {
		t.Error("flushed rules are not noticed")
	}
}

// What this host itself does elsewhere does not end the trust in what is in place; what
// was not alone does.
func TestPassed(t *testing.T) {
	for name, tc := range map[string]struct {
		// before and tables are what is made before that, by somebody else, and by this
		// host.
		before, tables []string
		want           error
	}{
		"one transaction":       {nil, []string{"a"}, nil},
		"two":                   {nil, []string{"a", "b"}, ErrNotFollowed},
		"one after another's":   {[]string{"a"}, []string{"b"}, ErrNotFollowed},
		"none, after another's": {[]string{"a"}, nil, ErrNotFollowed},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
			d := many(3)
			h.apply(t, d)
			h.apply(t, d)
			generation := func() (g Generation) {
				var err error
				h.Do(t, func() { g, err = CurrentGeneration(t.Context()) })
				if err != nil {
					t.Fatal(err)
				}
				return g
			}
			add := func(tables []string) {
				for _, name := range tables {
					h.Run(t, "nft", "add", "table", "ip", name)
				}
			}
			add(tc.before)
			before := generation()
			add(tc.tables)
			h.t.Passed(Step{before, generation()})
			var err error
			h.Do(t, func() { err = h.t.Follow(t.Context(), nil, []Peer{many(9).Peers[8]}) })
			if !errors.Is(err, tc.want) {
				t.Errorf("Follow: %v, want %v", err, tc.want)
			}
		})
	}
}

// refusing is a door through which nothing is written.
type refusing struct{ door }

func (refusing) write(context.Context, subnet.ByFamily[change]) error { return errRefused }

var errRefused = errors.New("refused")

// After a transaction of which it is not known what came, nothing is followed: Apply finds
// out.
func TestFollowRefused(t *testing.T) {
	h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
	d := many(3)
	h.apply(t, d)
	h.apply(t, d)
	joined := many(9).Peers[8]
	follow := func() (err error) {
		h.Do(t, func() { err = h.t.Follow(t.Context(), nil, []Peer{joined}) })
		return err
	}
	there := h.t.door
	h.t.door = refusing{there}
	if err := follow(); !errors.Is(err, errRefused) {
		t.Errorf("Follow: %v, want %v", err, errRefused)
	}
	h.t.door = there
	if err := follow(); !errors.Is(err, ErrNotFollowed) {
		t.Errorf("Follow after that: %v, want %v", err, ErrNotFollowed)
	}
	d.Peers = append(d.Peers, joined)
	h.apply(t, d)
	if err := follow(); err != nil {
		t.Errorf("Follow after Apply: %v", err)
	}
}

// A kernel that does not tell its generation leaves nothing undisturbed, whatever was
// applied before.
func TestDisturbedWhereNobodyKnows(t *testing.T) {
	table := New(Options{Log: quiet()})
	table.door = &idle{fails: errors.New("not told")}
	if table.Undisturbed(t.Context()) {
		t.Error("undisturbed, before anything was applied")
	}
}

// Of a family for which the kernel has no tables nothing is followed.
func TestFollowWithoutTables(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &memoryDoor{t: rt, id: 1}
		table := New(Options{Log: quiet()})
		table.door, table.release = m, ""
		table.lost[subnet.IPv6][FeatureTables] = true
		d := dual()
		for range 2 {
			if err := table.Apply(t.Context(), d); err != nil && !errors.As(err, new(*ErrUnsupported)) {
				rt.Fatal(err)
			}
		}
		joined := hostAt(3, 0)
		if err := table.Follow(t.Context(), nil, []Peer{joined}); err != nil {
			rt.Fatal(err)
		}
		want := d
		want.Peers = append(slices.Clone(d.Peers), joined)
		compiled, err := compile(want, subnet.IPv4, table.lost)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(keys(compiled), keys(m.tables[subnet.IPv4])); diff != "" {
			rt.Fatalf("keys (-want +got):\n%s", diff)
		}
		if len(keys(m.tables[subnet.IPv6])) > 0 {
			rt.Fatalf("keys of a family without tables: %v", keys(m.tables[subnet.IPv6]))
		}
	})
}

// memoryDoor leads to tables that nobody else writes.
type memoryDoor struct {
	t      *rapid.T
	tables subnet.ByFamily[table]
	id     uint32
}

func (m *memoryDoor) read(_ context.Context, f subnet.Family) (table, error) { return m.tables[f], nil }

func (m *memoryDoor) generation(context.Context) (Generation, error) {
	return Generation{id: m.id}, nil
}
func (m *memoryDoor) probe(context.Context, subnet.Family, Feature) error { return nil }
func (m *memoryDoor) counters(context.Context, subnet.Family) (map[string]uint64, error) {
	return nil, nil
}

func (m *memoryDoor) write(_ context.Context, changes subnet.ByFamily[change]) error {
	for f, c := range changes {
		m.tables[f] = c.apply(m.t, m.tables[f])
	}
	m.id++
	return nil
}

// keys are those of all sets that have some.
func keys(t table) map[string][]string {
	all := map[string][]string{}
	for _, s := range t.sets {
		if len(s.keys) > 0 {
			all[s.name] = s.keys
		}
	}
	return all
}

// neighbourhood is what hosts there may be, and the MACs that their addresses have now.
type neighbourhood struct {
	macs map[netip.Addr]kernel.MAC
}

// resolve draws the MACs: some hosts are behind one router, some do not answer.
func (n *neighbourhood) resolve(t *rapid.T) {
	n.macs = map[netip.Addr]kernel.MAC{}
	for place := range 6 {
		for host := range 3 {
			for _, f := range subnet.Families() {
				if mac := rapid.ByteRange(0, 4).Draw(t, "mac"); mac > 0 {
					n.macs[hostAt(place, host).PublicIP[f]] = kernel.MAC{2, 0, 0, 0, 0, mac}
				}
			}
		}
	}
}

// hostAt is one of three hosts that may have a subnet. The first two have an address in
// common.
func hostAt(place, host int) Peer {
	p, h := byte(place), byte(host)
	return Peer{
		Subnet: subnet.Subnet{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, 16 + p, 0}), 24), netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 5, 7: 16 + p}), 64)},
		PublicIP: subnet.ByFamily[netip.Addr]{
			netip.AddrFrom4([4]byte{198, 18, 1 + p, h}), netip.AddrFrom16([16]byte{0: 0xfd, 3: 198, 5: 18, 14: p, 15: h / 2}),
		},
	}
}

// draw has hosts in order, each once.
func (n *neighbourhood) draw(t *rapid.T) (peers []Peer) {
	for place := range 6 {
		for host := range 3 {
			if rapid.Bool().Draw(t, "there") {
				p := hostAt(place, host)
				for f, a := range p.PublicIP {
					p.MAC[f] = n.macs[a]
				}
				peers = append(peers, p)
			}
		}
	}
	return peers
}

// told are the MACs that peers have.
func told(peers []Peer) map[netip.Addr]kernel.MAC {
	macs := map[netip.Addr]kernel.MAC{}
	for _, p := range peers {
		for f, a := range p.PublicIP {
			macs[a] = p.MAC[f]
		}
	}
	return macs
}

// without are those of peers that others lack.
func without(peers, others []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(p Peer) bool { return slices.Contains(others, p) })
}

// mistaken are peers with other MACs, which do not count.
func mistaken(peers []Peer) []Peer {
	out := slices.Clone(peers)
	for i := range out {
		out[i].MAC = subnet.ByFamily[kernel.MAC]{{2, 9}, {2, 9}}
	}
	return out
}

// Where peers are told apart by MACs, too: whoever comes, goes, or moves, the sets are
// those of an Apply to which the MACs of whom it had not heard of are not known. So no
// key is left that somebody who comes may be dropped by, and none is missing of who
// stays.
func TestFollowIsApply(t *testing.T) {
	for name, tunnel := range map[string]backend.Tunnel{
		"host-gw":    {Direct: true},
		"udp":        {Devices: []string{"flannel0"}, Port: 8285, Encapsulation: backend.PlainPacket},
		"udp direct": {Devices: []string{"flannel0"}, Port: 8285, Encapsulation: backend.PlainPacket, Direct: true},
	} {
		t.Run(name, func(t *testing.T) {
			followed := 0
			rapid.Check(t, func(rt *rapid.T) {
				m, n := &memoryDoor{t: rt, id: 1}, &neighbourhood{}
				table := New(Options{Log: quiet()})
				table.door, table.release = m, ""
				d := dual()
				d.Tunnel = tunnel
				n.resolve(rt)
				d.Peers = n.draw(rt)
				for range 2 {
					if err := table.Apply(t.Context(), d); err != nil {
						rt.Fatal(err)
					}
				}
				for range rapid.IntRange(1, 4).Draw(rt, "steps") {
					before := d.Peers
					n.macs = told(before)
					next := n.draw(rt)
					gone, fresh := without(before, next), without(next, before)
					err := table.Follow(t.Context(), mistaken(gone), mistaken(fresh))
					d.Peers = next
					if errors.Is(err, ErrNotFollowed) {
						return
					}
					if followed++; err != nil {
						rt.Fatal(err)
					}
					for _, f := range subnet.Families() {
						want, err := compile(d, f, lacks{})
						if err != nil {
							rt.Fatal(err)
						}
						if diff := cmp.Diff(keys(want), keys(m.tables[f])); diff != "" {
							rt.Fatalf("%v: keys (-want +got):\n%s", f, diff)
						}
					}
					var held []Peer
					for _, p := range table.last.peers {
						held = append(held, *p)
					}
					if len(without(d.Peers, held)) > 0 || len(d.Peers) != len(held) {
						rt.Fatalf("peers %v, want %v", held, d.Peers)
					}
				}
			})
			if followed == 0 {
				t.Error("nothing was ever followed")
			}
		})
	}
}
