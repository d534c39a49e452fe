package kernel_test

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// peers are the entries of n VXLAN peers of a /8: FDB, neighbour and route.
func peers(link, n int) (fs []kernel.FDB, ns []kernel.Neighbour, rs []kernel.Route) {
	for i := 1; i <= n; i++ {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], 10<<24|uint32(i)<<8)
		gw := netip.AddrFrom4(b)
		binary.BigEndian.PutUint32(b[:], 198<<24|18<<16+uint32(i))
		mac := kernel.MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}
		fs = append(fs, kernel.FDB{Link: link, MAC: mac, Dst: netip.AddrFrom4(b)})
		ns = append(ns, kernel.Neighbour{Link: link, Addr: gw, MAC: mac})
		rs = append(rs, kernel.Route{
			Dst: netip.PrefixFrom(gw, 24), Gateway: gw, Link: link, OnLink: true, Protocol: kernel.Protocol,
		})
	}
	return fs, ns, rs
}

// vxlan makes a tunnel link that is up.
func vxlan(tb testing.TB, h kernel.Host) kernel.Link {
	tb.Helper()
	l, err := h.AddLink(tb.Context(), kernel.Link{
		Name: "flannel.1", Type: "vxlan", VXLAN: kernel.VXLAN{VNI: 1, Port: 8472},
	})
	if err != nil {
		tb.Fatal(err)
	}
	up := true
	if err := h.SetLink(tb.Context(), l.Index, kernel.LinkChange{Up: &up}); err != nil {
		tb.Fatal(err)
	}
	// Without any address the kernel has no table of local ones, and refuses
	// every gateway.
	err = h.Addrs(l.Index).Put(tb.Context(), []kernel.Addr{{Link: l.Index, Prefix: netip.MustParsePrefix("10.255.0.0/32")}})
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// apply is what the vxlan backend does.
func apply(tb testing.TB, h kernel.Host, link int, fs []kernel.FDB, ns []kernel.Neighbour, rs []kernel.Route) reconcile.Result {
	tb.Helper()
	got, err := reconcile.Apply(tb.Context(),
		reconcile.NewStep("fdb", h.FDB(link), fs, nil),
		reconcile.NewStep("neighbour", h.Neighbours(link), ns, nil),
		reconcile.NewStep("route", h.Routes(), rs, nil))
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

// cpuTime is what the process has used, in user and kernel. The wall clock of a
// busy machine says little.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkPeers(b *testing.B) {
	const n = 10000
	for name, form := range map[string]kernel.GatewayForm{
		"nexthop objects": kernel.GatewayAuto, "classic": kernel.GatewayClassic,
	} {
		b.Run("build 10000, "+name, func(b *testing.B) {
			b.ReportAllocs()
			var spent time.Duration
			for b.Loop() {
				b.StopTimer()
				ns := kerneltest.NetNS(b, kernel.Options{Gateways: form})
				l := vxlan(b, ns)
				fdb, neighbours, routes := peers(l.Index, n)
				before := cpuTime(b)
				b.StartTimer()
				if got := apply(b, ns, l.Index, fdb, neighbours, routes); got.Put != 3*n {
					b.Fatalf("put %+v", got)
				}
				spent += cpuTime(b) - before
			}
			b.ReportMetric(float64(spent.Milliseconds())/float64(b.N), "cpu-ms/op")
		})
	}
	ns := kerneltest.NetNS(b, kernel.Options{})
	l := vxlan(b, ns)
	fdb, neighbours, routes := peers(l.Index, n)
	apply(b, ns, l.Index, fdb, neighbours, routes)
	b.Run("nothing to do for 10000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			apply(b, ns, l.Index, fdb, neighbours, routes)
		}
	})
	b.Run("list 10000 routes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if got, err := ns.Routes().List(b.Context()); err != nil || len(got) != n {
				b.Fatalf("%d routes, %v", len(got), err)
			}
		}
	})
	b.Run("change one peer of 10000", func(b *testing.B) {
		b.ReportAllocs()
		one := routes[:1]
		for i := 0; b.Loop(); i++ {
			one[0].Gateway = neighbours[1+i%2].Addr
			if err := ns.Routes().Put(b.Context(), one); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkResolved reads ten thousand neighbours, as a host does in every round
// that tells peers apart by their MACs.
func BenchmarkResolved(b *testing.B) {
	ns := kerneltest.NetNS(b, kernel.Options{})
	l := vxlan(b, ns)
	_, neighbours, _ := peers(l.Index, 10_000)
	if err := ns.Neighbours(l.Index).Put(b.Context(), neighbours); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		got, err := ns.Resolved(b.Context(), l.Index)
		if err != nil || len(got) != len(neighbours) {
			b.Fatalf("%d neighbours (%v), want %d", len(got), err, len(neighbours))
		}
	}
}
