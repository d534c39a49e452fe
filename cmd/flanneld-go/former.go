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

// take notes which of the peers have moved: who has no Owner is another at another
// address. Both lists are sorted by subnet.
func (f *formerPeers) take(was, is []subnet.Lease, now time.Duration) {
	for i := range was {
		j, found := slices.BinarySearchFunc(is, was[i].Subnet, func(l subnet.Lease, s subnet.Subnet) int { return l.Subnet.Compare(s) })
		if found && was[i].Attrs.Owner != "" && was[i].Attrs.Owner == is[j].Attrs.Owner && was[i].Attrs.PublicIP != is[j].Attrs.PublicIP {
			*f = append(*f, formerPeer{was[i], now + moveLinger})
		}
	}
}

// leases are those that still count. The others are forgotten.
func (f *formerPeers) leases(now time.Duration) []subnet.Lease {
	*f = slices.DeleteFunc(*f, func(p formerPeer) bool { return now >= p.until })
	var list []subnet.Lease
	for _, p := range *f {
		list = append(list, p.lease)
	}
	return list
}

// until shortens a pause so that none of them counts for longer than it should.
func (f formerPeers) until(pause, now time.Duration) time.Duration {
	for _, p := range f {
		pause = min(pause, max(p.until-now, time.Millisecond))
	}
	return pause
}
