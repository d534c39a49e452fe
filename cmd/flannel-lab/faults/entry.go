package faults

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// noEntries is why only vxlan has what is about entries of a device.
const noEntries = "no such entries of its own"

func entryFaults() []Fault {
	absent := lacking(noEntries, hostGW, udp)
	return []Fault{
		{Name: "fdb-deleted", Title: "all FDB entries deleted", bounds: alike(300 * ms), absent: absent, do: eachFDB(allPeers, "delete", "")},
		{Name: "fdb-entry-deleted", Title: "one FDB entry deleted", bounds: alike(300 * ms), absent: absent, do: eachFDB(onePeer, "delete", "")},
		{
			Name: "fdb-replaced", Title: "all FDB entries given a wrong destination", bounds: alike(300 * ms),
			absent: absent, do: eachFDB(allPeers, "replace", "198.18.255.254"),
		},
		{Name: "neighbours-deleted", Title: "all neighbours on the device deleted", bounds: alike(300 * ms), absent: absent, do: onTunnel("ip neigh flush dev %s nud permanent")},
		{Name: "neighbour-deleted", Title: "one neighbour deleted", bounds: alike(300 * ms), absent: absent, do: eachNeighbour(onePeer, "delete %s dev %s")},
		{
			Name: "neighbours-replaced", Title: "all neighbours on the device given a wrong MAC", bounds: alike(300 * ms),
			absent: absent, do: eachNeighbour(allPeers, wrongNeighbour),
		},
		{
			Name: "neighbour-replaced", Title: "one neighbour given a wrong MAC", bounds: alike(300 * ms),
			absent: absent, do: eachNeighbour(onePeer, wrongNeighbour),
		},
	}
}

// whose says of which peers the entries are broken.
type whose bool

const (
	// onePeer is the one that answers the pings.
	onePeer  whose = false
	allPeers whose = true
)

// eachFDB does something to the entries of some peers; to: with another destination.
func eachFDB(of whose, verb, to string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		link, err := n.kernel.LinkByName(ctx, n.device())
		if err != nil {
			return time.Time{}, err
		}
		entries, err := n.kernel.FDB(link.Index).List(ctx)
		if of == onePeer {
			at := n.peer().Addrs[subnet.IPv4].Addr()
			entries = slices.DeleteFunc(entries, func(e kernel.FDB) bool { return e.Dst != at })
		}
		if err == nil && len(entries) == 0 {
			err = errors.New("there are no FDB entries")
		}
		if err != nil {
			return time.Time{}, err
		}
		for _, e := range entries {
			if err := n.run(ctx, "bridge fdb %s %s dev %s dst %s", verb, e.MAC, n.device(), cmp.Or(to, e.Dst.String())); err != nil {
				return time.Time{}, err
			}
		}
		return time.Time{}, nil
	}
}

// wrongNeighbour gives one a MAC that nobody has.
const wrongNeighbour = "replace %s dev %s lladdr 02:00:00:00:00:99 nud permanent"

// eachNeighbour has ip do something to the neighbours that some peers are.
func eachNeighbour(of whose, command string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		link, err := n.kernel.LinkByName(ctx, n.device())
		if err != nil {
			return time.Time{}, err
		}
		entries, err := n.kernel.Neighbours(link.Index).List(ctx)
		if of == onePeer {
			entries = slices.DeleteFunc(entries, func(e kernel.Neighbour) bool { return !n.peerSubnet().Contains(e.Addr) })
		}
		if err == nil && len(entries) == 0 {
			err = errors.New("there are no neighbours")
		}
		if err != nil {
			return time.Time{}, err
		}
		for _, e := range entries {
			if err := n.run(ctx, "ip neigh "+command, e.Addr, n.device()); err != nil {
				return time.Time{}, err
			}
		}
		return time.Time{}, nil
	}
}
