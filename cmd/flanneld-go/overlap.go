package main

import (
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// ranges6 are the IPv6 subnets of peers that have IPv4 ones too, and are sorted by those.
// Whether another overlaps one of them takes one look for each length that they have: as
// a rule all have the config's. The zero ranges6 has none.
type ranges6 struct {
	// count says how many peers have a subnet, and bits how many have one so long.
	count map[netip.Prefix]int
	bits  map[int]int
}

// rangesOf are those of peers.
func rangesOf(peers []*subnet.Lease) ranges6 {
	r := ranges6{make(map[netip.Prefix]int, len(peers)), map[int]int{}}
	for _, p := range peers {
		r.add(p.Subnet, 1)
	}
	return r
}

// add notes that so many more peers have a subnet.
func (r ranges6) add(s subnet.Subnet, more int) {
	p := s[subnet.IPv6]
	if r.count == nil || !p.IsValid() {
		return
	}
	if r.count[p] += more; r.count[p] == 0 {
		delete(r.count, p)
	}
	if r.bits[p.Bits()] += more; r.bits[p.Bits()] == 0 {
		delete(r.bits, p.Bits())
	}
}

// change takes a change of peers over.
func (r ranges6) change(c backend.Change) {
	for i := range c.Old {
		r.add(c.Old[i].Subnet, -1)
	}
	for i := range c.New {
		r.add(c.New[i].Subnet, 1)
	}
}

// overlap reports whether one of them has addresses in common with a subnet.
func (r ranges6) overlap(s subnet.Subnet) bool {
	p := s[subnet.IPv6]
	if !p.IsValid() {
		return false
	}
	for bits := range r.bits {
		if bits > p.Bits() { // Somebody wrote into the store by hand.
			for q := range r.count {
				if q.Overlaps(p) {
					return true
				}
			}
			continue
		}
		if wide, err := p.Addr().Prefix(bits); err == nil && r.count[wide] > 0 {
			return true
		}
	}
	return false
}

// replacePeers does a change to the peers, and to what overlaps looks at.
func (l *loop) replacePeers(c backend.Change) {
	l.path.peers = replacePeers(l.path.peers, c)
	l.path.follow.ranges6.change(c)
}

// overlaps reports whether a new peer's subnet overlaps that of another peer. In order
// of their subnets only neighbours can, in the first of their families.
func (l *loop) overlaps(c backend.Change) bool {
	for i, p := range c.New {
		at, found := findPeer(l.path.peers, p.Subnet)
		if found {
			continue // It is in the place of itself.
		}
		near := l.path.peers[max(0, at-1):min(at+1, len(l.path.peers))]
		if slices.ContainsFunc(near, func(o *subnet.Lease) bool { return o.Subnet.Overlaps(p.Subnet) }) ||
			l.path.follow.ranges6.overlap(p.Subnet) ||
			slices.ContainsFunc(c.New[:i], func(o subnet.Lease) bool { return o.Subnet.Overlaps(p.Subnet) }) {
			return true
		}
	}
	return false
}
