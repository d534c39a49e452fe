package native

import (
	"reflect"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// settled is what was found to be in place, and in which generation.
type settled struct {
	generation Generation
	// want is without its peers.
	want Desired
	// peers are what was wanted of them, in pointers: one that comes or goes moves all
	// that are behind it.
	peers []*Peer
	// names are those of the sets of senders, which rules refer to.
	names subnet.ByFamily[[]string]
	// sorted: peers are.
	sorted bool
	// read is when; zero, which is long ago, for never.
	read time.Time
}

// settle remembers a round that found nothing to do. What is wanted is copied: it
// is the caller's.
func settle(g Generation, want Desired, names subnet.ByFamily[[]string]) settled {
	want.Tunnel.Devices = slices.Clone(want.Tunnel.Devices)
	want.AlsoUplinks = slices.Clone(want.AlsoUplinks)
	want.Segments = slices.Clone(want.Segments)
	held := slices.Clone(want.Peers)
	peers := make([]*Peer, len(held))
	for i := range held {
		peers[i] = &held[i]
	}
	want.Peers = nil
	return settled{g, want, peers, names, slices.IsSortedFunc(held, comparePeers), time.Now()}
}

// still reports whether the same is wanted, and still in place.
func (s *settled) still(g Generation, want Desired) bool {
	return time.Since(s.read) < ReadAnyway && s.generation == g && s.same(want)
}

// same takes the same peers in another order for a difference, which costs no
// more than a look at the kernel.
func (s *settled) same(want Desired) bool {
	if !slices.EqualFunc(s.peers, want.Peers, func(held *Peer, p Peer) bool { return *held == p }) {
		return false
	}
	// All but the peers is small.
	want.Peers = nil
	return reflect.DeepEqual(s.want, want)
}
