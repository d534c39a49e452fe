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
	want       Desired
	// names are those of the sets of senders, which rules refer to.
	names subnet.ByFamily[[]string]
	// sorted: want.Peers are.
	sorted bool
	// read is when; zero, which is long ago, for never.
	read time.Time
}

// settle remembers a round that found nothing to do. What is wanted is copied: it
// is the caller's.
func settle(g Generation, want Desired, names subnet.ByFamily[[]string]) settled {
	want.Tunnel.Devices = slices.Clone(want.Tunnel.Devices)
	want.Segments = slices.Clone(want.Segments)
	want.Peers = slices.Clone(want.Peers)
	return settled{g, want, names, slices.IsSortedFunc(want.Peers, comparePeers), time.Now()}
}

// still reports whether the same is wanted, and still in place.
func (s *settled) still(g Generation, want Desired) bool {
	return time.Since(s.read) < ReadAnyway && s.generation == g && s.want.equal(want)
}

// equal takes the same peers in another order for a difference, which costs no
// more than a look at the kernel.
func (d Desired) equal(o Desired) bool {
	if !slices.Equal(d.Peers, o.Peers) {
		return false
	}
	// All but the peers is small.
	d.Peers, o.Peers = nil, nil
	return reflect.DeepEqual(d, o)
}
