package lab

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// Each runs f for every host concurrently and returns the first error.
func (l *Lab) Each(ctx context.Context, f func(context.Context, *Host) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, h := range l.Hosts {
		g.Go(func() error { return f(ctx, h) })
	}
	return g.Wait()
}

// StartContainers waits for every host's subnet.env and starts its container.
func (l *Lab) StartContainers(ctx context.Context) error {
	return l.Each(ctx, func(ctx context.Context, h *Host) error {
		env, err := h.WaitSubnet(ctx)
		if err != nil {
			return err
		}
		return h.StartContainer(env)
	})
}

// WaitMesh waits until every container has had an answer from every other.
func (l *Lab) WaitMesh(ctx context.Context) error {
	return l.Each(ctx, func(ctx context.Context, from *Host) error {
		for _, to := range l.Hosts {
			if to == from {
				continue
			}
			if err := from.Container.WaitPing(ctx, to.Container.Addr()); err != nil {
				return err
			}
		}
		return nil
	})
}

// Mesh pings from every container to every other, one pair after the other so
// that they do not disturb each other. The result is indexed by the numbers of
// the hosts less one; on the diagonal it is zero.
func (l *Lab) Mesh(ctx context.Context, o PingOptions) ([][]PingResult, error) {
	results := make([][]PingResult, len(l.Hosts))
	for i, from := range l.Hosts {
		results[i] = make([]PingResult, len(l.Hosts))
		for j, to := range l.Hosts {
			if i == j {
				continue
			}
			o.To = to.Container.Addr()
			r, err := from.Container.Ping(ctx, o)
			if err != nil {
				return nil, fmt.Errorf("mesh: %w", err)
			}
			results[i][j] = r
		}
	}
	return results, nil
}
