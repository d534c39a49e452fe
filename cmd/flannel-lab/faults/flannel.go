package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func flannelFaults() []Fault {
	absent := lacking("its packets go through its own process", udp)
	return []Fault{
		{
			Name: "from-flannel", Title: "changed from flannel to ours (a stand-in for flannel, which is not here)", bounds: alike(0), absent: absent,
			lacks: lacksControl, prepare: beFlannel, do: relaunch, healed: isWell, undo: forgetFlannel,
		},
		{
			Name: "to-flannel", Title: "changed back to flannel (the same stand-in)", bounds: alike(0), absent: absent,
			lacks: lacksControl, prepare: acceptTunnel, do: backToFlannel, healed: isFlannels, undo: afterFlannel,
		},
	}
}

// control is the path of flannelctl, which stands beside the daemon.
func control(daemon string) string { return filepath.Join(filepath.Dir(daemon), "flannelctl") }

// lacksControl says whether a host can be made one without anything of ours.
func lacksControl(o Options) string {
	if err := lab.CheckBinary(control(o.Current)); err != nil {
		return "there is no flannelctl beside the daemon"
	}
	return ""
}

// The MAC that flannel's device is given, and what lets its tunnel in: it opens no port,
// who runs it does.
const (
	flannelMAC   = "72:55:3f:43:61:6b"
	tunnelAccept = "INPUT -p udp --dport 8472 -j ACCEPT"
)

func acceptTunnel(ctx context.Context, n *network) error {
	return iptables(ctx, n.host(), "-A "+tunnelAccept)
}

// beFlannel makes the broken host one that flannel runs on and nothing of ours was ever on.
func beFlannel(ctx context.Context, n *network) error {
	if err := errors.Join(acceptTunnel(ctx, n), n.cleanUp(ctx), n.startFlannel(ctx)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, wellWithin)
	defer cancel()
	out := n.host().Container.WaitPing(ctx, n.peer().Container.Addr())
	return errors.Join(out, n.peer().Container.WaitPing(ctx, n.host().Container.Addr()))
}

// cleanUp stops the daemon and removes all that it left in the kernel.
func (n *network) cleanUp(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, wellWithin)
	defer cancel()
	h := n.host()
	if err := h.Daemon.Stop(limit); err != nil {
		return err
	}
	_, err := h.Run(limit, control(n.current), "cleanup", "--yes", "--socket="+h.Socket(), "--state-dir="+h.StateDir())
	return err
}

func relaunch(_ context.Context, n *network) (time.Time, error) {
	return time.Time{}, n.host().RelaunchDaemon()
}

// backToFlannel ends our daemon and starts flannel at once.
func backToFlannel(ctx context.Context, n *network) (time.Time, error) {
	if err := n.host().Daemon.Stop(ctx); err != nil {
		return time.Time{}, err
	}
	return time.Time{}, n.startFlannel(ctx)
}

// isFlannels looks for a key without an owner.
func isFlannels(ctx context.Context, n *network) (bool, error) {
	value, err := n.value(ctx, n.key())
	return err == nil && !strings.Contains(value, `"Owner"`), err
}

// forgetFlannel makes the host ours as if flannel had never been there.
func forgetFlannel(ctx context.Context, n *network) error {
	err := errors.Join(iptables(ctx, n.host(), "-D "+tunnelAccept), n.cleanUp(ctx),
		iptables(ctx, n.host(), "-D FORWARD -j FLANNEL-FWD", "-F FLANNEL-FWD", "-X FLANNEL-FWD"))
	return errors.Join(err, n.host().RelaunchDaemon(), n.waitWell(ctx))
}

// afterFlannel lets ours take over first.
func afterFlannel(ctx context.Context, n *network) error {
	return errors.Join(n.host().RelaunchDaemon(), n.waitWell(ctx), forgetFlannel(ctx, n))
}

// startFlannel does what flannel does on a host at its start, as its code and captures
// say (commit cdf76059), and leaves it so. There is no flannel here.
func (n *network) startFlannel(ctx context.Context) error {
	own, public := n.subnets[0][subnet.IPv4], n.home().Addr()
	value := fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":%q`, public, n.backend)
	if n.backend == vxlan {
		mac, err := n.flannelDevice(ctx, own.Addr(), public)
		if err != nil {
			return err
		}
		value += fmt.Sprintf(`,"BackendData":{"VNI":1,"VtepMAC":%q}`, mac)
	}
	// A lease of its own each time, and a put that compares nothing.
	lease, err := n.lab.Client().Grant(ctx, 24*60*60)
	if err != nil {
		return fmt.Errorf("grant lease: %w", err)
	}
	if _, err := n.lab.Client().Put(ctx, n.key(), value+"}", clientv3.WithLease(lease.ID)); err != nil {
		return fmt.Errorf("put key: %w", err)
	}
	if _, err := n.host().Run(ctx, "iptables", "-w", "-S", "FLANNEL-FWD"); err != nil {
		err := iptables(ctx, n.host(), "-N FLANNEL-FWD", "-A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT", "-A FLANNEL-FWD -d 10.5.0.0/16 -j ACCEPT", "-A FORWARD -j FLANNEL-FWD")
		if err != nil {
			return err
		}
	}
	for _, s := range n.subnets[1:] {
		if err := n.flannelPath(ctx, s); err != nil {
			return err
		}
	}
	return n.run(ctx, "sysctl -qw net.ipv4.ip_forward=1")
}

// flannelDevice makes flannel's device where there is none, and returns its MAC.
func (n *network) flannelDevice(ctx context.Context, own, public netip.Addr) (string, error) {
	link, err := n.host().Links().LinkByName(n.device())
	if err == nil {
		return link.Attrs().HardwareAddr.String(), nil
	}
	return flannelMAC, errors.Join(
		n.run(ctx, "ip link add %s address %s mtu %d type vxlan id 1 local %s dev %s dstport 8472 nolearning", n.device(), flannelMAC, n.mtu, public, uplink),
		n.run(ctx, "ip addr add %s/32 dev %s", own, n.device()), n.run(ctx, "ip link set %s up", n.device()))
}

// flannelPath is what flannel does for a peer that it reads in etcd.
func (n *network) flannelPath(ctx context.Context, s subnet.Subnet) error {
	text, err := n.value(ctx, n.prefix()+"/subnets/"+s.Key())
	if err != nil {
		return err
	}
	var peer struct {
		PublicIP    netip.Addr
		BackendData struct{ VtepMAC string }
	}
	if err := json.Unmarshal([]byte(text), &peer); err != nil {
		return fmt.Errorf("read a peer's key: %w", err)
	}
	dst := s[subnet.IPv4]
	if n.backend == hostGW {
		return n.run(ctx, "ip route replace %s via %s dev %s", dst, peer.PublicIP, uplink)
	}
	mac := peer.BackendData.VtepMAC
	return errors.Join(
		n.run(ctx, "bridge fdb replace %s dev %s dst %s self permanent", mac, n.device(), peer.PublicIP),
		n.run(ctx, "ip neigh replace %s dev %s lladdr %s nud permanent", dst.Addr(), n.device(), mac),
		n.run(ctx, "ip route replace %s via %s dev %s onlink", dst, dst.Addr(), n.device()))
}

// value is a key's, which must be there.
func (n *network) value(ctx context.Context, key string) (string, error) {
	resp, err := n.lab.Client().Get(ctx, key)
	if err != nil {
		return "", fmt.Errorf("read key: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return "", fmt.Errorf("%s is not there", key)
	}
	return string(resp.Kvs[0].Value), nil
}
