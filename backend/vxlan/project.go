package vxlan

import (
	"errors"
	"fmt"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// device is the tunnel of one family, as far as peers' entries need it. The
// zero device: there is none, and entries through it have to wait.
type device struct {
	index int
	mac   kernel.MAC
}

// projection says which entries the leases mean. It keeps its buffers, and the
// MACs that it has read, from one Apply to the next: of 10,000 leases hardly one
// has changed.
type projection struct {
	params backend.Params
	opts   Options
	uplink backend.Uplink // of the present call

	entries
	vteps map[subnet.RawJSON]kernel.MAC
}

// entries are what the kernel should hold for all peers.
type entries struct {
	fdb        subnet.ByFamily[[]kernel.FDB]
	neighbours subnet.ByFamily[[]kernel.Neighbour]
	routes     []backend.PeerRoute
	// macs are the peers by their FDB entry.
	macs map[kernel.FDBKey]*subnet.Lease
}

// project maps d's peers to entries, which are valid until the next call. Peers that
// cannot be mapped are left out, each with a PeerError in the joined error.
func (p *projection) project(devices subnet.ByFamily[device], d backend.Desired) error {
	peers := d.Peers
	p.reset(len(peers))
	p.uplink = d.Uplink
	var errs []error
	for _, f := range p.params.Families() {
		for i := range peers {
			if !peers[i].Subnet[f].IsValid() {
				continue
			}
			if err := p.add(f, devices[f], &peers[i]); err != nil {
				errs = append(errs, backend.NewPeerError(&peers[i], f, err))
			}
		}
	}
	return errors.Join(errs...)
}

// reset empties the buffers, and the MACs once most of them are of the past.
func (p *projection) reset(peers int) {
	const spare = 1024
	for f := range p.fdb {
		p.fdb[f], p.neighbours[f] = p.fdb[f][:0], p.neighbours[f][:0]
	}
	p.routes = p.routes[:0]
	if p.vteps == nil || len(p.vteps) > 4*peers+spare {
		p.vteps = make(map[subnet.RawJSON]kernel.MAC, peers)
	}
	if p.macs == nil {
		p.macs = make(map[kernel.FDBKey]*subnet.Lease, peers)
	}
	clear(p.macs)
}

// vtep reads a peer's MAC, once.
func (p *projection) vtep(raw subnet.RawJSON) (kernel.MAC, error) {
	if mac, ok := p.vteps[raw]; ok {
		return mac, nil
	}
	mac, err := parseVTEP(raw, p.opts.VNI)
	if err == nil {
		p.vteps[raw] = mac
	}
	return mac, err
}

// add projects one peer in one family.
func (p *projection) add(f subnet.Family, dev device, peer *subnet.Lease) error {
	if err := p.uplink.CheckPeer(Type, f, peer.Attrs); err != nil {
		return err
	}
	public := peer.Attrs.PublicIP[f]
	if p.opts.DirectRouting && p.uplink.OnSegment(public) {
		p.routes = append(p.routes, backend.PeerRoute{Peer: peer, Route: kernel.Route{
			Dst: peer.Subnet[f], Gateway: public, Link: p.uplink.Link.Index, Protocol: kernel.Protocol,
		}})
		return nil
	}
	mac, err := p.vtep(peer.Attrs.BackendData[f])
	if err != nil || dev.index == 0 {
		return err // without a device its own error says it all
	}
	return p.tunnel(f, dev, peer, mac)
}

// tunnel adds a peer that is reached through the device.
func (p *projection) tunnel(f subnet.Family, dev device, peer *subnet.Lease, mac kernel.MAC) error {
	dst := peer.Subnet[f]
	fdb := kernel.FDB{Link: dev.index, MAC: mac, Dst: peer.Attrs.PublicIP[f]}
	if mac == dev.mac {
		return fmt.Errorf("its VtepMAC %s is this host's own", mac)
	}
	switch first := p.macs[fdb.Key()]; {
	case first == nil:
		p.macs[fdb.Key()] = peer
		p.fdb[f] = append(p.fdb[f], fdb)
	case first.Attrs.PublicIP[f] != fdb.Dst:
		return fmt.Errorf("its VtepMAC %s is also that of %s", mac, first.Subnet)
	default:
		// One host with two subnets: the former one stays in view for a while
		// after the host has moved, and longer where its key cannot be read.
	}
	p.neighbours[f] = append(p.neighbours[f], kernel.Neighbour{Link: dev.index, Addr: dst.Addr(), MAC: mac})
	p.routes = append(p.routes, backend.PeerRoute{Peer: peer, Route: kernel.Route{
		Dst: dst, Gateway: dst.Addr(), Link: dev.index, OnLink: true, Protocol: kernel.Protocol,
	}})
	return nil
}

// peerOf returns a function for backend.Blame that finds the peer of an entry
// of ours, be it a past one of the same MAC.
func (e *entries) peerOf() func(entry any) *backend.PeerError {
	ofRoute := backend.PeerOf(e.routes)
	return func(entry any) *backend.PeerError {
		var key kernel.FDBKey
		switch k := entry.(type) {
		case kernel.FDB:
			key = k.Key()
		case kernel.Neighbour:
			key = kernel.FDBKey{Link: k.Link, MAC: k.MAC}
		default:
			return ofRoute(entry)
		}
		peer := e.macs[key]
		if peer == nil {
			return nil
		}
		for f, fdb := range e.fdb {
			if len(fdb) > 0 && fdb[0].Link == key.Link {
				return backend.NewPeerError(peer, subnet.Family(f), nil) //nolint:gosec // one of two
			}
		}
		return nil
	}
}
