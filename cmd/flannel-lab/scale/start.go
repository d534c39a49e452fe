package scale

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
)

// Sample is what was measured of one start, by the keys of figures.
type Sample map[string]float64

const (
	// lookEvery is how often the kernel is asked for the last route: its cost is one
	// message.
	lookEvery = time.Millisecond
	// startWithin bounds a start with all its peers.
	startWithin = 60 * time.Second
	// quietFor is how long a daemon is left alone before its memory and CPU are read
	// for good: what follows a start, such as writing the cache, is over then.
	quietFor = 2 * time.Second
)

// running is a daemon that has all its routes.
type running struct {
	host *lab.Host
	over Backend
	// view is the kernel of the host's namespace.
	view *kernel.Netlink
	// peers is how many it has.
	peers int
}

// startDaemon starts the host's daemon and measures it until it has paths to all
// peers of p, and until the start is over. The caller ends it.
func startDaemon(ctx context.Context, h *lab.Host, p *population) (*running, Sample, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startWithin, fmt.Errorf("not within %s", startWithin))
	defer cancel()
	r, s, err := routed(ctx, h, p)
	if err != nil {
		return nil, nil, err
	}
	if err := r.settle(ctx, s); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start with %d peers: %w", p.count, err), r.stop(ctx))
	}
	return r, s, nil
}

// routed starts the host's daemon and returns when the last route stands. The caller
// ends it.
func routed(ctx context.Context, h *lab.Host, p *population) (_ *running, s Sample, err error) {
	view, err := kernel.Open(kernel.Options{NetNS: "/run/netns/" + h.Name})
	if err != nil {
		return nil, nil, err
	}
	r := &running{host: h, over: p.over, view: view, peers: p.count}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start with %d peers: %w", p.count, err), r.stop(ctx))
		}
	}()
	if err := p.over.prepare(ctx, h); err != nil {
		return nil, nil, err
	}
	begin := time.Now()
	if err := h.StartDaemon("--release-on-exit"); err != nil {
		return nil, nil, err
	}
	if err := r.awaitRoutes(ctx); err != nil {
		return nil, nil, err
	}
	took := time.Since(begin)
	spent, err := machine.ProcessSpent(h.Daemon.PID())
	if err != nil {
		return nil, nil, err
	}
	return r, Sample{keyStart: took.Seconds(), keyStartCPU: spent.Seconds()}, nil
}

// stop ends the daemon, which gives its lease back.
func (r *running) stop(ctx context.Context) error {
	defer r.view.Close()
	if r.host.Daemon == nil {
		return nil
	}
	return r.host.Daemon.Stop(ctx)
}

// settle waits until the start is over in every respect, counts what is there, and
// reads what it cost.
func (r *running) settle(ctx context.Context, s Sample) error {
	if err := r.checkEntries(ctx, numbered(r.peers)); err != nil {
		return err
	}
	if _, err := r.host.WaitReady(ctx, r.peers); err != nil {
		return err
	}
	if err := lab.Wait(ctx, quietFor); err != nil {
		return err
	}
	spent, err := machine.ProcessSpent(r.host.Daemon.PID())
	if err != nil {
		return err
	}
	peak, err := machine.PeakMemory(r.host.Daemon.PID())
	if err != nil {
		return err
	}
	s[keyQuietCPU], s[keyMemory] = spent.Seconds(), float64(peak)/1e6
	return nil
}

// awaitRoutes waits until all routes stand. Whoever writes them in order has the last
// one last; that all are there is found by reading them, again and again if need be.
func (r *running) awaitRoutes(ctx context.Context) error {
	last := peer{number: r.peers - 1}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		route, err := r.view.RouteTo(ctx, last.subnet().Addr())
		if err == nil && r.over.leads(route, last) {
			if missing, err := r.missing(ctx); err != nil || missing == 0 {
				return err
			}
		}
		if err != nil && !errors.Is(err, kernel.ErrNotFound) {
			return err
		}
		select {
		case <-tick.C:
		case <-r.host.Daemon.Done():
			return fmt.Errorf("the daemon ended:\n%s", r.host.Daemon.Tail(logLines))
		case <-ctx.Done():
			return fmt.Errorf("wait for the routes: %w; the end of its log:\n%s", context.Cause(ctx), r.host.Daemon.Tail(logLines))
		}
	}
}

// logLines of a daemon are shown with an error.
const logLines = 12

// missing counts the routes that are not there.
func (r *running) missing(ctx context.Context) (int, error) {
	routes, err := r.view.Routes().List(ctx)
	if err != nil {
		return 0, err
	}
	_, _, want := r.over.entries(0, numbered(r.peers))
	there := make(map[kernel.RouteKey]bool, len(routes))
	for _, route := range routes {
		there[route.Key()] = true
	}
	missing := 0
	for _, route := range want {
		if !there[route.Key()] {
			missing++
		}
	}
	return missing, nil
}

// checkEntries compares FDB, neighbours and routes with what they should be for
// peers, one by one.
func (r *running) checkEntries(ctx context.Context, peers []peer) error {
	device, err := r.view.LinkByName(ctx, r.over.device())
	if err != nil {
		return err
	}
	fdb, neighbours, routes := r.over.entries(device.Index, peers)
	var (
		haveFDB        []kernel.FDB
		haveNeighbours []kernel.Neighbour
	)
	if r.over == VXLAN {
		if haveFDB, err = r.view.FDB(device.Index).List(ctx); err != nil {
			return err
		}
		if haveNeighbours, err = r.view.Neighbours(device.Index).List(ctx); err != nil {
			return err
		}
	}
	haveRoutes, err := r.view.Routes().List(ctx)
	if err != nil {
		return err
	}
	haveRoutes = slices.DeleteFunc(haveRoutes, func(r kernel.Route) bool { return r.Protocol != kernel.Protocol })
	return errors.Join(compare("fdb entries", fdb, haveFDB), compare("neighbours", neighbours, haveNeighbours), compare("routes", routes, haveRoutes))
}

// compare says which of the wanted entries lack, and which there are beside them.
func compare[E comparable](kind string, want, have []E) error {
	return errors.Join(without(kind, "lack", want, have), without(kind, "are too many", have, want))
}

// without says which of some entries are not among others.
func without[E comparable](kind, what string, some, others []E) error {
	among := make(map[E]bool, len(others))
	for _, e := range others {
		among[e] = true
	}
	count, first := 0, ""
	for _, e := range some {
		if among[e] {
			continue
		}
		if count++; count == 1 {
			first = fmt.Sprint(e)
		}
	}
	if count == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d %s %s, the first: %s", count, len(some), kind, what, first)
}
