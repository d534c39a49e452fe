package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// defaultMetric6 is the metric of an IPv6 route that was given none
// (IP6_RT_PRIO_USER). IPv4 has 0.
const defaultMetric6 = 1024

// Routes implements Host.
func (n *Netlink) Routes() reconcile.Table[Route] { return (*routeTable)(n) }

// routeTable is a Netlink as a table of routes. Routes of kinds that a Route
// cannot express (several gateways, a type of service) have neither gateway nor
// link, or are left out when their key is another.
type routeTable Netlink

// listed is a route with the nexthop object it goes through; 0: none.
type listed struct {
	Route
	nhid int
}

// List implements reconcile.Table.
func (t *routeTable) List(ctx context.Context) ([]Route, error) {
	n := (*Netlink)(t)
	var out []Route
	err := n.use(ctx, func(c *conn) error {
		all, err := n.hops.readRoutes(ctx, c)
		if err != nil {
			return err
		}
		out = make([]Route, len(all))
		for i, r := range all {
			out[i] = r.Route
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Put implements reconcile.Table. NLM_F_REPLACE swaps a route of the same
// destination and metric in one step, whatever its protocol, gateway and form:
// no packet is lost between an old and a new one.
func (t *routeTable) Put(ctx context.Context, routes []Route) error {
	n := (*Netlink)(t)
	var bad errorList
	err := n.use(ctx, func(c *conn) error {
		if err := n.hops.load(ctx, c); err != nil {
			return err
		}
		ids, err := n.nexthops(ctx, c, routes, &bad)
		if err != nil {
			return err
		}
		todo := bad.others(len(routes))
		failed, sent, err := c.do(ctx, requests{
			n: len(todo),
			encode: func(e *encoder, i int) {
				encodeRoute(e, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, routes[todo[i]], ids.of(todo[i]))
			},
		})
		refused := bad.mark(todo, failed, sent, err)
		for _, i := range todo {
			if refused[i] {
				n.hops.abandon(ids.of(i))
			} else {
				n.hops.refer(routes[i].Key(), ids.of(i))
			}
		}
		n.hops.sweep(ctx, c)
		return nil
	})
	bad.rest(0, len(routes), err)
	return entryErrors(ctx, n, "put", routes, routeLink, bad)
}

// Delete implements reconcile.Table.
func (t *routeTable) Delete(ctx context.Context, routes []Route) error {
	n := (*Netlink)(t)
	var bad errorList
	err := n.use(ctx, func(c *conn) error {
		if err := n.hops.load(ctx, c); err != nil {
			return err
		}
		todo, err := n.hops.deletable(ctx, c, routes)
		if err != nil {
			return err
		}
		missing := n.deleteRoutes(ctx, c, routes, todo, &bad)
		if len(missing) == 0 {
			return nil
		}
		// Gone already, or written in another form than remembered.
		n.hops.loaded = false
		if err := n.hops.load(ctx, c); err != nil {
			return err
		}
		n.deleteRoutes(ctx, c, routes, missing, &bad)
		return nil
	})
	bad.rest(0, len(routes), err)
	return entryErrors(ctx, n, "delete", routes, routeLink, bad)
}

func routeLink(r Route) int { return r.Link }

// deletable are the indexes of the routes that may be deleted as they are. Asked
// to delete a route without a gateway, the kernel takes one with any; of IPv6 it
// does so always if the route has a nexthop object. Whether it is the right one
// is looked up here. What is left, IPv4 through a gateway, is what there may be
// very many of.
func (t *hopTable) deletable(ctx context.Context, c *conn, routes []Route) ([]int, error) {
	out := make([]int, 0, len(routes))
	var vague []int
	for i, r := range routes {
		if vagueToDelete(r) {
			vague = append(vague, i)
		} else {
			out = append(out, i)
		}
	}
	if len(vague) == 0 {
		return out, nil
	}
	there, err := t.readRoutes(ctx, c)
	if err != nil {
		return nil, err
	}
	exact := make(map[Route]bool)
	for _, r := range there {
		if vagueToDelete(r.Route) {
			exact[r.Route] = true
		}
	}
	for _, i := range vague {
		r := routes[i]
		r.Protocol = protocolOf(r)
		if exact[r] {
			out = append(out, i)
		}
	}
	return out, nil
}

func vagueToDelete(r Route) bool {
	return r.Dst.Addr().Is6() || !r.Gateway.IsValid() && !r.Blackhole
}

// deleteRoutes deletes the routes whose indexes are todo, adds refusals to bad,
// and returns the indexes of those that were not found.
func (n *Netlink) deleteRoutes(ctx context.Context, c *conn, routes []Route, todo []int, bad *errorList) (missing []int) {
	failed, sent, err := c.do(ctx, requests{
		n: len(todo),
		encode: func(e *encoder, i int) {
			r := routes[todo[i]]
			encodeRoute(e, unix.RTM_DELROUTE, 0, r, n.hops.idOf(r))
		},
	})
	kept := failed[:0]
	for _, f := range failed {
		// An object that is gone makes the number invalid (EINVAL).
		stale := code(f.err) == unix.EINVAL && n.hops.idOf(routes[todo[f.i]]) != 0
		if stale || gone(code(f.err)) {
			missing = append(missing, todo[f.i])
		} else {
			kept = append(kept, f)
		}
	}
	stays := bad.mark(todo, kept, sent, err)
	for _, i := range missing {
		stays[i] = true
	}
	for _, i := range todo {
		if !stays[i] {
			n.hops.refer(routes[i].Key(), 0)
		}
	}
	n.hops.sweep(ctx, c)
	return missing
}

// others are the indexes below n without a failure.
func (l *errorList) others(n int) []int {
	failed := make(map[int]bool, len(*l))
	for _, f := range *l {
		failed[f.i] = true
	}
	out := make([]int, 0, n-len(failed))
	for i := range n {
		if !failed[i] {
			out = append(out, i)
		}
	}
	return out
}

// mark adds what became of a batch over the indexes todo, and returns which of
// them did not succeed.
func (l *errorList) mark(todo []int, failed []failure, sent int, err error) map[int]bool {
	refused := make(map[int]bool, len(failed))
	for _, f := range failed {
		l.add(todo[f.i], f.err)
		refused[todo[f.i]] = true
	}
	if err != nil {
		for _, i := range todo[sent:] {
			l.add(i, err)
			refused[i] = true
		}
	}
	return refused
}

// beginRoute begins a route message (struct rtmsg).
func (e *encoder) beginRoute(typ, flags uint16, dst netip.Prefix, table, protocol, scope, kind byte) {
	fixed := [unix.SizeofRtMsg]byte{
		0: family(dst.Addr()), 1: byte(dst.Bits()), 4: table, 5: protocol, 6: scope, 7: kind,
	}
	e.begin(typ, flags, fixed[:])
}

// routeFlags is where rtmsg has its flags.
const routeFlags = 8

func encodeRoute(e *encoder, typ, flags uint16, r Route, nhid int) {
	kind, scope := byte(unix.RTN_UNICAST), byte(unix.RT_SCOPE_UNIVERSE)
	switch {
	case r.Blackhole:
		kind = unix.RTN_BLACKHOLE
	case typ == unix.RTM_DELROUTE:
		scope = unix.RT_SCOPE_NOWHERE // any
	case !r.Gateway.IsValid():
		scope = unix.RT_SCOPE_LINK
	}
	e.beginRoute(typ, flags, r.Dst, unix.RT_TABLE_MAIN, byte(protocolOf(r)), scope, kind)
	if r.OnLink && nhid == 0 {
		e.setFixed(routeFlags, unix.RTNH_F_ONLINK)
	}
	e.addr(unix.RTA_DST, r.Dst.Addr())
	if r.Src.IsValid() {
		e.addr(unix.RTA_PREFSRC, r.Src)
	}
	if m := metricOf(r); m != 0 {
		e.u32(unix.RTA_PRIORITY, m)
	}
	if nhid != 0 {
		e.u32(rtaNHID, nhid)
		return
	}
	if r.Gateway.IsValid() {
		e.addr(unix.RTA_GATEWAY, r.Gateway)
	}
	if r.Link != 0 {
		e.u32(unix.RTA_OIF, r.Link)
	}
}

func protocolOf(r Route) int {
	if r.Protocol == 0 {
		return Protocol
	}
	return r.Protocol
}

// metricOf spells the default out where the kernel takes none for any.
func metricOf(r Route) int {
	if r.Metric == 0 && r.Dst.Addr().Is6() {
		return defaultMetric6
	}
	return r.Metric
}

func encodeRouteDump(family byte) dump {
	return dump{family, func(e *encoder) {
		fixed := [unix.SizeofRtMsg]byte{0: family, 4: unix.RT_TABLE_MAIN}
		e.begin(unix.RTM_GETROUTE, 0, fixed[:])
	}}
}

// parseRoute reads an RTM_NEWROUTE or RTM_DELROUTE. Not ok: another table, a
// kind of route that is not asked for, or a key that Route does not have.
func parseRoute(m message) (r listed, ok bool, err error) {
	if m.typ != unix.RTM_NEWROUTE && m.typ != unix.RTM_DELROUTE {
		return r, false, nil
	}
	if len(m.data) < unix.SizeofRtMsg {
		return r, false, fmt.Errorf("%w: short route", errMalformed)
	}
	fam, bits, tos, kind := m.data[0], int(m.data[1]), m.data[3], m.data[7]
	table, flags := int(m.data[4]), u32(m.data[routeFlags:])
	r.Protocol = int(m.data[5])
	r.Blackhole = kind == unix.RTN_BLACKHOLE
	dst := netip.IPv4Unspecified()
	if fam == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	foreign := m.data[2] != 0 || tos != 0 // routes by source or type of service
	err = eachAttr(m.data[unix.SizeofRtMsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.RTA_TABLE:
			table = u32(v)
		case unix.RTA_DST:
			dst = ip(v)
		default:
			r.attr(typ, v)
		}
	})
	if err != nil {
		return r, false, err
	}
	r.Dst = netip.PrefixFrom(dst, bits)
	if !r.Dst.IsValid() {
		return r, false, fmt.Errorf("%w: route to %v/%d", errMalformed, dst, bits)
	}
	r.OnLink = flags&unix.RTNH_F_ONLINK != 0
	if r.Blackhole {
		r.Link = 0 // IPv6 shows lo
	}
	if fam == unix.AF_INET6 && r.Metric == defaultMetric6 {
		r.Metric = 0
	}
	ok = !foreign && table == unix.RT_TABLE_MAIN && flags&unix.RTM_F_CLONED == 0 &&
		(kind == unix.RTN_UNICAST || kind == unix.RTN_BLACKHOLE) &&
		(fam == unix.AF_INET || fam == unix.AF_INET6)
	return r, ok, nil
}

// attr takes what a route message says of the way.
func (r *listed) attr(typ uint16, v []byte) {
	switch typ {
	case unix.RTA_GATEWAY:
		r.Gateway = ip(v)
	case unix.RTA_VIA: // an IPv6 gateway of an IPv4 route: family, address
		if len(v) > 2 {
			r.Gateway = ip(v[2:])
		}
	case unix.RTA_OIF:
		r.Link = u32(v)
	case unix.RTA_PREFSRC:
		r.Src = ip(v)
	case unix.RTA_PRIORITY:
		r.Metric = u32(v)
	case rtaNHID:
		r.nhid = u32(v)
	}
}

// RouteTo implements Host.
func (n *Netlink) RouteTo(ctx context.Context, dst netip.Addr) (Route, error) {
	var (
		r    listed
		kind byte
		bad  error
	)
	host := netip.PrefixFrom(dst, dst.BitLen())
	err := n.use(ctx, func(c *conn) error {
		return c.one(ctx, func(e *encoder) {
			e.beginRoute(unix.RTM_GETROUTE, 0, host, 0, 0, 0, 0)
			e.addr(unix.RTA_DST, dst)
		}, func(m message) {
			if r, _, bad = parseRoute(m); bad == nil {
				kind = m.data[7]
			}
		})
	})
	if noWay(code(err)) {
		return Route{}, fmt.Errorf("route to %s: %w (%s)", dst, ErrNotFound, err.Error())
	}
	if err == nil {
		err = bad
	}
	if err != nil {
		return Route{}, fmt.Errorf("route to %s: %w", dst, err)
	}
	if kind != unix.RTN_UNICAST && kind != unix.RTN_LOCAL {
		return Route{}, fmt.Errorf("route to %s: %w", dst, ErrNotFound)
	}
	return Route{Dst: host, Gateway: r.Gateway, Link: r.Link, Src: r.Src}, nil
}

// noWay reports whether the kernel's answer to a lookup is that there is no
// route, or one of type unreachable, blackhole or prohibit.
func noWay(code syscall.Errno) bool {
	switch code {
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EINVAL, unix.EACCES:
		return true
	default:
		return false
	}
}
