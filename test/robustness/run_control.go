package robustness

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

const (
	// faultMachine is none of ours: the machine itself lost packets. It touches
	// every pair, but only those packets that were under way with them.
	faultMachine FaultKind = "machine"
	// controlEvery is between two pings of the control, blip what is taken
	// for one loss.
	controlEvery = 20 * time.Millisecond
	blip         = time.Second
)

// control are pings that no fault of a run touches and no daemon has a hand in:
// between the namespaces of the switch and of etcd's members. What they lose the
// machine has lost, by a queue that overflowed while nobody was given time; then
// lost pings of containers prove nothing.
type control struct{ series []*lab.Pinging }

// startControl begins them.
func (t *trial) startControl(ctx context.Context) error {
	for _, m := range t.cluster.Members {
		series, err := t.lab.Switch.StartPing(ctx, lab.PingOptions{To: m.Addr, Interval: controlEvery, Timeout: lostAfter})
		if err != nil {
			return fmt.Errorf("start the control: %w", err)
		}
		t.control.series = append(t.control.series, series)
	}
	return nil
}

// stop ends them.
func (c *control) stop() {
	for _, series := range c.series {
		series.Stop()
	}
}

// lost is when packets were lost that were sent.
func (c *control) lost(at func(time.Time) time.Duration) []time.Duration {
	var lost []time.Duration
	for _, series := range c.series {
		for _, sent := range series.LostAt() {
			lost = append(lost, at(sent))
		}
	}
	slices.Sort(lost)
	return lost
}

// blips are faults of the machine, one for losses that follow each other.
func blips(lost []time.Duration) []Fault {
	var out []Fault
	for _, at := range lost {
		if n := len(out); n > 0 && at-out[n-1].Until < blip {
			out[n-1].Until = at
			continue
		}
		out = append(out, Fault{Kind: faultMachine, From: at, Until: at, Every: true, Detail: "packets on the bare switch were lost"})
	}
	return out
}
