package faults

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

func routeFaults() []Fault {
	return []Fault{
		{Name: "routes-deleted", Title: "all routes to peers deleted", bounds: alike(300 * ms), do: deleteRoutes},
		{Name: "route-deleted", Title: "one peer's route deleted", bounds: alike(300 * ms), absent: oneRoute(), do: deleteRoute},
		{
			Name: "route-replaced", Title: "one peer's route replaced by a wrong one of ours", bounds: alike(300 * ms),
			absent: oneRoute(), do: replaceRoute(fmt.Sprintf("proto %d", kernel.Protocol)),
		},
		{
			Name: "route-foreign", Title: "somebody else's route put over a peer's (reported, left alone), then removed",
			bounds: alike(300 * ms), absent: oneRoute(), do: putForeignRoute,
		},
		{
			Name: "nexthops-deleted", Title: "nexthop objects flushed", bounds: alike(300 * ms),
			absent: lacking("no routes through a gateway", udp), do: command("ip nexthop flush"),
		},
	}
}

func oneRoute() map[string]string { return lacking("one route serves all peers", udp) }

// command is a fault that is one command on the broken host.
func command(line string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) { return time.Time{}, n.run(ctx, "%s", line) }
}

func deleteRoutes(ctx context.Context, n *network) (time.Time, error) {
	routes, err := n.routes(ctx)
	if err == nil && len(routes) == 0 {
		err = errors.New("there are no routes to peers")
	}
	if err != nil {
		return time.Time{}, err
	}
	for _, r := range routes {
		if err := n.run(ctx, "ip route delete %s", r.Dst); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, nil
}

func deleteRoute(ctx context.Context, n *network) (time.Time, error) {
	return time.Time{}, n.run(ctx, "ip route delete %s", n.peerSubnet())
}

// replaceRoute sends what is for a peer to the switch, which drops it.
func replaceRoute(mark string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		return time.Time{}, n.run(ctx, "ip route replace %s via %s %s", n.peerSubnet(), n.gateway(), mark)
	}
}

// putForeignRoute waits until the daemon has reported it, and takes it away.
func putForeignRoute(ctx context.Context, n *network) (time.Time, error) {
	if _, err := replaceRoute("")(ctx, n); err != nil {
		return time.Time{}, err
	}
	if _, err := n.host().WaitProblem(ctx, "peers", "is in the way"); err != nil {
		return time.Time{}, err
	}
	err := n.run(ctx, "ip route delete %s via %s", n.peerSubnet(), n.gateway())
	return time.Now(), err
}
