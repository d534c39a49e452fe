package robustness

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Violation is one thing that must never happen, and did.
type Violation struct {
	// Validator is the name of the one that found it.
	Validator string
	At        time.Duration
	// Host may be empty.
	Host string
	// Message says what is wrong, and what would be right.
	Message string
	// Keys are those of etcd that it is about, below the prefix.
	Keys []string
}

// Error prints all of it in a line.
func (v Violation) Error() string {
	where := v.Host
	if where != "" {
		where += ": "
	}
	return fmt.Sprintf("%s at %s: %s%s", v.Validator, v.At.Round(time.Millisecond), where, v.Message)
}

// Validator judges one property.
type Validator struct {
	Name string
	// Property is the rule, in a sentence.
	Property string
	Check    func(*Record) []Violation
}

// Validate returns what every validator finds in r, in the order of time.
func Validate(r *Record, validators []Validator) []Violation {
	var found []Violation
	for _, v := range validators {
		found = append(found, v.Check(r)...)
	}
	slices.SortStableFunc(found, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	return found
}

// The names of the validators.
const (
	WholeRecord        = "whole-record"
	OneOwner           = "one-owner"
	LostWrite          = "lost-write"
	SilentRenewal      = "silent-renewal"
	KeptLease          = "kept-lease"
	LastingReservation = "lasting-reservation"
	Allocation         = "allocation"
	Unreadable         = "unreadable-occupies"
	StopsUsing         = "stops-using"
	RouteToOwner       = "route-to-owner"
	RouteFollows       = "route-follows"
	WholeFiles         = "whole-files"
	LivingProcess      = "living-process"
	Leased             = "leased"
	SameSubnet         = "same-subnet"
	StoreIdentity      = "store-identity"
	Recovery           = "recovery"
	NoLoss             = "no-loss"
	BoundedLoad        = "bounded-load"
)

// The validators meant for the daemons that are wrong on purpose. Others may
// find them too: a blind renewal also is no silent one.
const (
	CatchesBlindRenewal         = LostWrite
	CatchesCreateWithoutCompare = LostWrite
	CatchesDroppedEntries       = Unreadable
	CatchesMortalReservation    = LastingReservation
	CatchesIgnoredCompaction    = RouteFollows
	CatchesNoIdentity           = StoreIdentity
	CatchesNoKeepAlive          = KeptLease
)

// Validators are all of them, judging by b.
func Validators(b Bounds) []Validator {
	v := func(name, property string, check func(*evidence) []Violation) Validator {
		return Validator{Name: name, Property: property, Check: func(r *Record) []Violation {
			found := check(newEvidence(r, b))
			for i := range found {
				found[i].Validator = name
			}
			return found
		}}
	}
	return []Validator{
		v(WholeRecord, "The recorder missed no event of etcd.", (*evidence).wholeRecord),
		v(OneOwner, "At no revision do two owners hold overlapping subnets, unless an operator wrote one when the other could not yet see it.", (*evidence).oneOwner),
		v(LostWrite, "A daemon writes only keys that are free or its own: never over another owner's, never for a process that was superseded, and another address's only after a challenge.", (*evidence).lostWrite),
		v(SilentRenewal, "A renewal writes nothing: every put of a key that exists changes its value.", (*evidence).silentRenewal),
		v(KeptLease, "The leased key of an able host goes away only by an operator's hand or the daemon's own: its lease is kept alive.", (*evidence).keptLease),
		v(LastingReservation, "A reservation never gets a TTL nor another owner, and no daemon deletes or makes one.", (*evidence).lastingReservation),
		v(Allocation, "A created subnet belongs to the pool of the config in force (length, boundary, SubnetMin to SubnetMax) and overlaps no route that the host had.", (*evidence).allocation),
		v(Unreadable, "A key that cannot be read occupies its subnet, and peers keep its last known path.", (*evidence).unreadable),
		v(StopsUsing, "A host that can reach etcd stops using a subnet of another's within React.", (*evidence).stopsUsing),
		v(RouteToOwner, "Nobody routes a subnet to a host that does not own it for longer than React, or Heal after a fault.", (*evidence).routeToOwner),
		v(RouteFollows, "Routes follow new leases and changes of PublicIP and MAC within React, whatever a watch missed.", (*evidence).routeFollows),
		v(WholeFiles, "subnet.env and daemon.json are whole at every moment and equal the lease, or the host says that it is degraded.", (*evidence).wholeFiles),
		v(LivingProcess, "No daemon ends unless the schedule ended it.", (*evidence).livingProcess),
		v(Leased, "An able host has a lease within Heal of the pool having room: an exhausted pool resolves itself.", (*evidence).leased),
		v(SameSubnet, "A restart inside the TTL keeps the subnet.", (*evidence).sameSubnet),
		v(StoreIdentity, "After etcd lost its past every host's former subnet comes back to it, and no peer is dropped for one TTL.", (*evidence).storeIdentity),
		v(Recovery, "Within Heal of the last fault every live host is leased and ready, if the pool suffices, and all pairs talk.", (*evidence).recovery),
		v(NoLoss, "Pairs of hosts that no fault touches lose no packet; touched ones may until Grace after its end.", (*evidence).noLoss),
		v(BoundedLoad, "Requests to etcd, CPU and log lines of each host stay within their budgets.", (*evidence).boundedLoad),
	}
}
