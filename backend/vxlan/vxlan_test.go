package vxlan_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	v4only = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"%s}}`
	dual   = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"vxlan"%s}}`
	node   = subnet.NodeID("h1")
	ownMAC = "5e:97:14:07:72:e5" // of h1, VNI 1, IPv4
)

// host is one host on a fake kernel: eth0 with 198.18.0.1/24 and
// fd00:198:18::1/64.
type host struct {
	*kerneltest.Fake
	t      *testing.T
	config *subnet.Config
	params backend.Params
	be     backend.Backend
	uplink backend.Uplink
	result reconcile.Result
	log    bytes.Buffer
}

// newHost makes a host; options are more members of the Backend object.
func newHost(t *testing.T, config, options string) *host {
	t.Helper()
	h := &host{Fake: kerneltest.New(), t: t}
	eth0 := h.Plug(kernel.Link{Name: "eth0", MTU: 1500},
		netip.MustParsePrefix("198.18.0.1/24"), netip.MustParsePrefix("fd00:198:18::1/64"))
	var err error
	if h.config, err = subnet.ParseConfig(fmt.Sprintf(config, options)); err != nil {
		t.Fatal(err)
	}
	own := subnet.ByFamily[netip.Addr]{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd00:198:18::1")}
	h.params = backend.Params{
		Config: h.config, Node: node, Kernel: h.Fake,
		Log:     slog.New(slog.NewTextHandler(&h.log, &slog.HandlerOptions{ReplaceAttr: dropTime})),
		Observe: func(r reconcile.Result) { h.result = r },
	}
	h.uplink = backend.Uplink{
		Link: eth0, Addr: own, Public: own,
		Segments: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24"), netip.MustParsePrefix("fd00:198:18::/64")},
	}
	h.restart()
	return h
}

func dropTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// restart is a new process on the same kernel.
func (h *host) restart() {
	h.t.Helper()
	be, err := vxlan.New(h.params)
	if err != nil {
		h.t.Fatal(err)
	}
	h.be = be
}

// lease makes one: subnet, public address and MAC per family; "" leaves out.
func lease(key, public4, mac4, public6, mac6 string) subnet.Lease {
	s, err := subnet.ParseSubnet(key)
	if err != nil {
		panic(err)
	}
	l := subnet.Lease{Subnet: s, Attrs: subnet.Attrs{BackendType: "vxlan"}}
	for f, half := range [][2]string{{public4, mac4}, {public6, mac6}} {
		if half[0] != "" {
			l.Attrs.PublicIP[f] = netip.MustParseAddr(half[0])
			l.Attrs.BackendData[f] = subnet.RawJSON(fmt.Sprintf(`{"VNI":1,"VtepMAC":%q}`, half[1]))
		}
	}
	return l
}

// desired is what a host with the given subnet and peers should be in.
func (h *host) desired(own string, peers ...subnet.Lease) backend.Desired {
	return backend.Desired{Config: h.config, Uplink: h.uplink, Own: lease(own, "198.18.0.1", ownMAC, "", ""), Peers: slices.Collect(subnet.Each(peers))}
}

// apply must succeed.
func (h *host) apply(d backend.Desired) {
	h.t.Helper()
	if err := h.be.Apply(h.t.Context(), d); err != nil {
		h.t.Fatalf("Apply: %v", err)
	}
}

// state prints all that the overlay has in a kernel, in iproute2's notation.
func state(t testing.TB, k kernel.Host) string {
	t.Helper()
	ctx := context.Background()
	links, err := k.Links(ctx)
	if err != nil {
		t.Fatal(err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	slices.SortFunc(links, func(a, b kernel.Link) int { return strings.Compare(a.Name, b.Name) })
	var out []string
	for _, l := range links {
		if l.Type != "vxlan" {
			continue
		}
		out = append(out, fmt.Sprintf("link %s mtu %d lladdr %s up %t alias %q vxlan id %d local %s dev %s dstport %d learning %t gbp %t", l.Name,
			l.MTU, l.MAC, l.Up, l.Alias, l.VXLAN.VNI, l.VXLAN.Local, names[l.VXLAN.Uplink], l.VXLAN.Port, l.VXLAN.Learning, l.VXLAN.GBP))
		out = append(out, rows(t, "addr", k.Addrs(l.Index), func(a kernel.Addr) string { return a.Notation(l.Name) })...)
		out = append(out, rows(t, "fdb", k.FDB(l.Index), func(e kernel.FDB) string { return e.Notation(l.Name) })...)
		out = append(out, rows(t, "neigh", k.Neighbours(l.Index), func(n kernel.Neighbour) string { return n.Notation(l.Name) })...)
	}
	out = append(out, rows(t, "route", k.Routes(), func(r kernel.Route) string { return r.Notation(names[r.Link]) })...)
	return strings.Join(out, "\n")
}

func rows[E any](t testing.TB, kind string, table reconcile.Table[E], print func(E) string) []string {
	t.Helper()
	entries, err := table.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, kind+" "+print(e))
	}
	slices.Sort(out)
	return out
}

func (h *host) expect(want string) {
	h.t.Helper()
	want = strings.TrimSpace(strings.ReplaceAll(want, "\t", ""))
	if diff := lines(want, state(h.t, h)); diff != "" {
		h.t.Errorf("state (-want +got)\n%s", diff)
	}
}

// lines is a diff by lines.
func lines(want, got string) string {
	return cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n"))
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

var (
	peer3 = lease("10.5.3.0-24", "198.18.0.2", "5e:ca:ce:aa:6f:af", "", "")
	peer9 = lease("10.5.9.0-24", "203.0.113.9", "5e:ca:ce:aa:6f:09", "", "")
)

// captures/vxlan.txt, host 1, but for the MAC and the alias.
func TestApplyLikeFlannel(t *testing.T) {
	h := newHost(t, v4only, "")
	h.apply(h.desired("10.5.54.0-24", peer3))
	h.expect(`
		link flannel.1 mtu 1450 lladdr 5e:97:14:07:72:e5 up true alias "flanneld-go" vxlan id 1 local 198.18.0.1 dev eth0 dstport 8472 learning false gbp false
		addr 10.5.54.0/32 dev flannel.1
		fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.2
		neigh 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af
		route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink
	`)
	if h.be.MTU(h.uplink) != 1450 {
		t.Errorf("MTU() = %d, want 1450", h.be.MTU(h.uplink))
	}
	want := backend.Tunnel{Devices: []string{"flannel.1"}, Port: 8472, Encapsulation: backend.VXLANFrame, VNI: 1}
	if diff := cmp.Diff(want, h.be.Tunnel()); diff != "" {
		t.Errorf("Tunnel() (-want +got)\n%s", diff)
	}
	attrs, err := h.be.Attrs(h.uplink)
	if err != nil {
		t.Fatal(err)
	}
	wantAttrs := subnet.Attrs{
		PublicIP: subnet.ByFamily[netip.Addr]{netip.MustParseAddr("198.18.0.1")}, BackendType: "vxlan",
		BackendData: subnet.ByFamily[subnet.RawJSON]{`{"VNI":1,"VtepMAC":"5e:97:14:07:72:e5"}`},
	}
	if attrs != wantAttrs {
		t.Errorf("Attrs() = %+v, want %+v", attrs, wantAttrs)
	}
}

// captures/vxlan-dual.txt, host 1.
func TestApplyDualStack(t *testing.T) {
	h := newHost(t, dual, "")
	h.DefineSysctl("net/ipv6/conf/flannel-v6.1/accept_ra", "1")
	h.apply(h.desired("10.5.6.0-24&fd05:0:0:30::-64",
		lease("10.5.35.0-24&fd05:0:0:52::-64", "198.18.0.2", "ee:27:87:43:1f:08", "fd00:198:18::2", "e2:fb:49:af:e6:a8")))
	h.expect(`
		link flannel-v6.1 mtu 1430 lladdr e6:00:76:c0:98:86 up true alias "flanneld-go" vxlan id 1 local fd00:198:18::1 dev eth0 dstport 8472 learning false gbp false
		addr fd05:0:0:30::/128 dev flannel-v6.1
		fdb e2:fb:49:af:e6:a8 dev flannel-v6.1 dst fd00:198:18::2
		neigh fd05:0:0:52:: dev flannel-v6.1 lladdr e2:fb:49:af:e6:a8
		link flannel.1 mtu 1450 lladdr 5e:97:14:07:72:e5 up true alias "flanneld-go" vxlan id 1 local 198.18.0.1 dev eth0 dstport 8472 learning false gbp false
		addr 10.5.6.0/32 dev flannel.1
		fdb ee:27:87:43:1f:08 dev flannel.1 dst 198.18.0.2
		neigh 10.5.35.0 dev flannel.1 lladdr ee:27:87:43:1f:08
		route 10.5.35.0/24 via 10.5.35.0 dev flannel.1 onlink
		route fd05:0:0:52::/64 via fd05:0:0:52:: dev flannel-v6.1 onlink
	`)
	if h.be.MTU(h.uplink) != 1430 {
		t.Errorf("MTU() = %d, want the smaller one, 1430", h.be.MTU(h.uplink))
	}
	if v, err := h.Sysctl("net/ipv6/conf/flannel-v6.1/accept_ra"); err != nil || v != "0" {
		t.Errorf("accept_ra = %q, %v, want 0", v, err)
	}
}

func TestApplyOrder(t *testing.T) {
	h := newHost(t, v4only, "")
	h.apply(h.desired("10.5.54.0-24", peer3))
	h.expectOps("add link flannel.1", "set link flannel.1", "put addr 10.5.54.0/32 dev flannel.1",
		"put fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.2", "put neighbour 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af",
		"put route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink")
	if want := (reconcile.Result{Put: 6}); h.result != want {
		t.Errorf("observed %+v, want %+v", h.result, want)
	}

	h.apply(h.desired("10.5.54.0-24", peer3))
	h.expectOps()
	if want := (reconcile.Result{}); h.result != want {
		t.Errorf("second Apply: observed %+v, want %+v", h.result, want)
	}

	moved := peer3
	moved.Attrs.PublicIP[subnet.IPv4] = netip.MustParseAddr("198.18.0.3")
	h.apply(h.desired("10.5.54.0-24", moved))
	h.expectOps("put fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.3")

	reborn := lease("10.5.3.0-24", "198.18.0.3", "5e:ca:ce:aa:6f:b0", "", "")
	h.apply(h.desired("10.5.54.0-24", reborn))
	h.expectOps("put fdb 5e:ca:ce:aa:6f:b0 dev flannel.1 dst 198.18.0.3", "put neighbour 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:b0",
		"delete fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.3")

	h.apply(h.desired("10.5.54.0-24"))
	h.expectOps("delete route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink", "delete neighbour 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:b0",
		"delete fdb 5e:ca:ce:aa:6f:b0 dev flannel.1 dst 198.18.0.3")

	h.apply(h.desired("10.5.55.0-24"))
	h.expectOps("put addr 10.5.55.0/32 dev flannel.1", "delete addr 10.5.54.0/32 dev flannel.1")
}

func TestAddressesOfOthersStay(t *testing.T) {
	h := newHost(t, v4only, "")
	h.apply(h.desired("10.5.54.0-24"))
	dev, err := h.LinkByName(t.Context(), "flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"10.5.54.9/32", "10.6.1.0/32", "10.5.8.0/24"} {
		if err := h.Addrs(dev.Index).Put(t.Context(), []kernel.Addr{{Link: dev.Index, Prefix: netip.MustParsePrefix(p)}}); err != nil {
			t.Fatal(err)
		}
	}
	h.ResetOps()
	h.apply(h.desired("10.5.54.0-24"))
	h.expectOps()
}

// captures/vxlan-direct.txt.
func TestDirectRouting(t *testing.T) {
	h := newHost(t, v4only, `,"DirectRouting":true`)
	h.apply(h.desired("10.5.54.0-24", peer3, peer9))
	h.expect(`
		link flannel.1 mtu 1450 lladdr 5e:97:14:07:72:e5 up true alias "flanneld-go" vxlan id 1 local 198.18.0.1 dev eth0 dstport 8472 learning false gbp false
		addr 10.5.54.0/32 dev flannel.1
		fdb 5e:ca:ce:aa:6f:09 dev flannel.1 dst 203.0.113.9
		neigh 10.5.9.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:09
		route 10.5.3.0/24 via 198.18.0.2 dev eth0
		route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink
	`)
	if !h.be.Tunnel().Direct {
		t.Error("Tunnel() says nothing of direct routes")
	}
	h.ResetOps()
	away := peer3
	away.Attrs.PublicIP[subnet.IPv4] = netip.MustParseAddr("203.0.113.3")
	h.apply(h.desired("10.5.54.0-24", away, peer9))
	h.expectOps("put fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 203.0.113.3", "put neighbour 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af",
		"put route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink")
	h.apply(h.desired("10.5.54.0-24", peer3, peer9))
	h.expectOps("put route 10.5.3.0/24 via 198.18.0.2 dev eth0",
		"delete neighbour 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af", "delete fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 203.0.113.3")
}

func TestPeersThatCannotBeReached(t *testing.T) {
	change := func(f func(*subnet.Lease)) subnet.Lease {
		l := lease("10.5.7.0-24", "198.18.0.7", "5e:ca:ce:aa:6f:07", "", "")
		f(&l)
		return l
	}
	tests := map[string]struct {
		peer subnet.Lease
		want string
		is   error
	}{
		"another backend": {
			change(func(l *subnet.Lease) { l.Attrs.BackendType = "host-gw" }),
			`peer 10.5.7.0/24 at 198.18.0.7: its backend is another: "host-gw", not "vxlan"`, backend.ErrOtherBackend,
		},
		"udp": {
			change(func(l *subnet.Lease) { l.Attrs.BackendType = "" }),
			`peer 10.5.7.0/24 at 198.18.0.7: its backend is another: "", not "vxlan"`, backend.ErrOtherBackend,
		},
		"another VNI": {
			change(func(l *subnet.Lease) { l.Attrs.BackendData[0] = `{"VNI":2,"VtepMAC":"5e:ca:ce:aa:6f:07"}` }),
			"peer 10.5.7.0/24 at 198.18.0.7: its VNI is another: 2, not 1", vxlan.ErrOtherVNI,
		},
		"unreadable": {
			change(func(l *subnet.Lease) { l.Attrs.BackendData[0] = `[]` }),
			"peer 10.5.7.0/24 at 198.18.0.7: read backend data: json: cannot unmarshal array into Go value of type vxlan.vtep", nil,
		},
		"no address": {
			change(func(l *subnet.Lease) { l.Attrs.PublicIP[0] = netip.Addr{} }),
			"peer 10.5.7.0/24: it has no public IPv4 address", nil,
		},
		"our address": {
			change(func(l *subnet.Lease) { l.Attrs.PublicIP[0] = netip.MustParseAddr("198.18.0.1") }),
			"peer 10.5.7.0/24 at 198.18.0.1: its public address 198.18.0.1 is this host's own", nil,
		},
		"loopback": {
			change(func(l *subnet.Lease) { l.Attrs.PublicIP[0] = netip.MustParseAddr("127.0.0.1") }),
			"peer 10.5.7.0/24 at 127.0.0.1: its public address 127.0.0.1 is no host's", nil,
		},
		"our MAC": {
			change(func(l *subnet.Lease) { l.Attrs.BackendData[0] = `{"VNI":1,"VtepMAC":"` + ownMAC + `"}` }),
			"peer 10.5.7.0/24 at 198.18.0.7: its VtepMAC 5e:97:14:07:72:e5 is this host's own", nil,
		},
		"another peer's MAC": {
			change(func(l *subnet.Lease) { l.Attrs.BackendData[0] = `{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"}` }),
			"peer 10.5.7.0/24 at 198.18.0.7: its VtepMAC 5e:ca:ce:aa:6f:af is also that of 10.5.3.0/24", nil,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, v4only, "")
			err := h.be.Apply(t.Context(), h.desired("10.5.54.0-24", peer3, tc.peer, peer9))
			var pe *backend.PeerError
			if !errors.As(err, &pe) || err.Error() != tc.want || pe.Subnet != tc.peer.Subnet {
				t.Errorf("Apply error\n got %v\nwant %s", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("Apply error %v is no %v", err, tc.is)
			}
			h.expect(`
		link flannel.1 mtu 1450 lladdr 5e:97:14:07:72:e5 up true alias "flanneld-go" vxlan id 1 local 198.18.0.1 dev eth0 dstport 8472 learning false gbp false
		addr 10.5.54.0/32 dev flannel.1
		fdb 5e:ca:ce:aa:6f:09 dev flannel.1 dst 203.0.113.9
		fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.2
		neigh 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af
		neigh 10.5.9.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:09
		route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink
		route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink
	`)
		})
	}
}

// A host that moved to another subnet has two for a while, and is one VTEP.
func TestOneHostWithTwoSubnets(t *testing.T) {
	h := newHost(t, v4only, "")
	second := peer3
	second.Subnet = subnet.Subnet{netip.MustParsePrefix("10.5.7.0/24")}
	h.apply(h.desired("10.5.54.0-24", peer3, second))
	h.expect(`
		link flannel.1 mtu 1450 lladdr 5e:97:14:07:72:e5 up true alias "flanneld-go" vxlan id 1 local 198.18.0.1 dev eth0 dstport 8472 learning false gbp false
		addr 10.5.54.0/32 dev flannel.1
		fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.2
		neigh 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af
		neigh 10.5.7.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af
		route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink
		route 10.5.7.0/24 via 10.5.7.0 dev flannel.1 onlink
	`)
	h.apply(h.desired("10.5.54.0-24", second))
	h.expect(`
		link flannel.1 mtu 1450 lladdr 5e:97:14:07:72:e5 up true alias "flanneld-go" vxlan id 1 local 198.18.0.1 dev eth0 dstport 8472 learning false gbp false
		addr 10.5.54.0/32 dev flannel.1
		fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.2
		neigh 10.5.7.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af
		route 10.5.7.0/24 via 10.5.7.0 dev flannel.1 onlink
	`)
}

// What the kernel refuses is said of the peer, the others go on, and the next
// Apply does the rest.
func TestRefusedEntryIsItsPeers(t *testing.T) {
	for _, kind := range []string{"fdb", "neighbour", "route"} {
		t.Run(kind, func(t *testing.T) {
			h := newHost(t, v4only, "")
			h.OnOp(kerneltest.FailNth(1, syscall.ENOBUFS, func(o kerneltest.Op) bool { return o.Verb == "put" && o.Kind == kind }))
			err := h.be.Apply(t.Context(), h.desired("10.5.54.0-24", peer3, peer9))
			var pe *backend.PeerError
			if !errors.As(err, &pe) || pe.Subnet != peer3.Subnet || !errors.Is(err, syscall.ENOBUFS) {
				t.Errorf("Apply error %v, want one of peer %s", err, peer3.Subnet)
			}
			if want := (reconcile.Result{Put: 8, Failed: 1}); h.result != want {
				t.Errorf("observed %+v, want %+v", h.result, want)
			}
			h.apply(h.desired("10.5.54.0-24", peer3, peer9))
			if want := (reconcile.Result{Put: 1}); h.result != want {
				t.Errorf("second Apply: observed %+v, want %+v", h.result, want)
			}
		})
	}
}

func TestVNIChangeSweepsTheOldDevice(t *testing.T) {
	h := newHost(t, v4only, "")
	h.apply(h.desired("10.5.54.0-24", peer3))
	var err error
	if h.config, err = subnet.ParseConfig(fmt.Sprintf(v4only, `,"VNI":2`)); err != nil {
		t.Fatal(err)
	}
	h.params.Config = h.config
	h.restart()
	h.ResetOps()
	moved := peer3
	moved.Attrs.BackendData[0] = `{"VNI":2,"VtepMAC":"5e:ca:ce:aa:6f:af"}`
	h.apply(h.desired("10.5.54.0-24", moved))
	h.expectOps("add link flannel.2", "set link flannel.2", "put addr 10.5.54.0/32 dev flannel.2",
		"put fdb 5e:ca:ce:aa:6f:af dev flannel.2 dst 198.18.0.2", "put neighbour 10.5.3.0 dev flannel.2 lladdr 5e:ca:ce:aa:6f:af",
		"put route 10.5.3.0/24 via 10.5.3.0 dev flannel.2 onlink", "delete link flannel.1")
}

func TestCleanup(t *testing.T) {
	h := newHost(t, v4only, `,"DirectRouting":true`)
	h.params.Blackhole = true
	h.restart()
	h.apply(h.desired("10.5.54.0-24", peer3, peer9))
	foreign := kernel.Route{Dst: netip.MustParsePrefix("10.5.77.0/24"), Gateway: netip.MustParseAddr("198.18.0.9"), Link: 2, Protocol: 4}
	if err := h.Routes().Put(t.Context(), []kernel.Route{foreign}); err != nil {
		t.Fatal(err)
	}
	other, err := h.AddLink(t.Context(), kernel.Link{Name: "vx7", Type: "vxlan", VXLAN: kernel.VXLAN{VNI: 7}, MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.be.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	h.expect(fmt.Sprintf(`
		link vx7 mtu 1400 lladdr %s up false alias "" vxlan id 7 local invalid IP dev  dstport 8472 learning false gbp false
		route 10.5.77.0/24 via 198.18.0.9 dev eth0 proto 4
	`, other.MAC))
}

// flannel's own device under our name goes too, though we never ran.
func TestCleanupOfFlannels(t *testing.T) {
	h := newHost(t, v4only, "")
	h.flannel(nil)
	if err := h.be.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.expect("")
}
