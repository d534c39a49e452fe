package vxlan_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/backendtest"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/backend/uplink"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// On the running kernel a host of ours looks like flannel's, to the word. The
// device is made beforehand as flannel makes it, which gives it the MAC of the
// captures; ours would be another.
func TestHostLooksLikeFlannels(t *testing.T) {
	const add = "type vxlan id %d local %s dev eth0 dstport %d nolearning"
	tests := map[string]struct {
		config    string
		devices   map[string]string // name: MAC
		own, peer subnet.Lease
		vni, port int
	}{
		"vxlan": {
			config:  `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`,
			devices: map[string]string{"flannel.1": "72:55:3f:43:61:6b"}, vni: 1, port: 8472,
			own: lease("10.5.54.0-24", "198.18.0.1", "72:55:3f:43:61:6b", "", ""), peer: lease("10.5.3.0-24", "198.18.0.2", "5e:ca:ce:aa:6f:af", "", ""),
		},
		"vxlan-direct": {
			config:  `{"Network":"10.5.0.0/16","SubnetLen":26,"Backend":{"Type":"vxlan","VNI":7,"Port":4789,"DirectRouting":true}}`,
			devices: map[string]string{"flannel.7": "ba:e4:bf:06:d4:a9"}, vni: 7, port: 4789,
			own: lease("10.5.20.128-26", "198.18.0.1", "ba:e4:bf:06:d4:a9", "", ""),
			peer: func() subnet.Lease {
				l := lease("10.5.24.192-26", "198.18.0.2", "", "", "")
				l.Attrs.BackendData[subnet.IPv4] = `{"VNI":7,"VtepMAC":"32:c0:92:f8:66:e5"}`
				return l
			}(),
		},
		"vxlan-dual": {
			config:  `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"vxlan"}}`,
			devices: map[string]string{"flannel.1": "92:9c:a8:6c:9e:9e", "flannel-v6.1": "ee:f4:44:a9:90:b4"}, vni: 1, port: 8472,
			own: lease("10.5.6.0-24&fd05:0:0:30::-64", "198.18.0.1", "92:9c:a8:6c:9e:9e", "", ""),
			// In the capture both hosts have the same IPv6 address, by an
			// oversight; ours refuse such a peer.
			peer: lease("10.5.35.0-24&fd05:0:0:52::-64", "198.18.0.2", "ee:27:87:43:1f:09", "fd00:198:18::2", "e2:fb:49:af:e6:a9"),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			ns := backendtest.FlannelHost(t)
			var names []string
			for _, device := range []string{fmt.Sprintf("flannel.%d", tc.vni), fmt.Sprintf("flannel-v6.%d", tc.vni)} {
				mac, ok := tc.devices[device]
				if !ok {
					continue
				}
				local := "198.18.0.1"
				if len(names) == 1 {
					local = "fd00:198:18::1"
				}
				ns.Run(t, "sh", "-c", "ip link add "+device+" address "+mac+" "+fmt.Sprintf(add, tc.vni, local, tc.port))
				names = append(names, device)
			}
			be, d, result := onKernel(t, ns, tc.config)
			d.Own, d.Peers = tc.own, []*subnet.Lease{&tc.peer}
			applyTwice(t, be, d, result)
			for _, device := range names {
				if v, err := ns.Sysctl("net/ipv6/conf/" + device + "/accept_ra"); err != nil || v != "0" {
					t.Errorf("accept_ra of %s = %q, %v, want 0", device, v, err)
				}
			}
			got := strings.ReplaceAll(backendtest.Capture(t, ns, names...), "dst fd00:198:18::2 ", "dst fd00:198:18::1 ")
			backendtest.ExpectCapture(t, "testdata/"+name+".txt", got)

			if err := be.Cleanup(t.Context()); err != nil {
				t.Fatal(err)
			}
			const left = "route default via 198.18.0.254 dev eth0 proto 3\nroute default via fd00:198:18::fe dev eth0 proto 3"
			if diff := lines(left, state(t, ns)); diff != "" {
				t.Errorf("after cleanup (-want +got)\n%s", diff)
			}
		})
	}
}

// onKernel makes a backend whose uplink is chosen as the daemon does.
func onKernel(t testing.TB, ns *kerneltest.Namespace, config string) (backend.Backend, backend.Desired, *reconcile.Result) {
	t.Helper()
	c, err := subnet.ParseConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	up, err := uplink.Choose(t.Context(), ns, uplink.Options{})
	if err != nil {
		t.Fatal(err)
	}
	result := new(reconcile.Result)
	be, err := vxlan.New(backend.Params{
		Config: c, Node: node, Kernel: ns, Observe: func(r reconcile.Result) { *result = r },
	})
	if err != nil {
		t.Fatal(err)
	}
	return be, backend.Desired{Config: c, Uplink: up}, result
}

// applyTwice must have nothing to do the second time.
func applyTwice(t *testing.T, be backend.Backend, d backend.Desired, result *reconcile.Result) {
	t.Helper()
	if err := be.Apply(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if err := be.Apply(t.Context(), d); err != nil || *result != (reconcile.Result{}) {
		t.Fatalf("second Apply: observed %+v, %v, want nothing", *result, err)
	}
}

// Containers and hosts reach each other, on one segment and across a router.
func TestPing(t *testing.T) {
	for name, config := range map[string]string{
		"vxlan":          fmt.Sprintf(v4only, ""),
		"direct routing": fmt.Sprintf(v4only, `,"DirectRouting":true,"VNI":7,"Port":4789`),
		"dual stack":     fmt.Sprintf(dual, `,"DirectRouting":true`),
		"long VNI":       fmt.Sprintf(dual, `,"VNI":16777215,"GBP":true`),
	} {
		t.Run(name, func(t *testing.T) {
			lab := backendtest.NewLab(t, vxlan.New, config, 0, 0, 1)
			lab.ApplyAll()
			lab.PingAll()
			for i, h := range lab.Hosts {
				if h.Apply(t.Context()); h.Result != (reconcile.Result{}) {
					t.Errorf("host %d: second Apply: observed %+v, want nothing", i+1, h.Result)
				}
			}
		})
	}
}

// Hosts of one segment that are told that it is none any more go on by the tunnel.
func TestPingWithoutTheSegment(t *testing.T) {
	lab := backendtest.NewLab(t, vxlan.New, fmt.Sprintf(dual, `,"DirectRouting":true`), 0, 0)
	lab.ApplyAll()
	for _, h := range lab.Hosts {
		h.Uplink.Segments = nil
	}
	lab.ApplyAll()
	lab.PingAll()
	for i, h := range lab.Hosts {
		if h.Apply(t.Context()); h.Result != (reconcile.Result{}) {
			t.Errorf("host %d: second Apply: observed %+v, want nothing", i+1, h.Result)
		}
	}
}

// Whatever is broken by hand comes back in one Apply, with the same MAC, so
// that peers need not be told.
func TestRepair(t *testing.T) {
	lab := backendtest.NewLab(t, vxlan.New, fmt.Sprintf(v4only, ""), 0, 0, 1)
	lab.ApplyAll()
	h := lab.Hosts[0]
	whole := state(t, h)
	for name, command := range map[string]string{
		"device":             "ip link del flannel.1",
		"device down":        "ip link set flannel.1 down",
		"name":               "ip link set flannel.1 down && ip link set flannel.1 name fl && ip link set fl up",
		"MAC":                "ip link set flannel.1 address 02:00:00:00:00:99",
		"MTU":                "ip link set flannel.1 mtu 1400",
		"alias":              "ip link set flannel.1 alias ''",
		"address":            "ip addr flush dev flannel.1",
		"all routes":         "for r in $(ip route show proto 158 | cut -d' ' -f1); do ip route del $r; done",
		"all nexthops":       "ip nexthop flush",
		"one route":          "ip route del 10.5.2.0/24",
		"route changed":      "ip route del 10.5.2.0/24 && ip route add 10.5.2.0/24 via 198.18.0.9 proto 158",
		"FDB entry":          "bridge fdb del $(bridge fdb show dev flannel.1 | awk '/dst 198.18.0.2/ {print $1}') dev flannel.1 dst 198.18.0.2",
		"FDB entry changed":  "bridge fdb replace $(bridge fdb show dev flannel.1 | awk '/dst 198.18.0.2/ {print $1}') dev flannel.1 dst 198.18.0.9",
		"FDB entry too many": "bridge fdb add 02:00:00:00:00:77 dev flannel.1 dst 198.18.0.9",
		"all neighbours":     "ip neigh flush nud all dev flannel.1",
		"neighbour":          "ip neigh del 10.5.2.0 dev flannel.1",
		"neighbour changed":  "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent",
		"neighbour too many": "ip neigh add 10.5.9.9 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent",
		"other port":         "ip link del flannel.1 && ip link add flannel.1 type vxlan id 1 local 198.18.0.1 dev eth0 dstport 9999 nolearning",
	} {
		t.Run(name, func(t *testing.T) {
			h.Run(t, "sh", "-c", command)
			if broken := state(t, h); broken == whole {
				t.Fatalf("%s broke nothing", command)
			}
			h.Apply(t.Context())
			if diff := lines(whole, state(t, h)); diff != "" {
				t.Errorf("after one Apply (-whole +got)\n%s", diff)
			}
			if h.Apply(t.Context()); h.Result != (reconcile.Result{}) {
				t.Errorf("second Apply: observed %+v, want nothing", h.Result)
			}
			lab.PingAll()
		})
	}
}

// Where IPv6 is off by default, or is turned off, the device for it has it on.
func TestIPv6IsOff(t *testing.T) {
	ns := backendtest.FlannelHost(t)
	off := func(link string) {
		if err := ns.SetSysctl("net/ipv6/conf/"+link+"/disable_ipv6", "1"); err != nil {
			t.Fatal(err)
		}
	}
	off("default")
	be, d, result := onKernel(t, ns, fmt.Sprintf(dual, ""))
	d.Own = lease("10.5.6.0-24&fd05:0:0:30::-64", "198.18.0.1", "", "", "")
	d.Peers = []*subnet.Lease{new(lease("10.5.35.0-24&fd05:0:0:52::-64", "198.18.0.2", "ee:27:87:43:1f:08", "fd00:198:18::2", "e2:fb:49:af:e6:a8"))}
	applyTwice(t, be, d, result)
	whole := state(t, ns)
	for _, want := range []string{"fd05:0:0:30::/128", "fd05:0:0:52::/64"} {
		if !strings.Contains(whole, want) {
			t.Errorf("%s is not there:\n%s", want, whole)
		}
	}
	if v, err := ns.Sysctl("net/ipv6/conf/flannel.1/disable_ipv6"); err != nil || v != "1" {
		t.Errorf("disable_ipv6 of flannel.1, which has no IPv6, is %s, %v", v, err)
	}
	off("flannel-v6.1")
	if broken := state(t, ns); broken == whole {
		t.Fatal("that broke nothing")
	}
	applyTwice(t, be, d, result)
	if diff := lines(whole, state(t, ns)); diff != "" {
		t.Errorf("after one Apply (-whole +got)\n%s", diff)
	}
}

// A host that gets another address keeps subnet and MAC; its peers follow by
// one FDB entry, or by one route.
func TestPeerMoves(t *testing.T) {
	for name, options := range map[string]string{"vxlan": "", "direct routing": `,"DirectRouting":true`} {
		t.Run(name, func(t *testing.T) {
			lab := backendtest.NewLab(t, vxlan.New, fmt.Sprintf(v4only, options), 0, 0)
			lab.ApplyAll()
			mover, watcher := lab.Hosts[1], lab.Hosts[0]
			before := mover.Lease.Attrs
			mover.Run(t, "ip", "addr", "del", "198.18.0.2/24", "dev", "eth0")
			mover.Run(t, "ip", "addr", "add", "198.18.0.22/24", "dev", "eth0")
			mover.Run(t, "ip", "route", "replace", "default", "via", "198.18.0.254")
			mover.Restart(netip.MustParseAddr("198.18.0.22"))
			if mover.Lease.Attrs.BackendData != before.BackendData || mover.Lease.Attrs.PublicIP == before.PublicIP {
				t.Fatalf("attributes went from %+v to %+v, want another address and the same MAC", before, mover.Lease.Attrs)
			}
			mover.Apply(t.Context())
			watcher.Apply(t.Context())
			if want := (reconcile.Result{Put: 1}); watcher.Result != want {
				t.Errorf("peer: observed %+v, want %+v", watcher.Result, want)
			}
			lab.PingAll()
		})
	}
}

// Cleanup on the running kernel leaves the namespace as it was.
func TestCleanupOnKernel(t *testing.T) {
	lab := backendtest.NewLab(t, vxlan.New, fmt.Sprintf(dual, `,"DirectRouting":true`), 0, 0, 1)
	h := lab.Hosts[0]
	show := func() string {
		return state(t, h) + h.Run(t, "ip", "nexthop")
	}
	before := show()
	lab.ApplyAll()
	if show() == before {
		t.Fatal("Apply changed nothing")
	}
	if err := h.Backend.Cleanup(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	if diff := lines(before, show()); diff != "" {
		t.Errorf("after cleanup (-before +after)\n%s", diff)
	}
}

// What is somebody else's stays as it is and is named.
func TestForeignThingsOnKernel(t *testing.T) {
	tests := map[string]struct {
		command string
		is      error
		want    string
	}{
		"device of another type": {
			"ip link add flannel.1 type bridge", vxlan.ErrForeignDevice,
			`device is not ours: flannel.1 exists with type "bridge" and alias ""; remove it (ip link delete flannel.1) or choose another VNI`,
		},
		"our tunnel under another name": {
			"ip link add vx0 type vxlan id 1 dstport 8472 local 198.18.0.1 dev eth0", vxlan.ErrForeignDevice,
			"device is not ours: vx0 holds VNI 1 on UDP port 8472; remove it (ip link delete vx0) or choose another VNI or Port",
		},
		"socket of another kind on the port": {
			"ip link add cilium_vxlan type vxlan external dstport 8472 && ip link set cilium_vxlan up", syscall.EADDRINUSE,
			"bring up device flannel.1 (also on UDP port 8472: cilium_vxlan): set link flannel.1: address already in use",
		},
		"bridge on a peer's subnet": {
			"ip link add docker0 type bridge && ip addr add 10.5.3.1/24 dev docker0 && ip link set docker0 up", new(backend.OccupiedError),
			"peer 10.5.3.0/24 at 198.18.0.2: foreign address 10.5.3.1/24 of docker0 is in the way: remove it, or renumber one of the two",
		},
		"route to a peer's subnet": {
			"ip route add 10.5.3.0/24 via 198.18.0.77", new(backend.OccupiedError),
			"peer 10.5.3.0/24 at 198.18.0.2: foreign route 10.5.3.0/24 via 198.18.0.77 dev eth0 proto 3 is in the way: remove it, or renumber one of the two",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			ns := backendtest.FlannelHost(t)
			be, d, _ := onKernel(t, ns, fmt.Sprintf(v4only, ""))
			ns.Run(t, "sh", "-c", tc.command)
			show := func() string {
				return ns.Run(t, "sh", "-c", "ip -o link | sed 's/<.*>//; s/state [A-Z]*//'; ip -o -4 addr; ip route")
			}
			before := show()
			d.Own, d.Peers = lease("10.5.54.0-24", "198.18.0.1", ownMAC, "", ""), []*subnet.Lease{&peer3}
			err := be.Apply(t.Context(), d)
			if err == nil || err.Error() != tc.want {
				t.Errorf("Apply error\n got %v\nwant %s", err, tc.want)
			}
			if occupied := new(backend.OccupiedError); !errors.Is(err, tc.is) && !errors.As(err, &occupied) {
				t.Errorf("Apply error %v is no %T", err, tc.is)
			}
			if err := be.Cleanup(t.Context()); err != nil {
				t.Error(err)
			}
			if diff := lines(before, show()); diff != "" {
				t.Errorf("what was there changed (-before +after)\n%s", diff)
			}
		})
	}
}

// A new process on the same host, an unchanged Apply, and a host that flannel
// kept until now lose no packet.
func TestNoPacketIsLost(t *testing.T) {
	lab := backendtest.NewLab(t, vxlan.New, fmt.Sprintf(v4only, ""), 0, 0)
	lab.ApplyAll()
	h := lab.Hosts[0]
	attrs := h.Lease.Attrs
	stop := lab.Flood(0, 1)
	for range 10 {
		h.Restart(netip.MustParseAddr("198.18.0.1"))
		h.Apply(t.Context())
		if h.Result != (reconcile.Result{}) || h.Lease.Attrs != attrs {
			t.Errorf("after a restart: observed %+v, attributes %+v, want nothing and %+v", h.Result, h.Lease.Attrs, attrs)
		}
		h.Run(t, "ip", "link", "set", "flannel.1", "alias", "")
		h.Run(t, "ip", "route", "replace", "10.5.2.0/24", "via", "10.5.2.0", "dev", "flannel.1", "onlink")
		h.Restart(netip.MustParseAddr("198.18.0.1"))
		h.Apply(t.Context())
		if want := (reconcile.Result{Put: 2}); h.Result != want || h.Lease.Attrs != attrs {
			t.Errorf("after flannel: observed %+v, attributes %+v, want %+v and %+v", h.Result, h.Lease.Attrs, want, attrs)
		}
	}
	stop()
}
