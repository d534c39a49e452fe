package faults

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
)

const (
	// flaps are so many deletions, one every flapEvery.
	flaps     = 50
	flapEvery = 100 * time.Millisecond
	// slowestRepair is how far apart two repairs are at most.
	slowestRepair = 5000 * ms
	// mostRepairs is how often a daemon may mend it meanwhile: some at once, and few
	// when that did not help.
	mostRepairs = 20
	// mostFlapCPU is what the daemon may spend meanwhile, with the programs that it
	// runs: a tenth of a core.
	mostFlapCPU = flaps * flapEvery / 10
	// slowedDown is what it says then.
	slowedDown = "repairs are slowed down"
)

// flapRoute is somebody who deletes one of the daemon's routes again and again.
func flapRoute(ctx context.Context, n *network) (time.Time, error) {
	routes, err := n.someRoutes(ctx)
	if err != nil {
		return time.Time{}, err
	}
	before, err := flapCost(ctx, n)
	if err != nil {
		return time.Time{}, err
	}
	dst := routes[0].Dst
	route := netlink.Route{
		Dst:   &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())},
		Scope: netlink.SCOPE_NOWHERE, // whichever it has
	}
	tick := time.NewTicker(flapEvery)
	defer tick.Stop()
	for range flaps {
		// As a rule nobody has brought it back yet.
		if err := n.host().Links().RouteDel(&route); err != nil && !errors.Is(err, syscall.ESRCH) {
			return time.Time{}, fmt.Errorf("delete route %s: %w", dst, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		}
	}
	since := time.Now()
	after, err := flapCost(ctx, n)
	if err != nil {
		return since, err
	}
	return since, after.sub(before).check()
}

// cost is what somebody who undoes repairs has cost a daemon.
type cost struct {
	repairs uint64
	said    int
	cpu     time.Duration
}

// flapCost is the cost so far of the broken host.
func flapCost(ctx context.Context, n *network) (cost, error) {
	s, err := n.host().Status(ctx)
	text, logErr := n.host().Daemon.Log()
	cpu, cpuErr := machine.ProcessSpent(n.host().Daemon.PID())
	return cost{s.Sync.Put, strings.Count(text, slowedDown), cpu}, errors.Join(err, logErr, cpuErr)
}

func (c cost) sub(before cost) cost {
	return cost{c.repairs - before.repairs, c.said - before.said, c.cpu - before.cpu}
}

// check says what is more than it should be.
func (c cost) check() error {
	var errs []error
	if c.said != 1 {
		errs = append(errs, fmt.Errorf("the log says %d times that %s, want once", c.said, slowedDown))
	}
	if c.repairs == 0 || c.repairs > mostRepairs {
		errs = append(errs, fmt.Errorf("%d repairs while a route was deleted %d times, want 1 to %d", c.repairs, flaps, mostRepairs))
	}
	if c.cpu > mostFlapCPU {
		errs = append(errs, fmt.Errorf("%s of CPU while a route was deleted %d times, want at most %s", c.cpu, flaps, mostFlapCPU))
	}
	if len(errs) == 0 {
		return nil
	}
	return &wrongError{errors.Join(errs...)}
}

// makePeace starts the daemon anew: it would mend slowly for a minute yet.
func makePeace(ctx context.Context, n *network) error {
	limit, cancel := context.WithTimeout(ctx, wellWithin)
	defer cancel()
	return errors.Join(n.host().Daemon.Stop(limit), n.host().RelaunchDaemon(), n.waitWell(ctx))
}
