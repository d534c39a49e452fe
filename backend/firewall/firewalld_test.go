package firewall

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall/firewalld"
	"github.com/flanneld-go/flanneld-go/backend/firewall/firewalld/firewalldtest"
	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// noFirewalld is a host without one.
type noFirewalld struct{}

func (noFirewalld) Apply(context.Context, firewalld.Desired) (bool, error) { return false, nil }
func (noFirewalld) Cleanup(context.Context) error                          { return nil }
func (noFirewalld) Drift(context.Context) <-chan struct{} {
	never := make(chan struct{})
	close(never)
	return never
}

// lastSeen is a firewalld that looks at what is left of ours when its part goes.
type lastSeen struct {
	noFirewalld
	look func()
}

func (l lastSeen) Cleanup(context.Context) error {
	l.look()
	return nil
}

// Accepts go before the drops that they count on; and iptables goes before
// firewalld, whose reload would empty it.
func TestCleanupOrder(t *testing.T) {
	tools, table := newFakeTools(), &fakeNative{}
	looked := false
	f := New(Options{Log: quiet(), Tools: tools, Native: table, Firewalld: lastSeen{look: func() {
		looked = true
		if tools.sets["iptables-nft"].table("filter") != nil {
			t.Error("firewalld goes before iptables")
		}
		if len(table.want.Peers) == 0 {
			t.Error("our own table goes before firewalld")
		}
	}}})
	if err := f.Apply(t.Context(), vxlanDesired()); err != nil {
		t.Fatal(err)
	}
	if err := f.Cleanup(t.Context()); err != nil || !looked {
		t.Errorf("Cleanup: %v, firewalld asked: %v", err, looked)
	}
}

// walled is a machine with a real firewalld.
type walled struct {
	*machine
	bus    *firewalldtest.Bus
	wall   *firewalldtest.Real
	before string
}

// wall gives a machine a firewalld as Docker leaves it, and a firewall of ours
// that knows where to find it and wants both families.
func wall(t *testing.T, m *machine, p path, backend string) *walled {
	t.Helper()
	w := &walled{machine: m}
	bus := firewalldtest.NewBus(t)
	w.bus = bus
	m.host.do(t, func() error {
		w.wall = firewalldtest.NewReal(t, bus, backend)
		return nil
	})
	w.before = w.wall.Listing(t)
	other := *m
	other.family = 1 - m.family
	m.d.Networks[other.family] = netip.MustParsePrefix(overlays()[other.family])
	m.d.Own[other.family] = netip.MustParsePrefix(other.subnet())
	m.b.f = New(Options{
		Log: quiet(), Tools: m.b.tools, Native: p.table(),
		Firewalld: firewalld.New(firewalld.Options{Log: quiet(), Connect: bus.Connect}),
	})
	return w
}

// Two hosts with real firewallds: with nf_tables firewalld's own table decides,
// with iptables its rules stand behind ours.
func TestFirewalld(t *testing.T) {
	for _, backendName := range []string{"nftables", "iptables"} {
		for _, p := range wallPaths(t) {
			t.Run(backendName+"/"+p.String(), func(t *testing.T) {
				t.Parallel()
				testFirewalld(t, p, backendName)
			})
		}
	}
}

func testFirewalld(t *testing.T, p path, backendName string) {
	ma, mb, lan := pair(t, p)
	a, b := wall(t, ma, p, backendName), wall(t, mb, p, backendName)
	wantCall(t, "without us", a.container.calling("", b.contained()), unreachable)
	for _, w := range []*walled{a, b} {
		w.apply(t)
		if backendName == "nftables" {
			// The policies took a reload, which empties iptables.
			w.guard(t, p)
		}
		w.apply(t)
	}
	wantCall(t, "container to container", a.container.calling("", b.contained()), a.contained())
	wantCall(t, "container to container, back", b.container.calling("", a.contained()), b.contained())
	testForgedBesideFirewalld(t, a, b, lan)

	for _, w := range []*walled{a, b} {
		w.host.do(t, func() error { return w.b.f.Cleanup(t.Context()) })
		if diff := cmp.Diff(strings.Split(w.before, "\n"), strings.Split(w.wall.Listing(t), "\n")); diff != "" {
			t.Errorf("firewalld after Cleanup (-want +got):\n%s", diff)
		}
	}
	wantCall(t, "after Cleanup", a.container.calling("", b.contained()), unreachable)
}

// Cleanup leaves all as it was beside a firewalld, whose reloads take our marks of
// what we made, and beside one that has stopped since.
func TestCleanupBesideFirewalld(t *testing.T) {
	for _, tt := range []struct {
		command, docker string
		stopped         bool
	}{
		{"iptables-nft", "20.10", false},
		{"iptables-nft", "28.5", false},
		{"iptables-nft", "28.5", true},
		{"iptables-legacy", "28.5", false},
	} {
		t.Run(fmt.Sprintf("%s/%s/stopped %t", tt.command, tt.docker, tt.stopped), func(t *testing.T) {
			t.Parallel()
			testCleanupBesideFirewalld(t, tt.command, tt.docker, tt.stopped)
		})
	}
}

func testCleanupBesideFirewalld(t *testing.T, command, docker string, stopped bool) {
	p := wallPaths(t)[0]
	p.variant = command
	ma, _, _ := pair(t, p)
	w := wall(t, ma, p, "nftables")
	everything := func() (text string) {
		t.Helper()
		w.host.do(t, func() error {
			text = w.b.everything(t)
			return nil
		})
		return text
	}
	// Docker writes its rules again when it hears of a reload.
	reloaded := func() {
		t.Helper()
		if !strings.Contains(everything(), ":DOCKER-USER") {
			w.others(t, dockerWrites(t, docker, 3))
		}
	}
	w.wall.Cmd(t, "--reload")
	reloaded()
	before := everything()
	w.apply(t)
	reloaded()
	w.apply(t)
	w.wall.Cmd(t, "--reload")
	reloaded()
	w.apply(t)
	if !strings.Contains(everything(), ChainPrefix) {
		t.Fatalf("nothing was written:\n%s", everything())
	}
	if stopped {
		w.wall.Stop()
		reloaded()
		w.apply(t)
	}
	another := New(Options{
		Log: quiet(), Tools: w.b.tools, Firewalld: firewalld.New(firewalld.Options{Log: quiet(), Connect: w.bus.Connect, Config: w.wall.Config()}),
	})
	w.host.do(t, func() error { return another.Cleanup(t.Context()) })
	if stopped {
		w.host.do(t, func() error {
			w.wall.Start(t)
			return nil
		})
	}
	reloaded()
	// A chain that is flushed and written again stands elsewhere.
	lines := func(text string) []string { return slices.Sorted(strings.SplitSeq(text, "\n")) }
	if diff := cmp.Diff(lines(before), lines(everything())); diff != "" {
		t.Errorf("after Cleanup (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(strings.Split(w.before, "\n"), strings.Split(w.wall.Listing(t), "\n")); diff != "" {
		t.Errorf("firewalld after Cleanup (-want +got):\n%s", diff)
	}
}

// testForgedBesideFirewalld: who is no peer does not get in by the uplink, whatever
// source it says, and what says to be from the overlay is counted.
func testForgedBesideFirewalld(t *testing.T, a, b *walled, lan *space) {
	t.Helper()
	outside := a.outside(t, lan)
	lan.ip(t, "route add "+a.subnet()+" via "+a.public())
	wantCall(t, "foreign source by the uplink", lan.calling(outside, a.contained()), unreachable)
	forge := func(what, source, reason string) {
		t.Helper()
		lan.ip(t, "addr add "+source+" dev lo nodad")
		before := a.dropped(t, reason)
		wantCall(t, what, lan.calling(source, a.contained()), unreachable)
		if a.dropped(t, reason) == before {
			t.Errorf("%s: not counted as %s", what, reason)
		}
	}
	if a.d.Tunnel.Direct {
		forge("our own source by the uplink", a.address("77"), native.OwnSource)
		// Only the MACs of peers tell them apart: the sender has another's.
		mac := [...]kernel.MAC{lan.mac(t, "switch"), b.host.mac(t, "eth0")}
		c := &machine{family: a.family, n: 3}
		a.d.Peers = append(a.d.Peers, c.peer())
		a.d.Peers[0].MAC[a.family], a.d.Peers[1].MAC[a.family] = mac[1], mac[0]
		a.apply(t)
		forge("another peer's source by the uplink", b.address("77"), native.PeerSource)
		return
	}
	source := [...]string{"10.5.9.9", "fd05:0:0:9::9"}[a.family]
	a.host.ip(t, "route add "+source+" via "+outside)
	forge("overlay source by the uplink", source, native.OutsideSource)
}

// dropped is how many packets our own table dropped for a reason.
func (m *machine) dropped(t *testing.T, reason string) (n uint64) {
	t.Helper()
	m.host.do(t, func() error {
		counters, err := m.b.f.Counters(t.Context())
		n = counters[reason]
		return err
	})
	return n
}

// mac is the address of an interface.
func (s *space) mac(t *testing.T, name string) (mac kernel.MAC) {
	t.Helper()
	s.do(t, func() error {
		i, err := net.InterfaceByName(name)
		if err == nil {
			copy(mac[:], i.HardwareAddr)
		}
		return err
	})
	return mac
}

// Docker's own zone and policy, which it makes by a reload when it starts, and ours
// do not mind each other, whoever comes first or again.
func TestFirewalldBesideDocker(t *testing.T) {
	p := wallPaths(t)[0]
	ma, mb, _ := pair(t, p)
	a := wall(t, ma, p, "nftables")
	mb.apply(t)
	a.apply(t)
	a.keep(t)
	ours := func() string {
		t.Helper()
		var out []string
		for _, policy := range []string{"flanneld-go-fwd", "flanneld-go-in"} {
			rules := strings.Split(a.wall.Cmd(t, "--info-policy="+policy), "\n")
			slices.Sort(rules) // firewalld lists rules in any order
			out = append(out, rules...)
		}
		return strings.Join(out, "\n")
	}
	want := ours()
	settled := func(when string) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		got, seen, back := "", "", mb.container.calling("", a.contained())
		for (got != want || seen != mb.contained()) && time.Now().Before(deadline) {
			got, seen = ours(), back.brief(t)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("our policies %s (-want +got):\n%s", when, diff)
		}
		wantCall(t, when, back, mb.contained())
		wantCall(t, "back, "+when, a.container.calling("", mb.contained()), a.contained())
	}
	settled("before Docker")
	// What dockerd 28.5 does when it starts.
	for _, args := range [][]string{
		{"--permanent", "--new-policy=docker-forwarding"},
		{"--permanent", "--policy=docker-forwarding", "--set-description=allow forwarding to the docker zone"},
		{"--permanent", "--policy=docker-forwarding", "--set-target=ACCEPT"},
		{"--permanent", "--policy=docker-forwarding", "--add-ingress-zone=ANY"},
		{"--permanent", "--policy=docker-forwarding", "--add-egress-zone=docker"},
		{"--reload"},
		{"--zone=docker", "--change-interface=docker0"},
	} {
		a.wall.Cmd(t, args...)
	}
	settled("when Docker has started")
	docker := a.wall.Cmd(t, "--info-policy=docker-forwarding") + a.wall.Cmd(t, "--info-zone=docker")
	a.wall.Stop()
	a.host.do(t, func() error {
		a.wall.Start(t)
		return nil
	})
	settled("when firewalld has started again")
	if diff := cmp.Diff(docker, a.wall.Cmd(t, "--info-policy=docker-forwarding")+a.wall.Cmd(t, "--info-zone=docker")); diff != "" {
		t.Errorf("Docker's (-before +after):\n%s", diff)
	}
}

// With many peers firewalld has them in a set, and strangers in none.
func TestFirewalldManyPeers(t *testing.T) {
	p := wallPaths(t)[0]
	ma, mb, lan := pair(t, p)
	c := newMachine(t, lan, p.family, 3)
	ma.join(t, c, p.tunnel)
	c.join(t, ma, p.tunnel)
	a := wall(t, ma, p, "nftables")
	for i := range 100 {
		a.d.Peers = append(a.d.Peers, peers(netip.AddrFrom4([4]byte{192, 0, 2, byte(2 * i)}))...)
	}
	a.apply(t)
	a.others(t, strict)
	a.apply(t)
	mb.apply(t)
	if rules := a.wall.Cmd(t, "--policy=flanneld-go-in", "--list-rich-rules"); strings.Count(rules, "\n") != 1 {
		t.Errorf("the policy lists peers:\n%s", rules)
	}
	wantCall(t, "container to container", mb.container.calling("", a.contained()), mb.contained())
	testStranger(t, a.machine, c, p.tunnel)
	a.host.do(t, func() error { return a.b.f.Cleanup(t.Context()) })
	if diff := cmp.Diff(strings.Split(a.before, "\n"), strings.Split(a.wall.Listing(t), "\n")); diff != "" {
		t.Errorf("firewalld after Cleanup (-want +got):\n%s", diff)
	}
}

// What an administrator does to firewalld takes our rules away. They come back by
// themselves with firewalld's own.
func TestOutageOfFirewalld(t *testing.T) {
	p := vxlanPath(t)
	ma, mb, _ := pair(t, p)
	a, b := wall(t, ma, p, "nftables"), wall(t, mb, p, "nftables")
	for _, w := range []*walled{a, b} {
		w.apply(t)
		w.keep(t)
	}
	c := a.container.calling("", b.contained())
	wantCall(t, "undisturbed", c, a.contained())
	for name, disturb := range map[string]func(){
		"reload":          func() { b.wall.Cmd(t, "--reload") },
		"complete-reload": func() { b.wall.Cmd(t, "--complete-reload") },
		"restart": func() {
			b.wall.Stop()
			b.host.do(t, func() error {
				b.wall.Start(t)
				return nil
			})
		},
	} {
		var took time.Duration
		longest := c.outage(t, "after "+name, a.contained(), func() {
			begin := time.Now()
			disturb()
			took = time.Since(begin)
		})
		t.Logf("%s: took %v, longest outage %v", name, took.Round(time.Millisecond), longest)
		if longest > took+most {
			t.Errorf("%s: the longest outage is %v, want at most %v more than the %v that it took", name, longest, most, took)
		}
	}
}

// A zone that masquerades rewrites what leaves by its interfaces, but for the
// overlay, at no time: neither while firewalld reloads nor behind it.
func TestFirewalldMasquerade(t *testing.T) {
	for _, p := range wallPaths(t) {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			testMasquerade(t, p)
		})
	}
}

func testMasquerade(t *testing.T, p path) {
	ma, mb, lan := pair(t, p)
	outside := ma.outside(t, lan)
	a := wall(t, ma, p, "nftables")
	a.wall.Cmd(t, "--permanent", "--add-masquerade") // of IPv4; this is for both:
	a.wall.Cmd(t, "--permanent", "--add-rich-rule=rule family=ipv6 masquerade")
	a.wall.Cmd(t, "--reload")
	a.others(t, "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n") // a reload leaves that
	a.apply(t)
	mb.apply(t)
	a.keep(t)
	kept := func(when string) {
		t.Helper()
		wantCall(t, when, a.container.calling("", mb.contained()), a.contained())
		wantCall(t, "to the outside, "+when, a.container.calling("", outside), a.public())
	}
	kept("masqueraded by the zone")
	for _, what := range []string{"--reload", "--complete-reload"} {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			a.wall.Cmd(t, what)
		}()
		calls := 0
		for running := true; running; calls++ {
			select {
			case <-ended:
				running = false
			default:
			}
			if got := a.container.calling("", mb.contained()).brief(t); got != unreachable && got != a.contained() {
				t.Errorf("during %s: the callee saw %s, want %s", what, got, a.contained())
			}
		}
		t.Logf("%d calls during %s", calls, what)
		kept("after " + what)
	}
}

// What our own table cannot keep is rewritten, and we say so.
func TestFirewalldMasqueradeWithoutTable(t *testing.T) {
	p := wallPaths(t)[0]
	p.native = nativeMissing
	ma, mb, _ := pair(t, p)
	w := wall(t, ma, p, "nftables")
	w.apply(t)
	mb.apply(t)
	wantCall(t, "without masquerade", w.container.calling("", mb.contained()), w.contained())
	w.wall.Cmd(t, "--add-masquerade")
	if got, _ := w.container.calling("", mb.contained()).made(t, patiently); got == w.contained() {
		t.Errorf("the zone's masquerade does not rewrite sources: the warning is wrong")
	}
	w.host.do(t, func() error {
		var masquerade *firewalld.ErrMasquerade
		err := w.b.f.Apply(t.Context(), w.d)
		if !errors.As(err, &masquerade) || *masquerade != (firewalld.ErrMasquerade{Zone: "public", Interface: "flannel.1"}) {
			t.Errorf("Apply: %v, want that zone public masquerades by flannel.1", err)
		}
		return nil
	})
	w.wall.Cmd(t, "--remove-masquerade")
	w.apply(t)
	wantCall(t, "without masquerade again", w.container.calling("", mb.contained()), w.contained())
}

// wallPaths are a tunnel and a plain path beside firewalld, in each family.
func wallPaths(t *testing.T) []path {
	vxlan := vxlanPath(t)
	vxlan6 := vxlan
	vxlan6.family, vxlan6.tunnel.Devices = subnet.IPv6, []string{"flannel-v6.1"}
	out := []path{vxlan, vxlan, vxlan6, vxlan6}
	out[1].tunnel, out[3].tunnel = backend.Tunnel{Direct: true}, backend.Tunnel{Direct: true}
	return out
}

func vxlanPath(t *testing.T) path {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := exec.LookPath("firewalld"); err != nil {
		t.Skip("needs program: firewalld")
	}
	return path{variant: "iptables-nft", docker: "20.10", tunnel: backend.Tunnel{
		Devices: []string{"flannel.1"}, Port: 8472, Encapsulation: backend.VXLANFrame, VNI: 1,
	}}
}
