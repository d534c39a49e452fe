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
			Name: "upgrade", Title: "upgraded from the previous build", bounds: byUDP(udpRestart), lacks: lacksPrevious,
			prepare: build(previous).install, do: replace(stop, current), healed: isWell,
		},
		{
			Name: "downgrade", Title: "taken back to the previous build", bounds: byUDP(udpRestart), lacks: lacksPrevious,
			do: replace(stop, previous), healed: isWell, undo: build(current).install,
		},
	}
}

// build is one of the daemon's: its path.
type build func(*network) string

func current(n *network) string  { return n.current }
func previous(n *network) string { return n.previous }

func lacksPrevious(o Options) string {
	if o.Previous == "" {
		return "no previous build was given"
	}
	return ""
}

func stop(ctx context.Context, h *lab.Host) error { return h.Daemon.Stop(ctx) }

func kill(_ context.Context, h *lab.Host) error { return h.Daemon.Kill() }

// replace ends the daemon and starts it at once, as a supervisor does; nil: the
// same build.
func replace(end func(context.Context, *lab.Host) error, by build) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		h := n.host()
		if err := end(ctx, h); err != nil {
			return time.Time{}, err
		}
		path := ""
		if by != nil {
			path = by(n)
		}
		return time.Time{}, h.ReplaceDaemon(path)
	}
}

// install runs a build in place of the one that runs.
func (b build) install(ctx context.Context, n *network) error {
	if _, err := replace(stop, b)(ctx, n); err != nil {
		return err
	}
	return n.waitWell(ctx)
}
