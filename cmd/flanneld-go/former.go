package main

import (
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// formerPeers are leases as they were before their hosts got other addresses: what
// these send from there is on its way still, or they do not know yet that we know.
type formerPeers []formerPeer

type formerPeer struct {
	lease subnet.Lease
	until time.Duration
}

// moved returns those of was whose hosts have other addresses in is, which is sorted by
// subnet: who has no Owner is another at another address.
func moved(was, is []*subnet.Lease) []subnet.Lease {
	var list []subnet.Lease
	for _, peer := range was {
		at, found := findPeer(is, peer.Subnet)
		if found && peer.Attrs.Owner != "" && peer.Attrs.Owner == is[at].Attrs.Owner && peer.Attrs.PublicIP != is[at].Attrs.PublicIP {
			list = append(list, *peer)
		}
	}
	return list
}

// take notes leases that have moved at uptime now.
func (f *formerPeers) take(moved []subnet.Lease, now time.Duration) {
	for _, lease := range moved {
		*f = append(*f, formerPeer{lease, now + moveLinger})
	}
}

// leases are those that still count. The others are forgotten.
func (f *formerPeers) leases(now time.Duration) []subnet.Lease {
	f.expire(now)
	var list []subnet.Lease
	for _, p := range *f {
		list = append(list, p.lease)
	}
	return list
}

// next is when the first of them ceases to count, if that is before at.
func (f formerPeers) next(at time.Duration) time.Duration {
	for _, p := range f {
		at = min(at, p.until)
	}
	return at
}

// expire takes out those that do not count any more.
func (f *formerPeers) expire(now time.Duration) (expired []subnet.Lease) {
	*f = slices.DeleteFunc(*f, func(p formerPeer) bool {
		if now >= p.until {
			expired = append(expired, p.lease)
		}
		return now >= p.until
	})
	return expired
}

// of are those that had one of the subnets.
func (f formerPeers) of(subnets []subnet.Lease) []subnet.Lease {
	var list []subnet.Lease
	for _, p := range f {
		if slices.ContainsFunc(subnets, func(l subnet.Lease) bool { return l.Subnet == p.lease.Subnet }) {
			list = append(list, p.lease)
		}
	}
	return list
}
