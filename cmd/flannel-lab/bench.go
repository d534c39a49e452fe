package main

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/bench"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/traffic"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

// benchOptions are the flags of the bench, checked.
type benchOptions struct {
	measurement

	only    []string
	rounds  int
	seconds float64
}

func parseBench(args []string, out io.Writer) (benchOptions, error) {
	var o benchOptions
	fs := newFlags("bench", out)
	fs.StringSliceVar(&o.only, "only", nil, "measure only `these`, of "+strings.Join(variantNames(), ","))
	fs.IntVar(&o.rounds, "rounds", 5, "`number` of rounds, of which medians are taken")
	fs.Float64Var(&o.seconds, "seconds", 1, "how many `seconds` a measurement lasts; a round takes some 12 times that for each variant")
	if err := o.parse(fs, args); err != nil {
		return benchOptions{}, err
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
	if err := errors.Join(o.checkLab("bench", "sudo make bench"), o.checkDocs(bench.CheckDocs)); err != nil {
		return err
	}
	variants := o.variants()
	if err := machine.Calm(ctx, o.calm, progress); err != nil {
		return err
	}
	var r bench.Report
	err := o.onLab(ctx, bench.HostsFor(variants), func(l *lab.Lab) (err error) {
		r, err = bench.Run(ctx, l, bench.Options{
			Self: o.self, Variants: variants, Rounds: o.rounds,
			Window: time.Duration(o.seconds * float64(time.Second)), Progress: progress,
		})
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(o.tell(r, out), judge(r.Claims(), r.Machine, progress))
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

// runForward is one end of a forwarder that the bench compares with.
func runForward(ctx context.Context, args []string, stderr io.Writer) error {
	var o bench.ForwardOptions
	var peer string
	fs := pflag.NewFlagSet(bench.ForwardCommand, pflag.ContinueOnError)
	fs.TextVar(&o.From, "from", netip.Addr{}, "own `address`")
	fs.TextVar(&o.To, "to", netip.Addr{}, "the other end's `address`")
	fs.StringVar(&peer, "subnet", "", "the other end's `subnet`")
	fs.IntVar(&o.Threads, "threads", 2, "`number`: 2, one for each direction, or 1 for both as flannel has it")
	if err := parsePlain(fs, args, stderr); err != nil {
		return err
	}
	var err error
	if o.Subnet, err = netip.ParsePrefix(peer); err != nil || !o.Subnet.Addr().Is4() || !o.From.Is4() || !o.To.Is4() {
		return cli.Usagef("%s: needs an IPv4 --from, --to and --subnet", fs.Name())
	}
	if o.Threads != 1 && o.Threads != 2 {
		return cli.Usagef("%s: --threads: %d: must be 1 or 2", fs.Name(), o.Threads)
	}
	return bench.Forward(ctx, o)
}

// parsePlain parses the flags of a command that is not for people.
func parsePlain(fs *pflag.FlagSet, args []string, stderr io.Writer) error {
	fs.SetOutput(stderr)
	if err := fs.Parse(args); err != nil {
		return cli.Usagef("%s: %w", fs.Name(), err)
	}
	return flagsOnly(fs)
}
