package faults

import (
	"context"
	"fmt"
	"strings"
	"time"
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
	up := time.Now()
	return up, n.restoreDefault(ctx)
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
