package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// asked is a table that notes what it is told to put.
type asked[E any] struct {
	reconcile.Table[E]
	puts []E
}

func (a *asked[E]) Put(ctx context.Context, entries []E) error {
	a.puts = append(a.puts, entries...)
	return a.Table.Put(ctx, entries)
}

// inMidBatch are entries of a kind of which the kernel refuses one: which, why, and
// what makes it take that.
type inMidBatch[E interface {
	reconcile.Entry[K]
	fmt.Stringer
}, K comparable] struct {
	table   reconcile.Table[E]
	desired []E
	bad     int
	why     error
	cure    func()
}

// run: the others are there, the refused one is named, and from then on it alone is
// tried, until the kernel takes it.
func (c inMidBatch[E, K]) run(t *testing.T) {
	t.Helper()
	table := &asked[E]{Table: c.table}
	apply := func(what string, puts []E, want reconcile.Result) error {
		t.Helper()
		table.puts = nil
		got, err := reconcile.Apply(t.Context(), reconcile.NewStep("entry", table, c.desired, nil))
		if got != want {
			t.Errorf("%s: %+v, want %+v (%v)", what, got, want, err)
		}
		if d := cmp.Diff(puts, table.puts, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
			t.Errorf("%s: put (-want +got):\n%s", what, d)
		}
		return err
	}
	bad := c.desired[c.bad]
	others := slices.Delete(slices.Clone(c.desired), c.bad, c.bad+1)
	for _, pass := range []struct {
		what string
		puts []E
		want reconcile.Result
	}{
		{"all at once", c.desired, reconcile.Result{Put: len(others), Failed: 1}},
		{"again", []E{bad}, reconcile.Result{Failed: 1}},
	} {
		err := apply(pass.what, pass.puts, pass.want)
		var named []any
		for f := range reconcile.Failures(err) {
			named = append(named, f.Value)
		}
		if len(named) != 1 || named[0] != any(bad) || !errors.Is(err, c.why) {
			t.Errorf("%s: refused %v with %v, want %v alone with %v", pass.what, named, err, bad, c.why)
		}
		lists(t, c.table, others...)
	}
	c.cure()
	if err := apply("when nothing is in its way", c.desired[c.bad:c.bad+1], reconcile.Result{Put: 1}); err != nil {
		t.Error(err)
	}
	lists(t, c.table, c.desired...)
	if err := apply("in the end", nil, reconcile.Result{}); err != nil {
		t.Error(err)
	}
}

// TestInterruptedDump: a list during which others change the table is read again, by
// what the kernel says of it; and it is an error and no list if that never ends.
func TestInterruptedDump(t *testing.T) {
	const n = 3000
	for name, tc := range map[string]struct {
		// change reports whether others change the table during a pass.
		change func(pass int) bool
		passes int
		err    error
	}{
		"once":        {func(pass int) bool { return pass == 1 }, 2, nil},
		"again":       {func(pass int) bool { return pass <= 3 }, 4, nil},
		"all the way": {func(int) bool { return true }, kernel.Attempts, kernel.ErrInterrupted},
	} {
		t.Run(name, func(t *testing.T) {
			ns := kerneltest.NetNS(t, kernel.Options{})
			l := vxlan(t, ns)
			others := open(t, ns, kernel.Options{}).Addrs(l.Index)
			_, neighbours, _ := peers(l.Index, n)
			var addrs []kernel.Addr
			for _, nb := range neighbours {
				addrs = append(addrs, kernel.Addr{Link: l.Index, Prefix: netip.PrefixFrom(nb.Addr, 32)})
			}
			put(t, others, addrs...)
			first, last := netip.MustParsePrefix("10.255.0.0/32"), addrs[n-1]
			passes, there := 0, true
			got, err := ns.ListAddrs(t.Context(), func(a kernel.Addr) {
				if a.Prefix != first {
					return
				}
				if passes++; !tc.change(passes) {
					return
				}
				if there = !there; there {
					put(t, others, last)
				} else {
					remove(t, others, last)
				}
			})
			if !errors.Is(err, tc.err) || passes != tc.passes {
				t.Fatalf("%d passes, %v, want %d and %v", passes, err, tc.passes, tc.err)
			}
			want := 1 + n
			if !there {
				want--
			}
			if err == nil && (len(got) != want || slices.Contains(got, last) != there) {
				t.Errorf("%d addresses, want %d; the last is listed: %t", len(got), want, slices.Contains(got, last))
			}
			if err != nil && got != nil {
				t.Errorf("%d addresses beside the error", len(got))
			}
		})
	}
}

// TestRefusedInMidBatch: what one entry of hundreds meets is its own alone.
func TestRefusedInMidBatch(t *testing.T) {
	const n, bad = 500, 300 // in the second datagram
	ipRun := func(t *testing.T, ns *kerneltest.Namespace, args ...string) { ns.Run(t, "ip", args...) }
	for name, form := range map[string]kernel.GatewayForm{"nexthop objects": kernel.GatewayAuto, "classic": kernel.GatewayClassic} {
		t.Run("route, "+name, func(t *testing.T) {
			ns := kerneltest.NetNS(t, kernel.Options{Gateways: form})
			l := vxlan(t, ns)
			_, _, routes := peers(l.Index, n)
			own := routes[bad].Gateway.String() + "/32" // no gateway then
			ipRun(t, ns, "addr", "add", own, "dev", "lo")
			ipRun(t, ns, "link", "set", "lo", "up")
			inMidBatch[kernel.Route, kernel.RouteKey]{
				ns.Routes(), routes, bad, syscall.EINVAL,
				func() { ipRun(t, ns, "addr", "del", own, "dev", "lo") },
			}.run(t)
			if form == kernel.GatewayAuto && len(nexthops(t, ns)) != n {
				t.Errorf("%d nexthop objects for %d routes", len(nexthops(t, ns)), n)
			}
		})
	}
	t.Run("neighbour", func(t *testing.T) {
		ns := kerneltest.NetNS(t, kernel.Options{})
		l := vxlan(t, ns)
		_, neighbours, _ := peers(l.Index, n)
		neighbours[bad].Addr = netip.MustParseAddr("fd05::3")
		ipRun(t, ns, "link", "set", "flannel.1", "mtu", "1200") // too small for IPv6
		inMidBatch[kernel.Neighbour, kernel.NeighbourKey]{
			ns.Neighbours(l.Index), neighbours, bad, syscall.EINVAL,
			func() { ipRun(t, ns, "link", "set", "flannel.1", "mtu", "1400") },
		}.run(t)
	})
	t.Run("fdb entry", func(t *testing.T) {
		ns := kerneltest.NetNS(t, kernel.Options{})
		l := vxlan(t, ns)
		fdb, _, _ := peers(l.Index, n)
		other := fdb[bad].Dst
		fdb[bad].Dst = netip.MustParseAddr("fd00::9") // of another family than the tunnel
		inMidBatch[kernel.FDB, kernel.FDBKey]{
			ns.FDB(l.Index), fdb, bad, syscall.EAFNOSUPPORT,
			func() { fdb[bad].Dst = other },
		}.run(t)
	})
}
