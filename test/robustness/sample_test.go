package robustness

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

// equalAddrs compares addresses, which are comparable as they are.
var equalAddrs = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func ipNet(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// The kernel's tables of a host on which device 3 is flannel.1 and 4 flannel0.
func TestPaths(t *testing.T) {
	mac := net.HardwareAddr{0xAA, 0, 0, 0, 0, 2}
	via := net.IP{10, 5, 2, 0}
	route := netlink.Route{Dst: ipNet("10.5.2.0/24"), Gw: via, LinkIndex: 3, Protocol: kernel.Protocol, Type: unix.RTN_UNICAST}
	neighbour := netlink.Neigh{LinkIndex: 3, IP: via, HardwareAddr: mac}
	fdb := netlink.Neigh{LinkIndex: 3, HardwareAddr: mac, IP: net.IP{198, 18, 0, 2}}
	subnet2, public2 := netip.MustParsePrefix("10.5.2.0/24"), netip.MustParseAddr("198.18.0.2")
	with := func(r netlink.Route, change func(*netlink.Route)) []netlink.Route {
		change(&r)
		return []netlink.Route{r}
	}
	elsewhere := func(n netlink.Neigh) []netlink.Neigh {
		n.LinkIndex = 9
		return []netlink.Neigh{n}
	}
	for _, tc := range []struct {
		name            string
		routes          []netlink.Route
		neighbours, fdb []netlink.Neigh
		want            []Route
	}{
		{"nothing", nil, nil, nil, nil},
		{"through the tunnel", []netlink.Route{route}, []netlink.Neigh{neighbour}, []netlink.Neigh{fdb}, []Route{{subnet2, public2, mac.String()}}},
		{"no FDB entry", []netlink.Route{route}, []netlink.Neigh{neighbour}, nil, []Route{{Subnet: subnet2, MAC: mac.String()}}},
		{"an FDB entry of another device", []netlink.Route{route}, []netlink.Neigh{neighbour}, elsewhere(fdb), []Route{{Subnet: subnet2, MAC: mac.String()}}},
		{"no neighbour", []netlink.Route{route}, nil, []netlink.Neigh{fdb}, []Route{{Subnet: subnet2}}},
		{"a neighbour on another device", []netlink.Route{route}, elsewhere(neighbour), []netlink.Neigh{fdb}, []Route{{Subnet: subnet2}}},
		{
			"somebody's route into the tunnel", with(route, func(r *netlink.Route) { r.Protocol = unix.RTPROT_BOOT }),
			[]netlink.Neigh{neighbour},
			[]netlink.Neigh{fdb},
			[]Route{{subnet2, public2, mac.String()}},
		},
		{"by the uplink", with(route, func(r *netlink.Route) { r.LinkIndex, r.Gw = 2, net.IP{198, 18, 0, 2} }), nil, nil, []Route{{Subnet: subnet2, Via: public2}}},
		{"somebody's by the uplink", with(route, func(r *netlink.Route) { r.LinkIndex, r.Protocol = 2, unix.RTPROT_BOOT }), nil, nil, nil},
		{"the last resort", with(route, func(r *netlink.Route) { r.LinkIndex, r.Type = 0, unix.RTN_BLACKHOLE }), nil, nil, nil},
		{"the default route", with(route, func(r *netlink.Route) { r.Dst = nil }), nil, nil, nil},
		{"udp's for all", with(route, func(r *netlink.Route) { r.Dst, r.LinkIndex = ipNet("10.5.0.0/16"), 4 }), nil, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := paths{tunnels: []int{3, 4}, tun: 4, routes: tc.routes, neighbours: tc.neighbours, fdb: tc.fdb}
			if diff := cmp.Diff(tc.want, p.to(), equalAddrs); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	p := paths{tunnels: []int{3}, addrs: []netlink.Addr{
		{LinkIndex: 3, IPNet: ipNet("10.5.9.0/24")}, {LinkIndex: 2, IPNet: ipNet("198.18.0.1/24")}, {LinkIndex: 3, IPNet: ipNet("10.5.3.0/32")},
	}}
	if diff := cmp.Diff([]netip.Prefix{netip.MustParsePrefix("10.5.3.0/32"), netip.MustParsePrefix("10.5.9.0/24")}, p.own(), equalAddrs); diff != "" {
		t.Errorf("own (-want +got):\n%s", diff)
	}
}

// Every host sends and is sent to, no pair is there twice, none is with itself.
func TestPairs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hosts, seed := rapid.IntRange(0, 20).Draw(t, "hosts"), rapid.Uint64().Draw(t, "seed")
		pairs := choosePairs(hosts, seed)
		want := hosts * (hosts - 1)
		if hosts > meshHosts {
			want = hosts + hosts/2
		}
		if len(pairs) != want {
			t.Fatalf("%d pairs of %d hosts, want %d", len(pairs), hosts, want)
		}
		once, from, to := map[between]bool{}, map[int]bool{}, map[int]bool{}
		for _, p := range pairs {
			if p.from == p.to || once[p] || p.from < 0 || p.to < 0 || p.from >= hosts || p.to >= hosts {
				t.Fatalf("the pair %v among %v", p, pairs)
			}
			once[p], from[p.from], to[p.to] = true, true, true
		}
		if hosts > 1 && (len(from) != hosts || len(to) != hosts) {
			t.Fatalf("%d hosts send and %d are sent to, of %d", len(from), len(to), hosts)
		}
		if diff := cmp.Diff(pairs, choosePairs(hosts, seed), cmp.AllowUnexported(between{})); diff != "" {
			t.Fatalf("another choice by the same seed:\n%s", diff)
		}
	})
}

func TestParseStat(t *testing.T) {
	const rest = " 1 2 3 0 -1 4 5 6 7 8 150 25 0 0 20 0 9 0 100"
	for _, tc := range []struct {
		name, text string
		want       procStat
		fails      bool
	}{
		{"a daemon", "42 (flanneld-go) S" + rest, procStat{"S", 1750 * time.Millisecond}, false},
		{"a nasty name", "42 (a) T 1 (b) c) T" + rest, procStat{"T", 1750 * time.Millisecond}, false},
		{"nothing", "", procStat{}, true},
		{"too short", "42 (flanneld-go) S 1 2 3 0 -1 4 5 6 7 8 150", procStat{}, true},
		{"no number", "42 (flanneld-go) S 1 2 3 0 -1 4 5 6 7 8 x 25", procStat{}, true},
		{"a negative number", "42 (flanneld-go) S 1 2 3 0 -1 4 5 6 7 8 150 -25", procStat{}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseStat(tc.text)
			if got != tc.want || (err != nil) != tc.fails {
				t.Errorf("got %v, %v; want %v", got, err, tc.want)
			}
		})
	}
}

// What /proc says of this very process is read too.
func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(own))
	f.Add(")")
	if _, err := parseStat(string(own)); err != nil {
		f.Error(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := parseStat(text); err == nil && got.state == "" {
			t.Errorf("%q has no state", text)
		}
	})
}

func TestCountLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var c lineCounter
	want := 0
	for _, more := range []int{0, 1, 0, 100_000, 3} {
		want += more
		if _, err := log.Write(append(bytes.Repeat([]byte("line\n"), more), "no end"...)); err != nil {
			t.Fatal(err)
		}
		if got, err := c.count(path); got != want || err != nil {
			t.Errorf("got %d, %v, want %d", got, err, want)
		}
	}
	if got, err := c.count(path + ".gone"); got != want || err == nil {
		t.Errorf("without a file: got %d, %v, want %d and an error", got, err, want)
	}
}

func TestSamplesThatAreAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawSample(t), drawSample(t)
		x, y := a, b
		x.From, x.Until, y.From, y.Until = 0, 0, 0, 0
		if same := cmp.Equal(x, y, equalAddrs); a.equal(b) != same {
			t.Fatalf("equal is %v for %+v and %+v", a.equal(b), a, b)
		}
		if diff := cmp.Diff(b, share(a, b), equalAddrs); diff != "" {
			t.Fatalf("shared (-want +got):\n%s", diff)
		}
	})
}
