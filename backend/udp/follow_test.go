package udp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	dataDirect = `{"Port":8285,"DirectRouting":true}`
	dataPlain  = `{"Port":8290}`
)

// onSegment is a host with eth0 in 198.18.0.0/24, and a dual network.
func onSegment(t testing.TB, options string) *host {
	t.Helper()
	h := newHost(t)
	p := h.params
	p.Config = testConfig(fmt.Sprintf(`{"Port":%d,"Queues":1,"SourcePorts":"fixed"%s}`, h.port, options))
	p.Config.Ranges[subnet.IPv6] = subnet.Range{Network: netip.MustParsePrefix("fd05::/48"), SubnetLen: 64}
	h.replace(t, p)
	h.reboot()
	return h
}

// reboot leaves nothing of what was in the kernel.
func (h *host) reboot() {
	h.fake = kerneltest.New()
	h.fake.Plug(kernel.Link{Name: "eth0", MTU: 1500}, netip.MustParsePrefix("198.18.0.1/24"))
	h.params.Kernel, h.router = h.fake, backend.Router{Kernel: h.fake, Log: h.log}
	h.world.Store(nil)
}

// wanted is what such a host is told.
func (h *host) wanted(t testing.TB, peers, former []subnet.Lease) backend.Desired {
	t.Helper()
	d := desired(h.params.Config, "10.5.1.0/24", peers...)
	link, err := h.fake.LinkByName(t.Context(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	d.Own.Subnet[subnet.IPv6] = netip.MustParsePrefix("fd05:0:0:1::/64")
	d.Uplink.Link, d.Uplink.Segments = link, []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}
	d.Former = former
	return d
}

// places are what a network has where a host may be: the leases there, and those of before.
type places [30]struct {
	now    subnet.Lease
	former [2]subnet.Lease
}

// peers are the leases, and those that hosts had before.
func (p *places) peers() (peers, former []subnet.Lease) {
	for _, at := range p {
		if at.now.Subnet.IsZero() {
			continue
		}
		peers = append(peers, at.now)
		for _, l := range at.former {
			if !l.Subnet.IsZero() {
				former = append(former, l)
			}
		}
	}
	return peers, former
}

// changeTo is what makes p of old.
func (p *places) changeTo(old *places) (c backend.Change) {
	var was, is places
	for i := range p {
		if p[i] != old[i] {
			was[i], is[i] = old[i], p[i]
		}
	}
	c.Old, _ = was.peers()
	c.New, c.Former = is.peers()
	return c
}

// known is everything in the table.
func (h *host) known() map[netip.Prefix]endpoint {
	all := map[netip.Prefix]endpoint{}
	for _, p := range h.world.Load().table.peers() {
		all[p.prefix] = *p.endpoint
	}
	return all
}

// drawPlaces has peers of all kinds.
func drawPlaces(t *rapid.T) (p places) {
	for i, b := range rapid.SliceOfN(rapid.Byte(), len(p), len(p)).Draw(t, "peers") {
		kind := b >> 2 % 8
		if kind < 2 {
			continue
		}
		l := lease(fmt.Sprintf("10.5.%d.0/24", 100+i), fmt.Sprintf([]string{"198.18.0.%d", "203.0.113.%d"}[b&1], 100+i))
		if b&2 != 0 {
			l.Subnet[subnet.IPv6] = netip.MustParsePrefix(fmt.Sprintf("fd05:0:0:%x::/64", 100+i))
		}
		l.Attrs.BackendData[subnet.IPv4] = map[byte]subnet.RawJSON{3: dataPlain, 4: "{", 5: dataDirect, 6: dataDirect, 7: dataDirect}[kind]
		p[i].now = l
		for j := range p[i].former[:b>>6%3] {
			p[i].former[j] = l
			p[i].former[j].Attrs.PublicIP[subnet.IPv4] = netip.AddrFrom4([4]byte{198, 18, 1 + byte(j), byte(i)})
		}
	}
	return p
}

// Whatever peers come, go and change: to follow them leaves table and kernel as an Apply
// of all does on a fresh host, and the next Apply has nothing to do.
func TestFollowIsApply(t *testing.T) {
	for name, options := range map[string]string{"tunnel": "", "direct": `,"DirectRouting":true`} {
		t.Run(name, func(t *testing.T) {
			h := onSegment(t, options)
			rapid.Check(t, func(rt *rapid.T) {
				h.reboot()
				at := drawPlaces(rt)
				peers, former := at.peers()
				_ = h.Apply(t.Context(), h.wanted(t, peers, former)) // some are meant to fail
				for range rapid.IntRange(1, 4).Draw(rt, "steps") {
					before, drawn := at, drawPlaces(rt)
					first := rapid.IntRange(0, len(at)).Draw(rt, "first")
					copy(at[first:], drawn[first:rapid.IntRange(first, len(at)).Draw(rt, "end")])
					if err := h.Follow(t.Context(), at.changeTo(&before)); errors.Is(err, backend.ErrNotFollowed) {
						rt.Fatal(err)
					}
				}
				known, routes, table := h.known(), plainRoutes(t, h.fake), h.world.Load().table
				h.fake.ResetOps()
				peers, former = at.peers()
				_ = h.Apply(t.Context(), h.wanted(t, peers, former))
				if ops := h.ops(); len(ops) > 0 || h.world.Load().table != table {
					rt.Errorf("the next Apply did %v, another table %t", ops, h.world.Load().table != table)
				}
				if err := h.Close(); err != nil {
					rt.Error(err)
				}
				h.reboot()
				_ = h.Apply(t.Context(), h.wanted(t, peers, former))
				if diff := cmp.Diff(h.known(), known, cmp.Comparer(func(a, b endpoint) bool { return a == b })); diff != "" {
					rt.Errorf("table (-applied +followed)\n%s", diff)
				}
				if diff := cmp.Diff(plainRoutes(t, h.fake), routes); diff != "" {
					rt.Errorf("routes (-applied +followed)\n%s", diff)
				}
				if err := h.Close(); err != nil {
					rt.Error(err)
				}
			})
		})
	}
}

// called counts the calls of a kernel that are not about single entries.
type called struct {
	kernel.Host
	calls *int
}

func (k called) Routes() reconcile.Table[kernel.Route] { return calledTable{k.Host.Routes(), k.calls} }

func (k called) LinkByName(ctx context.Context, name string) (kernel.Link, error) {
	*k.calls++
	return k.Host.LinkByName(ctx, name)
}

type calledTable struct {
	reconcile.Table[kernel.Route]
	calls *int
}

func (t calledTable) List(ctx context.Context) ([]kernel.Route, error) {
	*t.calls++
	return t.Table.List(ctx)
}

// A change costs its own routes, and nothing is listed, however many peers there are.
// What failed for a peer is said.
func TestFollowCostsTheChange(t *testing.T) {
	h := onSegment(t, `,"DirectRouting":true`)
	peer := func(n int, public string, data subnet.RawJSON) subnet.Lease {
		l := lease(fmt.Sprintf("10.5.%d.0/24", n), public)
		l.Attrs.BackendData[subnet.IPv4] = data
		return l
	}
	var peers []subnet.Lease
	for i := range 200 {
		peers = append(peers, peer(2+i, fmt.Sprintf("198.18.0.%d", 2+i), dataDirect))
	}
	calls := 0
	host := called{h.fake, &calls}
	h.params.Kernel, h.router.Kernel = host, host
	if err := h.Apply(t.Context(), h.wanted(t, peers, nil)); err != nil {
		t.Fatal(err)
	}
	h.fake.ResetOps()
	if calls == 0 {
		t.Error("Apply made no call that is counted")
	}
	calls, h.made = 0, nil
	joined, moved, away := peer(230, "198.18.0.230", dataDirect), peer(230, "198.18.0.231", dataDirect), peer(230, "203.0.113.5", dataPlain)
	for _, step := range []struct {
		name   string
		change backend.Change
		want   []string
	}{
		{"joined", backend.Change{New: []subnet.Lease{joined}}, []string{"put route"}},
		{"moved", backend.Change{Old: []subnet.Lease{joined}, New: []subnet.Lease{moved}, Former: []subnet.Lease{joined}}, []string{"put route"}},
		{"forgot", backend.Change{Old: []subnet.Lease{moved}, New: []subnet.Lease{moved}}, nil},
		{"left the segment", backend.Change{Old: []subnet.Lease{moved}, New: []subnet.Lease{away}}, []string{"delete route"}},
		{"left", backend.Change{Old: []subnet.Lease{away}}, nil},
	} {
		if err := h.Follow(t.Context(), step.change); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(step.want, h.ops()); diff != "" {
			t.Errorf("%s: operations (-want +got):\n%s", step.name, diff)
		}
		if n := len(step.change.New); n > 0 {
			to := h.known()[joined.Subnet[subnet.IPv4]]
			if to.to.Addr() != step.change.New[0].Attrs.PublicIP[subnet.IPv4] || to.left(joined.Attrs.PublicIP[subnet.IPv4]) != (step.change.Former != nil) {
				t.Errorf("%s: the table has %+v", step.name, to)
			}
		}
	}
	if calls != 0 {
		t.Errorf("%d calls for all of the kernel", calls)
	}
	if diff := cmp.Diff([]reconcile.Result{{Put: 1}, {Put: 1}, {}, {Deleted: 1}, {}}, h.made); diff != "" {
		t.Errorf("observed (-want +got):\n%s", diff)
	}
	h.fake.OnOp(kerneltest.FailNth(1, syscall.ENOBUFS, nil))
	err := h.Follow(t.Context(), backend.Change{New: []subnet.Lease{joined, peer(231, "198.18.0.1", dataDirect), peer(232, "127.0.0.1", dataDirect)}})
	var failed *backend.PeerError
	if !errors.As(err, &failed) || failed.Subnet != joined.Subnet || !errors.Is(err, syscall.ENOBUFS) || len(h.known()) != 202 {
		t.Errorf("refused route, %d peers known: %v", len(h.known()), err)
	}
}

// What was not applied is not followed, nor is anything once all is closed.
func TestNotFollowed(t *testing.T) {
	h := onSegment(t, "")
	change := backend.Change{New: []subnet.Lease{lease("10.5.3.0/24", "198.18.0.3")}}
	good, bad := h.wanted(t, nil, nil), h.wanted(t, nil, nil)
	bad.Uplink.Link.MTU = 100
	for _, step := range []struct {
		name string
		do   func() error
		want error
	}{
		{"nothing applied", func() error { return nil }, backend.ErrNotFollowed},
		{"inherited", func() error { h.Inherit(t.Context(), good, nil); return nil }, backend.ErrNotFollowed},
		{"applied", func() error { return h.Apply(t.Context(), good) }, nil},
		{"not applied again", func() error { _ = h.Apply(t.Context(), bad); return nil }, backend.ErrNotFollowed},
		{"applied after all", func() error { return h.Apply(t.Context(), good) }, nil},
		{"closed", h.Close, backend.ErrNotFollowed},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if err := h.Follow(t.Context(), change); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.name, err, step.want)
		}
	}
}

// BenchmarkFollow is what it takes to follow one peer to another address, among so many.
func BenchmarkFollow(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			h := onSegment(b, "")
			peers := make([]subnet.Lease, n)
			for i := range peers {
				peers[i] = lease(fmt.Sprintf("10.%d.%d.0/24", 6+i>>8, i&255), fmt.Sprintf("198.18.%d.%d", 1+i>>8, i&255))
			}
			if err := h.Apply(b.Context(), h.wanted(b, peers, nil)); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				moved := peers[i%n]
				moved.Attrs.PublicIP[subnet.IPv4] = netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})
				if err := h.Follow(b.Context(), backend.Change{Old: peers[i%n:][:1], New: []subnet.Lease{moved}}); err != nil {
					b.Fatal(err)
				}
				peers[i%n] = moved
			}
		})
	}
}
