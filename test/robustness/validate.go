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
	Check    func(*Record) Verdict
}

// Verdict is what one validator came to.
type Verdict struct {
	Validator  string
	Violations []Violation
	// Judged counts the things that the rule was applied to, violations among
	// them: Of says what they are. Excused counts those that it is about, but
	// that a fault, or what the record cannot prove, took out of it.
	Judged, Excused int
	Of              string
	// Occasional: not every run has something that the rule is about.
	Occasional bool
}

// byChance is how much of what is rare may be excused in one run, all of it,
// without saying anything about the excuses.
const byChance = 100

// idle reports whether the validator said nothing, although there was something
// to be said: a rule whose excuses are too wide never fails.
func (v Verdict) idle() bool {
	return v.Judged == 0 && (v.Excused > byChance || !v.Occasional)
}

// Verdicts are those of several validators on one record.
type Verdicts []Verdict

// Validate has every validator judge r.
func Validate(r *Record, validators []Validator) Verdicts {
	var all Verdicts
	for _, v := range validators {
		all = append(all, v.Check(r))
	}
	return all
}

// Violations are those of all, in the order of time.
func (all Verdicts) Violations() []Violation {
	var found []Violation
	for _, v := range all {
		found = append(found, v.Violations...)
	}
	slices.SortStableFunc(found, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	return found
}

// Idle names the validators that judged nothing and should have.
func (all Verdicts) Idle() []string {
	var names []string
	for _, v := range all {
		if v.idle() {
			names = append(names, v.Validator)
		}
	}
	return names
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
	TrueStatus         = "true-status"
	TimelyReady        = "timely-ready"
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

// rule is a validator in the making.
type rule struct {
	name string
	// of is what it counts, occasional whether a run may have none.
	of         string
	occasional bool
	property   string
	check      func(*evidence) []Violation
}

// validator makes r one that judges by b.
func (r rule) validator(b Bounds) Validator {
	return Validator{Name: r.name, Property: r.property, Check: func(record *Record) Verdict {
		e := newEvidence(record, b)
		found := r.check(e)
		for i := range found {
			found[i].Validator = r.name
		}
		return Verdict{Validator: r.name, Violations: found, Judged: e.judged, Excused: e.excused, Of: r.of, Occasional: r.occasional}
	}}
}

// Validators are all of them, judging by b.
func Validators(b Bounds) []Validator {
	var all []Validator
	for _, r := range rules() {
		all = append(all, r.validator(b))
	}
	return all
}

const always, sometimes = false, true

func rules() []rule {
	return []rule{
		{WholeRecord, "revisions", always, "The recorder missed no event of etcd.", (*evidence).wholeRecord},
		{OneOwner, "keys given an owner", always, "At no revision do two owners hold overlapping subnets, unless an operator wrote one when the other could not yet see it.", (*evidence).oneOwner},
		{LostWrite, "writes", always, "A daemon writes only keys that are free or its own: never over another owner's, never for a process that was superseded, and another address's only after a challenge.", (*evidence).lostWrite},
		{SilentRenewal, "puts of existing keys", sometimes, "A renewal writes nothing: every put of a key that exists changes its value.", (*evidence).silentRenewal},
		{KeptLease, "TTLs of keys", always, "The leased key of an able host goes away only by an operator's hand or the daemon's own: its lease is kept alive.", (*evidence).keptLease},
		{LastingReservation, "writes, deletions and samples", always, "A reservation never gets a TTL nor another owner, and no daemon deletes or makes one.", (*evidence).lastingReservation},
		{Allocation, "creations", always, "A created subnet belongs to the pool of the config in force (length, boundary, SubnetMin to SubnetMax) and overlaps no route that the host had.", (*evidence).allocation},
		{Unreadable, "writes and paths", sometimes, "A key that cannot be read occupies its subnet, and peers keep its last known path.", (*evidence).unreadable},
		{StopsUsing, "addresses in use", always, "A host that can reach etcd stops using a subnet of another's within React.", (*evidence).stopsUsing},
		{RouteToOwner, "routes", always, "Nobody routes a subnet to a host that does not own it for longer than React, or Heal after a fault.", (*evidence).routeToOwner},
		{RouteFollows, "paths expected", always, "Routes follow new leases and changes of PublicIP and MAC within React, whatever a watch missed.", (*evidence).routeFollows},
		{WholeFiles, "files", always, "subnet.env and daemon.json are whole at every moment and equal the lease, or the host says that it is degraded.", (*evidence).wholeFiles},
		{TrueStatus, "samples of ready hosts", always, "What a ready host says of its subnet is so, with etcd or without: subnet.env, daemon.json's bip and the tunnel's address are it.", (*evidence).trueStatus},
		{TimelyReady, "samples", always, "An able host is ready within Heal of having its lease, and but for React from then on.", (*evidence).timelyReady},
		{LivingProcess, "processes", always, "No daemon ends unless the schedule ended it, and one that is asked to does so in time, with status 0.", (*evidence).livingProcess},
		{Leased, "stretches without a fault", always, "An able host has a lease within Heal of the pool having room: an exhausted pool resolves itself.", (*evidence).leased},
		{SameSubnet, "restarts", sometimes, "A restart inside the TTL keeps the subnet.", (*evidence).sameSubnet},
		{StoreIdentity, "returns and paths", sometimes, "After etcd lost its past every host's former subnet comes back to it, and no peer is dropped for one TTL.", (*evidence).storeIdentity},
		{Recovery, "hosts and pairs", always, "Within Heal of the last fault every live host is leased and ready, if the pool suffices, and all pairs talk.", (*evidence).recovery},
		{NoLoss, "packets", always, "Pairs of hosts that no fault touches lose no packet; touched ones may until Grace after its end.", (*evidence).noLoss},
		{BoundedLoad, "windows", always, "Requests to etcd, CPU and log lines of each host stay within their budgets.", (*evidence).boundedLoad},
	}
}
