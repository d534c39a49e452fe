package faults

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
)

// Options describe a run.
type Options struct {
	Backends []string
	Faults   []Fault
	Rounds   int
	// Outage is how long etcd is down.
	Outage time.Duration
	// Previous is the path of the daemon that is upgraded from and taken back to,
	// Current of the one that the lab runs. Without a previous one that is not done.
	Previous, Current string
	// Together breaks the networks at the same time: quicker, and the figures are
	// of a busier machine.
	Together bool
	// Progress is told of every sample.
	Progress io.Writer
}

// upWithin bounds the start of everything.
const upWithin = 60 * time.Second

// Run breaks the hosts of a lab on which nothing runs yet. What it starts is the
// lab's to end.
func Run(ctx context.Context, l *lab.Lab, o Options) (r Report, err error) {
	r = Report{Backends: o.Backends, Faults: o.Faults, Rounds: o.Rounds, Outage: o.Outage, samples: map[cell]Sample{}, lacking: map[string]string{}}
	if r.Machine, err = machine.Describe(); err != nil {
		return r, err
	}
	for _, f := range o.Faults {
		if f.lacks != nil {
			r.lacking[f.Name] = f.lacks(o)
		}
	}
	if r.Notes, err = notes(ctx, o, r.lacking); err != nil {
		return r, err
	}
	nets := make([]*network, len(o.Backends))
	for i, backend := range o.Backends {
		nets[i] = &network{
			backend: backend, lab: l, hosts: l.Hosts[hostsEach*i : hostsEach*(i+1)],
			previous: o.Previous, current: o.Current, outage: o.Outage,
		}
	}
	defer func() {
		for _, n := range nets {
			n.close()
		}
	}()
	if err := bringUp(ctx, l, nets); err != nil {
		return r, err
	}
	for round := range o.Rounds {
		for i := range o.Faults {
			f := &o.Faults[i]
			if !r.due(f, round) {
				continue
			}
			if err := r.round(ctx, f, nets, o); err != nil {
				return r, fmt.Errorf("round %d: %s: %w", round+1, f.Name, err)
			}
		}
	}
	return r, nil
}

// due reports whether a fault is done in a round; they count from 0.
func (r *Report) due(f *Fault, round int) bool {
	return r.lacking[f.Name] == "" && (!f.once || round == r.Rounds-1)
}

func bringUp(ctx context.Context, l *lab.Lab, nets []*network) error {
	ctx, cancel := context.WithTimeoutCause(ctx, upWithin, fmt.Errorf("not within %s", upWithin))
	defer cancel()
	if err := l.StartEtcd(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range nets {
		g.Go(func() error {
			if err := n.up(ctx); err != nil {
				return fmt.Errorf("%s: %w", n.backend, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// round does a fault to each network that can have it: one after the other or all
// together, and all by one deed what is common.
func (r *Report) round(ctx context.Context, f *Fault, nets []*network, o Options) error {
	var groups [][]*network
	for _, n := range nets {
		switch {
		case f.Absent(n.backend) != "":
		case f.common && len(groups) > 0:
			groups[0] = append(groups[0], n)
		default:
			groups = append(groups, []*network{n})
		}
	}
	at := 1
	if o.Together {
		at = len(groups)
	}
	samples := make([][]Sample, len(groups))
	var each errgroup.Group
	each.SetLimit(max(at, 1))
	for i, group := range groups {
		each.Go(func() (err error) {
			if samples[i], err = measure(ctx, f, group); err != nil {
				return fmt.Errorf("%s: %w", group[0].backend, err)
			}
			return nil
		})
	}
	if err := each.Wait(); err != nil {
		return err
	}
	for i, group := range groups {
		for j, n := range group {
			r.add(cell{f.Name, n.backend}, samples[i][j])
			fmt.Fprintf(o.Progress, "%s: %s: %s\n", f.Name, n.backend, samples[i][j])
		}
	}
	return nil
}
