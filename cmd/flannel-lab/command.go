package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/bench"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

const usage = `usage: flannel-lab COMMAND [FLAGS]

  demo    hosts in network namespaces, containers that talk, each backend in turn
  bench   what each way to join two hosts carries, and what it costs
  storm   many hosts at once on one etcd, and what each costs it
  scale   what thousands of peers cost a host, and how soon one more is reached
  parts   tables of what go test prints of benchmarks and figures, read from standard input
  faults  for how long traffic stands still when a host is broken, fault by fault

flannel-lab COMMAND --help lists the command's flags.
`

// run is the whole program but for signals and the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return cli.Usagef("no command; try: flannel-lab demo")
	}
	switch command, rest := args[0], args[1:]; command {
	case "demo":
		o, err := parseDemo(rest, stdout)
		if err != nil {
			return err
		}
		return demo(ctx, o, stdout)
	case "bench":
		o, err := parseBench(rest, stdout)
		if err != nil {
			return err
		}
		return runBench(ctx, o, stdout, stderr)
	case "scale":
		o, err := parseScale(rest, stdout)
		if err != nil {
			return err
		}
		return runScale(ctx, o, stdout, stderr)
	case "faults":
		o, err := parseFaults(rest, stdout)
		if err != nil {
			return err
		}
		return runFaults(ctx, o, stdout, stderr)
	case "storm":
		o, err := parseStorm(rest, stdout)
		if err != nil {
			return err
		}
		return runStorm(ctx, o, stdout, stderr)
	case "parts":
		return runParts(ctx, rest, os.Stdin, stdout, stderr)
	case calmCommand:
		return runCalm(ctx, rest, stderr)
	case lab.EtcdCommand:
		return runEtcd(ctx, rest, stderr)
	case bench.TrafficCommand:
		return runTraffic(ctx, rest, stderr)
	case bench.ForwardCommand:
		return runForward(ctx, rest, stderr)
	case "help", "--help", "-h":
		fmt.Fprint(stdout, usage)
		return nil
	default:
		return cli.Usagef("%q is no command; try: flannel-lab help", command)
	}
}

// The backends that the demo shows, in its order.
var backends = []string{"udp", "vxlan", "host-gw"}

// demoOptions are the flags of the demo, checked.
type demoOptions struct {
	name     string
	hosts    int
	backends []string
	keep     bool
	replace  bool
	daemon   string
	// ctl is flannelctl beside us, for the commands that are shown.
	ctl string
}

func parseDemo(args []string, out io.Writer) (demoOptions, error) {
	self, err := os.Executable()
	if err != nil {
		return demoOptions{}, fmt.Errorf("find own executable: %w", err)
	}
	o := demoOptions{ctl: filepath.Join(filepath.Dir(self), "flannelctl")}
	var backend string
	fs := newFlags("demo", out)
	fs.IntVar(&o.hosts, "hosts", 3, "`number` of hosts")
	fs.StringVar(&backend, "backend", "", "show only this one: "+strings.Join(backends, ", "))
	fs.BoolVar(&o.keep, "keep", false, "leave the lab running until Ctrl-C, and say how to look around; vxlan unless --backend says otherwise")
	addLabFlags(fs, self, &o.daemon, &o.name, &o.replace)
	if err := parseFlags(fs, args); err != nil {
		return demoOptions{}, err
	}
	if o.hosts < 2 || o.hosts > lab.MaxHosts {
		return demoOptions{}, cli.Usagef("--hosts: %d: must be between 2 and %d", o.hosts, lab.MaxHosts)
	}
	switch {
	case backend == "" && o.keep:
		o.backends = []string{"vxlan"}
	case backend == "":
		o.backends = backends
	case slices.Contains(backends, backend):
		o.backends = []string{backend}
	default:
		return demoOptions{}, cli.Usagef("--backend: %q: must be one of %s", backend, strings.Join(backends, ", "))
	}
	return o, nil
}
