package main

import (
	"context"
	"errors"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// departTimeout bounds what is done after everything else has ended; the unit's
// TimeoutStopSec is 15 s. releaseTimeout is what is left of it for etcd.
const (
	departTimeout  = 10 * time.Second
	releaseTimeout = 5 * time.Second
)

// depart is the end of a process, after all its tasks have returned with err; nil:
// a signal came. As a rule everything stays, and the next process goes on with it.
func (l *loop) depart(ctx context.Context, err error) {
	ctx, cancel := context.WithTimeout(ctx, departTimeout)
	defer cancel()
	var foreign *subnet.ForeignInstanceError
	switch {
	case errors.As(err, &foreign) && l.backend != nil && l.uses(foreign.Lease.Subnet):
		// Another machine answers for our node id and our subnet: what stays
		// here would go on in its name, and nobody is left to take it down,
		// whatever --on-conflict says. A lease taken over by another process of
		// this host is none of this: that process goes on with what stays.
		if err := l.withdraw(ctx, err); l.lease.withdrawn {
			l.log.Warn("stopped; the subnet is another machine's, data path and files are withdrawn", "subnet", foreign.Lease.Subnet)
		} else {
			l.log.Error("stopped; the subnet is another machine's, and not all of it could be withdrawn", "subnet", foreign.Lease.Subnet, "error", err, "cleanup", l.opts.instance.Cleanup())
		}
	case err == nil && l.opts.releaseOnExit && l.lease.keeper != nil:
		l.release(ctx)
	default:
		l.log.Info("stopped; devices, routes and rules stay in place", "cleanup", l.opts.instance.Cleanup())
	}
}

// uses reports whether this host has s, or had it before.
func (l *loop) uses(s subnet.Subnet) bool {
	if !l.lease.own.Subnet.IsZero() {
		return l.lease.own.Subnet.Overlaps(s)
	}
	for _, previous := range l.lease.previous {
		if previous.Overlaps(s) {
			return true
		}
	}
	return false
}

// release gives up what this host has, in the order in which it was got: nobody
// may lease the subnet while anything here still uses it.
func (l *loop) release(ctx context.Context) {
	s := l.lease.keeper.Lease()
	log := l.log.With("subnet", s.Subnet)
	if l.lease.withdrawn {
		log.Info("stopped; the subnet is not ours, there is nothing to release")
		return
	}
	if err := l.takeDown(ctx); err != nil {
		log.Warn("stopped; the lease is not released, since not all that uses it could be withdrawn", "error", err, "cleanup", l.opts.instance.Cleanup())
		return
	}
	if l.lease.conflictAt != 0 {
		log.Info("stopped; data path and files are withdrawn, the subnet is not ours to release")
		return
	}
	if s.Reservation() {
		log.Info("stopped; data path and files are withdrawn, the reservation stays")
		return
	}
	if err := l.disown(s, "its release was asked for, and the answer is not known"); err != nil {
		log.Warn("stopped; data path and files are withdrawn, but the lease is not released: a start without etcd would go on with it, since the cache cannot be written",
			"ttl", s.TTL, "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	err := l.lease.keeper.Release(ctx)
	if errors.Is(err, subnet.ErrLeaseLost) {
		l.disowned(s, "it was not this host's own any more when it was to be released")
		log.Info("stopped; data path and files are withdrawn, the lease is not ours any more", "reason", err)
		return
	}
	if err != nil {
		log.Warn("stopped; data path and files are withdrawn, but etcd did not say that the lease is released: it ends by itself at the latest", "ttl", s.TTL, "error", err,
			"next_start", "asks etcd for the same subnet, and waits until etcd answers")
		return
	}
	l.disowned(s, "released")
	log.Info("stopped; lease released, data path and files withdrawn", "stays", "ip_forward and the state directory, from which a start asks for the same subnet")
}

// disown writes into the cache why a start without etcd must not take s for ours;
// any other start asks for it first. That comes before the deed: an answer can be
// lost, and a process killed. Its error is one that leaves s in the cache.
func (l *loop) disown(s subnet.Lease, why string) error {
	l.lease.own, l.lease.former = s, why
	err := l.saveCache()
	if on := l.lease.cached; err != nil && (on.Own.Subnet != s.Subnet || on.Former != "") {
		l.log.Warn("cache not written", "error", err)
		return nil
	}
	return err
}

// disowned is disown after the deed: a cache that says why already will do.
func (l *loop) disowned(s subnet.Lease, why string) {
	if err := l.disown(s, why); err != nil {
		l.log.Warn("cache not written", "error", err)
	}
}
