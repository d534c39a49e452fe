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
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/scale"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

// scaleOptions are the flags of the scale command, checked.
type scaleOptions struct {
	name    string
	replace bool
	daemon  string
	self    string
	run     scale.Options
	seconds float64
	output  string
	docs    string
}

func parseScale(args []string, out io.Writer) (scaleOptions, error) {
	self, err := os.Executable()
	if err != nil {
		return scaleOptions{}, fmt.Errorf("find own executable: %w", err)
	}
	o := scaleOptions{self: self}
	fs := pflag.NewFlagSet("flannel-lab scale", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.IntSliceVar(&o.run.Sizes, "peers", []int{1000, 10_000, 50_000}, "`numbers` of peers, ascending")
	fs.IntVar(&o.run.Rounds, "rounds", 3, "`number` of rounds, of which medians are taken")
	fs.IntVar(&o.run.ChangesAt, "changes-at", 10_000, "`number` of peers at which changes are measured; 0: none")
	fs.IntVar(&o.run.Singles, "singles", 200, "`number` of changes that are made one at a time")
	fs.IntVar(&o.run.Rate, "rate", 100, "changes a `second` after that")
	fs.Float64Var(&o.seconds, "seconds", 10, "how many `seconds` they are made for")
	fs.StringVar(&o.output, "output", outputs[0], "`form`: "+strings.Join(outputs, ", "))
	fs.StringVar(&o.docs, "docs", "", "write tables and a plot into the pages of this `folder`, too")
	fs.StringVar(&o.daemon, "daemon", filepath.Join(filepath.Dir(self), "flanneld-go"), "`path` of the daemon")
	fs.StringVar(&o.name, "name", "scale", "`name` that everything of the lab begins with")
	fs.BoolVar(&o.replace, "replace", false, "remove what a killed lab of that name left")
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprintf(out, "usage: flannel-lab scale [FLAGS]\n\n%s", fs.FlagUsagesWrapped(100))
	}
	if err := fs.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return scaleOptions{}, cli.ErrHelp
	} else if err != nil {
		return scaleOptions{}, cli.Usagef("%w (see flannel-lab scale --help)", err)
	}
	if fs.NArg() > 0 {
		return scaleOptions{}, cli.Usagef("scale: %q: takes flags only", fs.Arg(0))
	}
	o.run.Churn = time.Duration(o.seconds * float64(time.Second))
	return o, o.check()
}

// mostRate is as many changes a second as one writer can make.
const mostRate = 1000

// check returns a usage error for values that make no sense.
func (o scaleOptions) check() error {
	r := o.run
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
	if !slices.Contains(outputs, o.output) {
		return cli.Usagef("--output: %q: must be one of %s", o.output, strings.Join(outputs, ", "))
	}
	return nil
}

// runScale measures on a lab of its own. What is under way is told to progress.
func runScale(ctx context.Context, o scaleOptions, out, progress io.Writer) error {
	if err := lab.CheckRoot(); err != nil {
		return fmt.Errorf("scale %w (try: sudo make bench)", err)
	}
	if err := lab.CheckBinary(o.daemon); err != nil {
		return fmt.Errorf("--daemon: %w (try: make build)", err)
	}
	if o.docs != "" {
		if err := scale.CheckDocs(o.docs); err != nil {
			return fmt.Errorf("--docs: %w", err)
		}
	}
	r, err := measureScale(ctx, o, progress)
	if err != nil {
		return err
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

// measureScale makes a lab, measures on it and removes it.
func measureScale(ctx context.Context, o scaleOptions, progress io.Writer) (r scale.Report, err error) {
	l, err := openLab(ctx, lab.Options{
		Name: o.name, Hosts: scale.HostsFor(o.run), Replace: o.replace, Daemon: o.daemon, Self: o.self,
	})
	if err != nil {
		return r, err
	}
	defer func() { err = closeLab(ctx, l, err) }()
	o.run.Progress = progress
	return scale.Run(ctx, l, o.run)
}
