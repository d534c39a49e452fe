package subnet

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// ChallengeWait is how long a living owner has to answer a challenge: time
// enough for its view to show it the key and for one write.
const ChallengeWait = 3 * time.Second

// ForeignInstanceError is a lease that carries our node id and another host's
// address, and whose owner lives.
type ForeignInstanceError struct {
	Node NodeID
	// Lease is what the other host holds.
	Lease Lease
	// Ours are our own addresses, Instance is our own process.
	Ours     ByFamily[netip.Addr]
	Instance string
}

// Error names both hosts and the way out.
func (e *ForeignInstanceError) Error() string {
	return fmt.Sprintf("node id %s holds %s at %s (instance %s), but this host is %s (instance %s): "+
		"machines that were cloned share one machine id: give each its own /etc/machine-id or --node-id",
		e.Node, e.Lease.Subnet, showAddrs(e.Lease.Attrs.PublicIP), e.Lease.Attrs.Instance, showAddrs(e.Ours), e.Instance)
}

// foreignInstance is the error that names the owner of l.
func (c Claim) foreignInstance(l Lease) *ForeignInstanceError {
	return &ForeignInstanceError{Node: c.Node, Lease: l, Ours: c.Attrs.PublicIP, Instance: c.Instance}
}

// verdict is what to do about a disputed lease.
type verdict uint8

const (
	// verdictWait until [dispute.until], and read the lease again.
	verdictWait verdict = iota
	// verdictAsk by putting our challenge into the lease.
	verdictAsk
	// verdictSilent: nobody answered, the host moved, and the lease is ours.
	verdictSilent
	// verdictAnswered: the owner lives.
	verdictAnswered
)

// dispute is how far we are in finding out whether the owner of a lease with
// our node id lives:
//
//	read --> somebody else's challenge: wait, it may be settled ---.
//	 |                                                             |
//	 '-----> none, or one of this address: put ours <--------------'
//	                 |                               unchanged for 3 s
//	                 '--> wait --> the owner wrote it away: answered
//	                                unchanged for 3 s: silent
//
// To wait for others' challenges lets one of two newcomers win: if each put its
// own over the other's, neither would ever stand for 3 s.
type dispute struct {
	// lease is what was seen last, or written by us when asked is true.
	lease Lease
	asked bool
	// until is when it has been left alone for long enough.
	until time.Duration
}

// judge takes in that the disputed lease reads l at this moment, and says what
// to do. Us is our own challenge.
func (d dispute) judge(l Lease, us Challenge, now time.Duration) (dispute, verdict) {
	// After a restore another write may have the same revision.
	unchanged := l.Modified == d.lease.Modified && l.Attrs == d.lease.Attrs
	theirs := l.Attrs.Challenge
	switch {
	case unchanged && now < d.until:
		return d, verdictWait
	case unchanged && d.asked:
		return d, verdictSilent
	case unchanged:
		return d, verdictAsk
	case d.asked && theirs.IsZero() && l.Attrs.Instance == d.lease.Attrs.Instance:
		return d, verdictAnswered
	case !theirs.IsZero() && theirs.PublicIP != us.PublicIP:
		return dispute{lease: l, until: now + ChallengeWait}, verdictWait
	}
	return dispute{lease: l, until: now}, verdictAsk
}

// asked is the dispute after our challenge was written as l.
func asked(l Lease, now time.Duration) dispute {
	return dispute{lease: l, asked: true, until: now + ChallengeWait}
}

// challengeBy is the challenge that a claimant with the given attributes puts.
func challengeBy(a Attrs) Challenge { return Challenge{Instance: a.Instance, PublicIP: a.PublicIP} }

// settle finds out, for every disputed lease, whether its owner lives. When it
// returns nil none of them does, and all are ours. It costs one Load and a
// request for every lease; without disputed leases, nothing.
func (a *acquisition) settle(ctx context.Context) error {
	disputes := map[Subnet]dispute{}
	for {
		open, err := a.examine(ctx, disputes)
		if err != nil || !open {
			return err
		}
		for _, d := range disputes {
			if err := waitUntil(ctx, a.claim.Clock, d.until); err != nil {
				return fmt.Errorf("wait for an answer: %w", err)
			}
		}
		w, err := a.store.Load(ctx)
		switch {
		case err != nil:
			return err
		case w.Identity != a.world.Identity || w.Revision < a.world.Revision:
			return fmt.Errorf("challenge: %w", ErrStoreChanged)
		case w.Config != a.world.Config:
			return fmt.Errorf("challenge: %w", ErrConfigChanged)
		}
		a.world = w
	}
}

// examine takes every dispute a step further, and reports whether any is open.
func (a *acquisition) examine(ctx context.Context, disputes map[Subnet]dispute) (open bool, err error) {
	us := challengeBy(a.claim.attrs())
	for _, l := range a.world.Leases {
		if a.claim.relate(l) != disputed || a.elder > 0 && l.Created >= a.elder {
			continue
		}
		d, v := disputes[l.Subnet].judge(l, us, a.claim.Clock.Uptime())
		switch v {
		case verdictSilent:
			continue
		case verdictAnswered:
			return false, a.claim.foreignInstance(l)
		case verdictAsk:
			l.Attrs.Challenge = us
			written, err := a.store.Update(ctx, l)
			if err != nil {
				return false, fmt.Errorf("challenge the owner of %s: %w", l.Subnet, err)
			}
			d = asked(written, a.claim.Clock.Uptime())
		case verdictWait:
		}
		disputes[l.Subnet], open = d, true
	}
	return open, nil
}

// waitUntil waits for a moment on the clock, whose timers may fire early.
func waitUntil(ctx context.Context, clock Clock, at time.Duration) error {
	for now := clock.Uptime(); now < at; now = clock.Uptime() {
		timer := clock.Timer(at - now)
		select {
		case <-timer.C:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
	return nil
}
