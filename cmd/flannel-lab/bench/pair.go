package bench

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/traffic"
)

// TrafficCommand is the subcommand of flannel-lab that runs a traffic agent.
const TrafficCommand = "traffic"

// pair is two hosts that one variant joins, with a container each.
type pair struct {
	variant Variant
	lab     *lab.Lab
	self    string
	hosts   [2]*lab.Host
	// daemons are the processes that carry packets, or say where they go.
	daemons []*lab.Process
	// agents are those in the containers.
	agents [2]*traffic.Client
}

// up takes a pair from bare hosts to containers that talk.
func (p *pair) up(ctx context.Context) error {
	if err := p.variant.join(ctx, p); err != nil {
		return err
	}
	for end, h := range p.hosts {
		socket := filepath.Join(h.Dir, "traffic.sock")
		agent, err := p.start(h.Container.Node, "traffic", TrafficCommand,
			"--socket="+socket, "--addr="+h.Container.Addr().String())
		if err != nil {
			return err
		}
		p.agents[end] = traffic.NewClient(socket)
		err = p.await(ctx, agent, func() error {
			_, err := p.agents[end].Arrived(ctx)
			return err
		})
		if err != nil {
			return err
		}
	}
	return p.hosts[0].Container.WaitPing(ctx, p.hosts[1].Container.Addr())
}

// start runs a subcommand of our own in a node.
func (p *pair) start(n *lab.Node, log string, args ...string) (*lab.Process, error) {
	return p.lab.Start(n, lab.Spec{Path: p.self, Args: args, Log: filepath.Join(p.lab.Dir, n.Name+"-"+log+".log")})
}

// lookAgain is how often a state without events is looked at.
const lookAgain = 5 * time.Millisecond

// await looks until look succeeds. It ends early when the process does.
func (p *pair) await(ctx context.Context, process *lab.Process, look func() error) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		err := look()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		case <-process.Done():
			return fmt.Errorf("%s ended:\n%s", strings.Join(process.Spec.Args, " "), process.Tail(10))
		case <-tick.C:
		}
	}
}

// containerAddr is the address of the container at an end.
func (p *pair) containerAddr(end int) netip.Addr { return p.hosts[end].Container.Addr() }
