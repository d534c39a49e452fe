package vxlan

import (
	"errors"
	"fmt"
	"net/netip"

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

// projection says which entries one lease means.
type projection struct {
	params  backend.Params
	opts    Options
	devices subnet.ByFamily[device]
}

// entries are what the kernel should hold for all peers.
type entries struct {
	fdb        subnet.ByFamily[[]kernel.FDB]
	neighbours subnet.ByFamily[[]kernel.Neighbour]
	routes     []backend.PeerRoute
	// macs and subnets find the peer of an entry again.
	macs    map[kernel.FDBKey]*subnet.Lease
	subnets map[netip.Addr]*subnet.Lease
}

// project maps peers to entries. Peers that cannot be mapped are left out, each
// with a PeerError in the joined error.
func (p projection) project(peers []subnet.Lease) (entries, error) {
	e := entries{
		routes:  make([]backend.PeerRoute, 0, len(peers)),
		macs:    make(map[kernel.FDBKey]*subnet.Lease, len(peers)),
		subnets: make(map[netip.Addr]*subnet.Lease, len(peers)),
	}
	var errs []error
	for _, f := range p.params.Families() {
		for i := range peers {
			if !peers[i].Subnet[f].IsValid() {
				continue
			}
			if err := p.add(&e, f, &peers[i]); err != nil {
				errs = append(errs, backend.NewPeerError(&peers[i], f, err))
			}
		}
	}
	return e, errors.Join(errs...)
}

// add projects one peer in one family.
func (p projection) add(e *entries, f subnet.Family, peer *subnet.Lease) error {
	if err := p.params.CheckPeer(Type, f, peer.Attrs); err != nil {
		return err
	}
	mac, err := parseVTEP(peer.Attrs.BackendData[f], p.opts.VNI)
	if err != nil {
		return err
	}
	public := peer.Attrs.PublicIP[f]
	dst := peer.Subnet[f]
	if p.opts.DirectRouting && p.params.Uplink.OnSegment(public) {
		e.subnets[dst.Addr()] = peer
		e.routes = append(e.routes, backend.PeerRoute{Peer: peer, Route: kernel.Route{
			Dst: dst, Gateway: public, Link: p.params.Uplink.Link.Index, Protocol: kernel.Protocol,
		}})
		return nil
	}
	return p.tunnel(e, f, peer, mac)
}

// tunnel adds a peer that is reached through the device.
func (p projection) tunnel(e *entries, f subnet.Family, peer *subnet.Lease, mac kernel.MAC) error {
	dev, dst := p.devices[f], peer.Subnet[f]
	if dev.index == 0 {
		return nil // the device's own error says it all
	}
	fdb := kernel.FDB{Link: dev.index, MAC: mac, Dst: peer.Attrs.PublicIP[f]}
	if mac == dev.mac {
		return fmt.Errorf("its VtepMAC %s is this host's own", mac.String())
	}
	if first := e.macs[fdb.Key()]; first != nil {
		return fmt.Errorf("its VtepMAC %s is also that of %s", mac.String(), first.Subnet)
	}
	e.macs[fdb.Key()] = peer
	e.subnets[dst.Addr()] = peer
	e.fdb[f] = append(e.fdb[f], fdb)
	e.neighbours[f] = append(e.neighbours[f], kernel.Neighbour{Link: dev.index, Addr: dst.Addr(), MAC: mac})
	e.routes = append(e.routes, backend.PeerRoute{Peer: peer, Route: kernel.Route{
		Dst: dst, Gateway: dst.Addr(), Link: dev.index, OnLink: true, Protocol: kernel.Protocol,
	}})
	return nil
}

// peer finds the peer that a kernel entry serves.
func (e entries) peer(entry any) *backend.PeerError {
	var (
		lease *subnet.Lease
		f     subnet.Family
	)
	switch k := entry.(type) {
	case kernel.FDB:
		lease, f = e.macs[k.Key()], subnet.FamilyOf(k.Dst)
	case kernel.Neighbour:
		lease, f = e.subnets[k.Addr], subnet.FamilyOf(k.Addr)
	case kernel.Route:
		lease, f = e.subnets[k.Dst.Addr()], subnet.FamilyOf(k.Dst.Addr())
	}
	if lease == nil {
		return nil
	}
	return backend.NewPeerError(lease, f, nil)
}
