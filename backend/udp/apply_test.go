package udp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
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

// device is the tunnel of the first instance.
const device = devicePrefix + "0"

// host is a Backend on a kernel in memory, with TUN devices in memory and real
// sockets on loopback.
type host struct {
	*Backend
	fake   *kerneltest.Fake
	opened []memoryTunnel
	made   []reconcile.Result
}

func testConfig(options string) *subnet.Config {
	c := &subnet.Config{BackendType: "udp", Backend: subnet.RawJSON(options)}
	c.Ranges[subnet.IPv4] = subnet.Range{Network: netip.MustParsePrefix("10.5.0.0/16"), SubnetLen: 24}
	return c
}

// freePort finds a UDP port on loopback that nobody has. It is none of those that the
// kernel hands out by itself (ip_local_port_range), as to tests of other packages: until
// it is bound nobody has it still.
func freePort(t testing.TB) uint16 {
	t.Helper()
	const first, count = 10000, 20000
	for range 1000 {
		port := first + rand.IntN(count)
		if c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}); err == nil {
			c.Close()
			return uint16(port)
		}
	}
	t.Fatal("no port is free")
	return 0
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{fake: kerneltest.New()}
	made, err := New(backend.Params{
		Config: testConfig(fmt.Sprintf(`{"Port":%d,"Queues":2}`, freePort(t))),
		Kernel: h.fake,
		Observe: func(r reconcile.Result) {
			h.made = append(h.made, r)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Backend = made.(*Backend)
	h.open = h.plug
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// plug does to the fake what TUNSETIFF does to the kernel.
func (h *host) plug(name string, o tunOptions) (tunnel, error) {
	link, err := h.fake.LinkByName(context.Background(), name)
	if errors.Is(err, kernel.ErrNotFound) {
		link = h.fake.Plug(kernel.Link{Name: name, Type: "tun", TxQueueLen: 500, Tun: kernel.Tun{MultiQueue: o.MultiQueue}})
		down := false
		if err := h.fake.SetLink(context.Background(), link.Index, kernel.LinkChange{Up: &down}); err != nil {
			return nil, err
		}
		h.fake.ResetOps()
	}
	if link.Tun.MultiQueue != o.MultiQueue {
		return nil, errors.New("attached with the wrong flags")
	}
	if o.Queues > 1 && !o.MultiQueue {
		return nil, errors.New("several queues of a device that has one")
	}
	opened := newMemoryTunnel(o.Queues)
	h.opened = append(h.opened, opened)
	return opened, nil
}

func testUplink(addr string) backend.Uplink {
	u := backend.Uplink{Link: kernel.Link{Index: 9, Name: "eth0", MTU: 1500}}
	a := netip.MustParseAddr(addr)
	u.Addr[subnet.FamilyOf(a)], u.Public[subnet.FamilyOf(a)] = a, a
	return u
}

func lease(prefix, public string) subnet.Lease {
	var l subnet.Lease
	p, a := netip.MustParsePrefix(prefix), netip.MustParseAddr(public)
	l.Subnet[subnet.FamilyOf(p.Addr())] = p
	l.Attrs.PublicIP[subnet.FamilyOf(a)] = a
	return l
}

func desired(c *subnet.Config, own string, peers ...subnet.Lease) backend.Desired {
	return backend.Desired{Config: c, Uplink: testUplink("127.0.0.1"), Own: lease(own, "127.0.0.1"), Peers: slices.Collect(subnet.Each(peers))}
}

func (h *host) desired() backend.Desired {
	return desired(h.params.Config, "10.5.1.0/24", lease("10.5.2.0/24", "198.18.0.2"))
}

// state prints everything of flannel0 in the fake.
func (h *host) state(t *testing.T) []string {
	t.Helper()
	link, err := h.fake.LinkByName(t.Context(), device)
	if err != nil {
		return nil
	}
	got := []string{fmt.Sprintf("%s type %s alias %s mtu %d qlen %d up %v", link.Name, link.Type, link.Alias, link.MTU, link.TxQueueLen, link.Up)}
	addrs, _ := h.fake.Addrs(link.Index).List(t.Context())
	for _, a := range addrs {
		got = append(got, a.Prefix.String())
	}
	routes, _ := h.fake.Routes().List(t.Context())
	for _, r := range routes {
		got = append(got, fmt.Sprintf("%s own device %v proto %d", r.Dst, r.Link == link.Index, r.Protocol))
	}
	return got
}

func whole(own string) []string {
	return []string{
		"flannel0 type tun alias flanneld-go mtu 1472 qlen 2000 up true",
		own + "/32",
		"10.5.0.0/16 own device true proto 158",
	}
}

func (h *host) ops() (verbs []string) {
	for _, o := range h.fake.Ops() {
		verbs = append(verbs, o.Verb+" "+o.Kind)
	}
	h.fake.ResetOps()
	return verbs
}

func TestApplyFromNothingAndAgain(t *testing.T) {
	h := newHost(t)
	for i := range 2 {
		if err := h.Apply(t.Context(), h.desired()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(whole("10.5.1.0"), h.state(t)); diff != "" {
			t.Errorf("state after %d (-want +got):\n%s", i, diff)
		}
		want := [][]string{{"set link", "put addr", "set link", "put route"}, nil}[i]
		if diff := cmp.Diff(want, h.ops()); diff != "" {
			t.Errorf("operations of %d (-want +got):\n%s", i, diff)
		}
	}
	if diff := cmp.Diff([]reconcile.Result{{Put: 2}, {}}, h.made); diff != "" {
		t.Errorf("observed (-want +got):\n%s", diff)
	}
	if len(h.opened) != 1 || h.devices.get(1) != Device(h.opened[0][1]) {
		t.Errorf("%d devices opened, current is %v", len(h.opened), h.devices.get(1))
	}
}

// TestApplyBindsTheUplinkOnly: the port is free on the host's other addresses.
func TestApplyBindsTheUplinkOnly(t *testing.T) {
	h := newHost(t)
	if err := h.Apply(t.Context(), h.desired()); err != nil {
		t.Fatal(err)
	}
	other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2), Port: int(h.port)})
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
}

func TestApplyAnotherSubnet(t *testing.T) {
	h := newHost(t)
	for _, own := range []string{"10.5.1.0", "10.5.7.0"} {
		if err := h.Apply(t.Context(), desired(h.params.Config, own+"/24")); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(whole(own), h.state(t)); diff != "" {
			t.Errorf("state (-want +got):\n%s", diff)
		}
		if got := h.world.Load().own[subnet.IPv4].String(); got != own {
			t.Errorf("errors are sent from %s, want %s", got, own)
		}
	}
}

// TestApplyAfterDeletion: Apply finds the device deleted, or renamed, and makes
// another.
func TestApplyAfterDeletion(t *testing.T) {
	h := newHost(t)
	for range 3 {
		if err := h.Apply(t.Context(), h.desired()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(whole("10.5.1.0"), h.state(t)); diff != "" {
			t.Errorf("state (-want +got):\n%s", diff)
		}
		link, err := h.fake.LinkByName(t.Context(), device)
		if err == nil {
			err = h.fake.DeleteLink(t.Context(), link.Index)
		}
		if err != nil {
			t.Fatal(err)
		}
		h.opened[len(h.opened)-1].Close()
	}
	if len(h.opened) != 3 || h.devices.get(1) != Device(h.opened[2][1]) {
		t.Errorf("%d devices opened, current is %v", len(h.opened), h.devices.get(1))
	}
}

// TestApplyReplaces: a device of a single queue goes, but for one of ours where one is
// what we want, as on a machine of few cores.
func TestApplyReplaces(t *testing.T) {
	for name, tc := range map[string]struct {
		alias  string
		queues int
		stays  bool
	}{
		"flannel's, too few":     {"", 2, false},
		"flannel's":              {"", 1, false},
		"another instance's":     {kernel.Alias + "1", 1, false},
		"an earlier run's":       {kernel.Alias, 2, false},
		"ours, and one is right": {kernel.Alias, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.queues = tc.queues
			before := h.fake.Plug(kernel.Link{Name: device, Type: "tun", Alias: tc.alias, Tun: kernel.Tun{Persist: true}}, netip.MustParsePrefix("10.5.1.0/32"))
			if err := h.Apply(t.Context(), h.desired()); err != nil {
				t.Fatal(err)
			}
			after, err := h.fake.LinkByName(t.Context(), device)
			if err != nil || (after.Index == before.Index) != tc.stays || after.Tun.MultiQueue != (tc.queues > 1) {
				t.Errorf("the device is %+v, %v", after, err)
			}
			if diff := cmp.Diff(whole("10.5.1.0"), h.state(t)); diff != "" {
				t.Errorf("state (-want +got):\n%s", diff)
			}
			opened := 2
			if tc.stays {
				opened = 1
			}
			if n := len(h.opened); n != opened || !tc.stays && !h.opened[0].gone() || len(h.opened[n-1]) != tc.queues {
				t.Errorf("opened %v", h.opened)
			}
		})
	}
}

func TestApplyLeavesHeldDevices(t *testing.T) {
	for name, tun := range map[string]kernel.Tun{
		"one queue":      {},
		"several queues": {MultiQueue: true, Queues: 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			before := h.fake.Plug(kernel.Link{Name: device, Type: "tun", Tun: tun})
			h.open = func(name string, o tunOptions) (tunnel, error) {
				if o.MultiQueue {
					t.Error("attached beside somebody")
				}
				return nil, busyError(name)
			}
			if err := h.Apply(t.Context(), h.desired()); !errors.Is(err, ErrDeviceBusy) {
				t.Errorf("apply: %v", err)
			}
			if after, err := h.fake.LinkByName(t.Context(), device); err != nil || after.Index != before.Index {
				t.Errorf("the device is %+v, %v", after, err)
			}
		})
	}
}

// TestApplyAdopts: a free multi-queue device of an earlier run is taken as it is.
func TestApplyAdopts(t *testing.T) {
	h := newHost(t)
	before := h.fake.Plug(kernel.Link{Name: device, Type: "tun", MTU: 1400, TxQueueLen: 5000, Tun: kernel.Tun{Persist: true, MultiQueue: true}},
		netip.MustParsePrefix("10.5.9.0/32"), netip.MustParsePrefix("192.0.2.1/24"))
	if err := h.Apply(t.Context(), h.desired()); err != nil {
		t.Fatal(err)
	}
	after, err := h.fake.LinkByName(t.Context(), device)
	if err != nil {
		t.Fatal(err)
	}
	if after.Index != before.Index {
		t.Error("the device was replaced")
	}
	want := []string{
		"flannel0 type tun alias flanneld-go mtu 1472 qlen 5000 up true",
		"10.5.1.0/32", "192.0.2.1/24", "10.5.0.0/16 own device true proto 158",
	}
	if diff := cmp.Diff(want, h.state(t)); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
}

func TestApplyRefusesForeignDevice(t *testing.T) {
	h := newHost(t)
	h.fake.Plug(kernel.Link{Name: device, Type: "bridge"})
	err := h.Apply(t.Context(), h.desired())
	if !errors.Is(err, ErrForeignDevice) {
		t.Errorf("apply: %v", err)
	}
	const want = "open device flannel0: not a tun device but of type bridge: it is not flannel's; rename or delete it (ip link del flannel0)"
	if err != nil && err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	if ops := h.ops(); ops != nil || len(h.opened) != 0 {
		t.Errorf("touched: %v, %d opened", ops, len(h.opened))
	}
}

// TestApplyPortTaken: also by a program that would share it.
func TestApplyPortTaken(t *testing.T) {
	h := newHost(t)
	sharing := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return control(raw, share) }}
	other, err := sharing.ListenPacket(t.Context(), "udp4", fmt.Sprintf("127.0.0.1:%d", h.port))
	if err != nil {
		t.Fatal(err)
	}
	err = h.Apply(t.Context(), h.desired())
	other.Close()
	want := fmt.Sprintf("udp port is taken: 127.0.0.1:%d is held by this process: stop it (`ss -lunp sport = :%d` shows it;", h.port, h.port)
	if !errors.Is(err, ErrPortTaken) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("apply: %v", err)
	}
	if ops := h.ops(); ops != nil || len(h.opened) != 0 {
		t.Errorf("touched: %v, %d opened", ops, len(h.opened))
	}
	if err := h.Apply(t.Context(), h.desired()); err != nil {
		t.Errorf("apply once the port is free: %v", err)
	}
}

// TestApplyGoesOnAfterAnyFailure refuses each kernel operation once, in turn.
func TestApplyGoesOnAfterAnyFailure(t *testing.T) {
	refusal := errors.New("refused")
	for n := 1; ; n++ {
		h := newHost(t)
		h.fake.Plug(kernel.Link{Name: "eth0"})
		refused := false
		fail := kerneltest.FailNth(n, refusal, func(o kerneltest.Op) bool { return o.Kind != "link" || o.Verb != "list" })
		first := true
		h.fake.OnOp(func(o kerneltest.Op) error {
			down := o.Verb == "set" && o.Value != nil && o.Value.(kernel.LinkChange).Up != nil && !*o.Value.(kernel.LinkChange).Up
			if first && down { // plug's own
				return nil
			}
			err := fail(o)
			refused = refused || err != nil
			return err
		})
		err := h.Apply(t.Context(), h.desired())
		if !refused {
			if n < 6 {
				t.Fatalf("only %d operations were seen", n-1)
			}
			return
		}
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("operation %d was refused, apply says %v", n, err)
		}
		if d := h.devices.get(0); d == nil && len(h.opened) > 0 && !h.opened[0].gone() {
			t.Errorf("operation %d was refused: the device was left open", n)
		}
		first = false
		if err := h.Apply(t.Context(), h.desired()); err != nil {
			t.Errorf("apply after operation %d was refused once: %v", n, err)
		}
		if diff := cmp.Diff(whole("10.5.1.0"), h.state(t)); diff != "" {
			t.Errorf("state (-want +got):\n%s", diff)
		}
	}
}

// TestApplyGoesOnWithoutTuning: a device that cannot be given its MTU back still
// gets its address and route.
func TestApplyGoesOnWithoutTuning(t *testing.T) {
	h := newHost(t)
	if err := h.Apply(t.Context(), h.desired()); err != nil {
		t.Fatal(err)
	}
	link, err := h.fake.LinkByName(t.Context(), device)
	if err == nil {
		err = h.fake.SetLink(t.Context(), link.Index, kernel.LinkChange{MTU: 1400})
	}
	if err != nil {
		t.Fatal(err)
	}
	h.fake.OnOp(kerneltest.FailNth(1, errors.New("refused"), func(o kerneltest.Op) bool { return o.Verb == "set" }))
	if err := h.Apply(t.Context(), desired(h.params.Config, "10.5.7.0/24")); err == nil {
		t.Error("the refusal was not reported")
	}
	want := whole("10.5.7.0")
	want[0] = strings.Replace(want[0], "1472", "1400", 1)
	if diff := cmp.Diff(want, h.state(t)); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
}

func TestApplyLeavesForeignRoute(t *testing.T) {
	h := newHost(t)
	eth := h.fake.Plug(kernel.Link{Name: "eth0"})
	foreign := kernel.Route{Dst: netip.MustParsePrefix("10.5.0.0/16"), Link: eth.Index, Protocol: 4}
	if err := h.fake.Routes().Put(t.Context(), []kernel.Route{foreign}); err != nil {
		t.Fatal(err)
	}
	err := h.Apply(t.Context(), h.desired())
	if err == nil || !strings.Contains(err.Error(), "route 10.5.0.0/16: foreign") {
		t.Errorf("apply: %v", err)
	}
	var one *backend.PeerError
	if errors.As(err, &one) {
		t.Errorf("the error is about one peer: %v", one)
	}
	routes, _ := h.fake.Routes().List(t.Context())
	if len(routes) != 1 || routes[0] != foreign {
		t.Errorf("routes: %v", routes)
	}
}

func TestApplyPeers(t *testing.T) {
	h := newHost(t)
	peer := func(prefix, public string, change func(*subnet.Attrs)) subnet.Lease {
		l := lease(prefix, public)
		change(&l.Attrs)
		return l
	}
	data := func(s subnet.RawJSON) func(*subnet.Attrs) {
		return func(a *subnet.Attrs) { a.BackendData[subnet.IPv4] = s }
	}
	err := h.Apply(t.Context(), desired(h.params.Config, "10.5.1.0/24",
		lease("10.5.2.0/24", "198.18.0.2"),
		peer("10.5.3.0/24", "198.18.0.3", data(`{"Port":8290}`)),
		peer("10.5.4.0/24", "198.18.0.4", data(`null`)),
		peer("10.5.5.0/24", "198.18.0.5", data(`{"Port":0}`)),
		peer("10.5.6.0/24", "198.18.0.6", data(`{"Port":65536}`)),
		peer("10.5.7.0/24", "198.18.0.7", func(a *subnet.Attrs) { a.BackendType = "vxlan" }),
		peer("10.5.8.0/24", "198.18.0.8", func(a *subnet.Attrs) { a.PublicIP[subnet.IPv4] = netip.Addr{} }),
		lease("10.5.9.0/24", "10.5.2.1"),
		lease("10.5.10.0/23", "198.18.0.10"),
	))
	for prefix, want := range map[string]string{
		"10.5.5.0/24": "Port is 0",
		"10.5.6.0/24": "cannot unmarshal",
		"10.5.7.0/24": "its backend is another",
		"10.5.8.0/24": "it has no public IPv4 address",
		"10.5.9.0/24": "inside the network 10.5.0.0/16",
	} {
		found := false
		for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
			for _, e := range e.(interface{ Unwrap() []error }).Unwrap() {
				var pe *backend.PeerError
				if errors.As(e, &pe) && pe.Subnet[subnet.IPv4].String() == prefix {
					found = strings.Contains(pe.Err.Error(), want)
				}
			}
		}
		if !found {
			t.Errorf("no error of %s that says %q in:\n%v", prefix, want, err)
		}
	}
	port := fmt.Sprint(h.port)
	got := map[string]string{}
	for _, a := range []string{"10.5.2.9", "10.5.3.9", "10.5.4.9", "10.5.5.9", "10.5.6.9", "10.5.7.9", "10.5.8.9", "10.5.9.9", "10.5.10.9", "10.5.11.9"} {
		if e := h.world.Load().table.lookup(subnet.IPv4, v4(a)); e != nil {
			got[a] = e.to.String()
		}
	}
	want := map[string]string{
		"10.5.2.9": "198.18.0.2:" + port, "10.5.3.9": "198.18.0.3:8290", "10.5.4.9": "198.18.0.4:" + port,
		"10.5.10.9": "198.18.0.10:" + port, "10.5.11.9": "198.18.0.10:" + port,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(whole("10.5.1.0"), h.state(t)); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	before := h.world.Load()
	if err := h.Apply(t.Context(), desired(h.params.Config, "10.5.1.0/24", lease("10.5.3.0/24", "198.18.0.4"))); err != nil {
		t.Fatal(err)
	}
	after := h.world.Load()
	if after.table.lookup(subnet.IPv4, v4("10.5.2.9")) != nil || after == before {
		t.Error("a removed peer is still there")
	}
}

func TestCleanup(t *testing.T) {
	for name, tc := range map[string]struct {
		link kernel.Link
		gone bool
	}{
		"ours":                {kernel.Link{Name: device, Type: "tun", Alias: kernel.Alias}, true},
		"flannel's, in use":   {kernel.Link{Name: device, Type: "tun"}, false},
		"foreign by its kind": {kernel.Link{Name: device, Type: "bridge", Alias: kernel.Alias}, false},
		"foreign by its name": {kernel.Link{Name: "tun0", Type: "tun", Alias: kernel.Alias}, false},
		"nothing":             {kernel.Link{Name: "eth0"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			link := h.fake.Plug(tc.link)
			for range 2 {
				if err := h.Cleanup(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := h.fake.LinkByName(t.Context(), link.Name); errors.Is(err, kernel.ErrNotFound) != tc.gone {
				t.Errorf("link: %v", err)
			}
		})
	}
	t.Run("after Apply", func(t *testing.T) {
		h := newHost(t)
		if err := errors.Join(h.Apply(t.Context(), h.desired()), h.Cleanup(t.Context())); err != nil {
			t.Fatal(err)
		}
		if state := h.state(t); state != nil || !h.opened[0].gone() {
			t.Errorf("left: %v", state)
		}
	})
}

// Packets are received at each address of ours that counts, and sent from the uplink's.
// What is open stays open until its address is left for good.
func TestReceivesAtAll(t *testing.T) {
	h := newHost(t)
	at := func(n byte) netip.Addr {
		if n == 0 {
			return netip.MustParseAddr("240.0.0.1") // nobody has it
		}
		return netip.AddrFrom4([4]byte{127, 0, 0, n})
	}
	open := map[netip.Addr]*outletSet{}
	for _, step := range []struct {
		name   string
		uplink byte
		also   []byte
		want   []byte // in this order
	}{
		{"one", 1, nil, []byte{1}},
		{"about to move", 1, []byte{2}, []byte{1, 2}},
		{"moved", 2, []byte{1}, []byte{2, 1}},
		{"about to move again", 2, []byte{3, 1}, []byte{2, 3, 1}},
		{"moved three times", 4, []byte{1, 2, 3}, []byte{4, 1, 2, 3}},
		{"moved back", 2, []byte{1, 2, 3, 4}, []byte{2, 1, 3, 4}},
		{"the first is left", 2, []byte{3, 4}, []byte{2, 3, 4}},
		{"one is gone", 2, []byte{0, 4}, []byte{2, 4}},
		{"all are left", 2, nil, []byte{2}},
	} {
		d := h.desired()
		d.Uplink = testUplink(at(step.uplink).String())
		d.Also = []netip.Addr{netip.IPv6Loopback()} // a family that packets do not go by
		for _, n := range step.also {
			d.Also = append(d.Also, at(n))
		}
		if err := h.Apply(t.Context(), d); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		var got []byte
		next := map[netip.Addr]*outletSet{}
		for _, set := range h.outlets.load().sets {
			a := set.at.Addr()
			got, next[a] = append(got, a.As4()[3]), set
			if before := open[a]; before != nil && before != set {
				t.Errorf("%s: the sockets at %s are others", step.name, a)
			}
		}
		if open = next; !slices.Equal(got, step.want) {
			t.Errorf("%s: open at %v, want %v", step.name, got, step.want)
		}
	}
}

// The log says once of an address that nothing is received there, and again when it comes
// back or the reason is another.
func TestDeafAddressIsLoggedOnce(t *testing.T) {
	h := newHost(t)
	var log bytes.Buffer
	h.log = slog.New(slog.NewTextHandler(&log, nil))
	first, second := netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("240.0.0.2") // nobody has these
	for _, step := range []struct {
		name string
		also []netip.Addr
		want int // lines
	}{
		{"new", []netip.Addr{first}, 1},
		{"the same", []netip.Addr{first}, 0},
		{"one more", []netip.Addr{first, second}, 1},
		{"both", []netip.Addr{second, first}, 0},
		{"none", nil, 0},
		{"again", []netip.Addr{first}, 1},
	} {
		log.Reset()
		d := h.desired()
		d.Also = step.also
		if err := h.Apply(t.Context(), d); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := strings.Count(log.String(), "not receiving at another address of ours"); got != step.want {
			t.Errorf("%s: %d lines, want %d:\n%s", step.name, got, step.want, log.String())
		}
	}
}
