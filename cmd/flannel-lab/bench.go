package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/bench"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/traffic"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

// benchOptions are the flags of the bench, checked.
type benchOptions struct {
	name    string
	replace bool
	daemon  string
	self    string
	only    []string
	rounds  int
	seconds float64
	output  string
	docs    string
}

// The forms of the bench's output.
var outputs = []string{"table", "json"}

// mostSeconds and mostRounds keep a slip of the finger from lasting for days.
const mostSeconds, mostRounds = 600, 1000

func parseBench(args []string, out io.Writer) (benchOptions, error) {
	self, err := os.Executable()
	if err != nil {
		return benchOptions{}, fmt.Errorf("find own executable: %w", err)
	}
	o := benchOptions{self: self}
	fs := pflag.NewFlagSet("flannel-lab bench", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringSliceVar(&o.only, "only", nil, "measure only `these`, of "+strings.Join(variantNames(), ","))
	fs.IntVar(&o.rounds, "rounds", 5, "`number` of rounds, of which medians are taken")
	fs.Float64Var(&o.seconds, "seconds", 1, "how many `seconds` a measurement lasts; a round takes some 12 times that for each variant")
	fs.StringVar(&o.output, "output", outputs[0], "`form`: "+strings.Join(outputs, ", "))
	fs.StringVar(&o.docs, "docs", "", "write tables and a plot into the pages of this `folder`, too")
	fs.StringVar(&o.daemon, "daemon", filepath.Join(filepath.Dir(self), "flanneld-go"), "`path` of the daemon")
	fs.StringVar(&o.name, "name", "bench", "`name` that everything of the lab begins with")
	fs.BoolVar(&o.replace, "replace", false, "remove what a killed lab of that name left")
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprintf(out, "usage: flannel-lab bench [FLAGS]\n\n%s", fs.FlagUsagesWrapped(100))
	}
	if err := fs.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return benchOptions{}, cli.ErrHelp
	} else if err != nil {
		return benchOptions{}, cli.Usagef("%w (see flannel-lab bench --help)", err)
	}
	if fs.NArg() > 0 {
		return benchOptions{}, cli.Usagef("bench: %q: takes flags only", fs.Arg(0))
	}
	return o, o.check()
}

// check returns a usage error for values that make no sense.
func (o benchOptions) check() error {
	if o.rounds < 1 || o.rounds > mostRounds {
		return cli.Usagef("--rounds: %d: must be between 1 and %d", o.rounds, mostRounds)
	}
	// Written so that what is no number fails.
	if !(o.seconds >= 0.01 && o.seconds <= mostSeconds) {
		return cli.Usagef("--seconds: %v: must be between 0.01 and %d", o.seconds, mostSeconds)
	}
	if !slices.Contains(outputs, o.output) {
		return cli.Usagef("--output: %q: must be one of %s", o.output, strings.Join(outputs, ", "))
	}
	for _, name := range o.only {
		if !slices.Contains(variantNames(), name) {
			return cli.Usagef("--only: %q: must be of %s", name, strings.Join(variantNames(), ", "))
		}
	}
	return nil
}

func variantNames() []string {
	var names []string
	for _, v := range bench.Variants() {
		names = append(names, v.Name)
	}
	return names
}

// variants are those that are asked for, in the order of tables.
func (o benchOptions) variants() []bench.Variant {
	if len(o.only) == 0 {
		return bench.Variants()
	}
	return slices.DeleteFunc(bench.Variants(), func(v bench.Variant) bool { return !slices.Contains(o.only, v.Name) })
}

// runBench measures on a lab of its own. What is under way is told to progress.
func runBench(ctx context.Context, o benchOptions, out, progress io.Writer) error {
	if err := lab.CheckRoot(); err != nil {
		return fmt.Errorf("bench %w (try: sudo make bench)", err)
	}
	if err := lab.CheckBinary(o.daemon); err != nil {
		return fmt.Errorf("--daemon: %w (try: make build)", err)
	}
	if o.docs != "" {
		if err := bench.CheckDocs(o.docs); err != nil {
			return fmt.Errorf("--docs: %w", err)
		}
	}
	r, err := measure(ctx, o, progress)
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

// measure makes a lab, measures on it and removes it.
func measure(ctx context.Context, o benchOptions, progress io.Writer) (r bench.Report, err error) {
	variants := o.variants()
	l, err := openLab(ctx, lab.Options{
		Name: o.name, Hosts: bench.HostsFor(variants), Replace: o.replace, Daemon: o.daemon, Self: o.self,
	})
	if err != nil {
		return r, err
	}
	defer func() { err = closeLab(ctx, l, err) }()
	return bench.Run(ctx, l, bench.Options{
		Self: o.self, Variants: variants, Rounds: o.rounds,
		Window: time.Duration(o.seconds * float64(time.Second)), Progress: progress,
	})
}

// runTraffic is an agent in a container.
func runTraffic(ctx context.Context, args []string, stderr io.Writer) error {
	var o traffic.Options
	fs := pflag.NewFlagSet(bench.TrafficCommand, pflag.ContinueOnError)
	fs.StringVar(&o.Socket, "socket", "", "`path` of the socket to be asked on")
	fs.TextVar(&o.Addr, "addr", netip.Addr{}, "`address` to receive at")
	if err := parsePlain(fs, args, stderr); err != nil {
		return err
	}
	if o.Socket == "" || !o.Addr.Is4() {
		return cli.Usagef("%s: needs --socket, and an IPv4 --addr", fs.Name())
	}
	return traffic.Serve(ctx, o)
}

// runForward is one end of the bare forwarder.
func runForward(ctx context.Context, args []string, stderr io.Writer) error {
	var from, to netip.Addr
	fs := pflag.NewFlagSet(bench.ForwardCommand, pflag.ContinueOnError)
	fs.TextVar(&from, "from", netip.Addr{}, "own `address`")
	fs.TextVar(&to, "to", netip.Addr{}, "the other end's `address`")
	if err := parsePlain(fs, args, stderr); err != nil {
		return err
	}
	if !from.Is4() || !to.Is4() {
		return cli.Usagef("%s: needs an IPv4 --from and --to", fs.Name())
	}
	return bench.Forward(ctx, from, to)
}

// parsePlain parses the flags of a command that is not for people.
func parsePlain(fs *pflag.FlagSet, args []string, stderr io.Writer) error {
	fs.SetOutput(stderr)
	if err := fs.Parse(args); err != nil {
		return cli.Usagef("%s: %w", fs.Name(), err)
	}
	if fs.NArg() > 0 {
		return cli.Usagef("%s: %q: takes flags only", fs.Name(), fs.Arg(0))
	}
	return nil
}
