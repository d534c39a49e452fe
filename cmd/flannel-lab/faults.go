package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/faults"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

// faultsOptions are the flags of the faults, checked.
type faultsOptions struct {
	name     string
	replace  bool
	daemon   string
	previous string
	self     string
	only     []string
	backends []string
	rounds   int
	outage   time.Duration
	output   string
	docs     string
}

// mostOutage keeps a slip of the finger from lasting for days.
const mostOutage = time.Hour

func parseFaults(args []string, out io.Writer) (faultsOptions, error) {
	self, err := os.Executable()
	if err != nil {
		return faultsOptions{}, fmt.Errorf("find own executable: %w", err)
	}
	o := faultsOptions{self: self}
	fs := pflag.NewFlagSet("flannel-lab faults", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringSliceVar(&o.only, "only", nil, "do only `these`, of "+strings.Join(faultNames(), ","))
	fs.StringSliceVar(&o.backends, "backend", faults.Backends(), "`names` of the backends to break")
	fs.IntVar(&o.rounds, "rounds", 3, "`number` of rounds, of which the worst counts")
	fs.DurationVar(&o.outage, "outage", time.Minute, "how long etcd is down, in the last round only")
	fs.StringVar(&o.output, "output", outputs[0], "`form`: "+strings.Join(outputs, ", "))
	fs.StringVar(&o.docs, "docs", "", "write the table into the page of this `folder`, too")
	fs.StringVar(&o.daemon, "daemon", filepath.Join(filepath.Dir(self), "flanneld-go"), "`path` of the daemon")
	fs.StringVar(&o.previous, "previous", "", "`path` of the daemon that is upgraded from (default the same)")
	fs.StringVar(&o.name, "name", "faults", "`name` that everything of the lab begins with")
	fs.BoolVar(&o.replace, "replace", false, "remove what a killed lab of that name left")
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprintf(out, "usage: flannel-lab faults [FLAGS]\n\n%s", fs.FlagUsagesWrapped(100))
	}
	if err := fs.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return faultsOptions{}, cli.ErrHelp
	} else if err != nil {
		return faultsOptions{}, cli.Usagef("%w (see flannel-lab faults --help)", err)
	}
	if fs.NArg() > 0 {
		return faultsOptions{}, cli.Usagef("faults: %q: takes flags only", fs.Arg(0))
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
	case !slices.Contains(outputs, o.output):
		return cli.Usagef("--output: %q: must be one of %s", o.output, strings.Join(outputs, ", "))
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
	if err := lab.CheckRoot(); err != nil {
		return fmt.Errorf("faults %w (try: sudo make faults)", err)
	}
	if err := lab.CheckBinary(o.daemon); err != nil {
		return fmt.Errorf("--daemon: %w (try: make build)", err)
	}
	if o.previous != "" {
		if err := lab.CheckBinary(o.previous); err != nil {
			return fmt.Errorf("--previous: %w", err)
		}
	}
	if o.docs != "" {
		if err := faults.Section().Check(o.docs); err != nil {
			return fmt.Errorf("--docs: %w", err)
		}
	}
	r, err := breakLab(ctx, o, progress)
	if err != nil {
		return err
	}
	if o.docs != "" {
		if err := r.WriteDocs(o.docs); err != nil {
			return err
		}
	}
	show := r.Markdown
	if o.output == "json" {
		show = r.JSON
	}
	return errors.Join(show(out), r.Err())
}

// breakLab makes a lab, breaks it and removes it.
func breakLab(ctx context.Context, o faultsOptions, progress io.Writer) (r faults.Report, err error) {
	l, err := openLab(ctx, lab.Options{
		Name: o.name, Hosts: faults.HostsFor(o.backends), Replace: o.replace, Daemon: o.daemon, Self: o.self,
	})
	if err != nil {
		return r, err
	}
	defer func() { err = closeLab(ctx, l, err) }()
	return faults.Run(ctx, l, faults.Options{
		Backends: o.backends, Faults: faults.Pick(o.only...), Rounds: o.rounds, Outage: o.outage,
		Previous: o.previous, Current: o.daemon, Progress: progress,
	})
}
