package faults

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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
			do: moveUplink(removedFirst), healed: published, undo: moveBack,
		},
		{
			Name: "uplink-address-beside", Title: "uplink's new address added, then the old one removed", bounds: alike(3000 * ms),
			do: moveUplink(addedFirst), healed: published, undo: moveBack,
		},
		{
			// Nothing tells before that the old one will go, and peers send there until
			// they have heard of the new one.
			Name: "uplink-address-both", Title: "uplink's new address added, the old one removed 2 s later", bounds: alike(300 * ms),
			do: moveUplink(addedLongFirst), healed: published, undo: moveBack,
		},
		{
			Name: "uplink-address-late", Title: "uplink without an address for 2 s, then another", bounds: alike(3000 * ms),
			do: moveUplink(addedLate), healed: published, undo: moveBack,
		},
		{
			Name: "uplink-renewed", Title: "uplink's addresses flushed and the same one back", bounds: alike(300 * ms),
			do: renewUplink, healed: isWell,
		},
		{
			// The kernel's routes stay as they are, and so do we leave them: where the
			// firewall accepts what nobody drops, host-gw loses nothing. But iptables
			// knows an interface by its name alone, so with a policy of DROP what comes
			// plainly by the new name is dropped until our rules have it.
			Name: "uplink-renamed", Title: "uplink renamed", bounds: map[string]Bound{vxlan: 0, hostGW: 300 * ms, udp: 0},
			do:     renameUplink(uplink, renamed),
			healed: isWell, undo: func(ctx context.Context, n *network) error {
				_, err := renameUplink(renamed, uplink)(ctx, n)
				return err
			},
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
	if err := lab.Wait(ctx, flapLasts); err != nil {
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
			if err := lab.Wait(ctx, time.Millisecond); err != nil {
				return err
			}
		}
	}
	return nil
}

// order is how a DHCP client replaces an address.
type order uint8

const (
	// removedFirst: as dhclient does.
	removedFirst order = iota
	// addedFirst: as systemd-networkd does, which has the kernel promote what was
	// the second of a segment.
	addedFirst
	// addedLongFirst: as who renumbers a host with care.
	addedLongFirst
	// addedLate: nobody offered one for a while.
	addedLate
)

// lateAfter is how long an uplink is without an address, or has two.
const lateAfter = 2 * time.Second

// moveUplink gives the uplink another address in place of its own.
func moveUplink(o order) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (since time.Time, err error) {
		remove := func() error { return n.run(ctx, "ip addr delete %s dev %s", n.home(), uplink) }
		add := func() error { return n.run(ctx, "ip addr add %s dev %s", n.away(), uplink) }
		switch o {
		case removedFirst:
			err = errors.Join(remove(), add())
		case addedFirst, addedLongFirst:
			err = errors.Join(n.kernel.SetSysctl("net/ipv4/conf/"+uplink+"/promote_secondaries", "1"), add())
			if err == nil && o == addedLongFirst {
				err = lab.Wait(ctx, lateAfter)
			}
			err = errors.Join(err, remove())
		case addedLate:
			err = errors.Join(remove(), lab.Wait(ctx, lateAfter), add())
			since = time.Now()
		}
		return since, errors.Join(err, n.restoreDefault(ctx))
	}
}

// moveBack gives the uplink its own address again, and has the daemon forget that it
// has moved: it follows an address that keeps changing ever more slowly.
func moveBack(ctx context.Context, n *network) error {
	ctx, cancel := context.WithTimeout(ctx, wellWithin)
	defer cancel()
	err := errors.Join(
		n.run(ctx, "ip addr delete %s dev %s", n.away(), uplink),
		n.run(ctx, "ip addr add %s dev %s", n.home(), uplink),
		n.restoreDefault(ctx))
	for err == nil {
		var done bool
		if done, err = n.publishes(ctx, n.home().Addr()); done {
			return makePeace(ctx, n)
		}
		err = errors.Join(err, lab.Wait(ctx, healLook))
	}
	return err
}

// renewUplink is a client that begins anew and is offered what it had.
func renewUplink(ctx context.Context, n *network) (time.Time, error) {
	err := errors.Join(
		n.run(ctx, "ip addr flush dev %s", uplink), lab.Wait(ctx, flapLasts),
		n.run(ctx, "ip addr add %s dev %s", n.home(), uplink), n.restoreDefault(ctx))
	return time.Now(), err
}

// renamed is what the uplink is called for a while.
const renamed = "wan0"

func renameUplink(from, to string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		return time.Time{}, n.run(ctx, "ip link set %s name %s", from, to)
	}
}

// published looks for the new address in the host's key.
func published(ctx context.Context, n *network) (bool, error) {
	return n.publishes(ctx, n.away().Addr())
}

// publishes reports whether the host's key has an address.
func (n *network) publishes(ctx context.Context, addr netip.Addr) (bool, error) {
	resp, err := n.lab.Client().Get(ctx, n.key())
	if err != nil || len(resp.Kvs) == 0 {
		return false, err
	}
	return strings.Contains(string(resp.Kvs[0].Value), `"`+addr.String()+`"`), nil
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
