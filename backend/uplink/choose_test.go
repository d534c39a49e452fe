package uplink_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/backend/uplink"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// fake is a host with two networks and a default route on each.
func fake(t *testing.T) *kerneltest.Fake {
	t.Helper()
	f := kerneltest.New()
	eth0 := f.Plug(kernel.Link{Name: "eth0", MTU: 1500}, prefix("198.18.0.1/24"), prefix("fd00:198:18::1/64"))
	eth1 := f.Plug(kernel.Link{Name: "eth1", MTU: 9000}, prefix("198.19.5.1/16"), prefix("fd00:198:19::1/64"))
	err := f.Routes().Put(t.Context(), []kernel.Route{
		{Dst: prefix("0.0.0.0/0"), Gateway: addr("198.18.0.254"), Link: eth0.Index, Protocol: 16, Metric: 100},
		{Dst: prefix("0.0.0.0/0"), Gateway: addr("198.19.0.254"), Link: eth1.Index, Protocol: 16, Metric: 20},
		{Dst: prefix("::/0"), Gateway: addr("fd00:198:18::fe"), Link: eth0.Index, Protocol: 9, Metric: 512},
		{Dst: prefix("::/0"), Gateway: addr("fd00:198:19::fe"), Link: eth1.Index, Protocol: 9}, // 1024
		{Dst: prefix("192.0.2.0/24"), Gateway: addr("198.18.0.254"), Link: eth0.Index, Protocol: 4},
	})
	if err != nil {
		t.Fatal(err)
	}
	f.ResetOps()
	return f
}

func TestChoose(t *testing.T) {
	tests := map[string]struct {
		o    uplink.Options
		want string
	}{
		"default route of the lowest metric": {want: "eth1 198.19.5.1"},
		"IPv6's 0 is 1024":                   {o: uplink.Options{Families: subnet.ByFamily[bool]{false, true}}, want: "eth0 fd00:198:18::1"},
		"the kernel's way":                   {o: uplink.Options{CanReach: addr("192.0.2.7")}, want: "eth0 198.18.0.1"},
		"no kernel's way":                    {o: uplink.Options{Ifaces: []string{"eth0"}, CanReach: addr("198.19.5.9")}, want: "eth0 198.18.0.1"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f := fake(t)
			up, err := uplink.Choose(t.Context(), f, tc.o)
			if err != nil {
				t.Fatal(err)
			}
			a := up.Addr[subnet.IPv4]
			if tc.o.Families[subnet.IPv6] {
				a = up.Addr[subnet.IPv6]
			}
			if got := up.Link.Name + " " + a.String(); got != tc.want {
				t.Errorf("Choose() = %s, want %s", got, tc.want)
			}
			if ops := f.Ops(); len(ops) > 0 {
				t.Errorf("Choose() did %v", ops)
			}
		})
	}
}

func TestChooseFailures(t *testing.T) {
	if _, err := uplink.Choose(t.Context(), fake(t), uplink.Options{Regexes: []string{"("}}); !errors.Is(err, uplink.ErrOption) {
		t.Errorf("Choose() error %v, want an ErrOption", err)
	}
	for _, kind := range []string{"link", "addr", "route"} {
		f := fake(t)
		f.OnOp(kerneltest.FailNth(1, syscall.ENOBUFS, func(o kerneltest.Op) bool { return o.Verb == "list" && o.Kind == kind }))
		_, err := uplink.Choose(t.Context(), f, uplink.Options{})
		var none *uplink.Error
		if !errors.Is(err, syscall.ENOBUFS) || errors.As(err, &none) {
			t.Errorf("%s list fails: error %v, want it and no *Error", kind, err)
		}
	}
	_, err := uplink.Choose(t.Context(), fake(t), uplink.Options{Ifaces: []string{"eth9"}})
	want := "choose uplink: --iface=eth9: no such interface; interfaces here: eth0 (up, 198.18.0.1/24, fd00:198:18::1/64), " +
		"eth1 (up, 198.19.5.1/16, fd00:198:19::1/64); name one that is up and has an address that the other hosts reach, " +
		"by --iface=NAME or --iface=ADDRESS"
	if err == nil || err.Error() != want {
		t.Errorf("Choose() error\n got %v\nwant %s", err, want)
	}
}

// refusing is a host that answers only what it must be asked.
type refusing struct {
	kernel.Host
	routes, ways error
}

func (r refusing) Routes() reconcile.Table[kernel.Route] {
	return refusingRoutes{r.Host.Routes(), r.routes}
}

func (r refusing) RouteTo(ctx context.Context, dst netip.Addr) (kernel.Route, error) {
	if r.ways != nil {
		return kernel.Route{}, r.ways
	}
	return r.Host.RouteTo(ctx, dst)
}

type refusingRoutes struct {
	reconcile.Table[kernel.Route]
	err error
}

func (r refusingRoutes) List(ctx context.Context) ([]kernel.Route, error) {
	if r.err != nil {
		return nil, r.err
	}
	return r.Table.List(ctx)
}

// Nothing is asked of the kernel that the choice does not need: thousands of routes are
// listed for a default route alone. What cannot be answered is no missing interface.
func TestChooseAsksWhatItNeeds(t *testing.T) {
	deaf := syscall.ENOBUFS
	only6 := subnet.ByFamily[bool]{false, true}
	for name, tc := range map[string]struct {
		o            uplink.Options
		routes, ways error
		bare         bool
		fails        bool
	}{
		"named":                         {o: uplink.Options{Ifaces: []string{"eth0"}}, routes: deaf, ways: deaf},
		"by a way":                      {o: uplink.Options{CanReach: addr("192.0.2.7")}, routes: deaf},
		"a way that is not told":        {o: uplink.Options{CanReach: addr("192.0.2.7")}, ways: deaf, fails: true},
		"a default route":               {ways: deaf},
		"another family's":              {o: uplink.Options{Families: only6}, ways: deaf},
		"none":                          {routes: deaf, fails: true},
		"a default route elsewhere":     {bare: true, ways: deaf, fails: true},
		"named, without any that shows": {o: uplink.Options{Ifaces: []string{"eth0"}}, bare: true, ways: deaf},
	} {
		t.Run(name, func(t *testing.T) {
			f := fake(t)
			if tc.bare {
				routes, err := f.Routes().List(t.Context())
				if err == nil {
					err = f.Routes().Delete(t.Context(), slices.Clone(routes))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			_, err := uplink.Choose(t.Context(), refusing{f, tc.routes, tc.ways}, tc.o)
			if tc.fails != errors.Is(err, deaf) || !tc.fails && err != nil {
				t.Errorf("Choose() error %v", err)
			}
		})
	}
}

// The same on the running kernel, as interfaces come, change and go.
func TestChooseOnKernel(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	ip := func(args string) {
		t.Helper()
		ns.Run(t, "ip", strings.Fields(args)...)
	}
	choose := func(o uplink.Options, want string) {
		t.Helper()
		up, err := uplink.Choose(t.Context(), ns, o)
		got := ""
		if err == nil {
			got = up.Link.Name + " " + up.Addr[subnet.IPv4].String()
		}
		if got != want {
			t.Errorf("Choose() = %q, %v, want %q", got, err, want)
		}
	}
	ip("link set lo up")
	ip("link add eth0 type veth peer name far")
	ip("link set far up")
	ip("addr add 198.18.0.1/24 dev eth0")
	ip("addr add 198.18.0.77/24 dev eth0")
	ip("addr add 10.99.0.1/32 dev lo")
	choose(uplink.Options{Ifaces: []string{"eth0"}}, "") // down
	ip("link set eth0 up")
	choose(uplink.Options{Ifaces: []string{"eth0"}}, "eth0 198.18.0.1")
	choose(uplink.Options{Ifaces: []string{"198.18.0.77"}}, "eth0 198.18.0.77")
	choose(uplink.Options{Ifaces: []string{"lo"}}, "")
	choose(uplink.Options{Ifaces: []string{"10.99.0.1"}}, "")
	choose(uplink.Options{}, "") // no default route
	ip("route add default via 198.18.0.254 table 77")
	ip("rule add table 77")
	choose(uplink.Options{}, "eth0 198.18.0.1") // as policy routing has it
	choose(uplink.Options{CanReach: addr("192.0.2.1")}, "eth0 198.18.0.1")
	ip("rule del table 77")
	ip("route add default nexthop via 198.18.0.253 nexthop via 198.18.0.254")
	choose(uplink.Options{}, "eth0 198.18.0.1") // over several gateways

	before, err := uplink.Choose(t.Context(), ns, uplink.Options{Regexes: []string{"^eth|^lan"}})
	if err != nil {
		t.Fatal(err)
	}
	ip("link set eth0 name lan0")
	after, err := uplink.Choose(t.Context(), ns, uplink.Options{Regexes: []string{"^eth|^lan"}})
	if err != nil {
		t.Fatal(err)
	}
	before.Link.Name = "lan0"
	if diff := cmp.Diff(before, after, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreFields(backend.Uplink{}, "Link.Running")); diff != "" {
		t.Errorf("a renamed uplink differs in more than its name (-before +after)\n%s", diff)
	}
	ip("addr del 198.18.0.1/24 dev lan0")
	ip("addr add 198.18.0.5/24 dev lan0")
	choose(uplink.Options{Ifaces: []string{"lan0"}}, "lan0 198.18.0.5")
}
