package faults

import (
	"cmp"
	"context"
	"errors"
	"time"
)

// noEntries is why only vxlan has what is about entries of a device.
const noEntries = "no such entries of its own"

func entryFaults() []Fault {
	absent := lacking(noEntries, hostGW, udp)
	return []Fault{
		{Name: "fdb-deleted", Title: "all FDB entries deleted", bounds: alike(300 * ms), absent: absent, do: eachFDB(all, "delete", "")},
		{Name: "fdb-entry-deleted", Title: "one FDB entry deleted", bounds: alike(300 * ms), absent: absent, do: eachFDB(1, "delete", "")},
		{
			Name: "fdb-replaced", Title: "all FDB entries given a wrong destination", bounds: alike(300 * ms),
			absent: absent, do: eachFDB(all, "replace", "198.18.255.254"),
		},
		{Name: "neighbours-deleted", Title: "all neighbours on the device deleted", bounds: alike(300 * ms), absent: absent, do: onTunnel("ip neigh flush dev %s nud permanent")},
		{
			Name: "neighbours-replaced", Title: "all neighbours on the device given a wrong MAC", bounds: alike(300 * ms),
			absent: absent, do: replaceNeighbours,
		},
	}
}

// all is more than there are.
const all = 1 << 20

// eachFDB does something to so many of the entries; to: with another destination.
func eachFDB(most int, verb, to string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		link, err := n.kernel.LinkByName(ctx, n.device())
		if err != nil {
			return time.Time{}, err
		}
		entries, err := n.kernel.FDB(link.Index).List(ctx)
		if err == nil && len(entries) == 0 {
			err = errors.New("there are no FDB entries")
		}
		if err != nil {
			return time.Time{}, err
		}
		for _, e := range entries[:min(most, len(entries))] {
			if err := n.run(ctx, "bridge fdb %s %s dev %s dst %s", verb, e.MAC, n.device(), cmp.Or(to, e.Dst.String())); err != nil {
				return time.Time{}, err
			}
		}
		return time.Time{}, nil
	}
}

func replaceNeighbours(ctx context.Context, n *network) (time.Time, error) {
	link, err := n.kernel.LinkByName(ctx, n.device())
	if err != nil {
		return time.Time{}, err
	}
	entries, err := n.kernel.Neighbours(link.Index).List(ctx)
	if err == nil && len(entries) == 0 {
		err = errors.New("there are no neighbours")
	}
	if err != nil {
		return time.Time{}, err
	}
	for _, e := range entries {
		if err := n.run(ctx, "ip neigh replace %s dev %s lladdr 02:00:00:00:00:99 nud permanent", e.Addr, n.device()); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, nil
}
