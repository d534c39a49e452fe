package robustness

import (
	"context"
	"fmt"
	"slices"
	"sync"
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

// control tells when the machine lost packets; then lost pings of containers
// prove nothing. It says so itself where the queue of a CPU overflowed while
// nobody was given time, and counts them. And it lost those of its own pings that
// do not arrive: no fault of a run touches them, no daemon has a hand in them,
// between the namespaces of the switch and of etcd's members. And it tells when etcd
// was given no time, and when the kernel gave no answers.
type control struct {
	series       []*lab.Pinging
	etcd, kernel patient
	end          context.CancelFunc
	ended        sync.WaitGroup

	// What follows is read after the end.

	// dropped are the moments between which the machine counted drops.
	dropped []time.Time
	// failed is why they were not counted any more.
	failed error
}

// count notes when the machine's count of drops grows, until ctx ends.
func (c *control) count(ctx context.Context) {
	ticker := time.NewTicker(controlEvery)
	defer ticker.Stop()
	var before uint64
	var then time.Time
	for {
		now := time.Now()
		drops, err := lab.MachineDrops()
		if err != nil {
			c.failed = err
			return
		}
		if !then.IsZero() && drops != before {
			c.dropped = append(c.dropped, then, time.Now())
		}
		before, then = drops, now
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// startControl begins to count, and the pings.
func (t *trial) startControl(ctx context.Context) error {
	counting, end := context.WithCancel(ctx)
	t.control.end = end
	t.control.ended.Go(func() { t.control.count(counting) })
	// A lease is renewed every third of its TTL.
	t.control.etcd = patient{ask: t.askMembers, now: t.rec.now, tooLong: t.TTL / 3}
	t.control.ended.Go(func() { t.control.etcd.run(counting) })
	t.control.kernel = patient{ask: t.askKernel, now: t.rec.now, tooLong: kernelTooLong}
	t.control.ended.Go(func() { t.control.kernel.run(counting) })
	for _, m := range t.cluster.Members {
		series, err := t.lab.Switch.StartPing(ctx, lab.PingOptions{To: m.Addr, Interval: controlEvery, Timeout: lostAfter})
		if err != nil {
			return fmt.Errorf("start the control: %w", err)
		}
		t.control.series = append(t.control.series, series)
	}
	return nil
}

// stop ends all of it.
func (c *control) stop() {
	if c.end != nil {
		c.end()
	}
	c.ended.Wait()
	for _, series := range c.series {
		series.Stop()
	}
}

// lost is when packets were lost, of the pings as they were sent. It fails if the
// machine's drops could not be counted to the end.
func (c *control) lost(at func(time.Time) time.Duration) ([]time.Duration, error) {
	var lost []time.Duration
	for _, moment := range c.dropped {
		lost = append(lost, at(moment))
	}
	for _, series := range c.series {
		for _, sent := range series.LostAt() {
			lost = append(lost, at(sent))
		}
	}
	slices.Sort(lost)
	return lost, c.failed
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
