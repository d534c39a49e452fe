package lab

import (
	"context"
	"time"
)

// pollEvery is how often a state without events is looked at.
const pollEvery = 5 * time.Millisecond

// poll looks until look reports true, fails, or ctx ends.
func poll(ctx context.Context, look func() (bool, error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		done, err := look()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// Wait lets d pass. Its error is why ctx ended before that.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
