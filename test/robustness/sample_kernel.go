package robustness

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

// dumpTries is how often a table is read that changes while it is read, or whose
// device goes away. The daemons make a handful of changes at a time.
const dumpTries = 10

// paths is where a host's kernel sends packets for the subnets of the network.
// They are IPv4's, as the runs' networks are.
type paths struct {
	// tunnels are the indexes of the devices whose name is a tunnel's; udp's
	// among them is a TUN device, whose peers only the daemon knows.
	tunnels []int
	tun     int
	addrs   []netlink.Addr
	routes  []netlink.Route
	// Neighbours and FDB entries of the tunnels.
	neighbours, fdb []netlink.Neigh
}

// readPaths reads the kernel's tables. It does not use the product's own
// reader, which is among what is judged.
func readPaths(h *netlink.Handle) (p paths, err error) {
	for range dumpTries {
		if p, err = readOnce(h); err == nil || !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.ENODEV) {
			break
		}
	}
	if err != nil {
		return p, fmt.Errorf("read the kernel's tables: %w", err)
	}
	return p, nil
}

// readOnce reads in the order in which a packet's way is decided: what is
// replaced meanwhile leads nowhere rather than to the wrong host.
func readOnce(h *netlink.Handle) (p paths, err error) {
	links, err := h.LinkList()
	if err != nil {
		return p, err
	}
	for _, l := range links {
		if !strings.HasPrefix(l.Attrs().Name, "flannel") {
			continue
		}
		p.tunnels = append(p.tunnels, l.Attrs().Index)
		if l.Type() == "tuntap" {
			p.tun = l.Attrs().Index
		}
	}
	if p.addrs, err = h.AddrList(nil, unix.AF_INET); err != nil {
		return p, err
	}
	if p.routes, err = h.RouteList(nil, unix.AF_INET); err != nil {
		return p, err
	}
	if err := p.findHops(h); err != nil {
		return p, err
	}
	for _, index := range p.tunnels {
		if index == p.tun {
			continue
		}
		neighbours, err := h.NeighList(index, unix.AF_INET)
		if err != nil {
			return p, err
		}
		fdb, err := h.NeighList(index, unix.AF_BRIDGE)
		if err != nil {
			return p, err
		}
		p.neighbours, p.fdb = append(p.neighbours, neighbours...), append(p.fdb, fdb...)
	}
	return p, nil
}

// findHops asks for the gateways that a dump leaves out: a route through a
// nexthop object shows no more than the object's number where
// net.ipv4.nexthop_compat_mode is off.
func (p *paths) findHops(h *netlink.Handle) error {
	for i, r := range p.routes {
		if r.Protocol != kernel.Protocol || r.Type != unix.RTN_UNICAST || r.LinkIndex != 0 {
			continue
		}
		found, err := h.RouteGet(r.Dst.IP)
		if errors.Is(err, unix.ENETUNREACH) {
			continue // It is gone again.
		}
		if err != nil {
			return fmt.Errorf("find the gateway of %s: %w", r.Dst, err)
		}
		p.routes[i].Gw, p.routes[i].LinkIndex = found[0].Gw, found[0].LinkIndex
	}
	return nil
}

// own are the addresses of the tunnels, sorted.
func (p *paths) own() []netip.Prefix {
	var out []netip.Prefix
	for _, a := range p.addrs {
		if slices.Contains(p.tunnels, a.LinkIndex) {
			out = append(out, prefixOf(*a.IPNet))
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

// to are the routes to other hosts, sorted.
func (p *paths) to() []Route {
	var out []Route
	for _, r := range p.routes {
		tunnel := slices.Contains(p.tunnels, r.LinkIndex)
		switch {
		case r.Type != unix.RTN_UNICAST || r.Dst == nil:
		case r.LinkIndex == p.tun && p.tun != 0: // One for all; see peers.
		case tunnel:
			out = append(out, p.through(r))
		case r.Protocol == kernel.Protocol:
			out = append(out, Route{Subnet: prefixOf(*r.Dst), Via: addrOf(r.Gw)})
		}
	}
	sortRoutes(out)
	return out
}

// through is a route into a tunnel, as far as neighbour and FDB entry lead.
func (p *paths) through(r netlink.Route) Route {
	out := Route{Subnet: prefixOf(*r.Dst)}
	for _, n := range p.neighbours {
		if n.LinkIndex == r.LinkIndex && n.IP.Equal(r.Gw) && len(n.HardwareAddr) > 0 {
			out.MAC = n.HardwareAddr.String()
		}
	}
	for _, e := range p.fdb {
		if out.MAC != "" && e.LinkIndex == r.LinkIndex && e.HardwareAddr.String() == out.MAC && len(e.IP) > 0 {
			out.Via = addrOf(e.IP)
		}
	}
	return out
}

func sortRoutes(routes []Route) {
	slices.SortFunc(routes, func(a, b Route) int {
		return cmp.Or(a.Subnet.Compare(b.Subnet), a.Via.Compare(b.Via))
	})
}

func prefixOf(n net.IPNet) netip.Prefix {
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), ones)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
