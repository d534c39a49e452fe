package udp

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

var _ backend.Follower = (*Backend)(nil)

// Follow does to the packet path's table, and to the plain routes of DirectRouting, what
// c did to the peers. Without such routes the kernel is not called at all.
func (b *Backend) Follow(ctx context.Context, c backend.Change) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.applied == nil || b.tunnel == nil || !b.router.Followable() {
		return backend.ErrNotFollowed
	}
	d := *b.applied
	d.Peers = slices.Collect(subnet.Each(c.Old))
	old := b.project(d) // who did not fit was not there
	d.Peers, d.Former = slices.Collect(subnet.Each(c.New)), c.Former
	fresh := b.project(d)
	gone := make([]netip.Prefix, len(old.peers))
	for i, p := range old.peers {
		gone[i] = p.prefix
	}
	// The table comes first, as in Apply: whom no plain route leads to any more
	// must be found there.
	w := *b.world.Load()
	w.table = w.table.exchange(gone, fresh.peers)
	b.world.Store(&w)
	step, blocked := b.router.Follow(old.routes, fresh.routes, d.Peers)
	r, err := reconcile.Apply(ctx, step)
	if b.params.Observe != nil {
		b.params.Observe(r)
	}
	return errors.Join(blocked, backend.Blame(err, backend.PeerOf(d.Peers)), fresh.unfit)
}
