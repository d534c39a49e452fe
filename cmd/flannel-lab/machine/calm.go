package machine

import (
	"context"
	"fmt"
	"io"
	"time"
)

// lookEvery is how often the load is read, which the kernel renews every 5 s.
const lookEvery = 5 * time.Second

// Calm waits until the machine is not busy, but not for longer than within: a run that
// follows another would take its load for that of other programs. Progress is told.
func Calm(ctx context.Context, within time.Duration, progress io.Writer) error {
	return calm(ctx, within, progress, Describe)
}

// calm waits by what look finds.
func calm(ctx context.Context, within time.Duration, progress io.Writer, look func() (Description, error)) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for until, told := time.Now().Add(within), false; time.Now().Before(until); told = true {
		now, err := look()
		if err != nil || !now.Busy() {
			return err
		}
		if !told {
			fmt.Fprintf(progress, "load %.1f: waiting for at most %s until it is below %.1f\n", now.Load, within, now.calmBelow())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
