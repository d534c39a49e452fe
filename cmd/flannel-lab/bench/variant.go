package bench

import (
	"context"
	_ "embed"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// Variant is one way to join two hosts.
type Variant struct {
	// Name is what --only takes, and what JSON says.
	Name  string
	Title string
	join  func(context.Context, *pair) error
}

// The names of variants that are spoken of one by one. Reference is the one that
// the others are compared with.
const (
	Reference    = "vxlan"
	nameUDP      = "udp"
	nameUDPPlain = "udp-off"
	nameFloor    = "forwarder"
	nameFlannel  = "flannel-loop"
)

// Variants lists all of them, in the order of tables.
func Variants() []Variant {
	return []Variant{
		{"veth", "bare veth", joinRouted},
		{Reference, "vxlan", joinDaemons(`{"Type":"vxlan"}`)},
		{"host-gw", "host-gw", joinDaemons(`{"Type":"host-gw"}`)},
		{nameUDP, "udp", joinDaemons(`{"Type":"udp"}`)},
		{nameUDPPlain, "udp, Offload off", joinDaemons(`{"Type":"udp","Offload":"off"}`)},
		{nameFloor, "bare forwarder", joinForwarders(twoThreads)},
		{nameFlannel, "flannel's loop", joinForwarders(oneThread)},
	}
}

// joinDaemons joins hosts by flanneld-go itself. Each pair is a network of its
// own, under a prefix of its own.
func joinDaemons(backend string) func(context.Context, *pair) error {
	return func(ctx context.Context, p *pair) error {
		prefix := "/bench/" + p.variant.Name
		config := fmt.Sprintf(`{"Network":"10.5.0.0/16","Backend":%s}`, backend)
		if _, err := p.lab.Client().Put(ctx, prefix+"/config", config); err != nil {
			return fmt.Errorf("put config: %w", err)
		}
		for _, h := range p.hosts {
			if err := h.StartDaemon("--etcd-prefix=" + prefix); err != nil {
				return err
			}
			p.daemons = append(p.daemons, h.Daemon)
		}
		for _, h := range p.hosts {
			if _, err := h.WaitReady(ctx, 1); err != nil {
				return err
			}
			env, err := h.ReadSubnet()
			if err != nil {
				return err
			}
			if err := h.StartContainer(env); err != nil {
				return err
			}
		}
		return nil
	}
}

// subnetOf is what a host has that no daemon gave a subnet.
func subnetOf(end int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(1 + end), 0}), 24)
}

// ethernetMTU is that of the lab's uplinks.
const ethernetMTU = 1500

// joinRouted joins hosts by nothing but a route on each: what the lab itself can
// do.
func joinRouted(_ context.Context, p *pair) error {
	for end, h := range p.hosts {
		via := p.hosts[1-end].Addrs[0].Addr()
		if err := routeSubnets(p, end, ethernetMTU, netlink.Route{Gw: via.AsSlice()}); err != nil {
			return fmt.Errorf("join %s: %w", h.Name, err)
		}
	}
	return nil
}

// routeSubnets starts a host's container and sends what is for the other's by a
// route.
func routeSubnets(p *pair, end, mtu int, route netlink.Route) error {
	h := p.hosts[end]
	err := h.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) })
	if err != nil {
		return fmt.Errorf("forward packets: %w", err)
	}
	if err := h.StartContainer(daemonconfig.Env{Subnets: [2]netip.Prefix{subnetOf(end)}, MTU: mtu}); err != nil {
		return err
	}
	to := subnetOf(1 - end)
	route.Dst = &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}
	if err := h.Links().RouteAdd(&route); err != nil {
		return fmt.Errorf("add route to %s: %w", to, err)
	}
	return nil
}

// joinForwarders joins hosts by a program that carries packets one at a time, in one of
// two ways.
func joinForwarders(by threads) func(context.Context, *pair) error {
	return func(ctx context.Context, p *pair) error {
		for end := range p.hosts {
			if err := joinForwarder(ctx, p, end, by); err != nil {
				return err
			}
		}
		return nil
	}
}

// joinForwarder starts the forwarder at one end.
func joinForwarder(ctx context.Context, p *pair, end int, by threads) error {
	h := p.hosts[end]
	d, err := p.start(h.Node, "forwarder", ForwardCommand, "--threads="+strconv.Itoa(int(by)),
		"--from="+h.Addrs[0].Addr().String(), "--to="+p.hosts[1-end].Addrs[0].Addr().String(), "--subnet="+subnetOf(1-end).String())
	if err != nil {
		return err
	}
	p.daemons = append(p.daemons, d)
	var link netlink.Link
	err = p.await(ctx, d, func() error {
		link, err = h.Links().LinkByName(forwardDevice)
		return err
	})
	if err != nil {
		return err
	}
	if err := configureForwarder(h, link); err != nil {
		return fmt.Errorf("configure %s on %s: %w", forwardDevice, h.Name, err)
	}
	if err := routeSubnets(p, end, forwardMTU, netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("join %s: %w", h.Name, err)
	}
	if by == oneThread {
		return writeRules(ctx, p, end)
	}
	return nil
}

// flannelRules are those that flannel 0.26 writes with --ip-masq, SUBNET being the host's
// own. They are on the way of each packet as ours are, and bring in connection tracking.
//
//go:embed flannel.rules
var flannelRules string

// writeRules gives a host what flannel would.
func writeRules(ctx context.Context, p *pair, end int) error {
	h := p.hosts[end]
	path := filepath.Join(h.Dir, "flannel.rules")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(flannelRules, "SUBNET", subnetOf(end).String())), 0o644); err != nil {
		return fmt.Errorf("write rules of %s: %w", h.Name, err)
	}
	if _, err := h.Run(ctx, "iptables-restore", "--wait", "--noflush", path); err != nil {
		return fmt.Errorf("write rules of %s: %w", h.Name, err)
	}
	return nil
}

func configureForwarder(h *lab.Host, link netlink.Link) error {
	if err := h.Links().LinkSetMTU(link, forwardMTU); err != nil {
		return fmt.Errorf("set MTU: %w", err)
	}
	if err := h.Links().LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	return nil
}
