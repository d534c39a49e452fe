package faults

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// Uplink is the hosts' interface on the switch.
const uplink = "eth0"

// flapLasts is how long the uplink is down.
const flapLasts = 200 * time.Millisecond

func uplinkFaults() []Fault {
	return []Fault{
		{Name: "uplink-flapped", Title: "uplink down and up", bounds: alike(300 * ms), do: flapUplink},
		{
			Name: "uplink-address", Title: "uplink's address changed", bounds: alike(3000 * ms),
			do: moveUplink(true), healed: published, undo: moveBack,
		},
		{
			Name: "uplink-mtu", Title: "uplink's MTU changed", bounds: alike(0),
			do: uplinkMTU(loweredMTU), healed: followsMTU, undo: func(ctx context.Context, n *network) error {
				_, err := uplinkMTU(ethernetMTU)(ctx, n)
				return err
			},
		},
	}
}

// flapUplink leaves what an interface loses to whoever configured it: the routes
// that are not of the kernel's own and not ours come back with the link.
func flapUplink(ctx context.Context, n *network) (time.Time, error) {
	if err := n.run(ctx, "ip link set %s down", uplink); err != nil {
		return time.Time{}, err
	}
	if err := wait(ctx, flapLasts); err != nil {
		return time.Time{}, err
	}
	if err := n.run(ctx, "ip link set %s up", uplink); err != nil {
		return time.Time{}, err
	}
	if err := errors.Join(n.restoreDefault(ctx), n.awaitCarrier(ctx)); err != nil {
		return time.Time{}, err
	}
	// Whom the host asked for before that it asks again only after a second.
	err := n.run(ctx, "ip neigh flush dev %s nud incomplete", uplink)
	return time.Now(), err
}

// awaitCarrier waits until both ends of the uplink are up. The kernel tells a switch
// up to a second later than the host that a port of its has a carrier again
// (net/core/link_watch.c), and until then the switch drops.
func (n *network) awaitCarrier(ctx context.Context) error {
	ends := []struct {
		node *lab.Node
		name string
	}{{n.host().Node, uplink}, {n.lab.Switch, fmt.Sprintf("h%d", n.host().Number)}}
	for _, end := range ends {
		for {
			link, err := end.node.Links().LinkByName(end.name)
			if err != nil {
				return fmt.Errorf("find %s in %s: %w", end.name, end.node.Name, err)
			}
			if link.Attrs().OperState == netlink.OperUp {
				break
			}
			if err := wait(ctx, time.Millisecond); err != nil {
				return err
			}
		}
	}
	return nil
}

// moveUplink gives the uplink another address in place of its own, or its own in
// place of that. The old one goes first: a second one of the same segment would go
// with it.
func moveUplink(away bool) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		have, want := n.home(), n.away()
		if !away {
			have, want = want, have
		}
		for _, line := range []string{
			fmt.Sprintf("ip addr delete %s dev %s", have, uplink),
			fmt.Sprintf("ip addr add %s dev %s", want, uplink),
		} {
			if err := n.run(ctx, "%s", line); err != nil {
				return time.Time{}, err
			}
		}
		return time.Time{}, n.restoreDefault(ctx)
	}
}

func moveBack(ctx context.Context, n *network) error {
	_, err := moveUplink(false)(ctx, n)
	return err
}

// published looks for the new address in the host's key.
func published(ctx context.Context, n *network) (bool, error) {
	resp, err := n.lab.Client().Get(ctx, n.key())
	if err != nil || len(resp.Kvs) == 0 {
		return false, err
	}
	return strings.Contains(string(resp.Kvs[0].Value), `"`+n.away().Addr().String()+`"`), nil
}

// The uplink's MTU before and after.
const ethernetMTU, loweredMTU = 1500, 1400

func uplinkMTU(mtu int) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		return time.Time{}, n.run(ctx, "ip link set %s mtu %d", uplink, mtu)
	}
}

// followsMTU looks whether the host tells containers what fits now.
func followsMTU(_ context.Context, n *network) (bool, error) {
	env, err := n.host().ReadSubnet()
	return env.MTU == n.mtu-(ethernetMTU-loweredMTU), err
}
