package firewall

import (
	"context"
	"time"
)

// calm is the least time between two wakes by Drift: a program that changes
// rules one by one, as Docker does, wakes at its first change and then at most
// five times a second.
const calm = 200 * time.Millisecond

// Drift yields a value when somebody may have changed rules since the last one
// was taken, until ctx ends; the channel is closed then. What Apply itself
// changes yields one too: to find nothing to do ends it. Without a kernel that
// tells, which is logged, the channel stays silent, and the caller's own timer is
// what is left.
func (f *Firewall) Drift(ctx context.Context) <-chan struct{} {
	changes, err := f.tools.Changes(ctx)
	if err != nil {
		f.log.WarnContext(ctx, "changes of the firewall are not all noticed at once", "error", err)
	}
	changes = either(changes, f.firewalld.Drift(ctx))
	out := make(chan struct{})
	go func() {
		defer close(out)
		for range changes {
			select {
			case out <- struct{}{}:
			case <-ctx.Done():
				continue // until changes is closed
			}
			pause := time.NewTimer(calm)
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
			}
		}
	}()
	return out
}

// either yields what a or b does, and is closed when both are.
func either(a, b <-chan struct{}) <-chan struct{} {
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		for a != nil || b != nil {
			ok := false
			select {
			case _, ok = <-a:
				if !ok {
					a = nil
				}
			case _, ok = <-b:
				if !ok {
					b = nil
				}
			}
			if !ok {
				continue
			}
			select {
			case out <- struct{}{}:
			default: // one that nobody has taken yet says the same
			}
		}
	}()
	return out
}
