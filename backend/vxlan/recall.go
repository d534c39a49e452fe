package vxlan

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

var _ backend.Recaller = (*Backend)(nil)

// Recall reads from the kernel which peers an earlier process had paths to.
func (b *Backend) Recall(ctx context.Context) ([]subnet.Lease, error) {
	routes, err := b.router.Recall(ctx, b.params.Config)
	if err != nil || len(routes) == 0 {
		return nil, err
	}
	links, err := b.kernel.Links(ctx)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var known subnet.ByFamily[ends]
	for _, f := range b.params.Families() {
		if dev, found := find(links, deviceName(f, b.opts.VNI)); found && b.adoptable(dev) {
			if known[f], err = b.ends(ctx, dev.Index); err != nil {
				return nil, err
			}
		}
	}
	var leases []subnet.Lease
	for _, r := range routes {
		f := subnet.FamilyOf(r.Dst.Addr())
		lease := backend.PeerAt(Type, r.Dst, r.Gateway)
		switch {
		case r.Link == known[f].device:
			mac, found := known[f].macs[r.Gateway]
			if !found { // Else it would be where all that is unknown goes.
				continue
			}
			lease.Attrs.PublicIP[f] = known[f].publics[mac]
			if lease.Attrs.BackendData[f], err = marshalVTEP(b.opts.VNI, mac); err != nil {
				return nil, err
			}
		case !b.opts.DirectRouting:
			continue
		}
		if lease.Attrs.PublicIP[f].IsValid() {
			leases = append(leases, lease)
		}
	}
	return leases, nil
}

// ends are where a device leads: from a gateway to a MAC, from there to a host.
type ends struct {
	device  int
	macs    map[netip.Addr]kernel.MAC
	publics map[kernel.MAC]netip.Addr
}

func (b *Backend) ends(ctx context.Context, device int) (ends, error) {
	neighbours, err := b.kernel.Neighbours(device).List(ctx)
	if err != nil {
		return ends{}, fmt.Errorf("list neighbours: %w", err)
	}
	e := ends{device, make(map[netip.Addr]kernel.MAC, len(neighbours)), make(map[kernel.MAC]netip.Addr, len(neighbours))}
	for _, n := range neighbours {
		e.macs[n.Addr] = n.MAC
	}
	fdb, err := b.kernel.FDB(device).List(ctx)
	if err != nil {
		return ends{}, fmt.Errorf("list fdb entries: %w", err)
	}
	for _, entry := range fdb {
		e.publics[entry.MAC] = entry.Dst
	}
	return e, nil
}
