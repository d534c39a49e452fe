package kerneltest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// Routes implements kernel.Host.
func (f *Fake) Routes() reconcile.Table[kernel.Route] {
	return table[kernel.Route]{
		fake: f, kind: "route", topic: kernel.TopicRoute,
		link: func(r kernel.Route) int { return r.Link },
		list: func() []kernel.Route { return slices.Collect(maps.Values(f.routes)) },
		put: func(r kernel.Route) error {
			r, err := f.checkRoute(r)
			if err == nil {
				f.routes[r.Key()] = r
			}
			return err
		},
		remove: f.removeRoute,
	}
}

// removeRoute removes the route of the lowest metric that matches r.
func (f *Fake) removeRoute(r kernel.Route) {
	var found *kernel.Route
	for _, old := range f.routes {
		if matches(r, old) && (found == nil || old.Metric < found.Metric) {
			found = &old
		}
	}
	if found != nil {
		delete(f.routes, found.Key())
	}
}

// matches reports whether old is taken for r when r is to be deleted: of IPv4
// routes through a gateway and blackholes the kernel does not compare onlink, a
// source only if there is one to compare, and takes metric 0 for any.
func matches(r, old kernel.Route) bool {
	if r.Protocol == 0 {
		r.Protocol = kernel.Protocol
	}
	if r.Dst.Addr().Is6() || !r.Gateway.IsValid() && !r.Blackhole {
		return r == old
	}
	if !r.Src.IsValid() {
		r.Src = old.Src
	}
	if r.Metric == 0 {
		r.Metric = old.Metric
	}
	r.OnLink = old.OnLink
	return r == old
}

// checkRoute returns r as it would be listed, or the kernel's refusal.
func (f *Fake) checkRoute(r kernel.Route) (kernel.Route, error) {
	if r.Protocol == 0 {
		r.Protocol = kernel.Protocol
	}
	if !r.Dst.IsValid() || r.Dst != r.Dst.Masked() {
		return r, refused(syscall.EINVAL, "")
	}
	if err := f.checkWay(&r); err != nil {
		return r, err
	}
	if r.Src.IsValid() && !f.local(r.Src) {
		return r, refused(syscall.EINVAL, "Invalid prefsrc address")
	}
	return r, nil
}

// checkWay checks gateway and link, and fills in the link.
func (f *Fake) checkWay(r *kernel.Route) error {
	if r.Blackhole {
		return nil
	}
	if r.Link == 0 && r.Gateway.IsValid() {
		r.Link = f.linkTo(r.Gateway)
		if r.Link == 0 {
			return unreachable(*r)
		}
	}
	l, ok := f.links[r.Link]
	switch {
	case !ok:
		return refused(syscall.ENODEV, "")
	case !l.Up:
		return refused(syscall.ENETDOWN, "Nexthop device is not up")
	case !r.Gateway.IsValid():
		return nil
	case f.local(r.Gateway):
		return refused(syscall.EINVAL, "Nexthop has invalid gateway")
	case !r.OnLink && !f.onSegment(r.Link, r.Gateway):
		return unreachable(*r)
	case r.OnLink && r.Gateway.Is6():
		// IPv6 believes onlink only of an address that it does not know to
		// be elsewhere.
		if other := f.lookup(r.Gateway, r.Link); other.Dst.Bits() > 0 && !other.Blackhole && other.Link != r.Link {
			return refused(syscall.EINVAL, "Nexthop has invalid gateway or device mismatch")
		}
	}
	return nil
}

func unreachable(r kernel.Route) error {
	if r.Dst.Addr().Is6() {
		return refused(syscall.EHOSTUNREACH, "No route to host")
	}
	return refused(syscall.ENETUNREACH, "Nexthop has invalid gateway")
}

// local reports whether a is one of the host's own addresses.
func (f *Fake) local(a netip.Addr) bool {
	for own := range f.addrs {
		if own.Prefix.Addr() == a {
			return true
		}
	}
	return false
}

// onSegment reports whether a is reached on link without a gateway: by the
// prefix of one of its addresses or by a route straight to it.
func (f *Fake) onSegment(link int, a netip.Addr) bool {
	for own := range f.addrs {
		if own.Link == link && own.Prefix.Contains(a) {
			return f.links[link].Up
		}
	}
	for _, r := range f.routes {
		if r.Link == link && !r.Gateway.IsValid() && r.Dst.Contains(a) {
			return true
		}
	}
	return false
}

// linkTo is the link on whose segment a is; 0: none.
func (f *Fake) linkTo(a netip.Addr) int {
	for _, index := range slices.Sorted(maps.Keys(f.links)) {
		if f.onSegment(index, a) {
			return index
		}
	}
	return 0
}

// lookup is the route that dst takes: the longest prefix wins, then the lowest
// metric, then one through the link oif (0: none is asked for). The zero Route:
// none.
func (f *Fake) lookup(dst netip.Addr, oif int) kernel.Route {
	candidates := slices.AppendSeq(f.connected(), maps.Values(f.routes))
	candidates = slices.DeleteFunc(candidates, func(r kernel.Route) bool { return !r.Dst.Contains(dst) })
	if len(candidates) == 0 {
		return kernel.Route{}
	}
	return slices.MinFunc(candidates, func(a, b kernel.Route) int {
		return cmp.Or(
			cmp.Compare(b.Dst.Bits(), a.Dst.Bits()),
			cmp.Compare(metric(a), metric(b)),
			cmp.Compare(distance(a.Link, oif), distance(b.Link, oif)),
		)
	})
}

// metric is what the kernel compares: IPv6 has a default for given routes.
func metric(r kernel.Route) int {
	if r.Metric == 0 && r.Dst.Addr().Is6() {
		return 1024
	}
	return r.Metric
}

// distance orders links: the one that is asked for first.
func distance(link, oif int) int {
	if link == oif {
		return 0
	}
	return link
}

// RouteTo implements kernel.Host.
func (f *Fake) RouteTo(ctx context.Context, dst netip.Addr) (kernel.Route, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return kernel.Route{}, fmt.Errorf("route to %s: %w", dst, err)
	}
	host := netip.PrefixFrom(dst, dst.BitLen())
	if f.local(dst) {
		return kernel.Route{Dst: host, Link: 1, Src: dst}, nil
	}
	best := f.lookup(dst, 0)
	if !best.Dst.IsValid() || best.Blackhole {
		return kernel.Route{}, fmt.Errorf("route to %s: %w", dst, kernel.ErrNotFound)
	}
	src := best.Src
	if !src.IsValid() {
		src = f.source(best.Link, dst)
	}
	return kernel.Route{Dst: host, Gateway: best.Gateway, Link: best.Link, Src: src}, nil
}

// connected are the routes that the kernel adds for addresses.
func (f *Fake) connected() []kernel.Route {
	var out []kernel.Route
	for a := range f.addrs {
		if f.links[a.Link].Up && (!a.Prefix.IsSingleIP() || a.Prefix.Addr().Is6()) {
			r := kernel.Route{Dst: a.Prefix.Masked(), Link: a.Link, Src: a.Prefix.Addr()}
			if r.Dst.Addr().Is6() {
				r.Metric = 256
			}
			out = append(out, r)
		}
	}
	return out
}

// source is the address that the kernel would send from: one of the link's, of
// dst's family, best with dst in its prefix.
func (f *Fake) source(link int, dst netip.Addr) netip.Addr {
	var src netip.Addr
	for a := range f.addrs {
		own := a.Prefix.Addr()
		if a.Link != link || own.Is4() != dst.Is4() {
			continue
		}
		if a.Prefix.Contains(dst) {
			return own
		}
		if !src.IsValid() || own.Less(src) {
			src = own
		}
	}
	return src
}
