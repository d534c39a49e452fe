package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/faults"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

// faultsOptions are the flags of the faults, checked.
type faultsOptions struct {
	measurement

	previous string
	only     []string
	backends []string
	rounds   int
	outage   time.Duration
}

// mostOutage keeps a slip of the finger from lasting for days.
const mostOutage = time.Hour

func parseFaults(args []string, out io.Writer) (faultsOptions, error) {
	var o faultsOptions
	fs := newFlags("faults", out)
	fs.StringSliceVar(&o.only, "only", nil, "do only `these`, of "+strings.Join(faultNames(), ","))
	fs.StringSliceVar(&o.backends, "backend", faults.Backends(), "`names` of the backends to break")
	fs.IntVar(&o.rounds, "rounds", 3, "`number` of rounds, of which the worst counts")
	fs.DurationVar(&o.outage, "outage", time.Minute, "how long etcd is down, in the last round only")
	fs.StringVar(&o.previous, "previous", "", "`path` of the daemon that is upgraded from and taken back to; without one neither is done")
	if err := o.parse(fs, args); err != nil {
		return faultsOptions{}, err
	}
	return o, o.check()
}

// check returns a usage error for values that make no sense.
func (o faultsOptions) check() error {
	switch {
	case o.rounds < 1 || o.rounds > mostRounds:
		return cli.Usagef("--rounds: %d: must be between 1 and %d", o.rounds, mostRounds)
	case o.outage < 0 || o.outage > mostOutage:
		return cli.Usagef("--outage: %s: must be between 0 and %s", o.outage, mostOutage)
	case len(o.backends) == 0:
		return cli.Usagef("--backend: must be of %s", strings.Join(faults.Backends(), ", "))
	}
	for _, b := range o.backends {
		if !slices.Contains(faults.Backends(), b) {
			return cli.Usagef("--backend: %q: must be of %s", b, strings.Join(faults.Backends(), ", "))
		}
	}
	for _, name := range o.only {
		if !slices.Contains(faultNames(), name) {
			return cli.Usagef("--only: %q: must be of %s", name, strings.Join(faultNames(), ", "))
		}
	}
	return nil
}

func faultNames() []string {
	var names []string
	for _, f := range faults.All() {
		names = append(names, f.Name)
	}
	return names
}

// runFaults breaks a lab of its own. What is under way is told to progress.
func runFaults(ctx context.Context, o faultsOptions, out, progress io.Writer) error {
	if err := errors.Join(o.checkLab("faults", "sudo make faults"), o.checkDocs(faults.Section().Check)); err != nil {
		return err
	}
	if o.previous != "" {
		if err := lab.CheckBinary(o.previous); err != nil {
			return fmt.Errorf("--previous: %w", err)
		}
	}
	if err := machine.Calm(ctx, o.calm, progress); err != nil {
		return err
	}
	var r faults.Report
	err := o.onLab(ctx, faults.HostsFor(o.backends), func(l *lab.Lab) (err error) {
		r, err = faults.Run(ctx, l, faults.Options{
			Backends: o.backends, Faults: faults.Pick(o.only...), Rounds: o.rounds, Outage: o.outage,
			Previous: o.previous, Current: o.daemon, Progress: progress,
		})
		return err
	})
	if err != nil {
		return err
	}
	return o.conclude(&r, out)
}

// verdict is a report that says whether it is as wanted.
type verdict interface {
	report
	Err() error
}

// conclude tells what was found, and fails then if that is not as wanted.
func (o *faultsOptions) conclude(v verdict, out io.Writer) error {
	return errors.Join(o.tell(v, out), v.Err())
}
