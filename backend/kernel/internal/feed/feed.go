// Package feed passes events from a producer that must never wait to a consumer
// that may: equal events that nobody has taken yet are one, and too many of
// them become a single overrun event.
//
//	Add (never blocks) --> set of waiting events --> Run --> channel
package feed

import (
	"context"
	"slices"
	"sync"
)

// Feed holds the waiting events, in the order of their first arrival.
type Feed[E comparable] struct {
	overrun E
	limit   int
	wake    chan struct{}

	mu      sync.Mutex
	waiting []E
}

// New returns an empty feed that replaces more than limit waiting events by
// overrun.
func New[E comparable](overrun E, limit int) *Feed[E] {
	return &Feed[E]{overrun: overrun, limit: limit, wake: make(chan struct{}, 1)}
}

// Add leaves an event for Run. It may be called concurrently.
func (f *Feed[E]) Add(e E) {
	f.mu.Lock()
	f.add(e)
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default: // Run has been woken already
	}
}

func (f *Feed[E]) add(e E) {
	switch {
	case slices.Contains(f.waiting, f.overrun), slices.Contains(f.waiting, e):
	case e == f.overrun, len(f.waiting) == f.limit:
		f.waiting = append(f.waiting[:0], f.overrun)
	default:
		f.waiting = append(f.waiting, e)
	}
}

// Run sends what is added to out until ctx ends. It does not close out.
func (f *Feed[E]) Run(ctx context.Context, out chan<- E) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		for e, ok := f.take(); ok; e, ok = f.take() {
			select {
			case <-ctx.Done():
				return
			case out <- e:
			}
		}
	}
}

func (f *Feed[E]) take() (e E, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.waiting) == 0 {
		return e, false
	}
	e = f.waiting[0]
	f.waiting = slices.Delete(f.waiting, 0, 1)
	return e, true
}
