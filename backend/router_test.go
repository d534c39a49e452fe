package backend_test

import (
	"bytes"
	"context"
	"errors"
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
	"github.com/flanneld-go/flanneld-go/subnet"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func via(dst, gateway string, proto, metric int) kernel.Route {
	return kernel.Route{Dst: prefix(dst), Gateway: netip.MustParseAddr(gateway), Link: eth0, Protocol: proto, Metric: metric}
}

const (
	eth0    = 2
	docker0 = 3
	tunnel  = 4
)

// router is a Router on a host with an uplink and a Docker bridge.
type router struct {
	*kerneltest.Fake
	backend.Router
	log    bytes.Buffer
	config *subnet.Config
	peers  []subnet.Lease
}

func newRouter(t *testing.T) *router {
	t.Helper()
	r := &router{Fake: kerneltest.New()}
	r.Plug(kernel.Link{Name: "eth0", MTU: 1500}, prefix("198.18.0.1/24"), prefix("fd00:198:18::1/64"))
	r.Plug(kernel.Link{Name: "docker0", Type: "bridge", MTU: 1500}, prefix("10.5.54.1/24"))
	r.Plug(kernel.Link{Name: "flannel0", Type: "tun", MTU: 1472})
	r.Router = backend.Router{Kernel: r.Fake, Log: slog.New(slog.NewTextHandler(&r.log, nil))}
	var err error
	r.config, err = subnet.ParseConfig(`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"host-gw"}}`)
	if err != nil {
		t.Fatal(err)
	}
	peer := subnet.Lease{Subnet: subnet.Subnet{prefix("10.5.3.0/24"), prefix("fd05:0:0:3::/64")}}
	peer.Attrs.PublicIP = subnet.ByFamily[netip.Addr]{netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("fd00:198:18::2")}
	r.peers = []subnet.Lease{peer}
	return r
}

// plan routes to the one peer.
func (r *router) plan() backend.RoutePlan {
	return backend.RoutePlan{
		Desired: backend.Desired{Config: r.config, Uplink: backend.Uplink{Link: kernel.Link{Index: eth0}}, Own: subnet.Lease{Subnet: subnet.Subnet{prefix("10.5.54.0/24")}}, Peers: slices.Collect(subnet.Each(r.peers))},
		Routes: []kernel.Route{
			via("10.5.3.0/24", "198.18.0.2", kernel.Protocol, 0), via("fd05:0:0:3::/64", "fd00:198:18::2", kernel.Protocol, 0),
		},
	}
}

func (r *router) put(t *testing.T, routes ...kernel.Route) {
	t.Helper()
	if err := r.Routes().Put(t.Context(), routes); err != nil {
		t.Fatal(err)
	}
	r.ResetOps()
}

// apply returns the error's text and what was done.
func (r *router) apply(ctx context.Context, plan backend.RoutePlan) (string, []string, error) {
	step, blocked := r.Step(ctx, plan)
	_, err := reconcile.Apply(ctx, step)
	err = errors.Join(blocked, err)
	var ops []string
	for _, o := range r.Ops() {
		ops = append(ops, o.String())
	}
	r.ResetOps()
	if err != nil {
		return err.Error(), ops, err
	}
	return "", ops, nil
}

const (
	put4 = "put route 10.5.3.0/24 via 198.18.0.2 dev eth0"
	put6 = "put route fd05:0:0:3::/64 via fd00:198:18::2 dev eth0"
)

func TestRouter(t *testing.T) {
	tests := map[string]struct {
		there []kernel.Route
		addrs []kernel.Addr
		plan  func(*backend.RoutePlan)
		ops   []string
		err   string
	}{
		"empty host":  {ops: []string{put4, put6}},
		"all is well": {there: []kernel.Route{via("10.5.3.0/24", "198.18.0.2", kernel.Protocol, 0), via("fd05:0:0:3::/64", "fd00:198:18::2", kernel.Protocol, 0)}},
		"ours is replaced, not deleted": {
			there: []kernel.Route{via("10.5.3.0/24", "198.18.0.9", kernel.Protocol, 0)}, ops: []string{put4, put6},
		},
		"ours without a peer goes, outside the network too": {
			there: []kernel.Route{via("10.5.4.0/24", "198.18.0.9", kernel.Protocol, 0), via("10.6.4.0/24", "198.18.0.9", kernel.Protocol, 0)},
			ops: []string{
				put4, put6, "delete route 10.5.4.0/24 via 198.18.0.9 dev eth0", "delete route 10.6.4.0/24 via 198.18.0.9 dev eth0",
			},
		},
		"flannel's is taken over": {
			there: []kernel.Route{via("10.5.3.0/24", "198.18.0.2", 3, 0), via("10.5.4.0/24", "198.18.0.2", 3, 0)},
			ops:   []string{put4, put6, "delete route 10.5.4.0/24 via 198.18.0.2 dev eth0 proto 3"},
		},
		"a route through our device is ours": {
			there: []kernel.Route{{Dst: prefix("10.5.4.0/24"), Link: docker0, Protocol: 3}},
			plan:  func(p *backend.RoutePlan) { p.Devices = []int{docker0} },
			ops:   []string{put4, put6, "delete route 10.5.4.0/24 dev docker0 proto 3"},
		},
		"flannel's tunnel leads here no more": {
			there: []kernel.Route{
				{Dst: prefix("10.5.3.0/24"), Gateway: netip.MustParseAddr("10.5.3.0"), Link: tunnel, OnLink: true, Protocol: 3},
				{Dst: prefix("10.5.4.0/24"), Gateway: netip.MustParseAddr("10.5.4.0"), Link: tunnel, OnLink: true, Protocol: 3},
				{Dst: prefix("10.6.4.0/24"), Gateway: netip.MustParseAddr("10.6.4.0"), Link: tunnel, OnLink: true, Protocol: 3},
			},
			ops: []string{put4, put6, "delete route 10.5.4.0/24 via 10.5.4.0 dev flannel0 proto 3 onlink"},
		},
		"unproven ones stay": {
			there: []kernel.Route{
				via("10.5.4.0/24", "198.18.0.77", 3, 0), // of no listed peer
				via("10.5.5.0/24", "198.18.0.2", 4, 0),  // static
				via("10.6.4.0/24", "198.18.0.2", 3, 0),  // outside
				{Dst: prefix("10.5.6.0/24"), Gateway: netip.MustParseAddr("10.5.54.9"), Link: docker0, Protocol: 3},
				{Dst: prefix("10.5.7.0/24"), Blackhole: true, Protocol: 3},
				{Dst: prefix("10.5.8.0/24"), Gateway: netip.MustParseAddr("198.18.0.2"), Link: docker0, OnLink: true, Protocol: 3},
			},
			ops: []string{put4, put6},
		},
		"a foreign route in the way": {
			there: []kernel.Route{via("10.5.3.0/24", "198.18.0.77", 3, 0)}, ops: []string{put6},
			err: "peer 10.5.3.0/24,fd05:0:0:3::/64 at 198.18.0.2: foreign route 10.5.3.0/24 via 198.18.0.77 dev eth0 proto 3 " +
				"is in the way: remove it, or renumber one of the two",
		},
		"a foreign route that would win": {
			there: []kernel.Route{via("fd05:0:0:3::/64", "fd00:198:18::77", 4, 512)}, ops: []string{put4},
			err: "peer 10.5.3.0/24,fd05:0:0:3::/64 at fd00:198:18::2: foreign route fd05:0:0:3::/64 via fd00:198:18::77 dev eth0 proto 4 metric 512 " +
				"is in the way: remove it, or renumber one of the two",
		},
		"a foreign route that loses": {
			there: []kernel.Route{via("10.5.3.0/24", "198.18.0.77", 3, 100), via("fd05:0:0:3::/64", "fd00:198:18::77", 4, 2000)},
			ops:   []string{put4, put6},
		},
		"a bridge on the peer's subnet": {
			addrs: []kernel.Addr{{Link: docker0, Prefix: prefix("10.5.3.1/24")}}, ops: []string{put6},
			err: "peer 10.5.3.0/24,fd05:0:0:3::/64 at 198.18.0.2: foreign address 10.5.3.1/24 of docker0 " +
				"is in the way: remove it, or renumber one of the two",
		},
		"an address of our device is in nobody's way": {
			addrs: []kernel.Addr{{Link: docker0, Prefix: prefix("10.5.3.1/24")}},
			plan:  func(p *backend.RoutePlan) { p.Devices = []int{docker0} }, ops: []string{put4, put6},
		},
		"a family without its device keeps its routes": {
			there: []kernel.Route{via("10.5.4.0/24", "198.18.0.2", kernel.Protocol, 0), via("fd05:0:0:4::/64", "fd00:198:18::2", kernel.Protocol, 0)},
			plan:  func(p *backend.RoutePlan) { p.Keep[subnet.IPv6] = true },
			ops:   []string{put4, put6, "delete route 10.5.4.0/24 via 198.18.0.2 dev eth0"},
		},
		"blackhole": {
			plan: func(p *backend.RoutePlan) { p.Blackhole = true },
			ops:  []string{put4, put6, "put route blackhole 10.5.54.0/24 metric 1048576"},
		},
		"flannel's blackhole stays where none is wanted": {
			there: []kernel.Route{{Dst: prefix("10.5.54.0/24"), Blackhole: true, Protocol: 3}}, ops: []string{put4, put6},
		},
		"flannel's blackhole would win over the bridge": {
			there: []kernel.Route{{Dst: prefix("10.5.54.0/24"), Blackhole: true, Protocol: 3}},
			plan:  func(p *backend.RoutePlan) { p.Blackhole = true },
			ops:   []string{put4, put6, "put route blackhole 10.5.54.0/24 metric 1048576", "delete route blackhole 10.5.54.0/24 proto 3"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRouter(t)
			if err := r.Addrs(docker0).Put(t.Context(), tc.addrs); err != nil {
				t.Fatal(err)
			}
			r.put(t, tc.there...)
			plan := r.plan()
			if tc.plan != nil {
				tc.plan(&plan)
			}
			text, ops, err := r.apply(t.Context(), plan)
			if diff := cmp.Diff(tc.err, text); diff != "" {
				t.Errorf("error (-want +got)\n%s", diff)
			}
			var occupied *backend.OccupiedError
			if tc.err != "" && !errors.As(err, &occupied) {
				t.Errorf("error %v is no OccupiedError", err)
			}
			if tc.err != "" && (occupied.Device == "docker0") != (tc.addrs != nil) {
				t.Errorf("the device in the way is %q", occupied.Device)
			}
			if diff := cmp.Diff(tc.ops, ops); diff != "" {
				t.Errorf("operations (-want +got)\n%s", diff)
			}
			if _, ops, _ = r.apply(t.Context(), plan); len(ops) > 0 {
				t.Errorf("second time: %q", ops)
			}
		})
	}
}

// A foreign route is reported when it comes, not with every Apply.
func TestForeignRouteIsReportedOnce(t *testing.T) {
	r := newRouter(t)
	foreign := via("10.5.4.0/24", "198.18.0.77", 4, 0)
	r.put(t, foreign)
	for range 3 {
		r.apply(t.Context(), r.plan())
	}
	const said = "foreign routes inside the network are left alone"
	if n := strings.Count(r.log.String(), said); n != 1 {
		t.Errorf("reported %d times, want 1\n%s", n, r.log.String())
	}
	if err := r.Routes().Delete(t.Context(), []kernel.Route{foreign}); err != nil {
		t.Fatal(err)
	}
	r.apply(t.Context(), r.plan())
	r.put(t, foreign)
	r.apply(t.Context(), r.plan())
	if n := strings.Count(r.log.String(), said); n != 2 {
		t.Errorf("reported %d times after it came back, want 2\n%s", n, r.log.String())
	}
}

// One that is in a peer's way is the peer's error, and not named twice.
func TestForeignRouteInTheWayIsNamedOnce(t *testing.T) {
	r := newRouter(t)
	r.put(t, via("10.5.3.0/24", "198.18.0.77", 4, 0), via("10.5.4.0/24", "198.18.0.77", 4, 0))
	said, _, _ := r.apply(t.Context(), r.plan())
	if !strings.Contains(said, "foreign route 10.5.3.0/24 ") {
		t.Errorf("error %q", said)
	}
	if log := r.log.String(); strings.Contains(log, "10.5.3.0/24") || !strings.Contains(log, "10.5.4.0/24") {
		t.Errorf("log %s", log)
	}
}

// What could not be read is not what is not there.
func TestRouterDoesNothingBlindly(t *testing.T) {
	for _, kind := range []string{"route", "addr"} {
		t.Run(kind, func(t *testing.T) {
			r := newRouter(t)
			r.put(t, via("10.5.4.0/24", "198.18.0.9", kernel.Protocol, 0))
			r.OnOp(kerneltest.FailNth(1, syscall.ENOBUFS, func(o kerneltest.Op) bool { return o.Verb == "list" && o.Kind == kind }))
			_, ops, err := r.apply(t.Context(), r.plan())
			if !errors.Is(err, syscall.ENOBUFS) || len(ops) > 0 {
				t.Errorf("error %v, operations %q, want ENOBUFS and none", err, ops)
			}
		})
	}
}

func TestSweepTakesOnlyOurs(t *testing.T) {
	r := newRouter(t)
	r.put(t, via("10.5.3.0/24", "198.18.0.2", kernel.Protocol, 0), via("10.5.4.0/24", "198.18.0.2", 3, 0),
		kernel.Route{Dst: prefix("10.5.54.0/24"), Blackhole: true, Metric: 1 << 20, Protocol: kernel.Protocol})
	if _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := r.Routes().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10.5.4.0/24 via 198.18.0.2 dev if2 proto 3"}, []string{left[0].String()}); diff != "" || len(left) != 1 {
		t.Errorf("left (-want +got), %d routes\n%s", len(left), diff)
	}
}

func TestBlame(t *testing.T) {
	r := newRouter(t)
	known := &reconcile.EntryError{Op: "put", Entry: "10.5.3.0/24", Value: via("10.5.3.0/24", "198.18.0.2", 158, 0), Err: syscall.EINVAL}
	unknown := &reconcile.EntryError{Op: "put", Entry: "10.5.4.0/24", Value: via("10.5.4.0/24", "198.18.0.2", 158, 0), Err: syscall.EPERM}
	list := errors.New("list fdb entry: interrupted")
	in := errors.Join(list, errors.Join(known, unknown))
	err := backend.Blame(in, backend.PeerOf(r.plan().Desired.Peers))
	want := "list fdb entry: interrupted\n" +
		"peer 10.5.3.0/24,fd05:0:0:3::/64 at 198.18.0.2: put 10.5.3.0/24: invalid argument\n" +
		"put 10.5.4.0/24: operation not permitted"
	if err.Error() != want {
		t.Errorf("Blame()\n got %s\nwant %s", err, want)
	}
	var pe *backend.PeerError
	if !errors.As(err, &pe) || !errors.Is(err, list) || !errors.Is(pe, syscall.EINVAL) {
		t.Errorf("Blame() lost an error: %v", err)
	}
	if err := backend.Blame(nil, backend.PeerOf(nil)); err != nil {
		t.Errorf("Blame(nil) = %v", err)
	}
}

func TestSweepLinks(t *testing.T) {
	r := newRouter(t) // with flannel's tunnel
	for _, l := range []kernel.Link{
		{Name: "flannel.1", Type: "vxlan", Alias: kernel.Alias, VXLAN: kernel.VXLAN{VNI: 1}},
		{Name: "flannel.2", Type: "vxlan", Alias: kernel.Alias, VXLAN: kernel.VXLAN{VNI: 2}},
		{Name: "flannel.3", Type: "vxlan", VXLAN: kernel.VXLAN{VNI: 3}},
		{Name: "bridge0", Type: "bridge", Alias: kernel.Alias},
	} {
		if _, err := r.AddLink(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	r.Plug(kernel.Link{Name: "flannel1", Type: "tun", Alias: kernel.Alias})
	r.ResetOps()
	p := backend.Params{Config: r.config, Kernel: r.Fake}

	// Not before all that leads there has moved.
	r.OnOp(kerneltest.FailNth(1, syscall.ENOBUFS, func(o kerneltest.Op) bool { return o.Verb == "put" }))
	step, _ := r.Step(t.Context(), r.plan())
	if _, err := p.ApplyAndSweep(t.Context(), []string{"flannel.2"}, step); !errors.Is(err, syscall.ENOBUFS) {
		t.Errorf("ApplyAndSweep error %v, want ENOBUFS", err)
	}
	step, _ = r.Step(t.Context(), r.plan())
	result, err := p.ApplyAndSweep(t.Context(), []string{"flannel.2"}, step)
	if want := (reconcile.Result{Put: 1, Deleted: 2}); err != nil || result != want {
		t.Errorf("ApplyAndSweep() = %+v, %v, want %+v", result, err, want)
	}
	var ops []string
	for _, o := range r.Ops() {
		ops = append(ops, o.String())
	}
	if diff := cmp.Diff([]string{put6, put4, "delete link flannel.1", "delete link flannel1"}, ops); diff != "" {
		t.Errorf("operations (-want +got)\n%s", diff)
	}
}
