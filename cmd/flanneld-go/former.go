package main

import (
	"net/netip"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// former counts for a while still.
type former[T any] struct {
	what  T
	until time.Duration
}

// expire takes those out of a list that do not count any more.
func expire[S ~[]former[T], T any](list *S, now time.Duration) (expired []T) {
	*list = slices.DeleteFunc(*list, func(f former[T]) bool {
		if now >= f.until {
			expired = append(expired, f.what)
		}
		return now >= f.until
	})
	return expired
}

// formerPeers are leases as they were before their hosts got other addresses: what
// these send from there is on its way still, or they do not know yet that we know.
type formerPeers []former[subnet.Lease]

// togetherIn is by how much later than need be a former lease is forgotten, together with
// others: where peers move all the time, each by itself would cost as much as its move.
const togetherIn = time.Second

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

// take notes leases that have moved at uptime now. Where there are enough of a subnet
// already, the oldest counts no longer.
func (f *formerPeers) take(moved []subnet.Lease, now time.Duration) {
	if len(moved) == 0 {
		return
	}
	counted := make(map[subnet.Subnet]int, len(moved))
	for _, lease := range moved {
		*f = append(*f, former[subnet.Lease]{lease, (now + moveLinger + togetherIn - 1).Truncate(togetherIn)})
		counted[lease.Subnet] = 0
	}
	for i := range slices.Backward(*f) {
		p := &(*f)[i]
		count, more := counted[p.what.Subnet]
		if !more {
			continue
		}
		if counted[p.what.Subnet]++; count >= backend.MostFormer {
			p.until = min(p.until, now)
		}
	}
}

// leases are those that still count. The others are forgotten.
func (f *formerPeers) leases(now time.Duration) []subnet.Lease {
	expire(f, now)
	var list []subnet.Lease
	for _, p := range *f {
		list = append(list, p.what)
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

// of are those that had one of the subnets.
func (f formerPeers) of(subnets []subnet.Lease) []subnet.Lease {
	var list []subnet.Lease
	for _, p := range f {
		if slices.ContainsFunc(subnets, func(l subnet.Lease) bool { return l.Subnet == p.what.Subnet }) {
			list = append(list, p.what)
		}
	}
	return list
}

// formerUplinks are those that this host has sent by a moment ago, and that are still
// there, the latest last: who does not know yet sends there.
type formerUplinks []former[backend.Uplink]

// add notes one that counts until then, later than the others. It returns one that does
// not count any more for that.
func (f *formerUplinks) add(up backend.Uplink, until time.Duration) (gone []backend.Uplink) {
	if len(*f) == backend.MostFormer {
		gone = append(gone, (*f)[0].what)
		*f = slices.Delete(*f, 0, 1)
	}
	*f = append(*f, former[backend.Uplink]{up, until})
	return gone
}

// forget takes out one by which is sent again.
func (f *formerUplinks) forget(up backend.Uplink) {
	*f = slices.DeleteFunc(*f, func(u former[backend.Uplink]) bool { return sameWay(u.what, up) })
}

// ownAddrs are the addresses of uplinks.
func ownAddrs(ups []backend.Uplink) (list []netip.Addr) {
	for _, up := range ups {
		for _, a := range up.Addr {
			if a.IsValid() {
				list = append(list, a)
			}
		}
	}
	return list
}

// interfaces are the names of uplinks.
func interfaces(ups []backend.Uplink) (names []string) {
	for _, up := range ups {
		names = append(names, up.Link.Name)
	}
	return names
}
