package bench

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
)

// Options describe a run.
type Options struct {
	// Self is the path of flannel-lab, which runs agents and forwarders.
	Self     string
	Variants []Variant
	Rounds   int
	// Window is how long one measurement lasts.
	Window time.Duration
	// Progress is told of every sample.
	Progress io.Writer
}

// HostsFor is how many hosts the lab of a run needs.
func HostsFor(variants []Variant) int { return 2 * len(variants) }

// upWithin bounds the start of everything.
const upWithin = 60 * time.Second

// Run measures on a lab with the hosts for it, on which nothing runs yet. What it
// starts is the lab's to end.
func Run(ctx context.Context, l *lab.Lab, o Options) (Report, error) {
	r := Report{Seconds: o.Window.Seconds(), Variants: o.Variants}
	var err error
	if r.Machine, err = machine.Describe(); err != nil {
		return r, err
	}
	if r.Congestion, err = congestion(l.Hosts[0]); err != nil {
		return r, err
	}
	pairs := make([]*pair, len(o.Variants))
	for i, v := range o.Variants {
		pairs[i] = &pair{variant: v, lab: l, self: o.Self, hosts: [2]*lab.Host{l.Hosts[2*i], l.Hosts[2*i+1]}}
	}
	if err := bringUp(ctx, l, pairs); err != nil {
		return r, err
	}
	for n := range o.Rounds {
		round := map[string]Sample{}
		for _, p := range pairs {
			begin := time.Now()
			s, err := p.measure(ctx, o.Window)
			if err != nil {
				return r, fmt.Errorf("round %d: %s: %w", n+1, p.variant.Name, err)
			}
			round[p.variant.Name] = s
			fmt.Fprintf(o.Progress, "round %d of %d: %s: %.3g Gb/s, %.1f s\n",
				n+1, o.Rounds, p.variant.Name, s[keyStream1], time.Since(begin).Seconds())
		}
		r.Rounds = append(r.Rounds, round)
	}
	return r, nil
}

func bringUp(ctx context.Context, l *lab.Lab, pairs []*pair) error {
	ctx, cancel := context.WithTimeoutCause(ctx, upWithin, fmt.Errorf("not within %s", upWithin))
	defer cancel()
	if err := l.StartEtcd(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range pairs {
		g.Go(func() error {
			if err := p.up(ctx); err != nil {
				return fmt.Errorf("%s: %w", p.variant.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// congestion names the congestion control of new streams in a host's namespace:
// ip-sysctl.rst, tcp_congestion_control.
func congestion(h *lab.Host) (string, error) {
	k, err := kernel.Open(kernel.Options{NetNS: filepath.Join("/run/netns", h.Name)})
	if err != nil {
		return "", fmt.Errorf("read congestion control: %w", err)
	}
	defer k.Close()
	return k.Sysctl("net/ipv4/tcp_congestion_control")
}
