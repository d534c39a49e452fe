package subnet

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"time"
)

// Revision is a position in the store's log. It only grows.
type Revision int64

// LeaseID names the store's own expiring lease that a key hangs on. Zero: the
// key hangs on none, it is a reservation.
type LeaseID int64

// NodeID names a host for as long as it lives, whatever its addresses are.
type NodeID string

// Subnet is what one lease covers: a prefix per enabled family, masked; the
// zero Prefix where a family is off. It is comparable and serves as a map key.
type Subnet ByFamily[netip.Prefix]

// RawJSON is one JSON value as text. Being a string it is immutable and
// comparable.
type RawJSON string

// Attrs is what peers must know of a lease's owner: the value stored under its
// key. It is comparable.
type Attrs struct {
	// PublicIP is the address that encapsulated traffic is sent to.
	PublicIP ByFamily[netip.Addr]
	// BackendType is empty for udp, as in flannel.
	BackendType string
	// BackendData is the backend's own JSON object, per family of the uplink.
	BackendData ByFamily[RawJSON]
	// Owner is empty in keys that flannel wrote: such a key belongs to
	// whoever has its PublicIP.
	Owner NodeID
	// Instance is random per process of the owner.
	Instance string
	// Challenge is who asks whether the owner lives; zero: nobody. A living
	// owner answers by writing the value without it.
	Challenge Challenge
}

// Challenge is a claimant's question to the owner of a lease that has the
// claimant's node id and another address.
type Challenge struct {
	// Instance and PublicIP are the claimant's own.
	Instance string
	PublicIP ByFamily[netip.Addr]
}

// IsZero reports whether c is none.
func (c Challenge) IsZero() bool { return c == Challenge{} }

// Lease is one host's subnet as the store holds it.
type Lease struct {
	Subnet Subnet
	Attrs  Attrs
	// ID is zero for a reservation.
	ID LeaseID
	// TTL is what the store granted when the lease was created or last
	// renewed; zero when it is not known (leases of peers) or never expires.
	TTL time.Duration
	// Created and Modified are the revisions of the key's creation and last
	// change; compare-and-swap is done on Modified.
	Created, Modified Revision
}

// Reservation reports whether l never expires.
func (l Lease) Reservation() bool { return l.ID == 0 }

// ByKey are copies of leases in the order of their keys, as a [World] has them.
func ByKey(leases []*Lease) []Lease {
	// Keys are written once, and not for each comparison; what is sorted is small.
	type keyed struct {
		key string
		*Lease
	}
	all := make([]keyed, len(leases))
	for i, l := range leases {
		all[i] = keyed{l.Subnet.Key(), l}
	}
	slices.SortFunc(all, func(a, b keyed) int { return cmp.Compare(a.key, b.key) })
	sorted := make([]Lease, len(all))
	for i, k := range all {
		sorted[i] = *k.Lease
	}
	return sorted
}

// SameLeases reports whether a and b are the same leases in the same order. Those that
// are shared are not compared.
func SameLeases(a, b []*Lease) bool {
	return slices.EqualFunc(a, b, func(a, b *Lease) bool { return a == b || *a == *b })
}

// Each yields leases where they are.
func Each(leases []Lease) iter.Seq[*Lease] {
	return func(yield func(*Lease) bool) {
		for i := range leases {
			if !yield(&leases[i]) {
				return
			}
		}
	}
}
