package subnet

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
)

// ErrNotInPool: the subnet is none that the network config lets hosts lease.
var ErrNotInPool = errors.New("not a subnet of the network config")

// HeldError is a subnet that another holds, whole or in part.
type HeldError struct {
	// Wanted is the subnet asked for, Lease what is in its way.
	Wanted Subnet
	Lease  Lease
}

// Error names the holder.
func (e *HeldError) Error() string {
	if e.Lease.Subnet == e.Wanted {
		return fmt.Sprintf("%s is held by %s", e.Wanted, describeOwner(e.Lease))
	}
	return fmt.Sprintf("%s is held by %s", e.Wanted, describeLease(e.Lease))
}

// Reserve reserves x, in the world just loaded, for a holder named by its Owner,
// by its PublicIP, or by both. A subnet that nobody holds is created; a lease
// that the holder has becomes a reservation and keeps its value, so that neither
// peers nor the running holder notice; a reservation of the holder's stays as it
// is. Everybody else's is a *[HeldError].
//
// The rule of leases holds here too: x must be in the config's pool, or else fit
// it and be the holder's already, and overlaps nothing of others.
// ErrNotInPool, [ErrNoConfig] and joined *[ConfigError]s want another subnet or config;
// ErrTaken, ErrLeaseLost, ErrConfigChanged and ErrStoreChanged mean that w is out
// of date: Load and call again.
func Reserve(ctx context.Context, s Store, w World, x Subnet, holder Attrs) (Lease, error) {
	if holder.Owner == "" && holder.PublicIP == (ByFamily[netip.Addr]{}) {
		return Lease{}, fmt.Errorf("reserve %s: the holder has neither PublicIP nor Owner", x)
	}
	if w.Config.Text == "" {
		return Lease{}, ErrNoConfig
	}
	cfg, err := ParseConfig(w.Config.Text)
	if err != nil {
		return Lease{}, fmt.Errorf("read network config: %w", err)
	}
	held, err := holds(w, x, holder)
	if err != nil {
		return Lease{}, err
	}
	pool := cfg.Pool()
	switch {
	case held == nil && !pool.Contains(x), held != nil && !pool.Fits(x):
		return Lease{}, fmt.Errorf("%s: %w, which has %s", x, ErrNotInPool, pool)
	case held == nil:
		return s.Create(ctx, Lease{Subnet: x, Attrs: holder}, 0, w)
	case held.Reservation():
		return *held, nil
	}
	return s.Reserve(ctx, *held, w)
}

// holds returns the lease of exactly x if it is the holder's; nil: nobody has
// it. What belongs to others, in whole or in part, is an error.
func holds(w World, x Subnet, holder Attrs) (*Lease, error) {
	for _, b := range w.Bad {
		if b.Occupies.Overlaps(x) {
			return nil, fmt.Errorf("%s is occupied by key %s, which cannot be read: %w", x, b.Key, b.Err)
		}
	}
	var held *Lease
	for i, l := range w.Leases {
		switch {
		case !l.Subnet.Overlaps(x):
		case !l.Attrs.sameHolder(holder):
			return nil, &HeldError{Wanted: x, Lease: l}
		case l.Subnet == x:
			held = &w.Leases[i]
		}
	}
	return held, nil
}

// sameHolder reports whether a lease with attributes a belongs to the holder
// that an operator named: by node id, or else by address.
func (a Attrs) sameHolder(holder Attrs) bool {
	if a.Owner != "" && holder.Owner != "" {
		return a.Owner == holder.Owner
	}
	return samePublicIP(a.PublicIP, holder.PublicIP)
}

// samePublicIP reports whether two hosts' addresses are the same in every
// family in which both have one, and in one at least.
func samePublicIP(a, b ByFamily[netip.Addr]) bool {
	compared, equal := compareAddrs(a, b)
	return equal > 0 && equal == compared
}

// compareAddrs counts the families in which both have an address, and those in
// which it is the same.
func compareAddrs(a, b ByFamily[netip.Addr]) (compared, equal int) {
	for f := range a {
		if a[f].IsValid() && b[f].IsValid() {
			compared++
			if a[f] == b[f] {
				equal++
			}
		}
	}
	return compared, equal
}

// SamePublicIP returns the leases of different owners that publish one address,
// a group per set of owners, each sorted by subnet as the groups are: only one
// host can have an address, and the others' containers are unreachable. Leases
// without an owner, which flannel wrote, belong to whoever has the address.
func SamePublicIP(leases iter.Seq[*Lease]) [][]Lease {
	byAddr := map[netip.Addr][]Lease{}
	for _, a := range sharedAddrs(leases) {
		byAddr[a] = nil
	}
	if len(byAddr) == 0 {
		return nil
	}
	for l := range leases {
		if l.Attrs.Owner == "" {
			continue
		}
		for _, a := range l.Attrs.PublicIP {
			if group, shared := byAddr[a]; shared {
				byAddr[a] = append(group, *l)
			}
		}
	}
	var groups [][]Lease
	for _, group := range byAddr {
		slices.SortFunc(group, bySubnet)
		groups = append(groups, group)
	}
	slices.SortFunc(groups, func(a, b []Lease) int { return slices.CompareFunc(a, b, bySubnet) })
	// Two hosts may share an address of either family.
	return slices.CompactFunc(groups, slices.Equal)
}

// sharedAddrs returns the addresses that several owners publish, some repeatedly. As a
// rule there is none, and of each address only an owner is kept.
func sharedAddrs(leases iter.Seq[*Lease]) []netip.Addr {
	var shared []netip.Addr
	owners := map[netip.Addr]NodeID{}
	for l := range leases {
		attrs := &l.Attrs
		if attrs.Owner == "" {
			continue
		}
		for _, a := range attrs.PublicIP {
			if !a.IsValid() {
				continue
			}
			owner, taken := owners[a]
			if !taken {
				owners[a] = attrs.Owner
			} else if owner != attrs.Owner {
				shared = append(shared, a)
			}
		}
	}
	return shared
}

func bySubnet(a, b Lease) int { return a.Subnet.Compare(b.Subnet) }
