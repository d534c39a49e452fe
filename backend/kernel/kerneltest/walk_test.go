package kerneltest_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// TestFakeIsTheKernel lets a fake and a real kernel go the same random way and
// compares what they answer and hold after each step.
//
// The real one writes routes in the classic form: only there does an address
// that is removed take routes along, which a fake does, being the stricter of
// the two.
func TestFakeIsTheKernel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWalk(t, rt)
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			w.step()
			w.compare()
		}
	})
}

// walk holds both stacks. Links have the same index in both, for both number
// them alike.
type walk struct {
	t     *testing.T
	rt    *rapid.T
	stack [2]kernel.Host // fake, real
	log   []string
}

func newWalk(t *testing.T, rt *rapid.T) *walk {
	w := &walk{t: t, rt: rt, stack: [2]kernel.Host{
		kerneltest.New(), kerneltest.NetNS(t, kernel.Options{Gateways: kernel.GatewayClassic}),
	}}
	up := true
	for _, h := range w.stack {
		for i, typ := range []string{"bridge", "vxlan", "vxlan"} {
			l, err := h.AddLink(t.Context(), kernel.Link{
				Name: fmt.Sprintf("l%d", i+2), Type: typ, MTU: 1400, VXLAN: kernel.VXLAN{VNI: i, Port: 8472},
			})
			if err != nil || l.Index != i+2 {
				rt.Fatalf("add link: %v, %v", l, err)
			}
			// One link keeps an address, so that there is a table of local
			// addresses throughout: see vxlan in the kernel's own tests.
			own := kernel.Addr{Link: 2, Prefix: netip.MustParsePrefix("192.0.2.1/32")}
			if err := errors.Join(
				h.SetLink(t.Context(), l.Index, kernel.LinkChange{Up: &up}),
				h.Addrs(2).Put(t.Context(), []kernel.Addr{own}),
			); err != nil {
				rt.Fatal(err)
			}
		}
	}
	return w
}

// both does one thing to both and compares whether it was refused. Which of
// several reasons the kernel gives first is its own affair.
func (w *walk) both(what string, do func(kernel.Host) error) {
	w.log = append(w.log, what)
	fake, real := do(w.stack[0]), do(w.stack[1])
	if (fake == nil) != (real == nil) {
		w.rt.Fatalf("fake says %v, kernel says %v after:\n%s", fake, real, strings.Join(w.log, "\n"))
	}
}

func draw[E any](w *walk, name string, from ...E) E { return rapid.SampledFrom(from).Draw(w.rt, name) }

func (w *walk) link() int { return draw(w, "link", 2, 3, 4) }

func (w *walk) step() {
	ctx := w.t.Context()
	put := draw(w, "put", true, true, false)
	switch draw(w, "kind", "route", "route", "route", "addr", "addr", "neighbour", "fdb", "link") {
	case "route":
		table(w, put, w.route(), func(h kernel.Host) reconcile.Table[kernel.Route] { return h.Routes() })
	case "addr":
		a := kernel.Addr{Link: w.link(), Prefix: netip.MustParsePrefix(draw(w, "addr",
			"10.1.0.1/16", "10.2.0.1/24", "10.2.0.2/32", "fd01::1/64", "fd02::1/128"))}
		table(w, put, a, func(h kernel.Host) reconcile.Table[kernel.Addr] { return h.Addrs(a.Link) })
	case "neighbour":
		n := kernel.Neighbour{
			Link: w.link(), Addr: netip.MustParseAddr(draw(w, "neighbour", "10.1.3.0", "10.1.4.0", "fd01::3")),
			MAC: kernel.MAC{2, 0, 0, 0, 0, draw[byte](w, "mac", 1, 2)},
		}
		table(w, put, n, func(h kernel.Host) reconcile.Table[kernel.Neighbour] { return h.Neighbours(n.Link) })
	case "fdb":
		f := kernel.FDB{
			Link: draw(w, "vxlan", 3, 4), MAC: kernel.MAC{2, 0, 0, 0, 0, draw[byte](w, "mac", 1, 2)},
			Dst: netip.MustParseAddr(draw(w, "vtep", "198.18.0.1", "198.18.0.2", "fd00::1")),
		}
		table(w, put, f, func(h kernel.Host) reconcile.Table[kernel.FDB] { return h.FDB(f.Link) })
	case "link":
		index := w.link()
		switch up := draw(w, "change", "up", "up", "down", "delete"); up {
		case "delete":
			w.both(fmt.Sprintf("delete link %d", index), func(h kernel.Host) error { return h.DeleteLink(ctx, index) })
		default:
			up := up == "up"
			w.both(fmt.Sprintf("set link %d up %v", index, up), func(h kernel.Host) error {
				return h.SetLink(ctx, index, kernel.LinkChange{Up: &up})
			})
		}
	}
}

func (w *walk) route() kernel.Route {
	r := kernel.Route{
		Dst:      netip.MustParsePrefix(draw(w, "dst", "10.1.3.0/24", "10.1.4.0/24", "10.3.0.0/16", "fd01:0:0:3::/64", "::/0")),
		Metric:   draw(w, "metric", 0, 0, 5),
		Protocol: draw(w, "protocol", kernel.Protocol, kernel.Protocol, 4),
	}
	four := r.Dst.Addr().Is4()
	form := draw(w, "form", "gateway", "gateway", "onlink", "onlink", "link", "blackhole")
	if form == "blackhole" {
		r.Blackhole = true
		return r
	}
	r.Link = w.link()
	if four && draw(w, "with src", true, false, false) {
		r.Src = netip.MustParseAddr(draw(w, "src", "10.1.0.1", "10.2.0.1", "10.2.0.2"))
	}
	if form == "link" {
		return r
	}
	r.OnLink = form == "onlink"
	r.Gateway = netip.MustParseAddr(draw(w, "gateway", "10.1.3.0", "10.1.4.0", "10.2.0.9", "10.9.0.1"))
	if !four {
		r.Gateway = netip.MustParseAddr(draw(w, "gateway", "fd01::3", "fd02::3", "fd09::1"))
	}
	return r
}

// table puts or deletes one entry in both.
func table[E fmt.Stringer](w *walk, put bool, e E, of func(kernel.Host) reconcile.Table[E]) {
	verb := "delete"
	if put {
		verb = "put"
	}
	w.both(verb+" "+e.String(), func(h kernel.Host) error {
		if put {
			return of(h).Put(w.t.Context(), []E{e})
		}
		return of(h).Delete(w.t.Context(), []E{e})
	})
}

// compare checks that both hold the same.
func (w *walk) compare() {
	fake, real := w.holds(w.stack[0]), w.holds(w.stack[1])
	if d := cmp.Diff(real, fake); d != "" {
		w.rt.Fatalf("kernel and fake differ (-kernel +fake):\n%safter:\n%s", d, strings.Join(w.log, "\n"))
	}
}

func (w *walk) holds(h kernel.Host) []string {
	out := append(list(w, h.Routes()), list(w, h.Addrs(0))...)
	for link := 2; link <= 4; link++ {
		out = append(out, list(w, h.Neighbours(link))...)
		out = append(out, list(w, h.FDB(link))...)
	}
	links, err := h.Links(w.t.Context())
	if err != nil {
		w.rt.Fatal(err)
	}
	for _, l := range links {
		out = append(out, fmt.Sprintf("link %d %s up %v mtu %d", l.Index, l.Name, l.Up, l.MTU))
	}
	slices.Sort(out)
	return out
}

func list[E fmt.Stringer](w *walk, t reconcile.Table[E]) []string {
	es, err := t.List(w.t.Context())
	if err != nil {
		w.rt.Fatal(err)
	}
	out := make([]string, len(es))
	for i, e := range es {
		out[i] = fmt.Sprintf("%T %v", e, e)
	}
	return out
}
