package robustness

import (
	"context"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// direction of a variant.
func direction(variant string) lab.Direction {
	switch variant {
	case variantIn:
		return lab.In
	case variantOut:
		return lab.Out
	default:
		return lab.Both
	}
}

// misfits are the hosts whose subnet the config does not allow: they were there
// before the range was what it is, and must renumber when they start anew or lose
// their key.
func (t *trial) misfits(hosts []*host) []string {
	var names []string
	for _, h := range hosts {
		env, err := h.ReadSubnet()
		if err != nil || !slices.Contains(t.network.pool, env.Subnets[subnet.IPv4].Masked()) {
			names = append(names, h.name)
		}
	}
	return names
}

// beginLink: only a partition touches the tunnel.
func (t *trial) beginLink(s Step, f *deed) (healing, error) {
	hosts := t.chosen(s)
	if s.Kind == FaultPartition {
		f.Hosts, f.Unreachable = t.names(s.Hosts), t.names(s.Hosts)
		rejoin := func(context.Context, *deed) error { return each(hosts, func(h *host) error { return h.Rejoin() }) }
		return rejoin, each(hosts, func(h *host) error { return h.Partition(direction(s.Variant)) })
	}
	if s.Kind != FaultSlow {
		f.Unreachable = t.names(s.Hosts)
	}
	heal := func(context.Context, *deed) error { return each(hosts, func(h *host) error { return h.proxy.Heal() }) }
	for _, h := range hosts {
		switch s.Kind {
		case FaultSlow:
			f.delay = s.Amount
			h.proxy.SetDelay(s.Amount, s.Amount)
		case FaultBlock:
			h.proxy.Block(direction(s.Variant))
		default: // FaultCut
			h.proxy.Cut()
		}
	}
	return heal, nil
}

// beginHost: what befalls a host without touching its traffic.
func (t *trial) beginHost(s Step) (healing, error) {
	hosts := t.chosen(s)
	if s.Kind == FaultDisk {
		free := func(context.Context, *deed) error { return each(hosts, func(h *host) error { return h.FreeState() }) }
		return free, each(hosts, func(h *host) error { return h.FillState() })
	}
	wall, boot := s.Amount, time.Duration(0)
	if s.Variant == variantBoot {
		wall, boot = 0, s.Amount
	}
	return nil, each(hosts, func(h *host) error { return h.clock.jump(wall, boot) })
}
