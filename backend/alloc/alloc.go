package alloc

import (
	"context"
	"errors"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Type is the name in Backend.Type.
const Type = "alloc"

// Backend is the alloc backend. Apply and Cleanup must not run concurrently; the
// rest may.
type Backend struct {
	params backend.Params
	router backend.Router
}

var _ backend.Constructor = New

// New checks that there are no options; alloc has none.
func New(p backend.Params) (backend.Backend, error) {
	if err := p.NoOptions(); err != nil {
		return nil, err
	}
	return &Backend{params: p, router: backend.Router{Kernel: p.Kernel, Log: p.Logger()}}, nil
}

// Attrs has the public addresses only.
func (b *Backend) Attrs(u backend.Uplink) (subnet.Attrs, error) { return b.params.Attrs("", u), nil }

// MTU is the uplink's.
func (b *Backend) MTU(u backend.Uplink) int { return u.Link.MTU }

// Tunnel is empty: nothing of ours carries packets.
func (b *Backend) Tunnel() backend.Tunnel { return backend.Tunnel{} }

// Apply leaves no route of ours but the one of last resort, if it is wanted.
func (b *Backend) Apply(ctx context.Context, d backend.Desired) error {
	step, err := b.router.Step(ctx, backend.RoutePlan{Desired: d, Blackhole: b.params.Blackhole})
	r, applyErr := b.params.ApplyAndSweep(ctx, nil, step)
	if b.params.Observe != nil {
		b.params.Observe(r)
	}
	return errors.Join(err, applyErr)
}

// Cleanup removes our routes, and tunnels that an earlier config left.
func (b *Backend) Cleanup(ctx context.Context) error {
	_, routes := b.router.Sweep(ctx)
	_, links := b.params.SweepLinks(ctx)
	return errors.Join(routes, links)
}
