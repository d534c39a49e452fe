package robustness

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// finishEvery is how often the hosts are looked at.
	finishEvery = 50 * time.Millisecond
	// replyWithin is how long one request of the mesh may take. Each costs a
	// thread for a moment, and all pairs ask at once.
	replyWithin = 250 * time.Millisecond
)

// finish measures, after the last fault was healed, how long it takes until
// every host whose daemon runs has a lease and is ready, and until all pairs of
// containers have talked. It returns when all is well, or when that is overdue.
// The run must not touch the lab meanwhile.
func (r *recorder) finish(ctx context.Context, healed time.Duration, b Bounds) error {
	f := finisher{recorder: r, Final: Final{
		Healed: healed, Leased: map[string]time.Duration{}, Ready: map[string]time.Duration{},
	}}
	ctx, cancel := context.WithTimeout(ctx, healed+b.Heal-r.now())
	defer cancel()
	var g errgroup.Group
	var alive []*watched
	for _, w := range r.hosts {
		if w.lives() {
			alive = append(alive, w)
			f.Leased[w.Name], f.Ready[w.Name] = -1, -1
		}
	}
	for _, w := range alive {
		g.Go(func() error {
			f.await(ctx, f.Leased, w.Name, func() bool { return r.history.holds(w.Node) })
			return nil
		})
		g.Go(func() error {
			f.await(ctx, f.Ready, w.Name, func() bool { return w.ready(ctx) })
			return nil
		})
	}
	g.Go(func() error { return f.mesh(ctx) })
	err := g.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.final = f.Final
	if err != nil {
		return fmt.Errorf("measure the end of the run: %w", err)
	}
	return nil
}

// finisher fills in one Final.
type finisher struct {
	*recorder
	// lock guards what is in Final's maps and slices.
	lock sync.Mutex
	Final
}

// await notes in a map when a host is as it should be.
func (f *finisher) await(ctx context.Context, when map[string]time.Duration, host string, good func() bool) {
	tick := time.NewTicker(finishEvery)
	defer tick.Stop()
	for {
		if good() {
			f.lock.Lock()
			defer f.lock.Unlock()
			when[host] = f.now() - f.Healed
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// mesh pings between all containers until all pairs have talked.
func (f *finisher) mesh(ctx context.Context) error {
	var g errgroup.Group
	for _, from := range f.hosts {
		for _, to := range f.hosts {
			if from != to {
				g.Go(func() error { return f.talk(ctx, from, to) })
			}
		}
	}
	err := g.Wait()
	f.Mesh = f.now() - f.Healed
	if err != nil || len(f.Silent) > 0 {
		f.Mesh = -1
	}
	return err
}

// talk pings until an answer comes, or notes that none did: not to a container
// that is not there either.
func (f *finisher) talk(ctx context.Context, from, to *watched) error {
	for ctx.Err() == nil && from.host.Container != nil && to.host.Container != nil {
		// That time is up is no failure of the ping.
		result, err := from.host.Container.Ping(context.WithoutCancel(ctx), lab.PingOptions{
			To: to.host.Container.Addr(), Count: 1, Timeout: replyWithin,
		})
		if err != nil || result.Received > 0 {
			return err
		}
	}
	f.lock.Lock()
	defer f.lock.Unlock()
	f.Silent = append(f.Silent, from.Name+" -> "+to.Name)
	return nil
}

// lives reports whether the host's daemon runs.
func (w *watched) lives() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.latest()
	return r != nil && r.daemon.Running()
}

// ready reports whether the present daemon says that it carries traffic.
func (w *watched) ready(ctx context.Context) bool {
	w.mu.Lock()
	r := w.latest()
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	s, err := w.host.Status(ctx)
	return err == nil && s.Ready && s.PID == r.daemon.PID()
}

// holds reports whether there is a subnet of a node's.
func (h *history) holds(node subnet.NodeID) bool {
	for _, e := range h.keys() {
		var attrs subnet.Attrs
		if !strings.HasPrefix(e.Key, "subnets/") || attrs.UnmarshalJSON([]byte(e.Value)) != nil {
			continue // A key that is none, or that cannot be read, is nobody's.
		}
		if attrs.Owner == node {
			return true
		}
	}
	return false
}
