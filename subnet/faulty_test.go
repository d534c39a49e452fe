package subnet_test

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// slowStore is far away: every request and every answer takes its time, and so
// does what a watch yields.
type slowStore struct {
	subnet.Store
	oneWay time.Duration
}

func (s slowStore) travel(ctx context.Context) error {
	timer := time.NewTimer(s.oneWay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// trip is one call there and back.
func trip[T any](ctx context.Context, s slowStore, call func() (T, error)) (T, error) {
	var none T
	if err := s.travel(ctx); err != nil {
		return none, err
	}
	got, err := call()
	return got, errors.Join(err, s.travel(ctx))
}

func (s slowStore) Load(ctx context.Context) (subnet.World, error) {
	return trip(ctx, s, func() (subnet.World, error) { return s.Store.Load(ctx) })
}

func (s slowStore) Renew(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	return trip(ctx, s, func() (subnet.Lease, error) { return s.Store.Renew(ctx, l) })
}

func (s slowStore) Update(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	return trip(ctx, s, func() (subnet.Lease, error) { return s.Store.Update(ctx, l) })
}

func (s slowStore) Watch(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
	return func(yield func(subnet.Batch, error) bool) {
		for b, err := range s.Store.Watch(ctx, after) {
			if slow := s.travel(ctx); slow != nil && err == nil {
				err = slow
			}
			if !yield(b, err) {
				return
			}
		}
	}
}

// faultyStore is away from the store, and sends some writes late: seconds after
// it said that they failed.
type faultyStore struct {
	subnet.Store
	h *machine
}

// send makes one call of a write, now or late.
func send[T any](ctx context.Context, s faultyStore, call func(context.Context) (T, error)) (T, error) {
	if s.h.delay.Add(-1) >= 0 {
		time.AfterFunc(1500*time.Millisecond, func() { _, _ = call(context.Background()) })
		var none T
		return none, errDown
	}
	return trip(ctx, s.far(), func() (T, error) { return call(ctx) })
}

// far is the distance alone.
func (s faultyStore) far() slowStore {
	return slowStore{s.Store, time.Duration(s.h.oneWay.Load())}
}

func (s faultyStore) Load(ctx context.Context) (subnet.World, error) { return s.far().Load(ctx) }

func (s faultyStore) Create(ctx context.Context, l subnet.Lease, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
	return send(ctx, s, func(ctx context.Context) (subnet.Lease, error) { return s.Store.Create(ctx, l, ttl, w) })
}

func (s faultyStore) Update(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	return send(ctx, s, func(ctx context.Context) (subnet.Lease, error) { return s.Store.Update(ctx, l) })
}

func (s faultyStore) Renew(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	return send(ctx, s, func(ctx context.Context) (subnet.Lease, error) { return s.Store.Renew(ctx, l) })
}

func (s faultyStore) Release(ctx context.Context, l subnet.Lease) error {
	_, err := send(ctx, s, func(ctx context.Context) (struct{}, error) { return struct{}{}, s.Store.Release(ctx, l) })
	return err
}

func (s faultyStore) Watch(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
	return s.far().Watch(ctx, after)
}
