package main

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend/udp"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// self is what tells our own leases from those of peers.
type self struct {
	node   subnet.NodeID
	public subnet.ByFamily[netip.Addr]
	subnet subnet.Subnet
}

// refusal is a lease that gets no path, and why.
type refusal struct {
	lease subnet.Lease
	why   string
	// shared: it publishes our own address, which is the lease's problem and
	// not that of the peers.
	shared bool
}

// selectPeers returns the leases that get a path, sorted by subnet, and those
// that are refused. Leases of our own are in neither, nor are reservations that
// nobody has taken up. Of two peers whose subnets overlap the one leased first
// keeps its path: the other cannot have been made by the rules.
func selectPeers(cfg *subnet.Config, me self, leases iter.Seq[*subnet.Lease]) (peers []*subnet.Lease, refused []refusal) {
	for l := range leases {
		switch v, r := judgeLease(cfg, me, l); v {
		case isPeer:
			peers = append(peers, l)
		case isRefused:
			refused = append(refused, r)
		case isNone:
		}
	}
	slices.SortFunc(peers, bySubnet)
	if !anyOverlap(peers) {
		return peers, refused
	}
	return dropOverlaps(peers, refused)
}

// verdict is what a lease comes to, by itself.
type verdict uint8

const (
	// isNone: it is our own, or nobody's yet.
	isNone verdict = iota
	isPeer
	isRefused
)

// judgeLease says what a lease comes to.
func judgeLease(cfg *subnet.Config, me self, l *subnet.Lease) (verdict, refusal) {
	switch {
	case l.Subnet == me.subnet || l.Attrs.Owner != "" && l.Attrs.Owner == me.node:
		return isNone, refusal{}
	case l.Subnet.Overlaps(me.subnet):
		return isRefused, refusal{lease: *l, why: fmt.Sprintf("overlaps our own subnet %s", me.subnet)}
	case !insideNetwork(cfg, l.Subnet):
		return isRefused, refusal{lease: *l, why: "lies outside the network " + strings.Join(networks(cfg), " and ")}
	case awaited(cfg, me, l):
		return isNone, refusal{}
	case publishes(l, me.public):
		return isRefused, refusal{lease: *l, why: "publishes this host's own address: a stale key, or two hosts with one --public-ip", shared: l.Attrs.Owner != ""}
	}
	return isPeer, refusal{}
}

// anyOverlap is the check that every round pays for: sorted by address, with
// the wider first, a prefix overlaps another only if it overlaps its neighbour.
func anyOverlap(peers []*subnet.Lease) bool {
	prefixes := make([]netip.Prefix, 0, len(peers))
	for _, f := range subnet.Families() {
		prefixes = prefixes[:0]
		for _, l := range peers {
			if l.Subnet[f].IsValid() {
				prefixes = append(prefixes, l.Subnet[f])
			}
		}
		slices.SortFunc(prefixes, comparePrefixes)
		for i := 1; i < len(prefixes); i++ {
			if prefixes[i-1].Overlaps(prefixes[i]) {
				return true
			}
		}
	}
	return false
}

// dropOverlaps keeps the peers leased first. It is slow, and for a store that
// somebody wrote into by hand.
func dropOverlaps(peers []*subnet.Lease, refused []refusal) ([]*subnet.Lease, []refusal) {
	byAge := slices.SortedStableFunc(slices.Values(peers), func(a, b *subnet.Lease) int { return cmp.Compare(a.Created, b.Created) })
	kept := peers[:0]
	for _, l := range byAge {
		i := slices.IndexFunc(kept, func(k *subnet.Lease) bool { return k.Subnet.Overlaps(l.Subnet) })
		if i < 0 {
			kept = append(kept, l)
			continue
		}
		refused = append(refused, refusal{lease: *l, why: fmt.Sprintf("overlaps %s, which %s leased earlier", kept[i].Subnet, publicIP(*kept[i]))})
	}
	slices.SortFunc(kept, bySubnet)
	return kept, refused
}

func bySubnet(a, b *subnet.Lease) int { return a.Subnet.Compare(b.Subnet) }

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func insideNetwork(cfg *subnet.Config, s subnet.Subnet) bool {
	inside := false
	for f, r := range cfg.Ranges {
		if !s[f].IsValid() {
			continue
		}
		if !r.Network.IsValid() || !r.Network.Contains(s[f].Addr()) || s[f].Bits() < r.Network.Bits() {
			return false
		}
		inside = true
	}
	return inside
}

// awaited reports whether l is a reservation that its host, which may be this
// one, has not taken up yet: somebody else wrote it, and it does not say how to
// reach anybody. In a network of udp another host's address is enough.
func awaited(cfg *subnet.Config, me self, l *subnet.Lease) bool {
	a := l.Attrs
	a.PublicIP, a.Owner = subnet.ByFamily[netip.Addr]{}, ""
	reachable := cfg.BackendType == udp.Type && publicIP(*l) != "" && !publishes(l, me.public)
	return l.Reservation() && a == subnet.Attrs{} && !reachable
}

func publishes(l *subnet.Lease, public subnet.ByFamily[netip.Addr]) bool {
	for f, addr := range public {
		if addr.IsValid() && l.Attrs.PublicIP[f] == addr {
			return true
		}
	}
	return false
}

// networks names the network of each family that is on.
func networks(cfg *subnet.Config) []string {
	var names []string
	for _, r := range cfg.Ranges {
		if r.Network.IsValid() {
			names = append(names, r.Network.String())
		}
	}
	return names
}

// peerList is the status of all peers: those with a path, those whose entries
// failed, and those refused.
func peerList(peers []*subnet.Lease, refused []refusal, failed map[subnet.Subnet]error) []status.Peer {
	list := make([]status.Peer, 0, len(peers)+len(refused))
	add := func(l subnet.Lease, why string) {
		list = append(list, status.Peer{Subnet: l.Subnet.String(), PublicIP: publicIP(l), Node: string(l.Attrs.Owner), Error: why})
	}
	for _, l := range peers {
		why := ""
		if err := failed[l.Subnet]; err != nil {
			why = err.Error()
		}
		add(*l, why)
	}
	for _, r := range refused {
		add(r.lease, r.why)
	}
	return list
}

func publicIP(l subnet.Lease) string {
	for _, a := range l.Attrs.PublicIP {
		if a.IsValid() {
			return a.String()
		}
	}
	return ""
}
