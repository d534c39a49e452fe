package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	gw3, gw4   = netip.MustParseAddr("10.5.3.0"), netip.MustParseAddr("10.5.4.0")
	net3, net4 = netip.MustParsePrefix("10.5.3.0/24"), netip.MustParsePrefix("10.5.4.0/24")
)

func via(link int, dst netip.Prefix, gw netip.Addr) kernel.Route {
	return kernel.Route{Dst: dst, Gateway: gw, Link: link, OnLink: true, Protocol: kernel.Protocol}
}

func put[E any](t *testing.T, table reconcile.Table[E], entries ...E) {
	t.Helper()
	if err := table.Put(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
}

func remove[E any](t *testing.T, table reconcile.Table[E], entries ...E) {
	t.Helper()
	if err := table.Delete(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
}

// lists checks a table, sorted by notation.
func lists[E fmt.Stringer](t *testing.T, table reconcile.Table[E], want ...E) {
	t.Helper()
	got, err := table.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	order := func(a, b E) int { return strings.Compare(a.String(), b.String()) }
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}
}

// nexthops are iproute2's lines on nexthop objects.
func nexthops(t *testing.T, ns *kerneltest.Namespace) []string {
	t.Helper()
	return slices.DeleteFunc(strings.Split(ns.Run(t, "ip", "nexthop"), "\n"), func(s string) bool { return s == "" })
}

// open opens one more Netlink in the namespace: a daemon's next life.
func open(t *testing.T, ns *kerneltest.Namespace, o kernel.Options) *kernel.Netlink {
	t.Helper()
	o.NetNS = ns.Path
	n, err := kernel.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func TestNexthopObjects(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	l := vxlan(t, ns)
	if err := ns.NexthopObjects(t.Context()); err != nil {
		t.Skipf("needs nexthop objects: %v", err)
	}
	put(t, ns.Routes(), via(l.Index, net3, gw3), via(l.Index, net4, gw3))
	want := fmt.Sprintf("id %d via 10.5.3.0 dev flannel.1 scope link proto kernel onlink", kernel.HopID(gw3, l.Index, 0))
	check := func(what string, want ...string) {
		t.Helper()
		got := nexthops(t, ns)
		for i := range got {
			got[i] = strings.TrimSpace(got[i])
		}
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("nexthops %s (-want +got):\n%s", what, d)
		}
	}
	check("of two routes through one gateway", want)
	if got := ns.Run(t, "ip", "route"); strings.Count(got, "nhid") != 2 {
		t.Errorf("routes do not go through a nexthop object:\n%s", got)
	}
	put(t, ns.Routes(), via(l.Index, net3, gw3))
	check("after putting again", want)
	remove(t, ns.Routes(), via(l.Index, net3, gw3))
	check("after deleting one route", want)
	put(t, ns.Routes(), via(l.Index, net4, gw4))
	check("after moving the other", strings.NewReplacer(
		"10.5.3.0", "10.5.4.0", fmt.Sprint(kernel.HopID(gw3, l.Index, 0)), fmt.Sprint(kernel.HopID(gw4, l.Index, 0))).Replace(want))
	remove(t, ns.Routes(), via(l.Index, net4, gw4))
	check("after deleting both")
}

func TestNexthopNumberTaken(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	l := vxlan(t, ns)
	// Somebody else has our number, with another gateway; and at the next
	// one the right gateway, but it is not ours to share.
	ns.Run(t, "ip", "nexthop", "add", "id", fmt.Sprint(kernel.HopID(gw3, l.Index, 0)), "via", "10.9.9.9", "dev", "flannel.1", "onlink", "protocol", "kernel")
	ns.Run(t, "ip", "nexthop", "add", "id", fmt.Sprint(kernel.HopID(gw3, l.Index, 1)), "via", "10.5.3.0", "dev", "flannel.1", "onlink")
	foreign := nexthops(t, ns)
	r := via(l.Index, net3, gw3)
	put(t, ns.Routes(), r)
	lists(t, ns.Routes(), r)
	if got := nexthops(t, ns); len(got) != 3 || !strings.Contains(strings.Join(got, "\n"), fmt.Sprint("id ", kernel.HopID(gw3, l.Index, 2))) {
		t.Errorf("nexthops %q", got)
	}
	remove(t, ns.Routes(), r)
	if d := cmp.Diff(foreign, nexthops(t, ns)); d != "" {
		t.Errorf("foreign nexthops changed (-want +got):\n%s", d)
	}
	// Two of our own may meet as well: that of another route must stay as it is.
	collision := via(l.Index, net4, netip.MustParseAddr("10.8.8.8"))
	id := fmt.Sprint(kernel.HopID(gw4, l.Index, 0))
	ns.Run(t, "ip", "nexthop", "add", "id", id, "via", "10.8.8.8", "dev", "flannel.1", "onlink", "protocol", "158")
	ns.Run(t, "ip", "route", "add", "10.5.4.0/24", "nhid", id, "protocol", "158")
	met := via(l.Index, net3, gw4)
	put(t, ns.Routes(), met)
	lists(t, ns.Routes(), collision, met)
	remove(t, ns.Routes(), met)

	for probe := 2; probe < 40; probe++ {
		ns.Run(t, "ip", "nexthop", "add", "id", fmt.Sprint(kernel.HopID(gw3, l.Index, probe)), "via", "10.9.9.9", "dev", "flannel.1", "onlink")
	}
	ok := via(l.Index, net4, gw4)
	err := ns.Routes().Put(t.Context(), []kernel.Route{r, ok})
	if err == nil || !strings.Contains(err.Error(), "are taken") {
		t.Errorf("error %v, want one about taken numbers", err)
	}
	lists(t, ns.Routes(), ok)
}

func TestNexthopOrphans(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	l := vxlan(t, ns)
	gw9 := netip.MustParseAddr("10.5.9.0")
	own, next := kernel.HopID(gw9, l.Index, 0), kernel.HopID(gw9, l.Index, 1)
	for _, o := range []struct {
		id               uint32
		gateway, options string
		stays            bool
	}{
		{own, "10.5.9.0", "onlink protocol kernel", false},
		{2650800200, "10.5.9.0", "onlink protocol 158", false}, // an earlier version's
		{7, "10.5.9.0", "onlink", true},
		{8, "10.5.9.0", "onlink protocol kernel", true},
		{next, "10.5.9.9", "onlink protocol kernel", true},
	} {
		args := append([]string{"nexthop", "add", "id", fmt.Sprint(o.id), "via", o.gateway, "dev", "flannel.1"}, strings.Fields(o.options)...)
		ns.Run(t, "ip", args...)
		put(t, open(t, ns, kernel.Options{}).Routes(), via(l.Index, net3, gw3))
		if got := strings.Join(nexthops(t, ns), "\n"); strings.Contains(got, fmt.Sprintf("id %d ", o.id)) != o.stays {
			t.Errorf("%+v after a put:\n%s", o, got)
		}
	}
	// A gateway that the kernel takes, in a route that it refuses.
	bad := via(l.Index, net4, gw4)
	bad.Src = netip.MustParseAddr("203.0.113.1")
	if err := ns.Routes().Put(t.Context(), []kernel.Route{bad}); err == nil {
		t.Error("put a route from an address that is not ours")
	}
	if got := strings.Join(nexthops(t, ns), "\n"); strings.Contains(got, gw4.String()) {
		t.Errorf("the refused route left its nexthop:\n%s", got)
	}
}

// TestNexthopNextLife: a second daemon continues with the first one's objects.
func TestNexthopNextLife(t *testing.T) {
	for name, form := range map[string]kernel.GatewayForm{
		"same form": kernel.GatewayAuto, "other form": kernel.GatewayClassic,
	} {
		t.Run(name, func(t *testing.T) {
			ns := kerneltest.NetNS(t, kernel.Options{})
			l := vxlan(t, ns)
			rs := []kernel.Route{via(l.Index, net3, gw3), via(l.Index, net4, gw4)}
			put(t, ns.Routes(), rs...)
			before := nexthops(t, ns)

			next := open(t, ns, kernel.Options{Gateways: form})
			lists(t, next.Routes(), rs...)
			put(t, next.Routes(), rs[0])
			lists(t, next.Routes(), rs...)
			if form == kernel.GatewayAuto {
				if d := cmp.Diff(before, nexthops(t, ns)); d != "" {
					t.Errorf("nexthops (-want +got):\n%s", d)
				}
			} else if got := nexthops(t, ns); len(got) != 1 {
				t.Errorf("nexthops %q, want that of the second route", got)
			}
			remove(t, next.Routes(), rs...)
			lists(t, next.Routes())
			if got := nexthops(t, ns); len(got) != 0 {
				t.Errorf("nexthops left: %q", got)
			}
			// The first life's memory is wrong now, and must do no harm.
			remove(t, ns.Routes(), rs[0])
			put(t, ns.Routes(), rs...)
			lists(t, ns.Routes(), rs...)
			// As is the second's, of a route that it has seen go.
			remove(t, next.Routes(), rs...)
			lists(t, ns.Routes())
		})
	}
}

// TestListWithoutCompatMode: the kernel then gives the object's number only.
func TestListWithoutCompatMode(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	l := vxlan(t, ns)
	put(t, ns.Addrs(l.Index), kernel.Addr{Link: l.Index, Prefix: netip.MustParsePrefix("fd05::1/128")})
	rs := []kernel.Route{
		via(l.Index, net3, gw3),
		via(l.Index, netip.MustParsePrefix("fd05:0:0:3::/64"), netip.MustParseAddr("fd05:0:0:3::")),
	}
	put(t, ns.Routes(), rs...)
	if err := ns.SetSysctl("net/ipv4/nexthop_compat_mode", "0"); err != nil {
		t.Fatal(err)
	}
	lists(t, ns.Routes(), rs...)
}

// TestReplaceFlannelsRoute: taking over a route of flannel's form and protocol,
// and changing its gateway, never leaves a packet without a way.
func TestReplaceFlannelsRoute(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	l := vxlan(t, ns)
	ns.Run(t, "ip", "route", "add", "10.5.3.0/24", "via", "10.5.3.0", "dev", "flannel.1", "onlink")
	theirs := via(l.Index, net3, gw3)
	theirs.Protocol = 3 // RTPROT_BOOT
	lists(t, ns.Routes(), theirs)

	watcher := open(t, ns, kernel.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	lost := make(chan error, 1)
	looked := make(chan struct{}, 1)
	go func() {
		defer close(lost)
		for ctx.Err() == nil {
			_, err := watcher.RouteTo(context.WithoutCancel(ctx), netip.MustParseAddr("10.5.3.9"))
			if err != nil {
				lost <- err
				return
			}
			select {
			case looked <- struct{}{}:
			default:
			}
		}
	}()
	for i := range 200 {
		put(t, ns.Routes(), via(l.Index, net3, []netip.Addr{gw3, gw4}[i%2]))
		select {
		case <-looked: // each state is looked at
		case err := <-lost:
			t.Fatalf("lost the route on the way: %v", err)
		}
	}
	cancel()
	for err := range lost {
		t.Errorf("lost the route on the way: %v", err)
	}
	lists(t, ns.Routes(), via(l.Index, net3, gw4))
}

// TestForeignEntries: what others have is listed as far as it can be expressed
// and may conflict, and nothing else.
func TestForeignEntries(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	l := vxlan(t, ns)
	for _, line := range []string{
		"link add br0 type bridge", "link set br0 up", "addr add 198.18.0.1/24 dev br0", // a connected route
		"route add 10.1.0.0/16 proto static metric 7 nexthop via 198.18.0.2 nexthop via 198.18.0.3",
		"route add 10.2.0.0/16 via 198.18.0.2 tos 0x10",
		"route add 10.3.0.0/16 via 198.18.0.2 table 100",
		"route add unreachable 10.4.0.0/16",
		"route add blackhole 10.6.0.0/16 proto bird",
		"route add 10.7.0.0/16 dev br0 src 198.18.0.1",
		"neigh add 198.18.0.9 lladdr 02:00:00:00:00:09 dev br0 nud reachable",
		"neigh add 198.18.0.8 lladdr 02:00:00:00:00:08 dev br0 nud permanent",
		"neigh add proxy 198.18.0.7 dev br0",
	} {
		ns.Run(t, "ip", strings.Fields(line)...)
	}
	for _, line := range []string{
		"fdb append 02:00:00:00:00:03 dev flannel.1 dst 198.18.0.2",
		"fdb append 02:00:00:00:00:03 dev flannel.1 dst 198.18.0.2 port 4789",
		"fdb add 02:00:00:00:00:04 dev flannel.1 dst 198.18.0.2 dynamic",
		"fdb add 02:00:00:00:00:05 dev br0 self",
	} {
		// A unicast MAC has one VTEP: the kernel may refuse to append.
		ns.Run(t, "sh", "-c", "bridge "+line+" || true")
	}
	br, err := ns.LinkByName(t.Context(), "br0")
	if err != nil {
		t.Fatal(err)
	}
	lists(t, ns.Routes(),
		kernel.Route{Dst: netip.MustParsePrefix("10.1.0.0/16"), Metric: 7, Protocol: 4},
		kernel.Route{Dst: netip.MustParsePrefix("10.6.0.0/16"), Blackhole: true, Protocol: 12},
		kernel.Route{Dst: netip.MustParsePrefix("10.7.0.0/16"), Link: br.Index, Src: netip.MustParseAddr("198.18.0.1"), Protocol: 3})
	lists(t, ns.Neighbours(br.Index), kernel.Neighbour{
		Link: br.Index, Addr: netip.MustParseAddr("198.18.0.8"), MAC: kernel.MAC{2, 0, 0, 0, 0, 8},
	})
	lists(t, ns.FDB(l.Index), kernel.FDB{Link: l.Index, MAC: kernel.MAC{2, 0, 0, 0, 0, 3}, Dst: netip.MustParseAddr("198.18.0.2")})
	lists(t, ns.FDB(br.Index))
}

// TestBatch: refusals are matched to their entries across datagrams, and also
// when the answers do not fit the socket's buffer.
func TestBatch(t *testing.T) {
	for name, shrink := range map[string]bool{"roomy buffer": false, "small buffer": true} {
		t.Run(name, func(t *testing.T) {
			ns := kerneltest.NetNS(t, kernel.Options{Gateways: kernel.GatewayClassic})
			l := vxlan(t, ns)
			_, neighbours, routes := peers(l.Index, 1000)
			var want []any
			for i := range routes {
				if i < 100 || i%255 == 0 || i%256 == 0 || i == len(routes)-1 {
					routes[i].OnLink = false // and so its gateway cannot be reached
					want = append(want, routes[i])
				}
			}
			if shrink {
				if err := ns.ShrinkBuffer(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			err := ns.Routes().Put(t.Context(), routes)
			var got []any
			for f := range reconcile.Failures(err) {
				if f.Op != "put" || !strings.HasPrefix(f.Error(), "put 10.") ||
					!strings.HasSuffix(f.Error(), "dev flannel.1: network is unreachable: Nexthop has invalid gateway") {
					t.Fatalf("error %q", f)
				}
				got = append(got, f.Value)
			}
			if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
				t.Errorf("failed entries (-want +got):\n%s", d)
			}
			if size, err := ns.BatchSize(t.Context()); err != nil || shrink != (size < 256) {
				t.Errorf("batches of %d messages, %v", size, err)
			}
			put(t, ns.Neighbours(l.Index), neighbours...)
			lists(t, ns.Neighbours(l.Index), neighbours...)
			lists(t, ns.Routes(), slices.DeleteFunc(routes, func(r kernel.Route) bool { return !r.OnLink })...)
		})
	}
}

func TestAddLinkIsUndone(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	_, err := ns.AddLink(t.Context(), kernel.Link{Name: "vx0", Type: "vxlan", Alias: strings.Repeat("x", 300), VXLAN: kernel.VXLAN{VNI: 1}})
	if err == nil {
		t.Fatal("an alias of 300 bytes was accepted")
	}
	if _, err := ns.LinkByName(t.Context(), "vx0"); !errors.Is(err, kernel.ErrNotFound) {
		t.Errorf("after %v: the link is still there (%v)", err, err)
	}
}

func TestTunAttributes(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	ns.Run(t, "ip", "tuntap", "add", "flannel0", "mode", "tun", "multi_queue", "vnet_hdr")
	l, err := ns.LinkByName(t.Context(), "flannel0")
	if err != nil {
		t.Fatal(err)
	}
	if want := (kernel.Tun{Persist: true, MultiQueue: true, VnetHdr: true}); l.Type != "tun" || l.Tun != want || l.MAC != (kernel.MAC{}) {
		t.Errorf("link %+v, want type tun and %+v", l, want)
	}
}

// TestTunQueues: how many hold a device that several may hold.
func TestTunQueues(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	ns.Run(t, "ip", "tuntap", "add", "flannel0", "mode", "tun", "multi_queue")
	for held := range 3 {
		l, err := ns.LinkByName(t.Context(), "flannel0")
		if err != nil || l.Tun.Queues != held {
			t.Errorf("link %+v, %v; want %d queues", l, err, held)
		}
		ns.Do(t, func() {
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { unix.Close(fd) })
			req, err := unix.NewIfreq("flannel0")
			if err == nil {
				req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
				err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSysctlStaysInside(t *testing.T) {
	const name = "net/ipv4/conf/all/accept_source_route"
	own, err := kernel.Open(kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = own.Close() })
	ns := kerneltest.NetNS(t, kernel.Options{})
	before, err := own.Sysctl(name)
	if err != nil {
		t.Fatal(err)
	}
	inside, err := ns.Sysctl(name)
	if err != nil {
		t.Fatal(err)
	}
	other := map[string]string{"0": "1", "1": "0"}[inside]
	if err := ns.SetSysctl(name, other); err != nil {
		t.Fatal(err)
	}
	if got, err := ns.Sysctl(name); err != nil || got != other {
		t.Errorf("inside it is %q, %v, want %q", got, err, other)
	}
	if got, err := own.Sysctl(name); err != nil || got != before {
		t.Errorf("outside it is %q, %v, want %q", got, err, before)
	}
	for _, path := range []string{"../version", "/etc/passwd", ""} {
		if _, err := ns.Sysctl(path); !errors.Is(err, kernel.ErrNotFound) {
			t.Errorf("read %q: %v, want ErrNotFound", path, err)
		}
	}
	if err := ns.SetSysctl("kernel/ostype", "BSD"); !errors.Is(err, kernel.ErrPermission) {
		t.Errorf("write to a read-only sysctl: %v, want ErrPermission", err)
	}
}

func TestOpenAndClose(t *testing.T) {
	if _, err := kernel.Open(kernel.Options{NetNS: "/no/such/namespace"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("open a namespace that is not there: %v", err)
	}
	n, err := kernel.Open(kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if _, err := n.Links(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("list after close: %v, want os.ErrClosed", err)
	}
	if _, err := n.Routes().List(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("list routes after close: %v, want os.ErrClosed", err)
	}
}

// TestThreadsGoHome: no thread of the runtime is left in another namespace.
func TestThreadsGoHome(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	for range 20 {
		ns.Do(t, func() {})
		if _, err := ns.Sysctl("net/ipv4/ip_forward"); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		got, err := os.Readlink("/proc/self/task/" + thread.Name() + "/ns/net")
		if err == nil && got != want { // a thread may have ended meanwhile
			t.Errorf("thread %s is in %s, want %s", thread.Name(), got, want)
		}
	}
}

func TestGatewayClassicIsUnsupported(t *testing.T) {
	n, err := kernel.Open(kernel.Options{Gateways: kernel.GatewayClassic})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	err = n.NexthopObjects(t.Context())
	var unsupported *kernel.UnsupportedError
	if !errors.As(err, &unsupported) || unsupported.MinKernel != "5.3" || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error %v, want an UnsupportedError", err)
	}
}
