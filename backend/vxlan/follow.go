package vxlan

import (
	"context"
	"errors"
	"slices"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

var _ backend.Follower = (*Backend)(nil)

// Follow does to the entries what c did to the peers. What was there of a peer follows
// from its lease; only which MACs have further users is looked up.
func (b *Backend) Follow(ctx context.Context, c backend.Change) error {
	if b.projection.clash || !b.router.Followable() {
		return backend.ErrNotFollowed
	}
	for _, f := range b.params.Families() {
		if b.devices[f].index == 0 {
			return backend.ErrNotFollowed
		}
	}
	old, fresh, skipped := b.projection.follow(b.devices, c)
	if b.projection.clash {
		// Whose MAC it is, all peers together say.
		return backend.ErrNotFollowed
	}
	var steps []reconcile.Step
	for _, f := range b.params.Families() {
		table := backend.Trusted[kernel.FDB]{Table: b.kernel.FDB(b.devices[f].index), Held: old.fdb[f]}
		steps = append(steps, reconcile.NewStep("fdb entry", table, fresh.fdb[f], nil))
	}
	for _, f := range b.params.Families() {
		table := backend.Trusted[kernel.Neighbour]{Table: b.kernel.Neighbours(b.devices[f].index), Held: old.neighbours[f]}
		steps = append(steps, reconcile.NewStep("neighbour", table, fresh.neighbours[f], nil))
	}
	peers := slices.Collect(subnet.Each(c.New))
	step, blocked := b.router.Follow(old.routes, fresh.routes, peers)
	r, err := reconcile.Apply(ctx, append(steps, step)...)
	if b.params.Observe != nil {
		b.params.Observe(r)
	}
	return errors.Join(skipped, blocked, backend.Blame(err, b.projection.peerOf(peers)))
}

// follow returns what the kernel holds of the change's old peers and what it should
// hold of the new ones. The error joins those of peers that cannot be mapped. What an
// unchanged peer needs too is in neither.
func (p *projection) follow(devices subnet.ByFamily[device], c backend.Change) (old, fresh entries, skipped error) {
	// In this order a MAC whose peer moved is free for it.
	p.entries = entries{}
	for _, f := range p.params.Families() {
		for i := range c.Old {
			p.leave(f, devices[f], &c.Old[i])
		}
	}
	old, p.entries = p.entries, entries{}
	var errs []error
	for _, f := range p.params.Families() {
		for i := range c.New {
			if !c.New[i].Subnet[f].IsValid() {
				continue
			}
			if err := p.add(f, devices[f], &c.New[i]); err != nil {
				errs = append(errs, backend.NewPeerError(&c.New[i], f, err))
			}
		}
	}
	return old, p.entries, errors.Join(errs...)
}

// leave takes a peer out of what is projected, and gathers the entries that were there
// for it alone.
func (p *projection) leave(f subnet.Family, dev device, peer *subnet.Lease) {
	dst, public := peer.Subnet[f], peer.Attrs.PublicIP[f]
	if !dst.IsValid() || p.uplink.CheckPeer(Type, f, peer.Attrs) != nil {
		return
	}
	if p.opts.DirectRouting && p.uplink.OnSegment(public) {
		p.routes = append(p.routes, p.direct(f, peer))
		return
	}
	mac, err := parseVTEP(peer.Attrs.BackendData[f], p.opts.VNI)
	if err != nil || mac == dev.mac {
		return
	}
	key := kernel.FDBKey{Link: dev.index, MAC: mac}
	if h := p.macs[key]; h.users > 1 {
		h.users--
		p.macs[key] = h
	} else {
		delete(p.macs, key)
		p.fdb[f] = append(p.fdb[f], kernel.FDB{Link: dev.index, MAC: mac, Dst: public})
	}
	p.neighbours[f] = append(p.neighbours[f], kernel.Neighbour{Link: dev.index, Addr: dst.Addr(), MAC: mac})
	p.routes = append(p.routes, p.tunnelled(f, dev, peer))
}
