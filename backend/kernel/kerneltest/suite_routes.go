package kerneltest

import (
	"net/netip"
	"slices"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

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
	linkless := []kernel.Route{
		{Dst: subnet3, Gateway: vtep, Protocol: kernel.Protocol},
		{Dst: subnet3v6, Gateway: netip.MustParseAddr("fd00:198:18::2"), Protocol: kernel.Protocol},
	}
	b.must("put without a link", b.Routes().Put(b.ctx(), linkless))
	linkless[0].Link, linkless[1].Link = u.Index, u.Index
	holds(b, "routes with the link found", b.Routes(), linkless...)
	b.must("delete them", b.Routes().Delete(b.ctx(), linkless))
	far := kernel.Route{Dst: subnet3, Gateway: netip.MustParseAddr("203.0.113.1")}
	b.refused("put without a link", b.Routes().Put(b.ctx(), []kernel.Route{far}), nil,
		"put 10.5.3.0/24 via 203.0.113.1: network is unreachable: Nexthop has invalid gateway")

	bare := []kernel.Route{via(l, subnet3, gw), via(l, subnet3v6, gw6)}
	ours := slices.Clone(bare)
	bare[0].Protocol, bare[1].Protocol = 0, 0
	b.must("put without protocol", b.Routes().Put(b.ctx(), bare))
	holds(b, "routes of ours", b.Routes(), ours...)
	b.must("delete without protocol", b.Routes().Delete(b.ctx(), bare))
	holds(b, "routes of ours left", b.Routes())
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
		{Dst: subnet3, Link: l.Index, Protocol: kernel.Protocol},
		{Dst: subnet4, Blackhole: true, Protocol: kernel.Protocol},
	}))
	holds(b, "routes", b.Routes(), ours...)

	// Of IPv6 the kernel itself compares even less.
	six, other := via(l, subnet3v6, gw6), via(l, subnet3v6, netip.MustParseAddr("fd05:0:0:4::"))
	plain := kernel.Route{Dst: subnet3v6, Link: l.Index, Protocol: kernel.Protocol}
	hole := kernel.Route{Dst: subnet3v6, Blackhole: true, Protocol: kernel.Protocol}
	for _, r := range []kernel.Route{six, plain, hole} {
		b.must("put "+r.String(), b.Routes().Put(b.ctx(), []kernel.Route{r}))
		others := slices.DeleteFunc([]kernel.Route{other, six, plain, hole}, func(o kernel.Route) bool { return o == r })
		b.must("delete other values", b.Routes().Delete(b.ctx(), others))
		holds(b, "routes beside "+r.String(), b.Routes(), append([]kernel.Route{r}, ours...)...)
		b.must("delete "+r.String(), b.Routes().Delete(b.ctx(), []kernel.Route{r}))
		holds(b, "routes without "+r.String(), b.Routes(), ours...)
	}
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
	err := b.Routes().Put(b.ctx(), []kernel.Route{good, src, far, good2})
	b.refused("put", err, nil, "put 10.5.4.0/24 via 203.0.113.1 dev flannel.1: network is unreachable: Nexthop has invalid gateway")
	b.refused("put", err, nil, "put 10.5.5.0/24 via 10.5.3.0 dev flannel.1 src 203.0.113.9 onlink: invalid argument: Invalid prefsrc address")
	var failed []any
	for f := range reconcile.Failures(err) {
		failed = append(failed, f.Value)
	}
	if d := cmp.Diff([]any{src, far}, failed, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
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

func routeTo(b *bench) {
	l := b.tunnel()
	u, err := b.LinkByName(b.ctx(), "eth0")
	b.must("find uplink", err)
	src, src6 := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd00:198:18::1")
	b.must("put", b.Routes().Put(b.ctx(), []kernel.Route{
		via(l, subnet3, gw),
		{Dst: subnet4, Blackhole: true},
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
