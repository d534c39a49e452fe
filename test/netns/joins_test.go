package netns_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// letInWithin is how long two containers may wait for each other: a multiple of what a
// quiet machine needs, and less than the pause between the rounds of hosts that have
// joined for long.
const letInWithin = 8 * time.Second

// Hosts that boot at the same moment are let in at once by those that run already, and by
// each other, although every policy of their firewalls is to drop: the accepts for the
// many come in few rounds, and none of them waits for long.
func TestManyJoinAtOnce(t *testing.T) {
	for backend, config := range configs {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			const joining, apart = 10, 100 * time.Millisecond
			l := newLab(t, lab.Options{Hosts: 1 + joining})
			for _, h := range l.Hosts {
				dropByDefault(t, h)
			}
			putConfig(t, l, config)
			old := l.Hosts[0]
			if err := old.StartDaemon(); err != nil {
				t.Fatal(err)
			}
			ctx := within(t, 5*time.Minute)
			_, err := old.WaitReady(ctx, 0)
			if err := errors.Join(err, startContainer(ctx, old), lab.Wait(ctx, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			var (
				mu    sync.Mutex
				there = map[*lab.Host]time.Time{old: time.Now()}
			)
			err = l.Each(ctx, func(ctx context.Context, h *lab.Host) error {
				if h == old {
					return nil
				}
				err := errors.Join(lab.Wait(ctx, time.Duration(h.Number)*apart), h.StartDaemon(), startContainer(ctx, h))
				mu.Lock()
				defer mu.Unlock()
				there[h] = time.Now()
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			late := lateness(t)
			waits := firstAnswers(ctx, t, l, there)
			most, machine := waits[len(waits)-1], late()
			t.Logf("%d pairs talk: median %s, most %s after both containers were there", len(waits), waits[len(waits)/2], most)
			if most > letInWithin+machine {
				t.Errorf("one pair talked %s after both containers were there, want %s at most, and %s that the machine was late", most, letInWithin, machine)
			}
		})
	}
}

// startContainer starts a host's container as soon as its daemon has said how.
func startContainer(ctx context.Context, h *lab.Host) error {
	env, err := h.WaitSubnet(ctx)
	if err != nil {
		return err
	}
	return h.StartContainer(env)
}

// firstAnswers are the times from when both were there until the one had an answer of the
// other, in order.
func firstAnswers(ctx context.Context, t *testing.T, l *lab.Lab, there map[*lab.Host]time.Time) []time.Duration {
	t.Helper()
	var (
		mu    sync.Mutex
		waits []time.Duration
		all   sync.WaitGroup
	)
	for _, from := range l.Hosts {
		for _, to := range l.Hosts {
			if from == to {
				continue
			}
			all.Go(func() {
				if err := from.Container.WaitPing(ctx, to.Container.Addr()); err != nil {
					t.Error(err)
				}
				both := there[from]
				if there[to].After(both) {
					both = there[to]
				}
				mu.Lock()
				defer mu.Unlock()
				waits = append(waits, time.Since(both))
			})
		}
	}
	all.Wait()
	slices.Sort(waits)
	return waits
}
