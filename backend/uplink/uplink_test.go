package uplink_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/uplink"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

// host is a machine like many: two networks, Docker, and a tunnel from an
// earlier start.
func host() uplink.Inventory {
	link := func(i int, name, kind string, up bool) kernel.Link {
		return kernel.Link{Index: i, Name: name, Type: kind, MTU: 1500, Up: up, Running: up}
	}
	at := func(i int, p string) kernel.Addr { return kernel.Addr{Link: i, Prefix: netip.MustParsePrefix(p)} }
	return uplink.Inventory{
		Links: []kernel.Link{
			link(1, "lo", "loopback", true), link(2, "eth0", "", true), link(3, "eth1", "", true), link(4, "eth2", "", false),
			link(5, "docker0", "bridge", true), link(6, "flannel.1", "vxlan", true), link(7, "veth12", "veth", true), link(8, "eth3", "", true),
		},
		Addrs: []kernel.Addr{
			at(1, "127.0.0.1/8"), at(1, "10.99.0.1/32"), at(2, "198.18.0.1/24"), at(2, "198.18.0.77/24"), at(2, "fd00:198:18::1/64"),
			at(3, "198.19.5.1/16"), at(3, "198.19.200.1/32"), at(4, "198.18.9.1/24"), at(5, "10.5.54.1/24"), at(6, "10.5.54.0/32"),
		},
		Defaults: subnet.ByFamily[kernel.Route]{{Link: 2}, {Link: 2}},
		Reach:    kernel.Route{Link: 3, Src: addr("198.19.200.1")},
	}
}

func TestSelect(t *testing.T) {
	both := subnet.ByFamily[bool]{true, true}
	tests := map[string]struct {
		o        uplink.Options
		change   func(*uplink.Inventory)
		link     string
		v4, v6   string
		public   string
		segments []string
		err      string
	}{
		"default route": {
			link: "eth0", v4: "198.18.0.1", v6: "fd00:198:18::1", segments: []string{"198.18.0.0/24", "fd00:198:18::/64"},
		},
		"name": {o: uplink.Options{Ifaces: []string{"eth1"}}, link: "eth1", v4: "198.19.5.1", segments: []string{"198.19.0.0/16"}},
		"address is taken itself": {
			o:    uplink.Options{Ifaces: []string{"198.18.0.77"}},
			link: "eth0", v4: "198.18.0.77", v6: "fd00:198:18::1", segments: []string{"198.18.0.0/24", "fd00:198:18::/64"},
		},
		"first iface that fits": {
			o:    uplink.Options{Ifaces: []string{"eth9", "eth3", "eth1", "eth0"}},
			link: "eth1", v4: "198.19.5.1", segments: []string{"198.19.0.0/16"},
		},
		"regex after ifaces, by address before name": {
			o:    uplink.Options{Ifaces: []string{"eth9"}, Regexes: []string{`^198\.19\.200|eth0`}},
			link: "eth1", v4: "198.19.200.1", segments: []string{"198.19.0.0/16"},
		},
		"regex by name, in the order of links": {
			o:    uplink.Options{Regexes: []string{"nothing", "^eth"}},
			link: "eth0", v4: "198.18.0.1", v6: "fd00:198:18::1", segments: []string{"198.18.0.0/24", "fd00:198:18::/64"},
		},
		"regex by name passes over loopback, tunnel and what is down": {
			o:    uplink.Options{Regexes: []string{"^lo|^flannel|^eth2|^docker"}},
			link: "docker0", v4: "10.5.54.1", segments: []string{"10.5.54.0/24"},
		},
		"regex passes over tunnel and loopback": {
			o:    uplink.Options{Regexes: []string{`^10\.`}},
			link: "docker0", v4: "10.5.54.1", segments: []string{"10.5.54.0/24"},
		},
		"can reach, from where the kernel says": {
			o:    uplink.Options{CanReach: addr("198.19.7.7")},
			link: "eth1", v4: "198.19.200.1", segments: []string{"198.19.0.0/16"},
		},
		"public address": {
			o:    uplink.Options{Ifaces: []string{"eth1"}, Public: subnet.ByFamily[netip.Addr]{addr("192.0.2.9")}},
			link: "eth1", v4: "198.19.5.1", public: "192.0.2.9", segments: []string{"198.19.0.0/16"},
		},
		"both families": {
			o:    uplink.Options{Families: both},
			link: "eth0", v4: "198.18.0.1", v6: "fd00:198:18::1", segments: []string{"198.18.0.0/24", "fd00:198:18::/64"},
		},
		"a default route in one family only": {
			o:      uplink.Options{Families: both},
			change: func(i *uplink.Inventory) { i.Defaults[subnet.IPv4] = kernel.Route{} },
			link:   "eth0", v4: "198.18.0.1", v6: "fd00:198:18::1", segments: []string{"198.18.0.0/24", "fd00:198:18::/64"},
		},
		"address as IPv6 writes it": {
			o:    uplink.Options{Ifaces: []string{"::ffff:198.18.0.77"}},
			link: "eth0", v4: "198.18.0.77", v6: "fd00:198:18::1", segments: []string{"198.18.0.0/24", "fd00:198:18::/64"},
		},
		"link-local addresses beside": {
			o: uplink.Options{Families: both},
			change: func(i *uplink.Inventory) {
				local := []kernel.Addr{{Link: 2, Prefix: netip.MustParsePrefix("169.254.7.7/16")}, {Link: 2, Prefix: netip.MustParsePrefix("fe80::7/64")}}
				i.Addrs = append(local, i.Addrs...)
			},
			link: "eth0", v4: "198.18.0.1", v6: "fd00:198:18::1", segments: []string{"198.18.0.0/24", "fd00:198:18::/64"},
		},
		"segments in one another": {
			o: uplink.Options{Ifaces: []string{"eth1"}},
			change: func(i *uplink.Inventory) {
				i.Addrs = append(i.Addrs, kernel.Addr{Link: 3, Prefix: netip.MustParsePrefix("198.19.0.1/24")}, kernel.Addr{Link: 3, Prefix: netip.MustParsePrefix("198.19.0.2/12")}, kernel.Addr{Link: 3, Prefix: netip.MustParsePrefix("198.18.0.3/16")}, kernel.Addr{Link: 3, Prefix: netip.MustParsePrefix("198.19.0.3/15")})
			},
			link: "eth1", v4: "198.19.5.1", segments: []string{"198.16.0.0/12", "198.18.0.0/15", "198.18.0.0/16", "198.19.0.0/16", "198.19.0.0/24"},
		},
		"no fallback from a name": {o: uplink.Options{Ifaces: []string{"eth9"}}, err: "--iface=eth9: no such interface"},
		"address of nobody": {
			o: uplink.Options{Ifaces: []string{"198.18.0.3"}}, err: "--iface=198.18.0.3: no interface has this address",
		},
		"loopback by name":    {o: uplink.Options{Ifaces: []string{"lo"}}, err: "--iface=lo: lo is loopback, which reaches no other host"},
		"loopback by address": {o: uplink.Options{Ifaces: []string{"10.99.0.1"}}, err: "--iface=10.99.0.1: lo is loopback, which reaches no other host"},
		"loopback by route": {
			change: func(i *uplink.Inventory) { i.Defaults[subnet.IPv4].Link = 1 },
			err:    "default route: lo is loopback, which reaches no other host",
		},
		"tunnel":     {o: uplink.Options{Ifaces: []string{"flannel.1"}}, err: "--iface=flannel.1: flannel.1 is the overlay's own tunnel"},
		"down":       {o: uplink.Options{Ifaces: []string{"eth2"}}, err: "--iface=eth2: eth2 is down (ip link set eth2 up)"},
		"no address": {o: uplink.Options{Ifaces: []string{"eth3"}}, err: "--iface=eth3: eth3 has no usable IPv4 address"},
		"one family missing": {
			o: uplink.Options{Ifaces: []string{"eth1"}, Families: both}, err: "--iface=eth1: eth1 has no usable IPv6 address",
		},
		"no default route": {
			change: func(i *uplink.Inventory) { i.Defaults = subnet.ByFamily[kernel.Route]{} },
			err:    "default route: there is no IPv4 default route",
		},
		"unreachable": {
			o:      uplink.Options{CanReach: addr("192.0.2.1")},
			change: func(i *uplink.Inventory) { i.Reach = kernel.Route{} },
			err:    "--iface-can-reach=192.0.2.1: no route there",
		},
		"everything tried is named": {
			o: uplink.Options{Ifaces: []string{"eth9"}, Regexes: []string{"^wl"}, CanReach: addr("192.0.2.1")},
			change: func(i *uplink.Inventory) {
				i.Reach = kernel.Route{}
			},
			err: "--iface=eth9: no such interface; --iface-regex=^wl: matches no usable interface, neither by address nor by name; " +
				"--iface-can-reach=192.0.2.1: no route there",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			inv := host()
			if tc.change != nil {
				tc.change(&inv)
			}
			up, err := uplink.Select(inv, tc.o)
			if tc.err != "" {
				want := "choose uplink: " + tc.err + "; interfaces here: " +
					"eth0 (up, 198.18.0.1/24, 198.18.0.77/24, fd00:198:18::1/64), eth1 (up, 198.19.5.1/16, 198.19.200.1/32), " +
					"eth2 (down, 198.18.9.1/24), docker0 (up, 10.5.54.1/24), eth3 (up, no address); " +
					"name one that is up and has an address that the other hosts reach, by --iface=NAME or --iface=ADDRESS"
				var sel *uplink.Error
				if !errors.As(err, &sel) || err.Error() != want {
					t.Errorf("Select() error\n got %v\nwant %s", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := backend.Uplink{Addr: subnet.ByFamily[netip.Addr]{addr(tc.v4), addr(tc.v6)}}
			want.Public = want.Addr
			if tc.public != "" {
				want.Public[subnet.IPv4] = addr(tc.public)
			}
			for _, s := range tc.segments {
				want.Segments = append(want.Segments, netip.MustParsePrefix(s))
			}
			for _, l := range inv.Links {
				if l.Name == tc.link {
					want.Link = l
				}
			}
			if diff := cmp.Diff(want, up, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("Select() (-want +got)\n%s", diff)
			}
		})
	}
}

func TestErrorWithoutInterfaces(t *testing.T) {
	_, err := uplink.Select(uplink.Inventory{Links: host().Links[:1]}, uplink.Options{})
	want := "choose uplink: default route: there is no IPv4 default route; interfaces here: none; " +
		"name one that is up and has an address that the other hosts reach, by --iface=NAME or --iface=ADDRESS"
	if err == nil || err.Error() != want {
		t.Errorf("Select() error\n got %v\nwant %s", err, want)
	}
}

func TestNoCarrierIsSaid(t *testing.T) {
	inv := host()
	inv.Links[1].Running = false
	_, err := uplink.Select(inv, uplink.Options{Ifaces: []string{"eth9"}})
	var sel *uplink.Error
	if !errors.As(err, &sel) {
		t.Fatalf("Select() error %v, want an *Error", err)
	}
	if got, want := sel.Candidates[0].String(), "eth0 (up, no carrier, 198.18.0.1/24, 198.18.0.77/24, fd00:198:18::1/64)"; got != want {
		t.Errorf("candidate %q, want %q", got, want)
	}
}

func TestValidate(t *testing.T) {
	tests := map[string]struct {
		o    uplink.Options
		want string
	}{
		"zero": {},
		"all good": {o: uplink.Options{
			Ifaces: []string{"eth0", "198.18.0.1"}, Regexes: []string{"^en"}, CanReach: addr("192.0.2.1"),
			Public: subnet.ByFamily[netip.Addr]{addr("192.0.2.1"), addr("2001:db8::1")},
		}},
		"regex": {
			o:    uplink.Options{Regexes: []string{"eth["}},
			want: "invalid option --iface-regex=eth[: error parsing regexp: missing closing ]: `[`",
		},
		"every problem at once": {
			o: uplink.Options{
				Ifaces: []string{"", "127.0.0.1"}, Regexes: []string{""}, CanReach: addr("127.0.0.1"),
				Public: subnet.ByFamily[netip.Addr]{addr("2001:db8::1"), addr("::")},
			},
			want: "invalid option --iface=: must be the name or an address of an interface\n" +
				"invalid option --iface=127.0.0.1: 127.0.0.1 is a loopback address, which no other host reaches\n" +
				"invalid option --iface-regex=: would match every interface\n" +
				"invalid option --iface-can-reach=127.0.0.1: 127.0.0.1 is a loopback address, which no other host reaches\n" +
				"invalid option --public-ip=2001:db8::1: must be an IPv4 address\n" +
				"invalid option --public-ipv6=::: :: is no host's address",
		},
		"link-local": {
			o:    uplink.Options{Ifaces: []string{"fe80::1"}},
			want: "invalid option --iface=fe80::1: fe80::1 is link-local",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			err := tc.o.Validate()
			got := ""
			if err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("Validate() (-want +got)\n%s", diff)
			}
			if err != nil && !errors.Is(err, uplink.ErrOption) {
				t.Errorf("Validate() error is no ErrOption: %v", err)
			}
		})
	}
}

// Whatever a host has and the user asks for: what is selected is up, no
// loopback, has the needed family, and the same state gives the same uplink.
func TestSelectedIsFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inv := host()
		for i := range inv.Links {
			inv.Links[i].Up = rapid.Bool().Draw(t, "up")
		}
		inv.Addrs = rapid.Permutation(inv.Addrs).Draw(t, "addrs")
		inv.Defaults[subnet.IPv4].Link = rapid.IntRange(0, 9).Draw(t, "default")
		inv.Reach.Link = rapid.IntRange(0, 9).Draw(t, "reach")
		o := uplink.Options{
			Ifaces:  rapid.SliceOfN(rapid.SampledFrom([]string{"lo", "eth0", "eth1", "198.18.0.77", "flannel.1", "eth9"}), 0, 2).Draw(t, "ifaces"),
			Regexes: rapid.SliceOfN(rapid.SampledFrom([]string{".", "^198", "lo", "^10", "flannel"}), 0, 2).Draw(t, "regexes"),
		}
		if rapid.Bool().Draw(t, "canReach") {
			o.CanReach = addr("198.19.7.7")
		}
		up, err := uplink.Select(inv, o)
		if err != nil {
			return
		}
		a := up.Addr[subnet.IPv4]
		if !up.Link.Up || up.Link.Type == "loopback" || up.Link.Type == "vxlan" || !a.Is4() || a.IsLoopback() {
			t.Fatalf("selected %+v", up)
		}
		again, err := uplink.Select(inv, o)
		if diff := cmp.Diff(up, again, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" || err != nil {
			t.Fatalf("second Select() differs (-first +second): %v\n%s", err, diff)
		}
	})
}

// An uplink stays what it is while its interface changes; what it has lost is said, also
// if another interface has that address now.
func TestAgain(t *testing.T) {
	up, err := uplink.Select(host(), uplink.Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := func(link int, p string) kernel.Addr { return kernel.Addr{Link: link, Prefix: netip.MustParsePrefix(p)} }
	for name, tc := range map[string]struct {
		addrs    []kernel.Addr
		missing  []netip.Addr
		segments []netip.Prefix
	}{
		"all are there": {
			[]kernel.Addr{at(9, "fd00:198:18::1/64"), at(9, "198.18.0.1/16")},
			nil,
			[]netip.Prefix{netip.MustParsePrefix("198.18.0.0/16"), netip.MustParsePrefix("fd00:198:18::/64")},
		},
		"one is elsewhere": {
			[]kernel.Addr{at(2, "198.18.0.1/24"), at(9, "fd00:198:18::1/64"), at(9, "198.18.0.2/24")},
			[]netip.Addr{addr("198.18.0.1")},
			[]netip.Prefix{netip.MustParsePrefix("198.18.0.0/24"), netip.MustParsePrefix("fd00:198:18::/64")},
		},
		"none": {nil, []netip.Addr{addr("198.18.0.1"), addr("fd00:198:18::1")}, nil},
	} {
		want := up
		want.Link, want.Segments = kernel.Link{Index: 9, Name: "wan0", MTU: 1400, Up: true}, tc.segments
		now, missing := uplink.Again(up, want.Link, tc.addrs)
		if diff := cmp.Diff(want, now, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
		if !slices.Equal(missing, tc.missing) {
			t.Errorf("%s: missing %v, want %v", name, missing, tc.missing)
		}
	}
}
