package hostgw_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/hostgw"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const dual = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"host-gw"}}`

// host is one host on a fake kernel: eth0 with 198.18.0.1/24 and
// fd00:198:18::1/64.
type host struct {
	*kerneltest.Fake
	t      *testing.T
	params backend.Params
	uplink backend.Uplink
	be     backend.Backend
	result reconcile.Result
}

func newHost(t *testing.T, config string) *host {
	t.Helper()
	h := &host{Fake: kerneltest.New(), t: t}
	eth0 := h.Plug(kernel.Link{Name: "eth0", MTU: 1500},
		netip.MustParsePrefix("198.18.0.1/24"), netip.MustParsePrefix("fd00:198:18::1/64"))
	c, err := subnet.ParseConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	own := subnet.ByFamily[netip.Addr]{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd00:198:18::1")}
	h.params = backend.Params{Config: c, Kernel: h.Fake, Observe: func(r reconcile.Result) { h.result = r }}
	h.uplink = backend.Uplink{
		Link: eth0, Addr: own, Public: own,
		Segments: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24"), netip.MustParsePrefix("fd00:198:18::/64")},
	}
	if h.be, err = hostgw.New(h.params); err != nil {
		t.Fatal(err)
	}
	return h
}

// lease makes one; "" leaves an address out.
func lease(key, public4, public6 string) subnet.Lease {
	s, err := subnet.ParseSubnet(key)
	if err != nil {
		panic(err)
	}
	l := subnet.Lease{Subnet: s, Attrs: subnet.Attrs{BackendType: hostgw.Type}}
	for f, a := range []string{public4, public6} {
		if a != "" {
			l.Attrs.PublicIP[f] = netip.MustParseAddr(a)
		}
	}
	return l
}

func (h *host) apply(peers ...subnet.Lease) error {
	return h.be.Apply(h.t.Context(), backend.Desired{
		Config: h.params.Config, Uplink: h.uplink, Own: lease("10.5.89.0-24", "198.18.0.1", ""), Peers: slices.Collect(subnet.Each(peers)),
	})
}

func (h *host) expectOps(want ...string) {
	h.t.Helper()
	var got []string
	for _, o := range h.Ops() {
		got = append(got, o.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		h.t.Errorf("operations (-want +got)\n%s", diff)
	}
	h.ResetOps()
}

// captures/host-gw.txt, and both families at once.
func TestApplyLikeFlannel(t *testing.T) {
	h := newHost(t, dual)
	steps := []struct {
		peers []subnet.Lease
		ops   []string
	}{
		{[]subnet.Lease{lease("10.5.33.0-24&fd05:0:0:33::-64", "198.18.0.2", "fd00:198:18::2")}, []string{
			"put route 10.5.33.0/24 via 198.18.0.2 dev eth0", "put route fd05:0:0:33::/64 via fd00:198:18::2 dev eth0",
		}},
		{[]subnet.Lease{lease("10.5.33.0-24&fd05:0:0:33::-64", "198.18.0.2", "fd00:198:18::2")}, nil},
		{[]subnet.Lease{lease("10.5.33.0-24&fd05:0:0:33::-64", "198.18.0.3", "fd00:198:18::2")}, []string{
			"put route 10.5.33.0/24 via 198.18.0.3 dev eth0",
		}},
		{nil, []string{
			"delete route 10.5.33.0/24 via 198.18.0.3 dev eth0", "delete route fd05:0:0:33::/64 via fd00:198:18::2 dev eth0",
		}},
	}
	for i, s := range steps {
		if err := h.apply(s.peers...); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if done := h.result.Put + h.result.Deleted; done != len(s.ops) {
			t.Errorf("step %d: observed %+v, want %d operations", i, h.result, len(s.ops))
		}
		h.expectOps(s.ops...)
	}
}

// What Apply made of leases, Recall makes leases of, one per family; applied again
// they change nothing.
func TestRecall(t *testing.T) {
	h := newHost(t, dual)
	if err := h.apply(lease("10.5.33.0-24&fd05:0:0:33::-64", "198.18.0.2", "fd00:198:18::2")); err != nil {
		t.Fatal(err)
	}
	gateway := netip.MustParseAddr("198.18.0.9")
	foreign := []kernel.Route{
		{Dst: netip.MustParsePrefix("10.5.34.0/24"), Gateway: gateway, Link: h.uplink.Link.Index, Protocol: 3},
		{Dst: netip.MustParsePrefix("10.6.35.0/24"), Gateway: gateway, Link: h.uplink.Link.Index, Protocol: kernel.Protocol},
		{Dst: netip.MustParsePrefix("10.5.89.0/24"), Blackhole: true, Metric: 1 << 20, Protocol: kernel.Protocol},
	}
	if err := h.Routes().Put(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	h.ResetOps()
	got, err := h.be.(backend.Recaller).Recall(t.Context())
	want := []subnet.Lease{lease("10.5.33.0-24", "198.18.0.2", ""), lease("0.0.0.0-0&fd05:0:0:33::-64", "", "fd00:198:18::2")}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); err != nil || diff != "" {
		t.Fatalf("Recall: %v (-want +got)\n%s", err, diff)
	}
	if err := h.Routes().Delete(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	h.ResetOps()
	if err := h.apply(got...); err != nil {
		t.Fatal(err)
	}
	h.expectOps()

	h.OnOp(kerneltest.FailNth(1, syscall.ENOBUFS, func(o kerneltest.Op) bool { return o.Verb == "list" }))
	if _, err := h.be.(backend.Recaller).Recall(t.Context()); !errors.Is(err, syscall.ENOBUFS) {
		t.Errorf("error %v, want ENOBUFS", err)
	}
}

func TestAttrs(t *testing.T) {
	h := newHost(t, `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`)
	attrs, err := h.be.Attrs(h.uplink)
	want := subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{netip.MustParseAddr("198.18.0.1")}, BackendType: "host-gw"}
	if err != nil || attrs != want {
		t.Errorf("Attrs() = %+v, %v, want %+v", attrs, err, want)
	}
	if h.be.MTU(h.uplink) != 1500 {
		t.Errorf("MTU() = %d, want the uplink's 1500", h.be.MTU(h.uplink))
	}
	if diff := cmp.Diff(backend.Tunnel{Direct: true}, h.be.Tunnel()); diff != "" {
		t.Errorf("Tunnel() (-want +got)\n%s", diff)
	}
}

func TestPeersThatCannotBeReached(t *testing.T) {
	tests := map[string]struct {
		peer subnet.Lease
		want string
		is   error
	}{
		"behind a gateway": {
			lease("10.5.3.0-24", "203.0.113.9", ""),
			"peer 10.5.3.0/24 at 203.0.113.9: not on the segment of eth0 (198.18.0.0/24): host-gw needs all hosts on one layer-2 segment; " +
				"use vxlan with DirectRouting where they are not", hostgw.ErrNotOnSegment,
		},
		"behind a gateway, IPv6": {
			lease("10.5.3.0-24&fd05:0:0:3::-64", "198.18.0.9", "fd00:198:19::2"),
			"peer 10.5.3.0/24,fd05:0:0:3::/64 at fd00:198:19::2: not on the segment of eth0 (fd00:198:18::/64): host-gw needs all hosts on one " +
				"layer-2 segment; use vxlan with DirectRouting where they are not", hostgw.ErrNotOnSegment,
		},
		"another backend": {
			func() subnet.Lease {
				l := lease("10.5.3.0-24", "198.18.0.9", "")
				l.Attrs.BackendType = "vxlan"
				return l
			}(),
			`peer 10.5.3.0/24 at 198.18.0.9: its backend is another: "vxlan", not "host-gw"`, backend.ErrOtherBackend,
		},
		"no address": {lease("10.5.3.0-24", "", ""), "peer 10.5.3.0/24: it has no public IPv4 address", nil},
		"ourselves": {
			lease("10.5.3.0-24", "198.18.0.1", ""), "peer 10.5.3.0/24 at 198.18.0.1: its public address 198.18.0.1 is this host's own", nil,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, dual)
			err := h.apply(tc.peer, lease("10.5.33.0-24", "198.18.0.2", ""))
			var pe *backend.PeerError
			if !errors.As(err, &pe) || err.Error() != tc.want || pe.Subnet != tc.peer.Subnet {
				t.Errorf("Apply error\n got %v\nwant %s", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("Apply error %v is no %v", err, tc.is)
			}
			routes, err := h.Routes().List(t.Context())
			other := func(r kernel.Route) bool { return r.Dst.String() == "10.5.33.0/24" }
			if err != nil || !slices.ContainsFunc(routes, other) {
				t.Errorf("routes %v, %v, want the other peer's among them", routes, err)
			}
			if slices.ContainsFunc(routes, func(r kernel.Route) bool { return r.Gateway == pe.PublicIP }) {
				t.Errorf("routes %v lead to the peer all the same", routes)
			}
		})
	}
}

func TestRefusedRouteIsItsPeers(t *testing.T) {
	h := newHost(t, dual)
	h.OnOp(kerneltest.FailNth(2, syscall.ENOBUFS, func(o kerneltest.Op) bool { return o.Verb == "put" }))
	peers := []subnet.Lease{lease("10.5.1.0-24", "198.18.0.2", ""), lease("10.5.2.0-24", "198.18.0.3", ""), lease("10.5.3.0-24", "198.18.0.4", "")}
	err := h.apply(peers...)
	var pe *backend.PeerError
	if !errors.As(err, &pe) || pe.Subnet != peers[1].Subnet || !errors.Is(err, syscall.ENOBUFS) {
		t.Errorf("Apply error %v, want one of peer %s", err, peers[1].Subnet)
	}
	if want := (reconcile.Result{Put: 2, Failed: 1}); h.result != want {
		t.Errorf("observed %+v, want %+v", h.result, want)
	}
	h.ResetOps()
	if err := h.apply(peers...); err != nil {
		t.Error(err)
	}
	h.expectOps("put route 10.5.2.0/24 via 198.18.0.3 dev eth0")
}

func TestCleanup(t *testing.T) {
	h := newHost(t, dual)
	h.params.Blackhole = true
	var err error
	if h.be, err = hostgw.New(h.params); err != nil {
		t.Fatal(err)
	}
	foreign := kernel.Route{Dst: netip.MustParsePrefix("10.5.77.0/24"), Gateway: netip.MustParseAddr("198.18.0.9"), Link: 2, Protocol: 4}
	if err := errors.Join(h.Routes().Put(t.Context(), []kernel.Route{foreign}), h.apply(lease("10.5.33.0-24", "198.18.0.2", ""))); err != nil {
		t.Fatal(err)
	}
	if err := h.be.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	routes, err := h.Routes().List(t.Context())
	if err != nil || len(routes) != 1 || routes[0] != foreign {
		t.Errorf("routes left %v, %v, want the foreign one", routes, err)
	}
}

// A config that was vxlan before: the routes move first, then its device goes.
func TestTunnelOfEarlierConfigGoes(t *testing.T) {
	h := newHost(t, dual)
	up := true
	dev, err := h.AddLink(t.Context(), kernel.Link{Name: "flannel.1", Type: "vxlan", Alias: kernel.Alias, VXLAN: kernel.VXLAN{VNI: 1}})
	if err != nil {
		t.Fatal(err)
	}
	past := kernel.Route{Dst: netip.MustParsePrefix("10.5.33.0/24"), Gateway: netip.MustParseAddr("10.5.33.0"), Link: dev.Index, OnLink: true}
	err = errors.Join(h.SetLink(t.Context(), dev.Index, kernel.LinkChange{Up: &up}), h.Routes().Put(t.Context(), []kernel.Route{past}))
	if err != nil {
		t.Fatal(err)
	}
	h.ResetOps()
	if err := h.apply(lease("10.5.33.0-24", "198.18.0.2", "")); err != nil {
		t.Fatal(err)
	}
	h.expectOps("put route 10.5.33.0/24 via 198.18.0.2 dev eth0", "delete link flannel.1")
}

func TestUplinkThatWillNotDo(t *testing.T) {
	h := newHost(t, dual)
	h.uplink.Addr[subnet.IPv6] = netip.Addr{}
	if _, err := h.be.Attrs(h.uplink); err == nil || err.Error() != "uplink eth0 has no IPv6 address, which the IPv6 network needs" {
		t.Errorf("Attrs error %v", err)
	}
}

// After any sequence of states desired, lost routes and failures, one Apply
// gives what a fresh host has, and the next one has nothing to do.
func TestApplyConverges(t *testing.T) {
	draw := func(t *rapid.T) []subnet.Lease {
		var peers []subnet.Lease
		for i, b := range rapid.SliceOfN(rapid.Byte(), 100, 100).Draw(t, "peers") {
			if b%4 == 0 {
				continue
			}
			net := []string{"198.18.0", "198.18.0", "198.18.0", "203.0.113"}[b>>2&3]
			peers = append(peers, lease(fmt.Sprintf("10.5.%d.0-24", 100+i), fmt.Sprintf("%s.%d", net, 2+b>>5), ""))
		}
		return peers
	}
	list := func(h *host) []kernel.Route {
		routes, err := h.Routes().List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return routes
	}
	rapid.Check(t, func(rt *rapid.T) {
		h, fresh := newHost(t, dual), newHost(t, dual)
		var last []subnet.Lease
		for range rapid.IntRange(1, 6).Draw(rt, "steps") {
			last = draw(rt)
			if rapid.Bool().Draw(rt, "fail") {
				h.OnOp(kerneltest.FailNth(rapid.IntRange(1, 60).Draw(rt, "nth"), syscall.ENOBUFS, nil))
			}
			_ = h.apply(last...) // may fail: that is what is tested
			h.OnOp(nil)
			if routes := list(h); len(routes) > 0 && rapid.Bool().Draw(rt, "lose") {
				if err := h.Routes().Delete(t.Context(), routes[rapid.IntRange(0, len(routes)-1).Draw(rt, "first"):]); err != nil {
					rt.Fatal(err)
				}
			}
		}
		_, _ = h.apply(last...), fresh.apply(last...) // peers off the segment are errors
		if diff := cmp.Diff(list(fresh), list(h), cmp.Comparer(func(a, b kernel.Route) bool { return a == b })); diff != "" {
			rt.Errorf("routes (-fresh +walked)\n%s", diff)
		}
		h.ResetOps()
		_ = h.apply(last...)
		if ops := h.Ops(); len(ops) > 0 {
			rt.Errorf("second Apply did %v", ops)
		}
	})
}
