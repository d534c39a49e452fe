package kerneltest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

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
		{"a tunnel by another link", linkRewired},
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
	b.resolved(l.Index, a, six)
	b.resolved(1)
	b.resolved(0, a, six)
	b.must("confirm what does not age, and nobody", b.Confirm(b.ctx(), l.Index, []netip.Addr{gw, gw6, vtep}))
	b.must("confirm on no link", b.Confirm(b.ctx(), 4711, []netip.Addr{gw}))
	holds(b, "neighbours still", t, a, six)
	a.MAC = secondMAC
	b.must("replace", t.Put(b.ctx(), []kernel.Neighbour{a}))
	holds(b, "replaced neighbours", t, a, six)
	b.must("delete", t.Delete(b.ctx(), []kernel.Neighbour{a}))
	b.must("delete again", t.Delete(b.ctx(), []kernel.Neighbour{a}))
	holds(b, "neighbours left", t, six)
	b.resolved(l.Index, six)
}

// resolved checks what has a MAC; what multicast and loopback have is none.
func (b *bench) resolved(link int, want ...kernel.Neighbour) {
	b.t.Helper()
	got, err := b.Resolved(b.ctx(), link)
	b.must("list resolved", err)
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}),
		cmpopts.SortSlices(func(x, y kernel.Neighbour) bool { return less(x, y) })); d != "" {
		b.t.Errorf("resolved on link %d (-want +got):\n%s", link, d)
	}
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
