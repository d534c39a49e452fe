package backend

import (
	"context"
	"errors"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// ErrNotFollowed: a change means more than the entries of its peers. Nothing was done;
// Apply does it.
var ErrNotFollowed = errors.New("change cannot be followed alone")

// Change is what became of some peers since the last Apply or Follow.
type Change struct {
	// Old are leases that were among the peers and are so no longer, or not like
	// this. New are those that are in their place, or came.
	Old, New []subnet.Lease
	// Former are, of the subnets of New, those that Desired.Former would list.
	Former []subnet.Lease
}

// Follower is an ability of backends: to follow a change at the cost of what changed,
// however many peers there are. Follow makes the host match the last Desired with c
// done to it. It trusts that the kernel holds what the last Apply or Follow left
// there, which failed for nothing but single peers: who heard that somebody else has
// changed something calls Apply instead. Errors are those of Apply, or ErrNotFollowed.
type Follower interface {
	Follow(ctx context.Context, c Change) error
}

// Trusted is a table of which only those entries are looked at that a change is about,
// and they are known.
type Trusted[E any] struct {
	reconcile.Table[E]
	Held []E
}

// List returns the entries that are known.
func (t Trusted[E]) List(context.Context) ([]E, error) { return t.Held, nil }

// Follow returns the step that replaces the routes old by fresh, which lead to peers.
// What is in the way of a route is known from the last Step, whose errors it gives. The
// step must be applied before the next call.
func (r *Router) Follow(old, fresh []kernel.Route, peers []*subnet.Lease) (reconcile.Step, error) {
	table := Trusted[kernel.Route]{Table: r.Kernel.Routes(), Held: old}
	desired, err := unblocked(fresh, r.blocked, peers)
	return reconcile.NewStep("route", table, desired, nil), err
}

// Followable reports whether there was a Step whose knowledge Follow can go on from.
func (r *Router) Followable() bool { return r.blocked != nil }
