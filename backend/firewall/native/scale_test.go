package native

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const manyPeers = 10_000

// Ten thousand peers fit into one transaction, and one that changes is one key.
func TestManyPeers(t *testing.T) {
	h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
	d := many(manyPeers)
	step := func(what string, d Desired) {
		start := time.Now()
		h.apply(t, d)
		t.Logf("%-24s %v", what, time.Since(start).Round(100*time.Microsecond))
	}
	step("write all", d)
	step("nothing to do", d)
	step("still nothing to do", d)
	if *h.written != 1 {
		t.Errorf("%d transactions, want 1", *h.written)
	}

	var have, want table
	var err error
	h.Do(t, func() { have, err = h.t.door.read(t.Context(), subnet.IPv4) })
	if err != nil {
		t.Fatal(err)
	}
	if s := find(have.sets, set.id, senderName(backend.VXLANFrame, subnet.IPv4, 24)); s == nil || len(s.keys) != manyPeers {
		t.Fatalf("the kernel has other sets than one with %d keys", manyPeers)
	}
	d.Peers[77].PublicIP = subnet.ByFamily[netip.Addr]{address("192.0.2.77")}
	if want, err = compile(d, subnet.IPv4, lacks{}); err != nil {
		t.Fatal(err)
	}
	if n := diff(have, want).operations(); n != 2 {
		t.Errorf("one peer moved: %d operations, want one key added and one removed", n)
	}
	step("one peer moved", d)
	d.Peers = d.Peers[1:]
	step("one peer gone", d)
	d.Peers = nil
	step("all gone", d)
}

// That a peer's MAC comes or changes is nothing for the log of a day.
func TestMACsAreLoggedForDebugging(t *testing.T) {
	h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
	var text bytes.Buffer
	h.t.log = slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d := many(10)
	d.Tunnel = backend.Tunnel{Direct: true}
	for i, want := range []string{"INFO", "INFO", "DEBUG", "DEBUG", "INFO"} {
		switch i { // 0 makes the table
		case 1, 2: // the first makes the sets
			d.Peers[i].MAC[subnet.IPv4] = kernel.MAC{2, 0, 0, 0, 0, byte(i)}
		case 3:
			d.Peers[2].MAC[subnet.IPv4] = kernel.MAC{2, 0, 0, 0, 0, 9}
		case 4:
			d.Uplink = "eth1"
		}
		text.Reset()
		h.apply(t, d)
		if got := text.String(); strings.Count(got, "nftables changed") != 1 || !strings.Contains(got, "level="+want) {
			t.Errorf("change %d: logged %q, want one line of %s", i, got, want)
		}
	}
}

// Ten thousand peers that are told apart by their MACs: what it costs that nothing
// changes, and that one MAC does.
func TestManyMACs(t *testing.T) {
	h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
	d := many(manyPeers)
	d.Tunnel = backend.Tunnel{Direct: true}
	for i := range d.Peers {
		d.Peers[i].MAC[subnet.IPv4] = kernel.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
	}
	step := func(what string, transactions int) {
		t.Helper()
		start := time.Now()
		h.apply(t, d)
		t.Logf("%-24s %v", what, time.Since(start).Round(100*time.Microsecond))
		if *h.written != transactions {
			t.Errorf("%s: %d transactions so far, want %d", what, *h.written, transactions)
		}
	}
	step("write all", 1)
	step("nothing to do", 1)
	const idle = 100
	start := time.Now()
	for range idle {
		h.apply(t, d)
	}
	t.Logf("%-24s %v", "idle", (time.Since(start) / idle).Round(10*time.Microsecond))

	d.Peers[77].MAC[subnet.IPv4] = kernel.MAC{2, 1, 1, 1, 1, 1}
	var have table
	var err error
	h.Do(t, func() { have, err = h.t.door.read(t.Context(), subnet.IPv4) })
	if err != nil {
		t.Fatal(err)
	}
	want, err := compile(d, subnet.IPv4, lacks{})
	if err != nil {
		t.Fatal(err)
	}
	if n := diff(have, want).operations(); n != 4 {
		t.Errorf("one MAC changed: %d operations, want it replaced in two sets", n)
	}
	step("one MAC changed", 2)
	d.Peers[77].MAC[subnet.IPv4] = kernel.MAC{}
	step("one MAC gone", 3)
}

func BenchmarkCompile(b *testing.B) {
	d := many(manyPeers)
	for b.Loop() {
		if _, err := compile(d, subnet.IPv4, lacks{}); err != nil {
			b.Fatal(err)
		}
	}
}

// What a packet costs, as round trips by VXLAN with no table, few peers and many.
func TestPacketCost(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: measures")
	}
	s := newScene(t, vxlan.New, configVXLAN)
	few := s.d
	all := s.d
	all.Peers = append(many(manyPeers).Peers, s.d.Peers...)
	for i := range all.Peers[:manyPeers] {
		// Out of the way of the scene's own.
		p := &all.Peers[i]
		a := p.Subnet[subnet.IPv4].Addr().As4()
		a[0] = 11
		p.Subnet[subnet.IPv4] = netip.PrefixFrom(netip.AddrFrom4(a), 24)
	}
	const trips = 20_000
	costs := map[string]time.Duration{}
	for range 3 {
		for name, d := range map[string]Desired{"no table": {}, "few peers": few, "10,000 peers": all} {
			s.apply(t, d)
			start := time.Now()
			s.Run(t, "ping", "-n", "-q", "-f", "-c", strconv.Itoa(trips), "10.5.2.2")
			took := time.Since(start) / trips
			if old, ok := costs[name]; !ok || took < old {
				costs[name] = took
			}
		}
	}
	for name, c := range costs {
		t.Logf("%-14s %v a round trip, %.2f of no table", name, c, float64(c)/float64(costs["no table"]))
	}
}
