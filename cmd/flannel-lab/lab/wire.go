package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridge is an Ethernet switch inside a node.
type bridge struct {
	node *Node
	link netlink.Link
}

// addBridge makes a bridge that has addrs itself. mtu 0 is the kernel's choice.
func (n *Node) addBridge(name string, mtu int, addrs []netip.Prefix) (bridge, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = mtu
	// Without an address of its own a bridge takes that of its lowest port,
	// and changes it, to its neighbours' surprise, with every port that joins.
	attrs.HardwareAddr = macFor(addrs[0].Addr())
	// No router of this segment asks for group memberships; snooping would
	// only drop.
	snooping := false
	link := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := n.links.LinkAdd(link); err != nil {
		return bridge{}, fmt.Errorf("add bridge %s in %s: %w", name, n.Name, err)
	}
	if err := n.configure(link, addrs); err != nil {
		return bridge{}, errors.Join(err, n.links.LinkDel(link))
	}
	return bridge{node: n, link: link}, nil
}

// macFor is a locally administered MAC that shows the last bytes of an address.
func macFor(a netip.Addr) net.HardwareAddr {
	raw := a.AsSlice()
	return append(net.HardwareAddr{0x02, 0x42}, raw[len(raw)-4:]...)
}

// plug joins other to the bridge: an interface eth0 there, with addrs and the
// bridge's MTU, and a default route via each gateway.
func (b bridge) plug(port string, other *Node, addrs []netip.Prefix, gateways []netip.Addr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	attrs.MTU = b.link.Attrs().MTU
	attrs.MasterIndex = b.link.Attrs().Index
	// Both ends are born where they belong: nothing is moved or renamed.
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(other.ns)}
	if err := b.node.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s in %s: %w", port, b.node.Name, err)
	}
	if err := b.node.configure(veth, nil); err != nil {
		return err
	}
	eth0, err := other.links.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0 in %s: %w", other.Name, err)
	}
	if err := other.configure(eth0, addrs); err != nil {
		return err
	}
	for _, gw := range gateways {
		route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gw.AsSlice()}
		if err := other.links.RouteAdd(route); err != nil {
			return fmt.Errorf("add default route via %s in %s: %w", gw, other.Name, err)
		}
	}
	return nil
}

// configure gives a link its addresses and brings it up.
func (n *Node) configure(link netlink.Link, addrs []netip.Prefix) error {
	name := link.Attrs().Name
	for _, p := range addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			// Nobody else has it: usable at once instead of after a second.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := n.links.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s in %s: %w", p, name, n.Name, err)
		}
	}
	if err := n.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up in %s: %w", name, n.Name, err)
	}
	return nil
}

// removeLink removes an interface.
func (n *Node) removeLink(name string) error {
	link, err := n.links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", name, n.Name, err)
	}
	if err := n.links.LinkDel(link); err != nil {
		return fmt.Errorf("remove %s in %s: %w", name, n.Name, err)
	}
	return nil
}
