package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

func routeFaults() []Fault {
	return []Fault{
		{Name: "routes-deleted", Title: "all routes to peers deleted", bounds: alike(300 * ms), do: deleteRoutes},
		{Name: "route-deleted", Title: "one peer's route deleted", bounds: alike(300 * ms), absent: oneRoute(), do: deleteRoute},
		{
			Name: "route-replaced", Title: "one peer's route replaced by a wrong one of ours", bounds: alike(300 * ms),
			absent: oneRoute(), do: replaceRoute(fmt.Sprintf("proto %d", kernel.Protocol)),
		},
		{Name: "routes-replaced", Title: "all routes to peers replaced by wrong ones of ours", bounds: alike(300 * ms), do: replaceRoutes},
		{
			Name: "route-foreign", Title: "somebody else's route put over a peer's (reported, left alone), then removed",
			bounds: alike(300 * ms), absent: oneRoute(), do: putForeignRoute,
		},
		{
			Name: "nexthops-deleted", Title: "nexthop objects flushed", bounds: alike(300 * ms),
			absent: lacking("no routes through a gateway", udp), do: command("ip nexthop flush"),
		},
		{
			Name: "events-lost", Title: "routes deleted while the kernel's events are more than the daemon can take", bounds: alike(300 * ms),
			prepare: letSettle, do: loseEvents, undo: func(ctx context.Context, n *network) error { return n.run(ctx, "ip route flush table 77") },
		},
		{
			Name: "route-flapping", Title: "a route deleted every 100 ms for 5 s (repairs slow down, said once), then left alone",
			bounds: alike(slowestRepair), once: true, do: flapRoute, undo: makePeace,
		},
	}
}

func oneRoute() map[string]string { return lacking("one route serves all peers", udp) }

// command is a fault that is one command on the broken host.
func command(line string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) { return time.Time{}, n.run(ctx, "%s", line) }
}

// someRoutes are the daemon's, of which there must be one.
func (n *network) someRoutes(ctx context.Context) ([]kernel.Route, error) {
	routes, err := n.routes(ctx)
	if err == nil && len(routes) == 0 {
		err = errors.New("there are no routes to peers")
	}
	return routes, err
}

func deleteRoutes(ctx context.Context, n *network) (time.Time, error) {
	routes, err := n.someRoutes(ctx)
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

// noise is how many routes of another table overflow the socket that a daemon hears
// of the kernel by, while it does not run.
const noise = 20_000

// settled is how long after the last event a daemon looks at the kernel for its sake.
const settled = 1500 * time.Millisecond

// letSettle waits until nothing but an event makes the daemon look.
func letSettle(ctx context.Context, _ *network) error { return lab.Wait(ctx, settled) }

// loseEvents stops the daemon, has the kernel tell of more than it keeps for it, none
// of it of any concern, and only then breaks what it should hear of.
func loseEvents(ctx context.Context, n *network) (_ time.Time, err error) {
	d := n.host().Daemon
	if err := d.Signal(syscall.SIGSTOP); err != nil {
		return time.Time{}, err
	}
	defer func() { err = errors.Join(err, d.Signal(syscall.SIGCONT)) }()
	var lines strings.Builder
	for i := range noise {
		fmt.Fprintf(&lines, "route add blackhole 100.64.%d.%d table 77\n", i>>8, i&0xff)
	}
	file := filepath.Join(n.host().Dir, "noise")
	if err := os.WriteFile(file, []byte(lines.String()), 0o600); err != nil {
		return time.Time{}, err
	}
	if err := n.run(ctx, "ip -batch %s", file); err != nil {
		return time.Time{}, err
	}
	_, err = deleteRoutes(ctx, n)
	return time.Now(), err
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

func replaceRoutes(ctx context.Context, n *network) (time.Time, error) {
	routes, err := n.someRoutes(ctx)
	if err != nil {
		return time.Time{}, err
	}
	for _, r := range routes {
		if err := n.run(ctx, "ip route replace %s via %s proto %d", r.Dst, n.gateway(), kernel.Protocol); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, nil
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
