package bench

import (
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
)

// usage is the CPU time spent so far.
type usage struct{ machine, daemons time.Duration }

func (u usage) since(before usage) usage {
	return usage{u.machine - before.machine, u.daemons - before.daemons}
}

// usage reads what the machine, and the pair's daemons, have spent.
func (p *pair) usage() (u usage, err error) {
	if u.machine, err = machine.Spent(); err != nil {
		return u, err
	}
	for _, d := range p.daemons {
		t, err := machine.ProcessSpent(d.PID())
		if err != nil {
			return u, err
		}
		u.daemons += t
	}
	return u, nil
}

// resident is the most that one of the pair's daemons ever had in memory.
func (p *pair) resident() (int64, error) {
	var most int64
	for _, d := range p.daemons {
		peak, err := machine.PeakMemory(d.PID())
		if err != nil {
			return 0, err
		}
		most = max(most, peak)
	}
	return most, nil
}
