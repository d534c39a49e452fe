package bench

import (
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/traffic"
)

// trial is what became of datagrams sent at one rate.
type trial struct {
	sent    traffic.Done
	arrived uint64
	// lasted is from the first sent to the last that arrived.
	lasted time.Duration
}

// latency is what the last datagram may take. Queues can hide for longer than that
// what a path does not carry, but not from a clock.
const latency = 5 * time.Millisecond

// delivered is what arrived per second.
func (t trial) delivered() float64 {
	return float64(t.arrived) / max(t.sent.Took, t.lasted-latency).Seconds()
}

// loss is the part of what was sent that did not arrive, or not in its time.
func (t trial) loss() float64 {
	if t.sent.Count == 0 {
		return 0
	}
	return 1 - t.delivered()/t.sent.Rate()
}

// searchSteps halve the interval of rates to a thirty-second part.
const searchSteps = 6

// highestRate finds the most that arrives per second at a rate that loses at most
// maxLoss. It begins with what full blast showed and bisects between what passed
// and what did not. 0: every rate that was tried lost more.
func highestRate(blast trial, try func(rate float64) (trial, error)) (float64, error) {
	if blast.loss() <= maxLoss {
		return blast.delivered(), nil
	}
	low, high, best := 0.0, blast.sent.Rate(), 0.0
	// What arrives of too much is a good guess of what is enough.
	rate := blast.delivered()
	for range searchSteps {
		t, err := try(rate)
		if err != nil {
			return 0, err
		}
		if t.loss() <= maxLoss {
			low, best = rate, max(best, t.delivered())
		} else {
			high = rate
		}
		rate = (low + high) / 2
	}
	return best, nil
}
