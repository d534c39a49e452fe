package faults

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// hostsEach is how many hosts a network has.
const hostsEach = 3

// HostsFor is how many hosts the lab of a run needs.
func HostsFor(backends []string) int { return hostsEach * len(backends) }

// network is three hosts that one backend joins, under a prefix of its own.
type network struct {
	backend string
	lab     *lab.Lab
	hosts   []*lab.Host
	// kernel is the broken host's.
	kernel *kernel.Netlink
	// subnets are the hosts'.
	subnets []subnet.Subnet
	// mtu is what the broken host tells containers at the start.
	mtu int
	// previous and current are paths of the daemon.
	previous, current string
	// networkd is the broken host's, while it has one.
	networkd *lab.Process
	// outage is how long etcd is away.
	outage time.Duration
}

// host is the one that is broken.
func (n *network) host() *lab.Host { return n.hosts[0] }

// peer is the one that it exchanges pings with.
func (n *network) peer() *lab.Host { return n.hosts[1] }

func (n *network) prefix() string { return "/faults/" + n.backend }

// key is that of the host's lease.
func (n *network) key() string { return n.prefix() + "/subnets/" + n.subnets[0].Key() }

func (n *network) peerSubnet() netip.Prefix { return n.subnets[1][subnet.IPv4] }

// gateway is the hosts' default gateway, which knows nothing of the network.
func (n *network) gateway() netip.Addr { return n.lab.Gateway(subnet.IPv4).Addr() }

// device is the tunnel's; host-gw has none.
func (n *network) device() string {
	if n.backend == udp {
		return "flannel0"
	}
	return "flannel.1"
}

// home is the uplink's address, away one that nobody has.
func (n *network) home() netip.Prefix { return n.host().Addrs[subnet.IPv4] }

func (n *network) away() netip.Prefix {
	a := n.home().Addr().As4()
	a[3] += 100
	return netip.PrefixFrom(netip.AddrFrom4(a), n.home().Bits())
}

// run runs a command on the broken host.
func (n *network) run(ctx context.Context, format string, args ...any) error {
	line := strings.Fields(fmt.Sprintf(format, args...))
	_, err := n.host().Run(ctx, line[0], line[1:]...)
	return err
}

// restoreDefault puts back the routes that the lab gave the uplink.
func (n *network) restoreDefault(ctx context.Context) error {
	return n.run(ctx, "ip route replace default via %s dev %s", n.gateway(), uplink)
}

// close gives back what up opened.
func (n *network) close() {
	if n.kernel != nil {
		n.kernel.Close()
	}
}

// up takes the hosts from nothing to containers that talk.
func (n *network) up(ctx context.Context) error {
	config := fmt.Sprintf(`{"Network":"10.5.0.0/16","Backend":{"Type":%q}}`, n.backend)
	if _, err := n.lab.Client().Put(ctx, n.prefix()+"/config", config); err != nil {
		return fmt.Errorf("put config: %w", err)
	}
	var err error
	if n.kernel, err = kernel.Open(kernel.Options{NetNS: filepath.Join("/run/netns", n.host().Name)}); err != nil {
		return err
	}
	for _, h := range n.hosts {
		if err := dropByDefault(ctx, h); err != nil {
			return err
		}
		if err := h.StartDaemon("--etcd-prefix=" + n.prefix()); err != nil {
			return err
		}
	}
	for _, h := range n.hosts {
		env, err := h.WaitSubnet(ctx)
		if err != nil {
			return err
		}
		if err := h.StartContainer(env); err != nil {
			return err
		}
		n.subnets = append(n.subnets, env.Subnets)
		if h == n.host() {
			n.mtu = env.MTU
		}
	}
	return n.waitWell(ctx)
}

// dropByDefault makes a host drop what no rule accepts.
func dropByDefault(ctx context.Context, h *lab.Host) error {
	if err := acceptOwn(ctx, h); err != nil {
		return err
	}
	return iptables(ctx, h, "-P INPUT DROP", "-P FORWARD DROP")
}

// acceptOwn are the rules that the host's operator would have, so that the host
// itself reaches etcd.
func acceptOwn(ctx context.Context, h *lab.Host) error {
	return iptables(ctx, h, "-A INPUT -i lo -j ACCEPT", "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
}

func iptables(ctx context.Context, h *lab.Host, rules ...string) error {
	for _, rule := range rules {
		if _, err := h.Run(ctx, "iptables", append([]string{"-w"}, strings.Fields(rule)...)...); err != nil {
			return err
		}
	}
	return nil
}

// waitWell waits until every daemon has nothing to complain of, and packets pass
// both ways.
func (n *network) waitWell(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, wellWithin, fmt.Errorf("not within %s", wellWithin))
	defer cancel()
	for _, h := range n.hosts {
		if _, err := h.WaitStatus(ctx, "all to be well", n.well); err != nil {
			return err
		}
	}
	out := n.host().Container.WaitPing(ctx, n.peer().Container.Addr())
	return errors.Join(out, n.peer().Container.WaitPing(ctx, n.host().Container.Addr()))
}

// well reports whether a daemon has nothing to complain of.
func (n *network) well(s lab.Status) bool {
	return s.Ready && s.Lease.State == subnet.StateValid.String() && s.Etcd.Connected && len(s.Problems) == 0 && len(s.Peers) == len(n.hosts)-1
}

// isWell looks at the broken host's daemon. One that does not answer is not well.
func isWell(ctx context.Context, n *network) (bool, error) {
	s, err := n.host().Status(ctx)
	return err == nil && s.PID == n.host().Daemon.PID() && n.well(s), nil
}

// wellWithin bounds that wait.
const wellWithin = 60 * time.Second
