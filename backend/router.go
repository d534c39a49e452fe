package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// protocolBoot is rtnetlink's RTPROT_BOOT: what a route has that nobody
	// gave a protocol, as flannel's routes and those typed by hand.
	protocolBoot = 3
	// defaultMetric6 is what the kernel makes of metric 0 in IPv6.
	defaultMetric6 = 1024
	// blackholeMetric loses to every connected route of the container bridge:
	// the kernel gives those 0 in IPv4 and 256 in IPv6.
	blackholeMetric = 1 << 20
)

// Router is the policy for the main table's routes, the same for every
// backend: which of them are ours, which are flannel's and taken over, and
// which are somebody else's and not touched. Ours is a route
//
//   - with our protocol number, which no other instance on this host has, or
//   - through a device of ours, or inside the network through flannel's, or
//   - that flannel left on the uplink: inside the network, without a protocol,
//     its gateway the address of a listed peer.
//
// The zero Router with a Kernel is ready. It serves one caller at a time.
type Router struct {
	Kernel kernel.Host
	// Instance says which protocol number is ours.
	Instance kernel.Instance
	Log      *slog.Logger

	differ reconcile.Differ[kernel.Route, kernel.RouteKey]
	// blocked says what was in the way of a destination at the last Step; nil: that
	// is not known.
	blocked func(netip.Prefix) error
	// reported are the foreign routes that the log named last.
	reported string
}

// RoutePlan is what Router makes of one Desired.
type RoutePlan struct {
	Desired Desired
	// Routes lead to the peers, at most one per destination.
	Routes []kernel.Route
	// Devices are the indexes of the tunnel devices that are ours.
	Devices []int
	// Keep are the families whose device is not there: no route of theirs is
	// deleted for not being planned.
	Keep subnet.ByFamily[bool]
	// Blackhole adds a last resort for our own subnet: a packet to an address
	// without a container is dropped and does not leave by the default route.
	Blackhole bool
}

// unblocked returns those of routes that nothing is in the way of: routes itself, if that
// is all of them, and else a slice of its own. The error joins those of the others.
func unblocked(routes []kernel.Route, blocked func(netip.Prefix) error, peers []*subnet.Lease) ([]kernel.Route, error) {
	var errs []error
	peerOf := PeerOf(peers)
	open := routes
	for i, route := range routes {
		if why := blocked(route.Dst); why != nil {
			if errs == nil {
				open = slices.Clone(routes[:i])
			}
			errs = append(errs, blame(route, why, peerOf(route)))
		} else if errs != nil {
			open = append(open, route)
		}
	}
	return open, errors.Join(errs...)
}

// blame says whom the failure of a route concerns; nobody alone if peer is nil.
func blame(route kernel.Route, err error, peer *PeerError) error {
	if peer == nil {
		return fmt.Errorf("route %s: %w", route.Dst, err)
	}
	peer.Err = err
	return peer
}

// Step returns the step that makes the main table hold the plan's routes. Its
// error joins a [PeerError] for each peer whose subnet a foreign route or
// address occupies: the step leaves those alone, and the peer out. The step must
// be applied before the next call.
func (r *Router) Step(ctx context.Context, plan RoutePlan) (reconcile.Step, error) {
	table := listed{Table: r.Kernel.Routes()}
	table.routes, table.err = table.Table.List(ctx)
	connected, err := r.connected(ctx, plan.Devices)
	if err != nil && table.err == nil {
		table.err = err // what is in the way is not known: do nothing
	}
	words := &describer{ctx: ctx, kernel: r.Kernel}
	ours := plan.proof(words, r.Instance)
	table.ours = ours
	var foreign []kernel.Route
	for _, e := range table.routes {
		if !ours(e) {
			foreign = append(foreign, e)
		}
	}
	blocked := words.occupied(foreign, connected)
	if r.blocked = nil; table.err == nil {
		r.blocked = blocked
	}

	named := make(map[netip.Prefix]bool)
	desired, err := unblocked(plan.Routes, func(dst netip.Prefix) error {
		why := blocked(dst)
		if why != nil {
			named[dst] = true
		}
		return why
	}, plan.Desired.Peers)
	if holes := plan.blackholes(r.Instance); len(holes) > 0 {
		desired = slices.Concat(desired, holes)
	}
	foreign = slices.DeleteFunc(foreign, func(e kernel.Route) bool { return named[e.Dst] })
	r.report(plan.Desired.Config, foreign, words)
	step := r.differ.Step("route", table, desired, func(e kernel.Route) bool {
		return !plan.Keep[subnet.FamilyOf(e.Dst.Addr())] && ours(e)
	})
	return step, err
}

// Sweep deletes every route that carries our protocol number.
func (r *Router) Sweep(ctx context.Context) (reconcile.Result, error) {
	return reconcile.Apply(ctx, r.differ.Step("route", r.Kernel.Routes(), nil, func(e kernel.Route) bool {
		return e.Protocol == r.Instance.Protocol()
	}))
}

// Recall returns the routes that an earlier process put for single peers: those by
// a gateway, with our protocol number, to a part of the network.
func (r *Router) Recall(ctx context.Context, c *subnet.Config) ([]kernel.Route, error) {
	routes, err := r.Kernel.Routes().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var peers []kernel.Route
	for _, route := range routes {
		if route.Protocol == r.Instance.Protocol() && route.Gateway.IsValid() && inside(c, route.Dst) {
			peers = append(peers, route)
		}
	}
	return peers, nil
}

// listed is a table that was read already: what the step plans on is what the
// conflicts were found in.
type listed struct {
	reconcile.Table[kernel.Route]
	routes []kernel.Route
	err    error
	ours   func(kernel.Route) bool
}

// Put deletes first what IPv6 would not let be replaced: it refuses an onlink gateway
// that a route of another link covers, and the gateway to a peer's subnet lies within.
// So a peer that goes from a direct route to the tunnel is without one for a moment.
func (l listed) Put(ctx context.Context, routes []kernel.Route) error {
	var covering map[kernel.RouteKey]kernel.Route // made for the first of these
	var inTheWay []kernel.Route
	for _, r := range routes {
		if !r.OnLink || !r.Gateway.Is6() {
			continue
		}
		if covering == nil {
			covering = make(map[kernel.RouteKey]kernel.Route)
			for _, e := range l.routes {
				if e.Dst.Addr().Is6() && l.ours(e) {
					covering[e.Key()] = e
				}
			}
		}
		if old, ok := covering[r.Key()]; ok && old.Link != r.Link && old.Dst.Contains(r.Gateway) {
			inTheWay = append(inTheWay, old)
		}
	}
	if len(inTheWay) > 0 {
		_ = l.Delete(ctx, inTheWay) // what stays is in the way of a put, which says so
	}
	return l.Table.Put(ctx, routes)
}

// List returns what was read.
func (l listed) List(context.Context) ([]kernel.Route, error) { return l.routes, l.err }

// connected returns the addresses of all links but devices. The kernel's own
// routes come from them, and those are in no [kernel.Host.Routes].
func (r *Router) connected(ctx context.Context, devices []int) ([]kernel.Addr, error) {
	addrs, err := r.Kernel.Addrs(0).List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return slices.DeleteFunc(slices.Clone(addrs), func(a kernel.Addr) bool {
		return slices.Contains(devices, a.Link)
	}), nil
}

// OccupiedError says that a peer's subnet is in use by something on this host
// that is not ours. It is left alone.
type OccupiedError struct {
	What string
	// Device is the one that has an address in the subnet; empty: it is a route.
	Device string
}

// Error names what is in the way and what to do.
func (e *OccupiedError) Error() string {
	return "foreign " + e.What + " is in the way: remove it, or renumber one of the two"
}

// Precedence is a route's metric as the kernel compares it; lower wins.
func Precedence(r kernel.Route) int {
	if r.Metric == 0 && r.Dst.Addr().Is6() {
		return defaultMetric6
	}
	return r.Metric
}

// proof returns what tells our routes from others'.
func (p *RoutePlan) proof(links *describer, instance kernel.Instance) func(kernel.Route) bool {
	var listed map[netip.Addr]bool // made for the first route that may be flannel's
	isListed := func(gateway netip.Addr) bool {
		if listed == nil {
			listed = make(map[netip.Addr]bool, len(p.Desired.Peers))
			for _, peer := range p.Desired.Peers {
				for _, a := range peer.Attrs.PublicIP {
					listed[a] = a.IsValid()
				}
			}
		}
		return listed[gateway]
	}
	return func(r kernel.Route) bool {
		switch {
		case r.Protocol == instance.Protocol(), r.Link != 0 && slices.Contains(p.Devices, r.Link):
			return true
		case r.Protocol != protocolBoot || !inside(p.Desired.Config, r.Dst):
			return false
		case r.Blackhole: // flannel's --ip-blackhole-route
			return p.Blackhole && slices.Contains(p.Desired.Own.Subnet[:], r.Dst)
		case r.Link == p.Desired.Uplink.Link.Index:
			return r.Link != 0 && isListed(r.Gateway)
		}
		return IsTunnel(links.find(r.Link))
	}
}

// blackholes returns the last resorts for our own subnet.
func (p *RoutePlan) blackholes(instance kernel.Instance) []kernel.Route {
	if !p.Blackhole {
		return nil
	}
	var routes []kernel.Route
	for _, own := range p.Desired.Own.Subnet {
		if own.IsValid() {
			routes = append(routes, kernel.Route{
				Dst: own, Blackhole: true, Metric: blackholeMetric, Protocol: instance.Protocol(),
			})
		}
	}
	return routes
}

// report logs the foreign routes inside the network that no error names, once per
// change of them.
func (r *Router) report(c *subnet.Config, foreign []kernel.Route, words *describer) {
	var names []string
	for _, route := range foreign {
		if inside(c, route.Dst) {
			names = append(names, words.route(route))
		}
	}
	now := strings.Join(names, "; ")
	if now != "" && now != r.reported && r.Log != nil {
		r.Log.Warn("foreign routes inside the network are left alone", "routes", now)
	}
	r.reported = now
}

// inside reports whether p is a part of the network.
func inside(c *subnet.Config, p netip.Prefix) bool {
	network := c.Ranges[subnet.FamilyOf(p.Addr())].Network
	return network.IsValid() && network.Bits() <= p.Bits() && network.Contains(p.Addr())
}

// describer knows the links and words what is in the way. It asks for the links
// once, and only when something is not plainly ours.
type describer struct {
	ctx    context.Context //nolint:containedctx // lives for one call of Step
	kernel kernel.Host
	links  []kernel.Link
}

// occupied returns a function that says what, if anything, takes a destination.
// Putting our route would replace a foreign one and be hidden by a connected
// prefix.
func (d *describer) occupied(foreign []kernel.Route, connected []kernel.Addr) func(netip.Prefix) error {
	addrs := make(map[netip.Prefix]kernel.Addr, len(connected))
	for _, a := range connected {
		addrs[a.Prefix.Masked()] = a
	}
	routes := make(map[netip.Prefix]kernel.Route)
	for _, r := range foreign {
		if Precedence(r) <= Precedence(kernel.Route{Dst: r.Dst}) {
			routes[r.Dst] = r
		}
	}
	return func(dst netip.Prefix) error {
		if a, ok := addrs[dst]; ok {
			device := d.link(a.Link)
			return &OccupiedError{What: fmt.Sprintf("address %s of %s", a.Prefix, device), Device: device}
		}
		if r, ok := routes[dst]; ok {
			return &OccupiedError{What: "route " + d.route(r)}
		}
		return nil
	}
}

// route prints a route with its link's name.
func (d *describer) route(r kernel.Route) string { return r.Notation(d.link(r.Link)) }

// link is a link's name, or its index where names cannot be had.
func (d *describer) link(index int) string {
	if l := d.find(index); l.Name != "" {
		return l.Name
	}
	return fmt.Sprintf("if%d", index)
}

// find is the link of an index; the zero Link where it cannot be had.
func (d *describer) find(index int) kernel.Link {
	if d.links == nil {
		d.links, _ = d.kernel.Links(d.ctx)
	}
	for _, l := range d.links {
		if l.Index == index {
			return l
		}
	}
	return kernel.Link{}
}
