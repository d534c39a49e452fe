package vxlan_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// flannel leaves a host as captures/vxlan.txt shows it.
func (h *host) flannel(change func(*kernel.Link), routes ...kernel.Route) kernel.Link {
	h.t.Helper()
	ctx := h.t.Context()
	l := kernel.Link{
		Name: "flannel.1", Type: "vxlan", MTU: 1450, MAC: kernel.MAC{0x72, 0x55, 0x3f, 0x43, 0x61, 0x6b},
		VXLAN: kernel.VXLAN{VNI: 1, Port: 8472, Local: netip.MustParseAddr("198.18.0.1"), Uplink: h.uplink.Link.Index},
	}
	if change != nil {
		change(&l)
	}
	l, err := h.AddLink(ctx, l)
	if err != nil {
		h.t.Fatal(err)
	}
	up := true
	mac := kernel.MAC{0x5e, 0xca, 0xce, 0xaa, 0x6f, 0xaf}
	dst := netip.MustParseAddr("10.5.3.0")
	err = errors.Join(
		h.SetLink(ctx, l.Index, kernel.LinkChange{Up: &up}),
		h.Addrs(l.Index).Put(ctx, []kernel.Addr{{Link: l.Index, Prefix: netip.MustParsePrefix("10.5.54.0/32")}}),
		h.FDB(l.Index).Put(ctx, []kernel.FDB{{Link: l.Index, MAC: mac, Dst: netip.MustParseAddr("198.18.0.2")}}),
		h.Neighbours(l.Index).Put(ctx, []kernel.Neighbour{{Link: l.Index, Addr: dst, MAC: mac}}),
		h.Routes().Put(ctx, []kernel.Route{{Dst: netip.MustParsePrefix("10.5.3.0/24"), Gateway: dst, Link: l.Index, OnLink: true, Protocol: 3}}),
		h.Routes().Put(ctx, routes),
	)
	if err != nil {
		h.t.Fatal(err)
	}
	h.ResetOps()
	return l
}

func TestFlannelsDeviceIsAdopted(t *testing.T) {
	h := newHost(t, v4only, "")
	dev := h.flannel(nil)
	attrs, err := h.be.Attrs(h.uplink)
	if want := subnet.RawJSON(`{"VNI":1,"VtepMAC":"72:55:3f:43:61:6b"}`); err != nil || attrs.BackendData[subnet.IPv4] != want {
		t.Errorf("Attrs() = %s, %v, want %s", attrs.BackendData[subnet.IPv4], err, want)
	}
	h.expectOps() // Attrs touches nothing
	h.apply(h.desired("10.5.54.0-24", peer3))
	h.expectOps("set link flannel.1", "put route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink")
	adopted, err := h.LinkByName(t.Context(), "flannel.1")
	if err != nil || adopted.Index != dev.Index || adopted.MAC != dev.MAC || adopted.Alias != kernel.Alias {
		t.Errorf("adopted device %+v, %v", adopted, err)
	}
	// A peer that left while nobody looked: its entries are on our device.
	h.restart()
	h.apply(h.desired("10.5.54.0-24"))
	h.expectOps("delete route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink", "delete neighbour 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af",
		"delete fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.2")
}

// With DirectRouting flannel leaves plain routes too. They are proven by a
// listed peer's address.
func TestFlannelsDirectRoutesAreAdopted(t *testing.T) {
	h := newHost(t, v4only, `,"DirectRouting":true`)
	plain := func(dst, via string, proto int) kernel.Route {
		return kernel.Route{
			Dst: netip.MustParsePrefix(dst), Gateway: netip.MustParseAddr(via), Link: h.uplink.Link.Index, Protocol: proto,
		}
	}
	h.flannel(nil, plain("10.5.7.0/24", "198.18.0.7", 3), plain("10.5.8.0/24", "198.18.0.7", 3),
		plain("10.5.200.0/24", "198.18.0.99", 3), plain("10.5.201.0/24", "198.18.0.7", 186), plain("10.6.0.0/24", "198.18.0.7", 3))
	h.apply(h.desired("10.5.54.0-24", lease("10.5.7.0-24", "198.18.0.7", "5e:ca:ce:aa:6f:07", "", "")))
	h.expectOps("set link flannel.1", "put route 10.5.7.0/24 via 198.18.0.7 dev eth0",
		"delete route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 proto 3 onlink", "delete route 10.5.8.0/24 via 198.18.0.7 dev eth0 proto 3",
		"delete neighbour 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af", "delete fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.2")
	want := `level=WARN msg="foreign routes inside the network are left alone" ` +
		`routes="10.5.200.0/24 via 198.18.0.99 dev eth0 proto 3; 10.5.201.0/24 via 198.18.0.7 dev eth0 proto 186"`
	if n := strings.Count(h.log.String(), want); n != 1 {
		t.Errorf("foreign routes reported %d times, want once, as %s\ngot %s", n, want, h.log.String())
	}
	h.log.Reset()
	h.apply(h.desired("10.5.54.0-24", lease("10.5.7.0-24", "198.18.0.7", "5e:ca:ce:aa:6f:07", "", "")))
	if strings.Contains(h.log.String(), "foreign") {
		t.Errorf("the same foreign routes are reported again: %s", h.log.String())
	}
}

func TestIncompatibleDeviceIsMadeAnew(t *testing.T) {
	changes := map[string]func(*kernel.Link){
		"port 4789 instead of 8472":      func(l *kernel.Link) { l.VXLAN.Port = 4789 },
		"vni 2 instead of 1":             func(l *kernel.Link) { l.VXLAN.VNI = 2 },
		"learning true instead of false": func(l *kernel.Link) { l.VXLAN.Learning = true },
		"gbp true instead of false":      func(l *kernel.Link) { l.VXLAN.GBP = true },
	}
	for reason, change := range changes {
		t.Run(reason, func(t *testing.T) {
			h := newHost(t, v4only, "")
			h.flannel(change)
			h.apply(h.desired("10.5.54.0-24", peer3))
			h.expect(`
		link flannel.1 mtu 1450 lladdr 72:55:3f:43:61:6b up true alias "flanneld-go" vxlan id 1 local 198.18.0.1 dev eth0 dstport 8472 learning false gbp false
		addr 10.5.54.0/32 dev flannel.1
		fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.2
		neigh 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af
		route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink
	`)
			want := `level=WARN msg="device is made anew, packets are lost until its entries are back" device=flannel.1 reason="` + reason + `"`
			if !strings.Contains(h.log.String(), want) {
				t.Errorf("log lacks %s\n%s", want, h.log.String())
			}
		})
	}
}

// The device goes on by another uplink with all its entries, those for peers by
// direct routes aside.
func TestUplinkIsFollowedInPlace(t *testing.T) {
	for name, direct := range map[string]string{"tunnel": "", "direct": `,"DirectRouting":true`} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, v4only, direct)
			d := h.desired("10.5.54.0-24", peer3, peer9)
			h.apply(d)
			eth1 := h.Plug(kernel.Link{Name: "eth1", MTU: 1400}, netip.MustParsePrefix("198.18.1.1/24"))
			h.uplink.Link, h.uplink.Addr[subnet.IPv4] = eth1, netip.MustParseAddr("198.18.1.1")
			h.uplink.Segments = []netip.Prefix{netip.MustParsePrefix("198.18.1.0/24")}
			h.ResetOps()
			d.Uplink = h.uplink
			h.apply(d)
			ops := []string{"set link flannel.1", "set link flannel.1"}
			if direct != "" { // peer3 is on another segment now
				ops = append(ops, "put fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.2", "put neighbour 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af",
					"put route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink")
			}
			h.expectOps(ops...)
			h.expect(`
		link flannel.1 mtu 1350 lladdr 5e:97:14:07:72:e5 up true alias "flanneld-go" vxlan id 1 local 198.18.1.1 dev eth1 dstport 8472 learning false gbp false
		addr 10.5.54.0/32 dev flannel.1
		fdb 5e:ca:ce:aa:6f:09 dev flannel.1 dst 203.0.113.9
		fdb 5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.2
		neigh 10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af
		neigh 10.5.9.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:09
		route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink
		route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink
	`)
			if mtu := h.be.MTU(h.uplink); mtu != 1350 {
				t.Errorf("MTU() = %d, want 1350", mtu)
			}
		})
	}
}

// A peer that was on the segment gets the tunnel's routes of both families, although
// IPv6 does not replace one by the other.
func TestDirectPeerGetsTheTunnel(t *testing.T) {
	h := newHost(t, dual, `,"DirectRouting":true`)
	peer := lease("10.5.3.0-24&fd05:0:0:3::-64", "198.18.0.2", "5e:ca:ce:aa:6f:af", "fd00:198:18::2", "5e:ca:ce:aa:6f:a6")
	d := h.desired("10.5.54.0-24&fd05:0:0:54::-64", peer)
	h.apply(d)
	d.Uplink.Segments = nil
	h.apply(d)
	routes, err := h.Routes().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range routes {
		got = append(got, fmt.Sprintf("%s via %s onlink %t", r.Dst, r.Gateway, r.OnLink))
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"10.5.3.0/24 via 10.5.3.0 onlink true", "fd05:0:0:3::/64 via fd05:0:0:3:: onlink true"}, got); diff != "" {
		t.Errorf("routes (-want +got)\n%s", diff)
	}
	if h.apply(d); h.result != (reconcile.Result{}) {
		t.Errorf("the next Apply changes %+v", h.result)
	}
}

// What the kernel does not change in place is made anew.
func TestUplinkOfTheOtherFamily(t *testing.T) {
	h := newHost(t, v4only, "")
	_, err := h.AddLink(t.Context(), kernel.Link{
		Name: "flannel.1", Type: "vxlan", VXLAN: kernel.VXLAN{VNI: 1, Port: 8472, Local: netip.MustParseAddr("fd00:198:18::1"), Uplink: h.uplink.Link.Index},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.ResetOps()
	h.apply(h.desired("10.5.54.0-24"))
	h.expectOps("delete link flannel.1", "add link flannel.1", "set link flannel.1", "put addr 10.5.54.0/32 dev flannel.1")
	if !strings.Contains(h.log.String(), "New local address family does not match old") {
		t.Errorf("log does not say why:\n%s", h.log.String())
	}
}

func TestForeignDeviceIsRefused(t *testing.T) {
	tests := map[string]struct {
		link kernel.Link
		want string
	}{
		"another type": {
			kernel.Link{Name: "flannel.1", Type: "bridge", MTU: 1500},
			`device is not ours: flannel.1 exists with type "bridge" and alias ""; remove it (ip link delete flannel.1) or choose another VNI`,
		},
		"another's alias": {
			kernel.Link{Name: "flannel.1", Type: "vxlan", Alias: "mine", VXLAN: kernel.VXLAN{VNI: 1}},
			`device is not ours: flannel.1 exists with type "vxlan" and alias "mine"; remove it (ip link delete flannel.1) or choose another VNI`,
		},
		"our tunnel under another name": {
			kernel.Link{Name: "vx0", Type: "vxlan", VXLAN: kernel.VXLAN{VNI: 1, Port: 8472}},
			"device is not ours: vx0 holds VNI 1 on UDP port 8472; remove it (ip link delete vx0) or choose another VNI or Port",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, v4only, `,"DirectRouting":true`)
			if _, err := h.AddLink(t.Context(), tc.link); err != nil {
				t.Fatal(err)
			}
			// A route that a working device once had must survive.
			left := kernel.Route{Dst: netip.MustParsePrefix("10.5.99.0/24"), Gateway: netip.MustParseAddr("198.18.0.9"), Link: 2}
			if err := h.Routes().Put(t.Context(), []kernel.Route{left}); err != nil {
				t.Fatal(err)
			}
			h.ResetOps()
			err := h.be.Apply(t.Context(), h.desired("10.5.54.0-24", peer3, peer9))
			if !errors.Is(err, vxlan.ErrForeignDevice) || err.Error() != tc.want {
				t.Errorf("Apply error\n got %v\nwant %s", err, tc.want)
			}
			h.expectOps("put route 10.5.3.0/24 via 198.18.0.2 dev eth0") // needs no tunnel
			if want := (reconcile.Result{Put: 1, Failed: 1}); h.result != want {
				t.Errorf("observed %+v, want %+v", h.result, want)
			}
		})
	}
}

// Our own device that somebody renamed is ours all the same.
func TestRenamedDeviceIsReplaced(t *testing.T) {
	h := newHost(t, v4only, "")
	if _, err := h.AddLink(t.Context(), kernel.Link{Name: "vx0", Type: "vxlan", Alias: kernel.Alias, VXLAN: kernel.VXLAN{VNI: 1, Port: 8472}}); err != nil {
		t.Fatal(err)
	}
	h.apply(h.desired("10.5.54.0-24"))
	h.expect(`
		link flannel.1 mtu 1450 lladdr 5e:97:14:07:72:e5 up true alias "flanneld-go" vxlan id 1 local 198.18.0.1 dev eth0 dstport 8472 learning false gbp false
		addr 10.5.54.0/32 dev flannel.1
	`)
}
