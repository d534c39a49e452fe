package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
)

func reserveFlags(inv *invocation, fs *pflag.FlagSet) {
	etcdFlags(inv, fs)
	fs.StringVar(&inv.node, "node", "", "for the host with this node `id`, which flannelctl status and leases show")
	fs.StringVar(&inv.publicIP, "public-ip", "", "for the host that has this public `IP`")
}

// runReserve makes a subnet one host's for ever.
func runReserve(ctx context.Context, inv *invocation) error {
	want, err := parseSubnet(inv.args[0])
	if err != nil {
		return err
	}
	holder, err := inv.holder()
	if err != nil {
		return err
	}
	return inv.inWorld(ctx, readWrite, func(ctx context.Context, store *etcdstore.Store, world subnet.World) error {
		if world.Config.Modified == 0 {
			return errNoConfig
		}
		l, err := subnet.Reserve(ctx, store, world, want, holder)
		if err != nil {
			return overtaken(err)
		}
		fmt.Fprintln(inv.out, reserved(l, holder, world))
		return nil
	})
}

// holder is whom to reserve for, as the flags say.
func (inv *invocation) holder() (subnet.Attrs, error) {
	if (inv.node == "") == (inv.publicIP == "") {
		return subnet.Attrs{}, cli.Usagef("for whom? give --node (flannelctl status on the host shows its node id) or --public-ip, one of them")
	}
	a := subnet.Attrs{Owner: subnet.NodeID(inv.node)}
	if inv.publicIP != "" {
		addr, err := netip.ParseAddr(inv.publicIP)
		if err != nil || addr.Zone() != "" || addr.IsUnspecified() {
			return subnet.Attrs{}, cli.Usagef("--public-ip: %q: must be the IP address of a host", inv.publicIP)
		}
		addr = addr.Unmap()
		a.PublicIP[subnet.FamilyOf(addr)] = addr
	}
	return a, nil
}

// reserved says in one line what came of a reservation, and what comes next.
func reserved(l subnet.Lease, holder subnet.Attrs, world subnet.World) string {
	who := describe(holder)
	var leases, reservations []string
	for _, other := range world.Leases {
		switch {
		case other.Subnet == l.Subnet && other.Reservation():
			return fmt.Sprintf("%s was reserved for %s before: nothing changed", l.Subnet, who)
		case other.Subnet == l.Subnet:
			return fmt.Sprintf("reserved %s for %s, which has it already: nothing to restart", l.Subnet, who)
		case !belongs(other, holder):
		case other.Reservation():
			reservations = append(reservations, other.Subnet.String())
		default:
			leases = append(leases, other.Subnet.String())
		}
	}
	switch {
	case len(reservations) > 0:
		return fmt.Sprintf("reserved %s for %s, for which %s is reserved too, and it uses only one: flannelctl release what it shall not have, then systemctl restart flanneld-go there",
			l.Subnet, who, strings.Join(reservations, " and "))
	case len(leases) > 0:
		return fmt.Sprintf("reserved %s for %s, which has %s now and moves at its next restart: systemctl restart flanneld-go there",
			l.Subnet, who, strings.Join(leases, " and "))
	}
	return fmt.Sprintf("reserved %s for %s, which takes it when it starts", l.Subnet, who)
}

// belongs reports whether l is the holder's.
func belongs(l subnet.Lease, holder subnet.Attrs) bool {
	if holder.Owner != "" {
		return l.Attrs.Owner == holder.Owner
	}
	return slices.ContainsFunc(holder.PublicIP[:], func(a netip.Addr) bool { return a.IsValid() && slices.Contains(l.Attrs.PublicIP[:], a) })
}
