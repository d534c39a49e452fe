package subnet

import (
	"context"
	"time"
)

// impatient is a store whose answers are waited for only so long, each by itself. A
// deed of many requests may take the sum of their times; one of them that hangs, as one
// to a member that is cut off does, must not take all of it. The next request asks
// another member.
type impatient struct {
	Store
	most time.Duration
}

// within does ask, for so long at the most.
func within[T any](ctx context.Context, most time.Duration, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return ask(ctx)
}

// Load implements [Store].
func (s impatient) Load(ctx context.Context) (World, error) {
	return within(ctx, s.most, s.Store.Load)
}

// Create implements [Store].
func (s impatient) Create(ctx context.Context, l Lease, ttl time.Duration, w World) (Lease, error) {
	return within(ctx, s.most, func(ctx context.Context) (Lease, error) { return s.Store.Create(ctx, l, ttl, w) })
}

// Renew implements [Store].
func (s impatient) Renew(ctx context.Context, l Lease) (Lease, error) {
	return within(ctx, s.most, func(ctx context.Context) (Lease, error) { return s.Store.Renew(ctx, l) })
}

// Update implements [Store].
func (s impatient) Update(ctx context.Context, l Lease) (Lease, error) {
	return within(ctx, s.most, func(ctx context.Context) (Lease, error) { return s.Store.Update(ctx, l) })
}

// Release implements [Store].
func (s impatient) Release(ctx context.Context, l Lease) error {
	_, err := within(ctx, s.most, func(ctx context.Context) (struct{}, error) { return struct{}{}, s.Store.Release(ctx, l) })
	return err
}
