package hostgw

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Type is the name in Backend.Type and in the leases of peers.
const Type = "host-gw"

// ErrNotOnSegment: the peer can be reached only through a gateway.
var ErrNotOnSegment = errors.New("not on the segment")

// Backend is the host-gw backend. Apply and Cleanup must not run concurrently;
// the rest may.
type Backend struct {
	params backend.Params
	router backend.Router
	// uplink is that of the last Apply.
	uplink backend.Uplink
}

var (
	_ backend.Constructor = New
	_ backend.Recaller    = (*Backend)(nil)
)

// New checks that there are no options; host-gw has none.
func New(p backend.Params) (backend.Backend, error) {
	if err := p.NoOptions(); err != nil {
		return nil, err
	}
	return &Backend{params: p, router: p.Router()}, nil
}

// Attrs has no backend data.
func (b *Backend) Attrs(u backend.Uplink) (subnet.Attrs, error) {
	if err := b.params.CheckUplink(u); err != nil {
		return subnet.Attrs{}, err
	}
	return b.params.Attrs(Type, u), nil
}

// MTU is the uplink's: nothing is added to a packet.
func (b *Backend) MTU(u backend.Uplink) int { return u.Link.MTU }

// Tunnel says that peers' packets come in plainly.
func (b *Backend) Tunnel() backend.Tunnel { return backend.Tunnel{Direct: true} }

// Apply makes the main table hold one route per peer.
func (b *Backend) Apply(ctx context.Context, d backend.Desired) error {
	b.uplink = d.Uplink
	routes, skipped := b.project(d)
	step, blocked := b.router.Step(ctx, backend.RoutePlan{Desired: d, Routes: routes, Blackhole: b.params.Blackhole})
	r, err := b.params.ApplyAndSweep(ctx, nil, step)
	if b.params.Observe != nil {
		b.params.Observe(r)
	}
	return errors.Join(skipped, blocked, backend.Blame(err, backend.PeerOf(d.Peers)))
}

var _ backend.Follower = (*Backend)(nil)

// Follow does to the routes what c did to the peers.
func (b *Backend) Follow(ctx context.Context, c backend.Change) error {
	if !b.router.Followable() {
		return backend.ErrNotFollowed
	}
	// Those without a route had none.
	old, _ := b.project(backend.Desired{Uplink: b.uplink, Peers: slices.Collect(subnet.Each(c.Old))})
	peers := slices.Collect(subnet.Each(c.New))
	routes, skipped := b.project(backend.Desired{Uplink: b.uplink, Peers: peers})
	step, blocked := b.router.Follow(old, routes, peers)
	r, err := reconcile.Apply(ctx, step)
	if b.params.Observe != nil {
		b.params.Observe(r)
	}
	return errors.Join(skipped, blocked, backend.Blame(err, backend.PeerOf(peers)))
}

// Recall reads from the main table which peers an earlier process had routes to.
func (b *Backend) Recall(ctx context.Context) ([]subnet.Lease, error) {
	routes, err := b.router.Recall(ctx, b.params.Config)
	leases := make([]subnet.Lease, 0, len(routes))
	for _, r := range routes {
		leases = append(leases, backend.PeerAt(Type, r.Dst, r.Gateway))
	}
	return leases, err
}

// project maps peers to routes. Peers that cannot be mapped are left out, each
// with a PeerError in the joined error.
func (b *Backend) project(d backend.Desired) ([]kernel.Route, error) {
	peers := d.Peers
	routes := make([]kernel.Route, 0, len(peers))
	var errs []error
	for _, f := range b.params.Families() {
		for _, peer := range peers {
			if !peer.Subnet[f].IsValid() {
				continue
			}
			if err := check(d.Uplink, f, peer.Attrs); err != nil {
				errs = append(errs, backend.NewPeerError(peer, f, err))
				continue
			}
			routes = append(routes, kernel.Route{
				Dst: peer.Subnet[f], Gateway: peer.Attrs.PublicIP[f],
				Link: d.Uplink.Link.Index, Protocol: b.params.Instance.Protocol(),
			})
		}
	}
	return routes, errors.Join(errs...)
}

// check says why a peer cannot be a gateway.
func check(up backend.Uplink, f subnet.Family, peer subnet.Attrs) error {
	if err := up.CheckPeer(Type, f, peer); err != nil {
		return err
	}
	if !up.OnSegment(peer.PublicIP[f]) {
		return fmt.Errorf("%w of %s (%s): host-gw needs all hosts on one layer-2 segment; "+
			"use vxlan with DirectRouting where they are not", ErrNotOnSegment, up.Link.Name, segments(up.Segments, f))
	}
	return nil
}

// segments lists the prefixes of one family.
func segments(all []netip.Prefix, f subnet.Family) string {
	var s []string
	for _, p := range all {
		if subnet.FamilyOf(p.Addr()) == f {
			s = append(s, p.String())
		}
	}
	return strings.Join(s, ", ")
}

// Cleanup removes our routes, and tunnels that an earlier config left.
func (b *Backend) Cleanup(ctx context.Context) error {
	_, routes := b.router.Sweep(ctx)
	_, links := b.params.SweepLinks(ctx)
	return errors.Join(routes, links)
}
