package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/storm"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

// stormOptions are the flags of the storm, checked.
type stormOptions struct {
	measurement

	crowd   storm.Options
	daemons int
}

// mostCrowd is how many hosts have addresses and file descriptors on one machine.
const mostCrowd = 20_000

func parseStorm(args []string, out io.Writer) (stormOptions, error) {
	var o stormOptions
	fs := newFlags("storm", out)
	fs.IntVar(&o.daemons, "daemons", 200, "`number` of real daemons, a namespace each; 0: none")
	fs.IntVar(&o.crowd.Hosts, "hosts", 2000, "`number` of hosts in one process; 0: none")
	fs.DurationVar(&o.crowd.Quiet, "quiet", 20*time.Second, "`time` for which nothing happens")
	fs.DurationVar(&o.crowd.ShortTTL, "short-ttl", 15*time.Second, "`TTL` of a second, smaller crowd; 0: none")
	fs.Float64Var(&o.crowd.Rate, "rate", 20, "joins, changes and leaves per `second`, all added")
	fs.DurationVar(&o.crowd.Churn, "churn", 10*time.Second, "`time` for which there are such; 0: none")
	fs.DurationVar(&o.crowd.Down, "down", 10*time.Second, "`time` for which etcd is away, twice; 0: never")
	if err := o.parse(fs, args); err != nil {
		return stormOptions{}, err
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
	return nil
}

// runStorm starts hosts at once, real ones and then a crowd. What is under way is
// told to progress.
func runStorm(ctx context.Context, o stormOptions, out, progress io.Writer) error {
	if err := o.checkDocs(storm.CheckDocs); err != nil {
		return err
	}
	if err := machine.Calm(ctx, o.calm, progress); err != nil {
		return err
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
	return errors.Join(o.tell(r, out), judge(r.Claims(), r.Machine, progress))
}

// stormDaemons makes a lab, starts its daemons at once and removes it.
func stormDaemons(ctx context.Context, o stormOptions, progress io.Writer) (*storm.Daemons, error) {
	if err := o.checkLab("storm", "sudo make bench, or --daemons=0"); err != nil {
		return nil, err
	}
	var d storm.Daemons
	err := o.onLab(ctx, o.daemons, func(l *lab.Lab) (err error) {
		d, err = storm.RunDaemons(ctx, l, progress)
		return err
	})
	return &d, err
}
