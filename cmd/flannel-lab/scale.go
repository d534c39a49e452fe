package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/scale"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

// scaleOptions are the flags of the scale command, checked.
type scaleOptions struct {
	measurement

	run      scale.Options
	backends []string
	seconds  float64
}

func parseScale(args []string, out io.Writer) (scaleOptions, error) {
	var o scaleOptions
	fs := newFlags("scale", out)
	fs.StringSliceVar(&o.backends, "backend", []string{string(scale.VXLAN)}, "`names` of backends; others than vxlan alone: their starts are compared, and nothing else")
	fs.IntSliceVar(&o.run.Sizes, "peers", []int{1000, 10_000, 50_000}, "`numbers` of peers, ascending")
	fs.IntVar(&o.run.Rounds, "rounds", 3, "`number` of rounds, of which medians are taken")
	fs.IntVar(&o.run.ChangesAt, "changes-at", 10_000, "`number` of peers at which changes are measured; 0: none")
	fs.IntVar(&o.run.ProfileAt, "profile-at", 10_000, "`number` of peers at which a start is profiled, by perf; 0: none")
	fs.IntVar(&o.run.Singles, "singles", 200, "`number` of changes that are made one at a time")
	fs.IntVar(&o.run.Rate, "rate", 100, "changes a `second` after that")
	fs.Float64Var(&o.seconds, "seconds", 10, "how many `seconds` they are made for")
	if err := o.parse(fs, args); err != nil {
		return scaleOptions{}, err
	}
	for _, b := range o.backends {
		o.run.Backends = append(o.run.Backends, scale.Backend(b))
	}
	o.run.Churn = time.Duration(o.seconds * float64(time.Second))
	return o, o.check()
}

// mostRate is as many changes a second as one writer can make.
const mostRate = 1000

// check returns a usage error for values that make no sense.
func (o scaleOptions) check() error {
	r := o.run
	for i, b := range r.Backends {
		if !slices.Contains(scale.Backends(), b) || slices.Contains(r.Backends[:i], b) {
			return cli.Usagef("--backend: %q: must be of %v, each once", b, scale.Backends())
		}
	}
	if len(r.Backends) == 0 {
		return cli.Usagef("--backend: must be of %v", scale.Backends())
	}
	if len(r.Sizes) == 0 || r.Sizes[0] < 1 || !slices.IsSorted(r.Sizes) || r.Sizes[len(r.Sizes)-1] > scale.MaxPeers {
		return cli.Usagef("--peers: %v: must be between 1 and %d, ascending", r.Sizes, scale.MaxPeers)
	}
	if hosts := scale.HostsFor(r); r.Rounds < 1 || hosts > lab.MaxHosts {
		return cli.Usagef("--rounds: %d: must be at least 1, and %d hosts are too many", r.Rounds, hosts)
	}
	if r.Singles < 1 || r.Rate < 1 || r.Rate > mostRate {
		return cli.Usagef("--singles: %d, --rate: %d: must be at least 1, the rate at most %d", r.Singles, r.Rate, mostRate)
	}
	// Written so that what is no number fails.
	if !(o.seconds >= 0.1 && o.seconds <= mostSeconds) {
		return cli.Usagef("--seconds: %v: must be between 0.1 and %d", o.seconds, mostSeconds)
	}
	return nil
}

// runScale measures on a lab of its own. What is under way is told to progress.
func runScale(ctx context.Context, o scaleOptions, out, progress io.Writer) error {
	if err := errors.Join(o.checkLab("scale", "sudo make bench"), o.checkDocs(o.run.CheckDocs)); err != nil {
		return err
	}
	if err := machine.Calm(ctx, o.calm, progress); err != nil {
		return err
	}
	o.run.Progress = progress
	verdict := func() error { return nil } // a comparison has no claims
	var r report
	err := o.onLab(ctx, scale.HostsFor(o.run), func(l *lab.Lab) (err error) {
		if o.run.Compares() {
			r, err = scale.Compare(ctx, l, o.run)
			return err
		}
		found, err := scale.Run(ctx, l, o.run)
		r, verdict = found, func() error { return judge(found.Claims(), found.Machine, progress) }
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(o.tell(r, out), verdict())
}
