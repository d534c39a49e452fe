package uplink

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Options say which interface is wanted. The zero Options choose the default
// route's, for IPv4.
type Options struct {
	// Ifaces are names or addresses, the first that fits is taken.
	Ifaces []string
	// Regexes are matched, unanchored, against addresses and then names.
	Regexes []string
	// CanReach asks for the interface by which the kernel sends there.
	CanReach netip.Addr
	// Public is what peers are told instead of the uplink's address.
	Public subnet.ByFamily[netip.Addr]
	// Families are those that the uplink must have an address of; none: IPv4.
	Families subnet.ByFamily[bool]
	// Prefer are addresses that are taken before others of their interface, unless
	// the user named one: those that the host has told its peers.
	Prefer subnet.ByFamily[netip.Addr]
}

// Inventory is what there is to choose from.
type Inventory struct {
	Links []kernel.Link
	// Addrs are the addresses of all links, a link's in the kernel's order:
	// primary ones first.
	Addrs []kernel.Addr
	// Defaults are the kernel's ways to the outside; Link 0: none.
	Defaults subnet.ByFamily[kernel.Route]
	// Reach is the kernel's way to Options.CanReach; Link 0: none.
	Reach kernel.Route
}

// Choose reads the kernel and selects.
func Choose(ctx context.Context, h kernel.Host, o Options) (backend.Uplink, error) {
	if err := o.Validate(); err != nil {
		return backend.Uplink{}, err
	}
	inv, err := read(ctx, h, o)
	if err != nil {
		return backend.Uplink{}, fmt.Errorf("choose uplink: %w", err)
	}
	return Select(inv, o)
}

// read takes the inventory.
func read(ctx context.Context, h kernel.Host, o Options) (Inventory, error) {
	var (
		inv Inventory
		err error
	)
	if inv.Links, err = h.Links(ctx); err != nil {
		return inv, fmt.Errorf("list links: %w", err)
	}
	addrs, err := h.Addrs(0).List(ctx)
	if err != nil {
		return inv, fmt.Errorf("list addresses: %w", err)
	}
	inv.Addrs = slices.Clone(addrs)
	if o.CanReach.IsValid() {
		inv.Reach, err = h.RouteTo(ctx, o.CanReach)
		if err != nil && !errors.Is(err, kernel.ErrNotFound) {
			return inv, fmt.Errorf("ask for the route to %s: %w", o.CanReach, err)
		}
	}
	if o.selectors() > 0 {
		return inv, nil
	}
	routes, err := h.Routes().List(ctx)
	if err != nil {
		return inv, fmt.Errorf("list routes: %w", err)
	}
	inv.Defaults = defaults(routes)
	for _, f := range o.needed() {
		if inv.Defaults[f].Link != 0 {
			continue
		}
		// None in the main table as a plain route: it may have several
		// gateways or stand in a table of its own. The kernel knows.
		inv.Defaults[f], err = h.RouteTo(ctx, outside[f])
		if err != nil && !errors.Is(err, kernel.ErrNotFound) {
			return inv, fmt.Errorf("ask for the %s default route: %w", f, err)
		}
	}
	return inv, nil
}

// outside are addresses that only a default route leads to (RFC 5737, 3849).
// Nothing is sent there.
var outside = subnet.ByFamily[netip.Addr]{ //nolint:gochecknoglobals // a constant table
	netip.AddrFrom4([4]byte{203, 0, 113, 1}),
	netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1}),
}

// defaults finds the default route that the kernel prefers, per family.
func defaults(routes []kernel.Route) subnet.ByFamily[kernel.Route] {
	var best subnet.ByFamily[kernel.Route]
	for _, r := range routes {
		if r.Dst.Bits() != 0 || r.Link == 0 {
			continue
		}
		f := subnet.FamilyOf(r.Dst.Addr())
		if best[f].Link == 0 || backend.Precedence(r) < backend.Precedence(best[f]) {
			best[f] = r
		}
	}
	return best
}

// Select chooses from the inventory, without looking elsewhere. Its options
// must be valid. The error is an *[Error].
func Select(inv Inventory, o Options) (backend.Uplink, error) {
	s := selection{inv: inv, need: o.needed(), prefer: o.Prefer}
	for _, try := range o.attempts() {
		up, err := s.use(try.pick(inv))
		if err == nil {
			for _, f := range subnet.Families() {
				up.Public[f] = up.Addr[f]
				if o.Public[f].IsValid() {
					up.Public[f] = o.Public[f]
				}
			}
			return up, nil
		}
		s.tried = append(s.tried, try.name+": "+err.Error())
	}
	return backend.Uplink{}, &Error{Tried: s.tried, Candidates: s.candidates()}
}

// attempt is one way to find an interface.
type attempt struct {
	// name is how the user asked for it.
	name string
	// pick says which interface it is, or why there is none.
	pick func(Inventory) (choice, error)
}

// choice is an interface and, where that is known, its address. Named: the user
// asked for the address itself.
type choice struct {
	link  int
	addr  netip.Addr
	named bool
}

// attempts lists what to try, in order.
func (o Options) attempts() []attempt {
	var all []attempt
	for _, name := range o.Ifaces {
		all = append(all, attempt{"--iface=" + name, byNameOrAddr(name)})
	}
	for _, pattern := range o.Regexes {
		all = append(all, attempt{"--iface-regex=" + pattern, byRegex(pattern)})
	}
	if o.CanReach.IsValid() {
		all = append(all, attempt{"--iface-can-reach=" + o.CanReach.String(), byReach})
	}
	if len(all) == 0 {
		all = append(all, attempt{"default route", byDefault(o.needed())})
	}
	return all
}

// selectors counts the attempts that the user asked for.
func (o Options) selectors() int {
	n := len(o.Ifaces) + len(o.Regexes)
	if o.CanReach.IsValid() {
		n++
	}
	return n
}

// needed are the families that an uplink must have.
func (o Options) needed() []subnet.Family {
	var fs []subnet.Family
	for _, f := range subnet.Families() {
		if o.Families[f] {
			fs = append(fs, f)
		}
	}
	if len(fs) == 0 {
		return []subnet.Family{subnet.IPv4}
	}
	return fs
}
