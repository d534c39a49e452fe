package subnet

import (
	"net/netip"
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
