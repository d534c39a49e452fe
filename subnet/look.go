package subnet

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// This is how a keeper finds out what became of its lease: from its view, that
// something did, and by a Load, what.

// sighting is what the view says of our key.
type sighting struct {
	identity string
	// modified is zero: the key is gone.
	modified Revision
	id       LeaseID
	// elder is the lease of others that was in our place before ours.
	elder Lease
	// config is the network config's revision, where that matters: while we
	// are without a lease another config may allow one.
	config Revision
	// blocker is, in a conflict, the first key in our place, ours left out: as
	// long as it stays the same, so does the conflict.
	blocker blocker
	// freed is when a key was deleted last, while we look for another subnet.
	freed Revision
}

// blocker is a key that covers some of our subnet; zero: there is none.
type blocker struct {
	subnet   Subnet
	modified Revision
}

// concerns reports whether the view saw our key change, or the store lose its
// past. The same sight makes us look once: what it means is then known.
func (k *Keeper) concerns(s *Snapshot) bool {
	if !s.Synced {
		return false
	}
	if s.lives != k.lives {
		k.lives = s.lives
		return true
	}
	l, _ := s.Stored(k.m.lease.Subnet)
	now := sighting{identity: s.Identity, modified: l.Modified, id: l.ID}
	now.elder, _ = k.o.Claim.elder(s.beside, k.m.lease)
	var expected sighting // What a cache says is no reason to expect it.
	if k.m.confirmed {
		expected = sighting{identity: k.world.Identity, modified: k.m.lease.Modified, id: k.m.lease.ID}
	}
	ours := k.m.lease.Modified
	if k.without() {
		now.config, ours = s.Config.Modified, k.world.Revision
	}
	if k.m.state == StateConflict {
		now.blocker = s.blocker(k.m.lease.Subnet)
		if k.m.policy == Renumber {
			now.freed = s.freed
		}
	}
	older := s.Identity == k.world.Identity && s.Revision < ours
	if older || now == expected || now == k.seen.now && expected == k.seen.expected {
		return false
	}
	k.seen.now, k.seen.expected = now, expected
	// A look has seen all that the view has at its revision.
	looked := k.without() && s.Identity == k.world.Identity && s.Revision == ours
	return !looked
}

// without reports whether we have no lease at the moment, or none that the store
// has confirmed.
func (k *Keeper) without() bool {
	return k.m.state == StateLost || k.m.state == StateConflict || !k.m.confirmed
}

// noticed is the event of a sight that concerns us. A challenge is answered from
// the view alone: the one who put it does not wait for long, and the answer
// proves by itself that nothing has changed since. In a store that is not the one
// we know, a key that reads as ours did would prove nothing: that wants a look.
func (k *Keeper) noticed(s *Snapshot) event {
	elder, beaten := k.o.Claim.elder(s.beside, k.m.lease)
	l, _ := s.Stored(k.m.lease.Subnet)
	asked := l.Attrs.Owner == k.o.Claim.Node && l.Attrs.Instance == k.o.Claim.Instance && !l.Attrs.Challenge.IsZero()
	switch known := s.Identity == k.world.Identity; {
	case known && !beaten && asked && l.Modified > k.m.lease.Modified:
		return event{kind: evOurs, lease: l}
	case k.without():
		// There is nothing to lose, and this look is not one of a race that
		// would have to slow down.
		return event{kind: evNudge}
	case !known:
		return event{kind: evLost, err: ErrStoreChanged}
	case beaten:
		// A renewal would prove that the key is as it was, and no more.
		return event{kind: evLost, err: overlapped(elder)}
	}
	return event{kind: evNudge}
}

// doubled reports whether the view shows an older lease with our node id on a
// machine that we have not asked yet. Clones that start at one time have a
// subnet each; the younger lease's owner is the one to ask, and to go.
func (k *Keeper) doubled(s *Snapshot) bool {
	if !s.Synced || s.Identity != k.world.Identity || s.Revision < k.settled || k.m.state != StateValid || k.m.settleAt > 0 {
		return false
	}
	return slices.ContainsFunc(s.kin, func(l Lease) bool {
		return l.Subnet != k.m.lease.Subnet && l.Created < k.m.lease.Created &&
			k.o.Claim.relate(l) == disputed && k.silent[l.Subnet] != l.Modified
	})
}

// settle asks the owners of the older leases with our node id whether they live.
func (k *Keeper) settle(ctx context.Context) event {
	store := impatient{k.o.Store, k.answerWithin(k.m.unsettled)}
	w, err := store.Load(ctx)
	if err != nil {
		return event{kind: evFailed, err: err}
	}
	a := acquisition{store: store, world: w, claim: k.o.Claim, elder: k.m.lease.Created}
	err = a.settle(ctx)
	var foreigner *ForeignInstanceError
	switch {
	case errors.As(err, &foreigner):
		return event{kind: evFatal, err: err}
	case err != nil:
		return event{kind: evFailed, err: err}
	}
	k.settled = a.world.Revision
	for _, l := range a.world.Leases {
		if k.o.Claim.relate(l) == disputed {
			k.silent[l.Subnet] = l.Modified
		}
	}
	return event{kind: evSettled}
}

// look reads what became of our key.
func (k *Keeper) look(ctx context.Context) event {
	w, err := k.read(ctx)
	if err != nil {
		return outcome(evFailed, Lease{}, err)
	}
	same := w.Identity == k.world.Identity
	k.world = w
	if i := slices.IndexFunc(w.Leases, func(l Lease) bool { return l.Subnet == k.m.lease.Subnet }); i >= 0 {
		ev := k.judge(w.Leases[i], same)
		if l, ok := k.o.Claim.elder(w.Leases, w.Leases[i]); ok && ev.kind == evOurs {
			return event{kind: evTaken, err: overlapped(l)}
		}
		return ev
	}
	for _, l := range w.Leases {
		if l.Subnet.Overlaps(k.m.lease.Subnet) {
			return event{kind: evTaken, err: fmt.Errorf("%s overlaps it", describeLease(l))}
		}
	}
	for _, b := range w.Bad {
		if b.Occupies.Overlaps(k.m.lease.Subnet) {
			return event{kind: evTaken, err: fmt.Errorf("key %s cannot be read: %w", b.Key, b.Err)}
		}
	}
	return k.free(w)
}

// read returns what the store holds. After a start from the cache the view loads
// all of it as soon as it can: the first look is at that, and there is none before.
// Nothing is believed that way: what follows from a look, be it a renewal or a
// write, compares. Later looks are at what may be newer than the view, but for those
// of a host in conflict at what the view has just shown: every key that goes away
// makes all hosts look that wait for a subnet. Unless that host may have leased one
// already, of which the view does not know yet: it would lease a second.
func (k *Keeper) read(ctx context.Context) (World, error) {
	if k.m.state == StateConflict && k.o.View != nil && !k.unsure {
		s := k.o.View.Snapshot()
		if s.Synced && s.Revision > k.world.Revision {
			return s.World(), nil
		}
	}
	if k.o.View == nil || k.m.confirmed || k.world.Revision > 0 {
		w, err := k.o.Store.Load(ctx)
		if err == nil {
			k.unsure = false
			k.answered()
		}
		return w, err
	}
	s := k.o.View.Snapshot()
	if !s.Synced {
		// Its words alone: how the view fares says nothing of our key.
		return World{}, errors.New(s.Err.Error())
	}
	return s.World(), nil
}

// judge decides whose the key is. In the same store a later write by another
// instance of this host is a takeover; in one that was restored it is our past.
func (k *Keeper) judge(l Lease, sameStore bool) event {
	switch k.o.Claim.relate(l) {
	case disputed:
		return event{kind: evDisputed, lease: l, err: k.o.Claim.foreignInstance(l)}
	case foreign:
		return event{kind: evTaken, err: errors.New(describeLease(l) + " holds it")}
	case own:
	}
	// While no write got through, the key has the instance that it was found with.
	known := []string{"", k.o.Claim.Instance, k.m.lease.Attrs.Instance}
	another := l.Attrs.Owner == k.o.Claim.Node && !slices.Contains(known, l.Attrs.Instance)
	if another && sameStore && k.m.confirmed && l.Modified > k.m.lease.Modified {
		return event{kind: evFatal, err: &SupersededError{l}}
	}
	return event{kind: evOurs, lease: l}
}

// free decides whether our subnet, which nobody holds, may be created again.
func (k *Keeper) free(w World) event {
	if w.Config.Text == "" {
		return event{kind: evBlocked, err: ErrNoConfig}
	}
	cfg, err := ParseConfig(w.Config.Text)
	if err != nil {
		return event{kind: evBlocked, err: fmt.Errorf("read network config: %w", err)}
	}
	if !cfg.Pool().Contains(k.m.lease.Subnet) {
		return event{kind: evTaken, err: errors.New("the network config does not allow this subnet any more")}
	}
	return event{kind: evAbsent}
}

// renumber leases another subnet in the world just looked at. If there is none, who
// has ours still is to be known.
func (k *Keeper) renumber(ctx context.Context) event {
	ev := k.another(ctx)
	if ev.kind == evFailed {
		ev.err = fmt.Errorf("%w; %w", k.m.why, ev.err)
	}
	return ev
}

func (k *Keeper) another(ctx context.Context) event {
	c := k.o.Claim
	c.Previous = append([]Subnet{k.m.lease.Subnet}, c.Previous...)
	most := k.answerWithin(k.m.failures)
	if k.o.Avoid != nil {
		var err error
		if c.Avoid, err = within(ctx, most, k.o.Avoid); err != nil {
			return event{kind: evFailed, err: fmt.Errorf("what this host routes is not known: %w", err)}
		}
	}
	l, err := Acquire(ctx, impatient{k.o.Store, most}, k.world, c)
	var foreigner *ForeignInstanceError
	switch {
	case errors.As(err, &foreigner):
		return event{kind: evFatal, err: err}
	case err == nil && l.TTL == 0:
		// Taken over, not created.
		return event{kind: evUpdated, lease: l}
	}
	return outcome(evCreated, l, err)
}

// overlapped says why an older lease denies us ours.
func overlapped(elder Lease) error {
	return fmt.Errorf("%s overlaps it, and was leased earlier", describeLease(elder))
}

// describeLease names a lease in the words of an error.
func describeLease(l Lease) string { return fmt.Sprintf("%s (%s)", describeOwner(l), l.Subnet) }

// describeOwner names whom a lease belongs to.
func describeOwner(l Lease) string {
	owner := "host"
	if l.Attrs.Owner != "" {
		owner = "node " + string(l.Attrs.Owner)
	}
	return owner + " at " + showAddrs(l.Attrs.PublicIP)
}
