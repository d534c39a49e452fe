package faults

import (
	"context"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// udpRestart is how long the data path in user space may stand still where nobody
// keeps its descriptors; under systemd it loses nothing (test/hosts).
const udpRestart = 50 * ms

func processFaults() []Fault {
	return []Fault{
		{Name: "restart", Title: "daemon restarted", bounds: byUDP(udpRestart), do: replace(stop, nil), healed: isWell},
		{Name: "kill", Title: "daemon killed with -9 and started", bounds: byUDP(udpRestart), do: replace(kill, nil), healed: isWell},
		{
			Name: "upgrade", Title: "upgraded from the previous build", bounds: byUDP(udpRestart), prepare: downgrade,
			do: replace(stop, func(n *network) string { return n.current }), healed: isWell,
		},
	}
}

func stop(ctx context.Context, h *lab.Host) error { return h.Daemon.Stop(ctx) }

func kill(_ context.Context, h *lab.Host) error { return h.Daemon.Kill() }

// replace ends the daemon and starts it at once, as a supervisor does; nil: the
// same build.
func replace(end func(context.Context, *lab.Host) error, build func(*network) string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		h := n.host()
		if err := end(ctx, h); err != nil {
			return time.Time{}, err
		}
		path := ""
		if build != nil {
			path = build(n)
		}
		return time.Time{}, h.ReplaceDaemon(path)
	}
}

// downgrade runs the previous build, for the upgrade.
func downgrade(ctx context.Context, n *network) error {
	h := n.host()
	if err := h.Daemon.Stop(ctx); err != nil {
		return err
	}
	if err := h.ReplaceDaemon(n.previous); err != nil {
		return err
	}
	return n.waitWell(ctx)
}
