package main

import (
	"cmp"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
)

const (
	// quarrelBurst is how many repairs in a row are made at once; one more every
	// quarrelEvery.
	quarrelBurst = 10
	quarrelEvery = time.Second
	// After that there is quarrelMin between two, then ever more.
	quarrelMin, quarrelMax = time.Second, 5 * time.Second
	// quarrelOver is how long nothing must need repair to trust the peace.
	quarrelOver = time.Minute
)

// quarrel slows down the repair of what somebody else undoes each time: two who
// correct each other at every event do nothing else, and fill the log.
//
//	peace --(more than quarrelBurst repairs)--> slow --(none for quarrelOver)--> peace
type quarrel struct {
	// heat is how many repairs there were of late, as of at: one less every
	// quarrelEvery.
	heat int
	at   time.Duration
	// last is the uptime of the last repair.
	last time.Duration
	// wait is the least time from one repair to the next; 0: peace.
	wait time.Duration
	// repairs are those made slowly.
	repairs int
}

// repaired notes a repair, and reports whether the quarrel begins with it.
func (q *quarrel) repaired(now time.Duration) bool {
	cooled := int((now - q.at) / quarrelEvery)
	q.at += time.Duration(cooled) * quarrelEvery
	if q.heat = max(q.heat-cooled, 0); q.heat == 0 {
		q.at = now
	}
	q.heat++
	q.last = now
	if q.wait > 0 {
		q.wait = min(2*q.wait, quarrelMax)
		q.repairs++
		return false
	}
	if q.heat <= quarrelBurst {
		return false
	}
	q.wait, q.repairs = quarrelMin, 0
	return true
}

// ended reports whether the quarrel is over now.
func (q *quarrel) ended(now time.Duration) bool {
	if q.wait == 0 || now-q.last < quarrelOver {
		return false
	}
	q.wait = 0
	return true
}

// settle is how long events are to be collected. Who breaks something else than what
// the quarrel is about, or begins again, does not wait for longer than need be.
func (q *quarrel) settle(now time.Duration) time.Duration {
	return max(settle, q.last+q.wait-now)
}

// observe counts what an Apply changed.
func (l *loop) observe(r reconcile.Result) {
	l.board.Update(func(s *status.Status) {
		s.Sync.Put += uint64(r.Put)
		s.Sync.Deleted += uint64(r.Deleted)
	})
	switch {
	case r.Put+r.Deleted == 0:
	case !l.path.steady:
		l.log.Debug("kernel entries changed", "put", r.Put, "deleted", r.Deleted)
	default:
		l.repaired(r, l.path.heard)
	}
}

// repaired says what somebody else had undone, of which events of the topics heard
// told, unless that happens all the time.
func (l *loop) repaired(r reconcile.Result, heard kernel.Topic) {
	switch {
	case l.quarrel.repaired(l.clock.Uptime()):
		l.log.Warn("somebody else keeps changing what this host needs in the kernel, repairs are slowed down",
			"at_most", quarrelMax, "hint", "ip monitor link address route neigh nexthop netconf")
	case l.quarrel.wait == 0:
		l.log.Warn("repaired what somebody else changed in the kernel",
			"put", r.Put, "deleted", r.Deleted, "events", cmp.Or(heard.String(), "none"))
	}
}

// makePeace says when a quarrel is over.
func (l *loop) makePeace() {
	if l.quarrel.ended(l.clock.Uptime()) {
		l.log.Info("nobody changes the kernel any more, repairs are made at once again", "repairs", l.quarrel.repairs)
	}
}
