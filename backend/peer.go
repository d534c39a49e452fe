package backend

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// NewPeerError says what went wrong with one peer in one family.
func NewPeerError(peer *subnet.Lease, f subnet.Family, err error) *PeerError {
	return &PeerError{Subnet: peer.Subnet, PublicIP: peer.Attrs.PublicIP[f], Err: err}
}

// PeerAt is what a path tells of the lease that it was made for.
func PeerAt(backendType string, dst netip.Prefix, public netip.Addr) subnet.Lease {
	f := subnet.FamilyOf(dst.Addr())
	l := subnet.Lease{Attrs: subnet.Attrs{BackendType: backendType}}
	l.Subnet[f], l.Attrs.PublicIP[f] = dst, public
	return l
}

// Blame turns the failures of single entries in err, as reconcile.Apply returns
// them, into failures of the peers that the entries serve. What peer knows no
// peer of (nil) stays as it is.
func Blame(err error, peer func(entry any) *PeerError) error {
	switch e := err.(type) { //nolint:errorlint // the tree is walked by hand
	case *reconcile.EntryError:
		if p := peer(e.Value); p != nil {
			p.Err = e
			return p
		}
	case interface{ Unwrap() []error }:
		subs := make([]error, 0, len(e.Unwrap()))
		for _, sub := range e.Unwrap() {
			subs = append(subs, Blame(sub, peer))
		}
		return errors.Join(subs...)
	case interface{ Unwrap() error }:
		// A wrapper around failures of entries only says which table they
		// are in, and each of them says so itself.
		if len(slices.Collect(reconcile.Failures(err))) > 0 {
			return Blame(e.Unwrap(), peer)
		}
	}
	return err
}

// PeerOf returns a function for [Blame] that finds among peers that of a route.
func PeerOf(peers []*subnet.Lease) func(entry any) *PeerError {
	var byDst map[netip.Prefix]*subnet.Lease // made at the first failure
	return func(entry any) *PeerError {
		if byDst == nil {
			byDst = make(map[netip.Prefix]*subnet.Lease, len(peers))
			for _, peer := range peers {
				for _, dst := range peer.Subnet {
					byDst[dst] = peer
				}
			}
		}
		r, ok := entry.(kernel.Route)
		if !ok || !r.Dst.IsValid() || byDst[r.Dst] == nil {
			return nil
		}
		return NewPeerError(byDst[r.Dst], subnet.FamilyOf(r.Dst.Addr()), nil)
	}
}
