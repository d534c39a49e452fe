package kerneltest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// Suite is what every kernel.Host does. Open returns a fresh one: a loopback
// link that is down, no routes, no addresses.
func Suite(t *testing.T, open func(t *testing.T) kernel.Host) {
	for _, tc := range []struct {
		name string
		run  func(*bench)
	}{
		{"links: create, find, change, delete", links},
		{"links: vxlan attributes", linkVXLAN},
		{"links: refusals", linkRefusals},
		{"addresses", addrs},
		{"addresses: the last one takes IPv4 routes along", addrsLast},
		{"neighbours", neighbours},
		{"fdb", fdb},
		{"fdb: a moved MAC has one VTEP", fdbMoves},
		{"routes: forms", routeForms},
		{"routes: replace", routeReplace},
		{"routes: delete is exact", routeDeleteExact},
		{"routes: metrics", routeMetrics},
		{"routes: refusals", routeRefusals},
		{"routes: shared gateway", routeSharedGateway},
		{"a link that goes down", linkDown},
		{"a link that is deleted", linkDeleted},
		{"a link that is not there", linkMissing},
		{"route lookup", routeTo},
		{"sysctls", sysctls},
		{"events", events},
		{"an ended context", endedContext},
		{"a peer through reconcile", peer},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(&bench{t: t, Host: open(t)}) })
	}
}

// bench is one test with its Host. Its methods end the test on a failure.
type bench struct {
	kernel.Host
	t *testing.T
}

func (b *bench) ctx() context.Context { return b.t.Context() }

func (b *bench) must(what string, err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
}

// refused checks that err is want and reads as text at least.
func (b *bench) refused(what string, err, want error, text string) {
	b.t.Helper()
	switch {
	case err == nil:
		b.t.Errorf("%s: no error, want %v", what, want)
	case want != nil && !errors.Is(err, want):
		b.t.Errorf("%s: error %q is not %q", what, err, want)
	case !strings.Contains(err.Error(), text):
		b.t.Errorf("%s: error %q does not say %q", what, err, text)
	}
}

var (
	up, down = true, false

	peerMAC   = kernel.MAC{0x02, 0, 0, 0, 0, 0x03}
	secondMAC = kernel.MAC{0x02, 0, 0, 0, 0, 0x04}
	vtep      = netip.MustParseAddr("198.18.0.2")
	vtep2     = netip.MustParseAddr("198.18.0.3")
	gw        = netip.MustParseAddr("10.5.3.0")
	gw2       = netip.MustParseAddr("10.5.4.0")
	gw6       = netip.MustParseAddr("fd05:0:0:3::")
	subnet3   = netip.MustParsePrefix("10.5.3.0/24")
	subnet4   = netip.MustParsePrefix("10.5.4.0/24")
	subnet3v6 = netip.MustParsePrefix("fd05:0:0:3::/64")
)

// uplink is a bridge with an address: what stands in for eth0.
func (b *bench) uplink() kernel.Link {
	b.t.Helper()
	l, err := b.AddLink(b.ctx(), kernel.Link{Name: "eth0", Type: "bridge", MTU: 1500})
	b.must("add uplink", err)
	b.must("set uplink up", b.SetLink(b.ctx(), l.Index, kernel.LinkChange{Up: &up}))
	b.must("add address", b.Addrs(l.Index).Put(b.ctx(), []kernel.Addr{
		{Link: l.Index, Prefix: netip.MustParsePrefix("198.18.0.1/24")},
		{Link: l.Index, Prefix: netip.MustParsePrefix("fd00:198:18::1/64")},
	}))
	l, err = b.LinkByName(b.ctx(), "eth0")
	b.must("find uplink", err)
	return l
}

// tunnel is a VXLAN link that is up and has the host's own overlay address.
func (b *bench) tunnel() kernel.Link {
	b.t.Helper()
	u := b.uplink()
	l, err := b.AddLink(b.ctx(), kernel.Link{
		Name: "flannel.1", Type: "vxlan", Alias: kernel.Alias, MTU: 1450,
		VXLAN: kernel.VXLAN{VNI: 1, Port: 8472, Local: netip.MustParseAddr("198.18.0.1"), Uplink: u.Index},
	})
	b.must("add vxlan", err)
	b.must("set vxlan up", b.SetLink(b.ctx(), l.Index, kernel.LinkChange{Up: &up}))
	b.must("add address", b.Addrs(l.Index).Put(b.ctx(), []kernel.Addr{
		{Link: l.Index, Prefix: netip.MustParsePrefix("10.5.72.0/32")},
		{Link: l.Index, Prefix: netip.MustParsePrefix("fd05:0:0:72::/128")},
	}))
	return l
}

// holds checks a table's entries, in any order.
func holds[E any](b *bench, what string, table reconcile.Table[E], want ...E) {
	b.t.Helper()
	got, err := table.List(b.ctx())
	b.must("list "+what, err)
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
		cmpopts.SortSlices(func(x, y E) bool { return less(x, y) })); d != "" {
		b.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func less(x, y any) bool {
	a, _ := x.(interface{ String() string })
	c, _ := y.(interface{ String() string })
	return a.String() < c.String()
}

func links(b *bench) {
	before, err := b.Links(b.ctx())
	b.must("list", err)
	if len(before) != 1 || before[0].Name != "lo" || before[0].Type != "loopback" || before[0].Up {
		b.t.Fatalf("a fresh host has %+v", before)
	}
	mac := kernel.MAC{0x02, 0, 0, 0, 0, 9}
	made, err := b.AddLink(b.ctx(), kernel.Link{
		Name: "br0", Type: "bridge", MTU: 1400, MAC: mac, Alias: "mine", TxQueueLen: 500,
	})
	b.must("add", err)
	want := kernel.Link{
		Index: made.Index, Name: "br0", Type: "bridge", MTU: 1400, MAC: mac, Alias: "mine", TxQueueLen: 500,
	}
	b.link("br0", want)
	if d := cmp.Diff(want, made, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		b.t.Errorf("AddLink returned (-want +got):\n%s", d)
	}
	want.MTU, want.MAC, want.Alias, want.TxQueueLen, want.Up = 1300, secondMAC, "yours", 600, true
	b.must("change", b.SetLink(b.ctx(), made.Index, kernel.LinkChange{
		MTU: 1300, MAC: secondMAC, Alias: "yours", TxQueueLen: 600, Up: &up,
	}))
	b.link("br0", want)
	b.must("change nothing", b.SetLink(b.ctx(), made.Index, kernel.LinkChange{}))
	b.link("br0", want)
	b.must("set down", b.SetLink(b.ctx(), made.Index, kernel.LinkChange{Up: &down}))
	want.Up = false
	b.link("br0", want)
	b.must("delete", b.DeleteLink(b.ctx(), made.Index))
	b.must("delete again", b.DeleteLink(b.ctx(), made.Index))
	_, err = b.LinkByName(b.ctx(), "br0")
	b.refused("find", err, kernel.ErrNotFound, "link br0: ")
}

// link compares, but for the operational state, which needs a cable.
func (b *bench) link(name string, want kernel.Link) {
	b.t.Helper()
	got, err := b.LinkByName(b.ctx(), name)
	b.must("find", err)
	ignore := cmpopts.IgnoreFields(kernel.Link{}, "Running")
	if d := cmp.Diff(want, got, ignore, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		b.t.Errorf("link %s (-want +got):\n%s", name, d)
	}
	all, err := b.Links(b.ctx())
	b.must("list", err)
	i := slices.IndexFunc(all, func(l kernel.Link) bool { return l.Name == name })
	if i < 0 {
		b.t.Fatalf("%s is not listed", name)
	}
	if d := cmp.Diff(want, all[i], ignore, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		b.t.Errorf("listed link %s (-want +got):\n%s", name, d)
	}
}

func linkVXLAN(b *bench) {
	u := b.uplink()
	for name, v := range map[string]kernel.VXLAN{
		"flannel.1":    {VNI: 1, Port: 8472, Local: netip.MustParseAddr("198.18.0.1"), Uplink: u.Index},
		"flannel-v6.1": {VNI: 1, Port: 8473, Local: netip.MustParseAddr("fd00:198:18::1"), Uplink: u.Index},
		"flannel.7":    {VNI: 7, Port: 4789, Learning: true, GBP: true},
		"flannel.max":  {VNI: 1<<24 - 1, Port: 65535},
	} {
		made, err := b.AddLink(b.ctx(), kernel.Link{Name: name, Type: "vxlan", MTU: 1430, VXLAN: v})
		b.must("add "+name, err)
		want := kernel.Link{
			Index: made.Index, Name: name, Type: "vxlan", MTU: 1430, MAC: made.MAC, TxQueueLen: made.TxQueueLen, VXLAN: v,
		}
		if made.MAC == (kernel.MAC{}) || made.TxQueueLen == 0 {
			b.t.Errorf("%s got MAC %v and queue length %d from the kernel", name, made.MAC, made.TxQueueLen)
		}
		b.link(name, want)
	}
	// What is not said is the kernel's choice.
	l, err := b.AddLink(b.ctx(), kernel.Link{Name: "vx", Type: "vxlan", VXLAN: kernel.VXLAN{
		VNI: 3, Uplink: u.Index, Local: netip.MustParseAddr("198.18.0.1"),
	}})
	b.must("add vx", err)
	if l.MTU != u.MTU-50 || l.VXLAN.Port != 8472 {
		b.t.Errorf("MTU %d and port %d, want %d and 8472", l.MTU, l.VXLAN.Port, u.MTU-50)
	}
}

func linkRefusals(b *bench) {
	l := kernel.Link{Name: "vx0", Type: "vxlan", VXLAN: kernel.VXLAN{VNI: 5, Port: 8472}}
	_, err := b.AddLink(b.ctx(), l)
	b.must("add", err)
	_, err = b.AddLink(b.ctx(), l)
	b.refused("same name", err, kernel.ErrExists, "add link vx0: ")
	l.Name = "vx1"
	_, err = b.AddLink(b.ctx(), l)
	b.refused("same VNI and port", err, nil, "add link vx1: address already in use")
	if errors.Is(err, kernel.ErrExists) {
		b.t.Errorf("%v must not be ErrExists: there is no vx1", err)
	}
	_, err = b.AddLink(b.ctx(), kernel.Link{Name: "longer-than-a-link", Type: "bridge"})
	b.refused("long name", err, nil, "invalid argument")
	_, err = b.AddLink(b.ctx(), kernel.Link{Name: "eth9", Type: "veth"})
	b.refused("other type", err, nil, "not supported")
	_, err = b.LinkByName(b.ctx(), "longer-than-any-link-name")
	b.refused("find", err, kernel.ErrNotFound, "")
	b.refused("set", b.SetLink(b.ctx(), 4711, kernel.LinkChange{MTU: 1400}), kernel.ErrNotFound, "set link if4711: ")
	b.must("delete what is not there", b.DeleteLink(b.ctx(), 4711))
}

func addrs(b *bench) {
	u := b.uplink()
	l, err := b.AddLink(b.ctx(), kernel.Link{Name: "br1", Type: "bridge"})
	b.must("add link", err)
	b.must("set up", b.SetLink(b.ctx(), l.Index, kernel.LinkChange{Up: &up}))
	four := kernel.Addr{Link: l.Index, Prefix: netip.MustParsePrefix("10.5.72.0/32")}
	six := kernel.Addr{Link: l.Index, Prefix: netip.MustParsePrefix("fd05:0:0:72::/128")}
	t := b.Addrs(l.Index)
	holds(b, "fresh link's addresses", t)
	b.must("put", t.Put(b.ctx(), []kernel.Addr{four, six}))
	b.must("put again", t.Put(b.ctx(), []kernel.Addr{four, six}))
	holds(b, "addresses", t, four, six)
	holds(b, "all addresses", b.Addrs(0), four, six,
		kernel.Addr{Link: u.Index, Prefix: netip.MustParsePrefix("198.18.0.1/24")},
		kernel.Addr{Link: u.Index, Prefix: netip.MustParsePrefix("fd00:198:18::1/64")})
	b.must("delete", t.Delete(b.ctx(), []kernel.Addr{four}))
	b.must("delete again", t.Delete(b.ctx(), []kernel.Addr{four}))
	holds(b, "addresses left", t, six)
}

func addrsLast(b *bench) {
	l := b.tunnel()
	n := kernel.Neighbour{Link: l.Index, Addr: gw, MAC: peerMAC}
	n6 := kernel.Neighbour{Link: l.Index, Addr: gw6, MAC: peerMAC}
	b.must("put neighbours", b.Neighbours(l.Index).Put(b.ctx(), []kernel.Neighbour{n, n6}))
	plain := kernel.Route{Dst: subnet3, Link: l.Index, Protocol: kernel.Protocol}
	plain6 := kernel.Route{Dst: subnet3v6, Link: l.Index, Protocol: kernel.Protocol}
	b.must("put routes", b.Routes().Put(b.ctx(), []kernel.Route{plain, plain6}))
	b.must("delete the address", b.Addrs(l.Index).Delete(b.ctx(), []kernel.Addr{
		{Link: l.Index, Prefix: netip.MustParsePrefix("10.5.72.0/32")},
	}))
	holds(b, "neighbours", b.Neighbours(l.Index), n6)
	holds(b, "routes", b.Routes(), plain6)
}

func neighbours(b *bench) {
	l := b.tunnel()
	t := b.Neighbours(l.Index)
	holds(b, "fresh link's neighbours", t)
	a := kernel.Neighbour{Link: l.Index, Addr: gw, MAC: peerMAC}
	six := kernel.Neighbour{Link: l.Index, Addr: gw6, MAC: peerMAC}
	b.must("put", t.Put(b.ctx(), []kernel.Neighbour{a, six}))
	b.must("put again", t.Put(b.ctx(), []kernel.Neighbour{a, six}))
	holds(b, "neighbours", t, a, six)
	holds(b, "another link's neighbours", b.Neighbours(1))
	a.MAC = secondMAC
	b.must("replace", t.Put(b.ctx(), []kernel.Neighbour{a}))
	holds(b, "replaced neighbours", t, a, six)
	b.must("delete", t.Delete(b.ctx(), []kernel.Neighbour{a}))
	b.must("delete again", t.Delete(b.ctx(), []kernel.Neighbour{a}))
	holds(b, "neighbours left", t, six)
}

func fdb(b *bench) {
	l := b.tunnel()
	t := b.FDB(l.Index)
	holds(b, "fresh link's fdb", t)
	x := kernel.FDB{Link: l.Index, MAC: peerMAC, Dst: vtep}
	y := kernel.FDB{Link: l.Index, MAC: secondMAC, Dst: vtep2}
	b.must("put", t.Put(b.ctx(), []kernel.FDB{x, y}))
	b.must("put again", t.Put(b.ctx(), []kernel.FDB{x, y}))
	holds(b, "fdb", t, x, y)
	b.must("delete", t.Delete(b.ctx(), []kernel.FDB{x}))
	b.must("delete again", t.Delete(b.ctx(), []kernel.FDB{x}))
	holds(b, "fdb left", t, y)
}

func fdbMoves(b *bench) {
	l := b.tunnel()
	t := b.FDB(l.Index)
	old := kernel.FDB{Link: l.Index, MAC: peerMAC, Dst: vtep}
	moved := kernel.FDB{Link: l.Index, MAC: peerMAC, Dst: vtep2}
	b.must("put", t.Put(b.ctx(), []kernel.FDB{old}))
	b.must("move", t.Put(b.ctx(), []kernel.FDB{moved}))
	holds(b, "fdb", t, moved)
	b.must("delete the old value", t.Delete(b.ctx(), []kernel.FDB{old}))
	holds(b, "fdb after deleting the old value", t, moved)
}

// via is a peer's route through the tunnel.
func via(l kernel.Link, dst netip.Prefix, gateway netip.Addr) kernel.Route {
	return kernel.Route{Dst: dst, Gateway: gateway, Link: l.Index, OnLink: true, Protocol: kernel.Protocol}
}

func routeForms(b *bench) {
	l := b.tunnel()
	u, err := b.LinkByName(b.ctx(), "eth0")
	b.must("find uplink", err)
	want := []kernel.Route{
		via(l, subnet3, gw),
		via(l, subnet3v6, gw6),
		{Dst: subnet4, Gateway: vtep, Link: u.Index, Protocol: kernel.Protocol},
		{Dst: netip.MustParsePrefix("10.6.0.0/16"), Link: l.Index, Protocol: kernel.Protocol},
		{Dst: netip.MustParsePrefix("10.7.0.0/16"), Blackhole: true, Protocol: kernel.Protocol},
		{Dst: netip.MustParsePrefix("fd07::/16"), Blackhole: true, Protocol: kernel.Protocol},
		{
			Dst: netip.MustParsePrefix("10.8.0.0/16"), Gateway: gw, Link: l.Index, OnLink: true,
			Src: netip.MustParseAddr("10.5.72.0"), Protocol: kernel.Protocol,
		},
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: vtep, Link: u.Index, Protocol: 4},
		{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd00:198:18::2"), Link: u.Index, Protocol: 4},
	}
	b.must("put", b.Routes().Put(b.ctx(), want))
	holds(b, "routes", b.Routes(), want...)
	b.must("put again", b.Routes().Put(b.ctx(), want))
	holds(b, "routes put twice", b.Routes(), want...)
	b.must("delete", b.Routes().Delete(b.ctx(), want))
	holds(b, "routes left", b.Routes())
	b.must("delete again", b.Routes().Delete(b.ctx(), want))
	b.must("put without protocol", b.Routes().Put(b.ctx(), []kernel.Route{
		{Dst: subnet3, Gateway: gw, Link: l.Index, OnLink: true},
	}))
	holds(b, "a route of ours", b.Routes(), via(l, subnet3, gw))
}

func routeReplace(b *bench) {
	l := b.tunnel()
	u, err := b.LinkByName(b.ctx(), "eth0")
	b.must("find uplink", err)
	for _, r := range []kernel.Route{
		{Dst: subnet3, Gateway: gw, Link: l.Index, OnLink: true, Protocol: 3}, // somebody's
		via(l, subnet3, gw),
		via(l, subnet3, gw2),
		{Dst: subnet3, Gateway: vtep, Link: u.Index, Protocol: kernel.Protocol},
		{Dst: subnet3, Blackhole: true, Protocol: kernel.Protocol},
		{Dst: subnet3, Link: l.Index, Protocol: kernel.Protocol},
		via(l, subnet3, gw),
	} {
		b.must("put "+r.String(), b.Routes().Put(b.ctx(), []kernel.Route{r}))
		holds(b, "routes", b.Routes(), r)
	}
	for _, r := range []kernel.Route{
		via(l, subnet3v6, gw6),
		via(l, subnet3v6, netip.MustParseAddr("fd05:0:0:4::")),
		{Dst: subnet3v6, Link: l.Index, Protocol: kernel.Protocol},
		via(l, subnet3v6, gw6),
	} {
		b.must("put "+r.String(), b.Routes().Put(b.ctx(), []kernel.Route{r}))
		holds(b, "routes", b.Routes(), via(l, subnet3, gw), r)
	}
}

func routeDeleteExact(b *bench) {
	l := b.tunnel()
	ours := []kernel.Route{via(l, subnet3, gw), via(l, subnet4, gw2)}
	b.must("put", b.Routes().Put(b.ctx(), ours))
	foreign := ours[0]
	foreign.Protocol = 4
	b.must("delete other values", b.Routes().Delete(b.ctx(), []kernel.Route{
		via(l, subnet3, gw2), via(l, subnet4, gw), foreign,
	}))
	holds(b, "routes", b.Routes(), ours...)
}

func routeMetrics(b *bench) {
	l := b.tunnel()
	var rs []kernel.Route
	for i, dst := range []netip.Prefix{subnet3, subnet3v6} {
		for _, metric := range []int{0, 10, 4096} {
			r := via(l, dst, []netip.Addr{gw, gw6}[i])
			r.Metric = metric
			rs = append(rs, r)
		}
	}
	b.must("put", b.Routes().Put(b.ctx(), rs))
	holds(b, "routes", b.Routes(), rs...)
	b.must("delete", b.Routes().Delete(b.ctx(), []kernel.Route{rs[0], rs[3]}))
	holds(b, "routes left", b.Routes(), rs[1], rs[2], rs[4], rs[5])
}

func routeRefusals(b *bench) {
	l := b.tunnel()
	good, good2 := via(l, subnet3, gw), via(l, netip.MustParsePrefix("10.5.9.0/24"), netip.MustParseAddr("10.5.9.0"))
	far := kernel.Route{Dst: subnet4, Gateway: netip.MustParseAddr("203.0.113.1"), Link: l.Index}
	src := via(l, netip.MustParsePrefix("10.5.5.0/24"), gw)
	src.Src = netip.MustParseAddr("203.0.113.9")
	err := b.Routes().Put(b.ctx(), []kernel.Route{good, far, src, good2})
	b.refused("put", err, nil, "put 10.5.4.0/24 via 203.0.113.1 dev flannel.1: network is unreachable: Nexthop has invalid gateway")
	b.refused("put", err, nil, "put 10.5.5.0/24 via 10.5.3.0 dev flannel.1 src 203.0.113.9 onlink: invalid argument: Invalid prefsrc address")
	var failed []any
	for f := range reconcile.Failures(err) {
		failed = append(failed, f.Value)
	}
	if d := cmp.Diff([]any{far, src}, failed, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		b.t.Errorf("failed entries (-want +got):\n%s", d)
	}
	holds(b, "routes", b.Routes(), good, good2)
	b.must("set down", b.SetLink(b.ctx(), l.Index, kernel.LinkChange{Up: &down}))
	err = b.Routes().Put(b.ctx(), []kernel.Route{good})
	b.refused("put on a link that is down", err, nil, "network is down")
	holds(b, "routes on a link that is down", b.Routes())
}

func routeSharedGateway(b *bench) {
	l := b.tunnel()
	one, two := via(l, subnet3, gw), via(l, subnet4, gw)
	b.must("put", b.Routes().Put(b.ctx(), []kernel.Route{one, two}))
	b.must("delete one", b.Routes().Delete(b.ctx(), []kernel.Route{one}))
	holds(b, "routes", b.Routes(), two)
	two.Gateway = gw2
	b.must("replace the other", b.Routes().Put(b.ctx(), []kernel.Route{two}))
	holds(b, "routes", b.Routes(), two)
	b.must("put the first again", b.Routes().Put(b.ctx(), []kernel.Route{one}))
	holds(b, "routes", b.Routes(), one, two)
}

// full is a tunnel with one peer of both families.
func full(b *bench) (kernel.Link, kernel.FDB, []kernel.Neighbour, []kernel.Route) {
	b.t.Helper()
	l := b.tunnel()
	f := kernel.FDB{Link: l.Index, MAC: peerMAC, Dst: vtep}
	ns := []kernel.Neighbour{{Link: l.Index, Addr: gw, MAC: peerMAC}, {Link: l.Index, Addr: gw6, MAC: peerMAC}}
	rs := []kernel.Route{via(l, subnet3, gw), via(l, subnet3v6, gw6)}
	b.must("put fdb", b.FDB(l.Index).Put(b.ctx(), []kernel.FDB{f}))
	b.must("put neighbours", b.Neighbours(l.Index).Put(b.ctx(), ns))
	b.must("put routes", b.Routes().Put(b.ctx(), rs))
	return l, f, ns, rs
}

func linkDown(b *bench) {
	l, f, ns, rs := full(b)
	b.must("set down", b.SetLink(b.ctx(), l.Index, kernel.LinkChange{Up: &down}))
	holds(b, "fdb", b.FDB(l.Index), f)
	holds(b, "neighbours", b.Neighbours(l.Index))
	holds(b, "routes", b.Routes())
	holds(b, "addresses", b.Addrs(l.Index), kernel.Addr{Link: l.Index, Prefix: netip.MustParsePrefix("10.5.72.0/32")})
	b.must("set up", b.SetLink(b.ctx(), l.Index, kernel.LinkChange{Up: &up}))
	holds(b, "routes once up again", b.Routes())
	// What was known of before must not be relied on.
	b.must("put neighbours", b.Neighbours(l.Index).Put(b.ctx(), ns))
	b.must("put routes", b.Routes().Put(b.ctx(), rs))
	holds(b, "neighbours put again", b.Neighbours(l.Index), ns...)
	holds(b, "routes put again", b.Routes(), rs...)
}

func linkDeleted(b *bench) {
	l, _, ns, _ := full(b)
	b.must("delete", b.DeleteLink(b.ctx(), l.Index))
	holds(b, "routes", b.Routes())
	holds(b, "fdb", b.FDB(l.Index))
	holds(b, "neighbours", b.Neighbours(l.Index))
	holds(b, "addresses", b.Addrs(l.Index))
	again, err := b.AddLink(b.ctx(), kernel.Link{Name: "flannel.1", Type: "vxlan", VXLAN: kernel.VXLAN{VNI: 1}})
	b.must("add again", err)
	if again.Index == l.Index {
		b.t.Errorf("index %d is used again", l.Index)
	}
	b.must("set up", b.SetLink(b.ctx(), again.Index, kernel.LinkChange{Up: &up}))
	r := via(again, subnet3, gw)
	b.must("put a route", b.Routes().Put(b.ctx(), []kernel.Route{r}))
	holds(b, "routes", b.Routes(), r)
	b.refused("put neighbours on the old index", b.Neighbours(l.Index).Put(b.ctx(), ns), kernel.ErrNotFound, "no such device")
}

func linkMissing(b *bench) {
	const no = 4711
	holds(b, "addresses", b.Addrs(no))
	holds(b, "neighbours", b.Neighbours(no))
	holds(b, "fdb", b.FDB(no))
	ctx := b.ctx()
	b.refused("put address", b.Addrs(no).Put(ctx, []kernel.Addr{{Link: no, Prefix: subnet3}}),
		kernel.ErrNotFound, "put 10.5.3.0/24 dev if4711: no such device")
	b.refused("put neighbour", b.Neighbours(no).Put(ctx, []kernel.Neighbour{{Link: no, Addr: gw, MAC: peerMAC}}),
		kernel.ErrNotFound, "put 10.5.3.0 dev if4711 lladdr 02:00:00:00:00:03: no such device")
	b.refused("put fdb", b.FDB(no).Put(ctx, []kernel.FDB{{Link: no, MAC: peerMAC, Dst: vtep}}),
		kernel.ErrNotFound, "put 02:00:00:00:00:03 dev if4711 dst 198.18.0.2: no such device")
	b.refused("put route", b.Routes().Put(ctx, []kernel.Route{via(kernel.Link{Index: no}, subnet3, gw)}),
		nil, "put 10.5.3.0/24 via 10.5.3.0 dev if4711 onlink: ")
	b.must("delete", errors.Join(
		b.Addrs(no).Delete(ctx, []kernel.Addr{{Link: no, Prefix: subnet3}}),
		b.Neighbours(no).Delete(ctx, []kernel.Neighbour{{Link: no, Addr: gw, MAC: peerMAC}}),
		b.FDB(no).Delete(ctx, []kernel.FDB{{Link: no, MAC: peerMAC, Dst: vtep}}),
		b.Routes().Delete(ctx, []kernel.Route{via(kernel.Link{Index: no}, subnet3, gw)}),
	))
}

func routeTo(b *bench) {
	l := b.tunnel()
	u, err := b.LinkByName(b.ctx(), "eth0")
	b.must("find uplink", err)
	src, src6 := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd00:198:18::1")
	b.must("put", b.Routes().Put(b.ctx(), []kernel.Route{
		via(l, subnet3, gw), {Dst: subnet4, Blackhole: true},
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("198.18.0.254"), Link: u.Index},
		{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd00:198:18::fe"), Link: u.Index},
	}))
	for dst, want := range map[string]kernel.Route{
		"198.18.0.9":      {Link: u.Index, Src: src},
		"10.5.3.7":        {Link: l.Index, Gateway: gw, Src: netip.MustParseAddr("10.5.72.0")},
		"203.0.113.1":     {Link: u.Index, Gateway: netip.MustParseAddr("198.18.0.254"), Src: src},
		"fd00:198:18::9":  {Link: u.Index, Src: src6},
		"2001:db8:1:2::3": {Link: u.Index, Gateway: netip.MustParseAddr("fd00:198:18::fe"), Src: src6},
	} {
		a := netip.MustParseAddr(dst)
		want.Dst = netip.PrefixFrom(a, a.BitLen())
		got, err := b.RouteTo(b.ctx(), a)
		b.must("route to "+dst, err)
		if got != want {
			b.t.Errorf("route to %s: %v, want %v", dst, got, want)
		}
	}
	_, err = b.RouteTo(b.ctx(), netip.MustParseAddr("10.5.4.1"))
	b.refused("route into a blackhole", err, kernel.ErrNotFound, "route to 10.5.4.1: ")
	b.must("set down", b.SetLink(b.ctx(), u.Index, kernel.LinkChange{Up: &down}))
	for _, dst := range []string{"203.0.113.1", "2001:db8::1"} {
		_, err = b.RouteTo(b.ctx(), netip.MustParseAddr(dst))
		b.refused("route without a route", err, kernel.ErrNotFound, "route to "+dst+": ")
	}
}

func sysctls(b *bench) {
	const forward = "net/ipv4/ip_forward"
	for _, v := range []string{"1", "0", "1"} {
		b.must("set", b.SetSysctl(forward, v))
		got, err := b.Sysctl(forward)
		b.must("read", err)
		if got != v {
			b.t.Errorf("%s is %q, want %q", forward, got, v)
		}
	}
	_, err := b.Sysctl("net/ipv4/no_such")
	b.refused("read", err, kernel.ErrNotFound, "read sysctl net/ipv4/no_such: ")
	b.refused("set", b.SetSysctl("net/ipv4/no_such", "1"), kernel.ErrNotFound, "write sysctl net/ipv4/no_such: ")
}

// events waits for each change's own event; others may come in between.
func events(b *bench) {
	ctx, cancel := context.WithCancel(b.ctx())
	defer cancel()
	l := b.tunnel()
	ch, err := b.Events(ctx)
	b.must("subscribe", err)
	f := []kernel.FDB{{Link: l.Index, MAC: peerMAC, Dst: vtep}}
	n := []kernel.Neighbour{{Link: l.Index, Addr: gw, MAC: peerMAC}}
	r := []kernel.Route{via(l, subnet3, gw)}
	a := []kernel.Addr{{Link: l.Index, Prefix: netip.MustParsePrefix("10.5.73.0/32")}}
	for _, step := range []struct {
		name  string
		do    func() error
		topic kernel.Topic
	}{
		{"put fdb", func() error { return b.FDB(l.Index).Put(ctx, f) }, kernel.TopicFDB},
		{"put neighbour", func() error { return b.Neighbours(l.Index).Put(ctx, n) }, kernel.TopicNeighbour},
		{"put route", func() error { return b.Routes().Put(ctx, r) }, kernel.TopicRoute},
		{"put address", func() error { return b.Addrs(l.Index).Put(ctx, a) }, kernel.TopicAddr},
		{"delete route", func() error { return b.Routes().Delete(ctx, r) }, kernel.TopicRoute},
		{"delete neighbour", func() error { return b.Neighbours(l.Index).Delete(ctx, n) }, kernel.TopicNeighbour},
		{"delete fdb", func() error { return b.FDB(l.Index).Delete(ctx, f) }, kernel.TopicFDB},
		{"delete address", func() error { return b.Addrs(l.Index).Delete(ctx, a) }, kernel.TopicAddr},
		{"change link", func() error { return b.SetLink(ctx, l.Index, kernel.LinkChange{MTU: 1400}) }, kernel.TopicLink},
		{"delete link", func() error { return b.DeleteLink(ctx, l.Index) }, kernel.TopicLink},
	} {
		settle(ch)
		b.must(step.name, step.do())
		b.await(ch, step.name, kernel.Event{Topic: step.topic, Link: l.Index})
	}
	cancel()
	for range ch { // it ends only when the channel is closed
	}
}

// settle takes what is still on its way from the step before: an event that
// arrives later than its cause was seen would be taken for the next one's.
func settle(ch <-chan kernel.Event) {
	for {
		select {
		case <-ch:
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

func (b *bench) await(ch <-chan kernel.Event, what string, want kernel.Event) {
	b.t.Helper()
	timeout := time.After(5 * time.Second)
	var got []kernel.Event
	for {
		select {
		case e, open := <-ch:
			if e == want {
				return
			}
			if !open {
				b.t.Fatalf("%s: closed after %v", what, got)
			}
			got = append(got, e)
		case <-timeout:
			b.t.Fatalf("%s: got %v, want %v", what, got, want)
		}
	}
}

func endedContext(b *bench) {
	l := b.tunnel()
	ctx, cancel := context.WithCancel(b.ctx())
	cancel()
	_, err := b.Routes().List(ctx)
	b.refused("list", err, context.Canceled, "")
	_, err = b.Links(ctx)
	b.refused("links", err, context.Canceled, "")
	err = b.Routes().Put(ctx, []kernel.Route{via(l, subnet3, gw)})
	b.refused("put", err, context.Canceled, "put 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink: ")
	holds(b, "routes", b.Routes())
}

// peer runs what a backend does: two peers, one of which moves, then leaves.
func peer(b *bench) {
	l := b.tunnel()
	foreign := kernel.Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Gateway: vtep, Link: l.Index - 1, Protocol: 4}
	b.must("put a foreign route", b.Routes().Put(b.ctx(), []kernel.Route{foreign}))
	apply := func(fs []kernel.FDB, ns []kernel.Neighbour, rs []kernel.Route, want reconcile.Result) {
		b.t.Helper()
		got, err := reconcile.Apply(b.ctx(),
			reconcile.NewStep("fdb", b.FDB(l.Index), fs, nil),
			reconcile.NewStep("neighbour", b.Neighbours(l.Index), ns, nil),
			reconcile.NewStep("route", b.Routes(), rs, func(r kernel.Route) bool { return r.Protocol == kernel.Protocol }))
		b.must("apply", err)
		if got != want {
			b.t.Errorf("apply did %+v, want %+v", got, want)
		}
		holds(b, "fdb", b.FDB(l.Index), fs...)
		holds(b, "neighbours", b.Neighbours(l.Index), ns...)
		holds(b, "routes", b.Routes(), append([]kernel.Route{foreign}, rs...)...)
	}
	fs := []kernel.FDB{{Link: l.Index, MAC: peerMAC, Dst: vtep}, {Link: l.Index, MAC: secondMAC, Dst: vtep2}}
	ns := []kernel.Neighbour{{Link: l.Index, Addr: gw, MAC: peerMAC}, {Link: l.Index, Addr: gw2, MAC: secondMAC}}
	rs := []kernel.Route{via(l, subnet3, gw), via(l, subnet4, gw2)}
	apply(fs, ns, rs, reconcile.Result{Put: 6})
	apply(fs, ns, rs, reconcile.Result{})
	fs[1].Dst, ns[1].MAC, fs[1].MAC = netip.MustParseAddr("198.18.0.4"), kernel.MAC{2, 0, 0, 0, 0, 5}, kernel.MAC{2, 0, 0, 0, 0, 5}
	apply(fs, ns, rs, reconcile.Result{Put: 2, Deleted: 1})
	apply(fs[:1], ns[:1], rs[:1], reconcile.Result{Deleted: 3})
	apply(nil, nil, nil, reconcile.Result{Deleted: 3})
}
