package scale

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
)

// Options describe a run.
type Options struct {
	// Backends are those that starts are compared with; VXLAN alone: all is measured.
	Backends []Backend
	// Sizes are the numbers of peers, ascending.
	Sizes []int
	// Rounds is how often each is measured.
	Rounds int
	// ChangesAt is the size at which changes are measured, too; 0: at none.
	ChangesAt int
	// Singles is how many changes are made one at a time, Rate how many a second
	// after that, for as long as Churn.
	Singles, Rate int
	Churn         time.Duration
	// ProfileAt is the size at which a start's CPU time is profiled, too; 0: at none.
	ProfileAt int
	// Progress is told of every sample.
	Progress io.Writer
}

// fallbackMost is the most peers that the fallback is measured with: its time grows
// with their square.
const fallbackMost = 10_000

// Report is what a run found.
type Report struct {
	Machine machine.Description
	Options Options
	// Rounds hold, for each size in the order of Options, the samples of its
	// starts.
	Rounds [][]Sample
	// Changes are what was measured at Options.ChangesAt; nil: nothing.
	Changes Sample
	// Profile is that of a start with Options.ProfileAt; nil: there is none.
	Profile *Profile
}

// HostsFor is how many hosts the lab of a run needs: one for each start, and where
// nothing is compared one for each floor and each fallback, and for a profile.
func HostsFor(o Options) int {
	if o.Compares() {
		return len(o.Backends) * len(o.Sizes) * o.Rounds
	}
	hosts := 3 * len(o.Sizes) * o.Rounds
	if o.profiles() {
		hosts++
	}
	return hosts
}

// profiles reports whether a start is profiled.
func (o Options) profiles() bool { return slices.Contains(o.Sizes, o.ProfileAt) }

// Run measures on a lab with the hosts for it, on which nothing runs yet.
func Run(ctx context.Context, l *lab.Lab, o Options) (Report, error) {
	r := Report{Options: o}
	var err error
	if r.Machine, err = machine.Describe(); err != nil {
		return r, err
	}
	if err := l.StartEtcd(ctx); err != nil {
		return r, err
	}
	if err := l.PutConfig(ctx, VXLAN.config()); err != nil {
		return r, err
	}
	p, err := newPopulation(ctx, l.Client(), VXLAN)
	if err != nil {
		return r, err
	}
	hosts := l.Hosts
	next := func() (h *lab.Host) {
		h, hosts = hosts[0], hosts[1:]
		return h
	}
	for _, size := range o.Sizes {
		if err := p.grow(ctx, size); err != nil {
			return r, err
		}
		var samples []Sample
		for n := range o.Rounds {
			s, err := r.round(ctx, p, next, n)
			if err != nil {
				return r, fmt.Errorf("%d peers: round %d: %w", size, n+1, err)
			}
			samples = append(samples, s)
			fmt.Fprintf(o.Progress, "%d peers, round %d of %d: last route after %.3g s, iproute2 %.3g s, CPU %.3g s, %.3g MB\n",
				size, n+1, o.Rounds, s[keyStart], s[keyFloor], s[keyStartCPU], s[keyMemory])
		}
		r.Rounds = append(r.Rounds, samples)
		if size == o.ProfileAt {
			if err := r.profile(ctx, p, next()); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// profile takes the profile of one more start, where that can be done.
func (r *Report) profile(ctx context.Context, p *population, h *lab.Host) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startWithin, fmt.Errorf("not within %s", startWithin))
	defer cancel()
	var err error
	if r.Profile, err = profileStart(ctx, h, p); errors.Is(err, errNoPerf) {
		fmt.Fprintf(r.Options.Progress, "no profile: %v\n", err)
		return nil
	} else if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	fmt.Fprintf(r.Options.Progress, "%d peers: profiled\n", p.count)
	return nil
}

// round measures one start, and what it is compared with.
func (r *Report) round(ctx context.Context, p *population, next func() *lab.Host, n int) (_ Sample, err error) {
	d, s, err := startDaemon(ctx, next(), p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if d != nil {
			err = errors.Join(err, d.stop(ctx))
		}
	}()
	if p.count == r.Options.ChangesAt && n == r.Options.Rounds-1 {
		if r.Changes, err = r.changes(ctx, d, p); err != nil {
			return nil, err
		}
	}
	err, d = d.stop(ctx), nil
	if err != nil {
		return nil, err
	}
	rivals := []func(context.Context, *lab.Host, int) (Sample, error){measureFloor}
	if p.count <= fallbackMost {
		rivals = append(rivals, measureFallback)
	}
	for _, measure := range rivals {
		rival, err := measure(ctx, next(), p.count)
		if err != nil {
			return nil, err
		}
		for key, value := range rival {
			s[key] = value
		}
	}
	return s, nil
}

// changes measures changes and undoes them.
func (r *Report) changes(ctx context.Context, d *running, p *population) (Sample, error) {
	s, err := measureChanges(ctx, d, p, r.Options)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(r.Options.Progress, "%d peers: one change %.3g ms, 99 of 100 %.3g ms; %.3g changes a second %.3g ms, %.3g ms, CPU %.3g %%\n",
		p.count, s[keySingle], s[keySingle99], s[keyChurnRate], s[keyChurn], s[keyChurn99], s[keyChurnCPU])
	return s, p.restore(ctx)
}

// values are those of a figure in the rounds of a size.
func (r *Report) values(size int, key string) []float64 {
	i := slices.Index(r.Options.Sizes, size)
	if i < 0 || i >= len(r.Rounds) {
		return nil
	}
	var values []float64
	for _, s := range r.Rounds[i] {
		if v, ok := s[key]; ok {
			values = append(values, v)
		}
	}
	if v, ok := r.Changes[key]; ok && size == r.Options.ChangesAt {
		values = append(values, v)
	}
	return values
}
