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

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/storm"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

// stormOptions are the flags of the storm, checked.
type stormOptions struct {
	crowd   storm.Options
	daemons int
	name    string
	replace bool
	daemon  string
	self    string
	output  string
	docs    string
}

// mostCrowd is how many hosts have addresses and file descriptors on one machine.
const mostCrowd = 20_000

func parseStorm(args []string, out io.Writer) (stormOptions, error) {
	self, err := os.Executable()
	if err != nil {
		return stormOptions{}, fmt.Errorf("find own executable: %w", err)
	}
	o := stormOptions{self: self}
	fs := pflag.NewFlagSet("flannel-lab storm", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.IntVar(&o.daemons, "daemons", 200, "`number` of real daemons, a namespace each; 0: none")
	fs.IntVar(&o.crowd.Hosts, "hosts", 2000, "`number` of hosts in one process; 0: none")
	fs.DurationVar(&o.crowd.Quiet, "quiet", 20*time.Second, "`time` for which nothing happens")
	fs.DurationVar(&o.crowd.ShortTTL, "short-ttl", 15*time.Second, "`TTL` of a second, smaller crowd; 0: none")
	fs.Float64Var(&o.crowd.Rate, "rate", 20, "joins, changes and leaves per `second`, all added")
	fs.DurationVar(&o.crowd.Churn, "churn", 10*time.Second, "`time` for which there are such; 0: none")
	fs.DurationVar(&o.crowd.Down, "down", 10*time.Second, "`time` for which etcd is away, twice; 0: never")
	fs.StringVar(&o.output, "output", outputs[0], "`form`: "+strings.Join(outputs, ", "))
	fs.StringVar(&o.docs, "docs", "", "write tables into the pages of this `folder`, too")
	fs.StringVar(&o.daemon, "daemon", filepath.Join(filepath.Dir(self), "flanneld-go"), "`path` of the daemon")
	fs.StringVar(&o.name, "name", "storm", "`name` that everything of the lab begins with")
	fs.BoolVar(&o.replace, "replace", false, "remove what a killed lab of that name left")
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprintf(out, "usage: flannel-lab storm [FLAGS]\n\n%s", fs.FlagUsagesWrapped(100))
	}
	if err := fs.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return stormOptions{}, cli.ErrHelp
	} else if err != nil {
		return stormOptions{}, cli.Usagef("%w (see flannel-lab storm --help)", err)
	}
	if fs.NArg() > 0 {
		return stormOptions{}, cli.Usagef("storm: %q: takes flags only", fs.Arg(0))
	}
	return o, o.check()
}

// check returns a usage error for values that make no sense.
func (o stormOptions) check() error {
	if o.daemons < 0 || o.daemons == 1 || o.daemons > lab.MaxHosts {
		return cli.Usagef("--daemons: %d: must be 0, or between 2 and %d", o.daemons, lab.MaxHosts)
	}
	if o.crowd.Hosts < 0 || o.crowd.Hosts > mostCrowd {
		return cli.Usagef("--hosts: %d: must be between 0 and %d", o.crowd.Hosts, mostCrowd)
	}
	if !(o.crowd.Rate >= 1 && o.crowd.Rate <= 1000) { // so that what is no number fails
		return cli.Usagef("--rate: %v: must be between 1 and 1000", o.crowd.Rate)
	}
	for flag, d := range map[string]time.Duration{"quiet": o.crowd.Quiet, "short-ttl": o.crowd.ShortTTL, "churn": o.crowd.Churn, "down": o.crowd.Down} {
		if d < 0 || d > time.Hour || d > 0 && d < time.Second {
			return cli.Usagef("--%s: %s: must be 0, or between 1s and 1h", flag, d)
		}
	}
	if !slices.Contains(outputs, o.output) {
		return cli.Usagef("--output: %q: must be one of %s", o.output, strings.Join(outputs, ", "))
	}
	return nil
}

// runStorm starts hosts at once, real ones and then a crowd. What is under way is
// told to progress.
func runStorm(ctx context.Context, o stormOptions, out, progress io.Writer) error {
	if o.docs != "" {
		if err := storm.CheckDocs(o.docs); err != nil {
			return fmt.Errorf("--docs: %w", err)
		}
	}
	var r storm.Report
	var err error
	if r.Machine, err = machine.Describe(); err != nil {
		return err
	}
	if o.daemons > 0 {
		if r.Daemons, err = stormDaemons(ctx, o, progress); err != nil {
			return err
		}
	}
	if o.crowd.Hosts > 0 {
		o.crowd.Progress = progress
		if r.Phases, r.Memory, err = storm.RunCrowd(ctx, o.self, o.crowd); err != nil {
			return err
		}
	}
	if o.docs != "" {
		if err := r.WriteDocs(o.docs); err != nil {
			return err
		}
	}
	if o.output == "json" {
		return r.JSON(out)
	}
	return r.Markdown(out)
}

// stormDaemons makes a lab, starts its daemons at once and removes it.
func stormDaemons(ctx context.Context, o stormOptions, progress io.Writer) (_ *storm.Daemons, err error) {
	if err := lab.CheckRoot(); err != nil {
		return nil, fmt.Errorf("storm %w (try: sudo make bench, or --daemons=0)", err)
	}
	if err := lab.CheckBinary(o.daemon); err != nil {
		return nil, fmt.Errorf("--daemon: %w (try: make build)", err)
	}
	l, err := openLab(ctx, lab.Options{Name: o.name, Hosts: o.daemons, Replace: o.replace, Daemon: o.daemon, Self: o.self})
	if err != nil {
		return nil, err
	}
	defer func() { err = closeLab(ctx, l, err) }()
	d, err := storm.RunDaemons(ctx, l, progress)
	return &d, err
}
