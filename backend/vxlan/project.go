package vxlan

import (
	"errors"
	"fmt"
	"slices"

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

// projection says which entries the leases mean. It keeps its buffers from one Apply to
// the next.
type projection struct {
	params backend.Params
	opts   Options
	uplink backend.Uplink // of the present call

	entries
	// macs are the peers by their FDB entry.
	macs map[kernel.FDBKey]holder
	// clash: a peer has no entries because of another's. When that one goes, the
	// first must be looked at again.
	clash bool
}

// holder is the peer of a MAC. A host with two subnets has one MAC for both.
type holder struct {
	peer   *subnet.Lease
	users  int32
	family subnet.Family
}

// entries are what the kernel should hold for all peers.
type entries struct {
	fdb        subnet.ByFamily[[]kernel.FDB]
	neighbours subnet.ByFamily[[]kernel.Neighbour]
	routes     []kernel.Route
}

// project maps d's peers to entries, which are valid until the next call. Peers that
// cannot be mapped are left out, each with a PeerError in the joined error.
func (p *projection) project(devices subnet.ByFamily[device], d backend.Desired) error {
	peers := d.Peers
	p.reset(len(peers))
	p.uplink = d.Uplink
	var errs []error
	for _, f := range p.params.Families() {
		p.grow(f, devices[f], len(peers))
		for _, peer := range peers {
			if !peer.Subnet[f].IsValid() {
				continue
			}
			if err := p.add(f, devices[f], peer); err != nil {
				errs = append(errs, backend.NewPeerError(peer, f, err))
			}
		}
	}
	return errors.Join(errs...)
}

// clear empties the entries, whose buffers stay.
func (e *entries) clear() {
	for f := range e.fdb {
		e.fdb[f], e.neighbours[f] = e.fdb[f][:0], e.neighbours[f][:0]
	}
	e.routes = e.routes[:0]
}

// grow makes room for as many peers' entries at once: buffers that double as they fill
// leave as much garbage as they hold.
func (e *entries) grow(f subnet.Family, dev device, peers int) {
	e.routes = slices.Grow(e.routes, peers)
	if dev.index != 0 {
		e.fdb[f], e.neighbours[f] = slices.Grow(e.fdb[f], peers), slices.Grow(e.neighbours[f], peers)
	}
}

// reset empties the buffers.
func (p *projection) reset(peers int) {
	p.clear()
	p.clash = false
	if p.macs == nil {
		p.macs = make(map[kernel.FDBKey]holder, peers)
	}
	clear(p.macs)
}

// add projects one peer in one family.
func (p *projection) add(f subnet.Family, dev device, peer *subnet.Lease) error {
	if err := p.uplink.CheckPeer(Type, f, peer.Attrs); err != nil {
		return err
	}
	public := peer.Attrs.PublicIP[f]
	if p.opts.DirectRouting && p.uplink.OnSegment(public) {
		p.routes = append(p.routes, p.direct(f, peer))
		return nil
	}
	mac, err := parseVTEP(peer.Attrs.BackendData[f], p.opts.VNI)
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
	first, taken := p.macs[fdb.Key()]
	switch {
	case !taken:
		first = holder{peer: peer, family: f}
		p.fdb[f] = append(p.fdb[f], fdb)
	case first.peer.Attrs.PublicIP[f] != fdb.Dst:
		p.clash = true
		return fmt.Errorf("its VtepMAC %s is also that of %s", mac, first.peer.Subnet)
	default:
		// One host with two subnets: the former one stays in view for a while
		// after the host has moved, and longer where its key cannot be read.
	}
	first.users++
	p.macs[fdb.Key()] = first
	p.neighbours[f] = append(p.neighbours[f], kernel.Neighbour{Link: dev.index, Addr: dst.Addr(), MAC: mac})
	p.routes = append(p.routes, p.tunnelled(f, dev, peer))
	return nil
}

// direct is the route to a peer on the uplink's own segment.
func (p *projection) direct(f subnet.Family, peer *subnet.Lease) kernel.Route {
	return kernel.Route{Dst: peer.Subnet[f], Gateway: peer.Attrs.PublicIP[f], Link: p.uplink.Link.Index, Protocol: p.params.Instance.Protocol()}
}

// tunnelled is the route to a peer through the device.
func (p *projection) tunnelled(f subnet.Family, dev device, peer *subnet.Lease) kernel.Route {
	dst := peer.Subnet[f]
	return kernel.Route{Dst: dst, Gateway: dst.Addr(), Link: dev.index, OnLink: true, Protocol: p.params.Instance.Protocol()}
}

// peerOf returns a function for backend.Blame that finds among peers that of a route,
// and of another entry of ours, be it a past one of the same MAC.
func (p *projection) peerOf(peers []*subnet.Lease) func(entry any) *backend.PeerError {
	ofRoute := backend.PeerOf(peers)
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
		if h, found := p.macs[key]; found {
			return backend.NewPeerError(h.peer, h.family, nil)
		}
		return nil
	}
}
