package subnet_test

import (
	"context"
	"errors"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// burstStore is a Store whose watches bring so many batches at once, and end.
type burstStore struct {
	subnet.Store
	burst int
	// after is where each watch began.
	after chan subnet.Revision
}

func (s *burstStore) Watch(_ context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
	s.after <- after
	return func(yield func(subnet.Batch, error) bool) {
		for n := range s.burst {
			if n == 1 {
				time.Sleep(time.Microsecond) // The first one is taken alone.
			}
			if !yield(subnet.Batch{Revision: after + subnet.Revision(n) + 1}, nil) {
				return
			}
		}
		yield(subnet.Batch{}, errors.New("the stream broke"))
	}
}

// slowClock takes its time, in which a whole burst comes and ends.
type slowClock struct{ *bubbleClock }

func (c slowClock) Timer(d time.Duration) subnet.Timer {
	time.Sleep(time.Millisecond)
	return c.bubbleClock.Timer(d)
}

// A store goes on from where its watch ended, so a view must not lose what came last:
// it would begin the next one where the store knows of nothing that it could prove
// its past by.
func TestViewTakesWhatCameBeforeTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const watches, burst = 50, 20
		// So many leases that a broken watch is gone on with.
		data := crowdOf(t)
		store := &burstStore{Store: data, burst: burst, after: make(chan subnet.Revision, 1)}
		world, err := data.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		view := subnet.NewView(subnet.ViewOptions{Store: store, Clock: slowClock{newClock()}, World: world, Random: func() float64 { return 0.9 }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- view.Run(ctx) }()
		first := <-store.after
		for n := range watches {
			want := first + subnet.Revision((n+1)*burst)
			if got := <-store.after; got != want {
				t.Errorf("watch %d begins at %d, want %d", n+1, got, want)
				break
			}
		}
		cancel()
		for {
			select {
			case <-store.after:
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
				return
			}
		}
	})
}
