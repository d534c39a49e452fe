package subnet

import (
	"errors"
	"fmt"
	"time"
)

// State is where a lease stands.
type State uint8

// The states of a lease; [Keeper] draws what leads from one to another.
const (
	// StateUnproven: the lease's time is over and the store has not confirmed
	// it since, or it comes from a cache and was never confirmed at all. The
	// data path stays: peers route only to the owner whom the store names.
	StateUnproven State = iota
	// StateValid: the store confirmed the lease.
	StateValid
	// StateDegraded: the store cannot be asked or takes no writes, but the
	// lease's time is not over.
	StateDegraded
	// StateLost: the key is not what it was, and is being looked at, taken
	// back or created again.
	StateLost
	// StateConflict: another owner holds the subnet, or the config no longer
	// allows it.
	StateConflict
	// StateEnded: Run has returned.
	StateEnded
)

// String returns the state in lower case.
func (s State) String() string {
	switch s {
	case StateUnproven:
		return "unproven"
	case StateValid:
		return "valid"
	case StateDegraded:
		return "degraded"
	case StateLost:
		return "lost"
	case StateConflict:
		return "conflict"
	case StateEnded:
		return "ended"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// OnConflict is what a host does whose subnet another owner holds.
type OnConflict uint8

// The policies, the default first.
const (
	// Renumber leases another subnet.
	Renumber OnConflict = iota
	// Fence withdraws the data path and waits until the subnet is free.
	Fence
	// Keep goes on as if nothing had happened, and says so.
	Keep
)

// String returns the policy as the option spells it.
func (o OnConflict) String() string {
	switch o {
	case Renumber:
		return "renumber"
	case Fence:
		return "fence"
	case Keep:
		return "keep"
	}
	return fmt.Sprintf("policy(%d)", uint8(o))
}

// ParseOnConflict reads what String writes.
func ParseOnConflict(s string) (OnConflict, error) {
	for _, o := range []OnConflict{Renumber, Fence, Keep} {
		if s == o.String() {
			return o, nil
		}
	}
	return 0, fmt.Errorf("%q: must be renumber, fence or keep", s)
}

// deed is what the keeper does next; each ends in one event.
type deed uint8

const (
	// doWait until machine.wake; ends in evTick, evNudge, evWant, evOurs, evLost,
	// evDouble or evStop.
	doWait deed = iota
	// doRenew by Store.Renew; ends in evRenewed, evLost or evFailed.
	doRenew
	// doLook by Store.Load at what became of the key; ends in evAbsent,
	// evOurs, evDisputed, evTaken, evBlocked, evFatal or evFailed.
	doLook
	// doCreate the same subnet in the world looked at; ends in evCreated,
	// evLost or evFailed.
	doCreate
	// doUpdate by Store.Update to the attributes wanted, which also takes a
	// key back; ends in evUpdated, evLost or evFailed.
	doUpdate
	// doChallenge by Store.Update the owner of machine.dispute; ends in
	// evChallenged, evLost or evFailed.
	doChallenge
	// doSettle by challenging the older leases with our node id elsewhere; ends
	// in evSettled, evFailed or evFatal.
	doSettle
	// doRenumber by Acquire in the world looked at; ends in evCreated,
	// evUpdated, evLost, evFailed or evFatal.
	doRenumber
	// doStop ends Run.
	doStop
)

type eventKind uint8

const (
	// evTick: time has passed.
	evTick eventKind = iota
	// evNudge: the view shows something that concerns us.
	evNudge
	// evWant: the key shall have other attributes, those of the lease that comes
	// with it.
	evWant
	// evStop: the context ended.
	evStop
	// evRenewed: the key is as it was and its time begins anew.
	evRenewed
	// evCreated: the key is ours with its full time.
	evCreated
	// evUpdated: the key is ours, with whatever time it had.
	evUpdated
	// evLost: the key, the config or the store is not what was assumed.
	evLost
	// evFailed: the store could not be asked, and what was to be written may
	// be; or no other subnet can be had at the moment.
	evFailed
	// evAbsent: our subnet is free and may be created.
	evAbsent
	// evOurs: the key is there and belongs to us.
	evOurs
	// evDisputed: the key is there with our node id and another address.
	evDisputed
	// evChallenged: our challenge is in the key.
	evChallenged
	// evDouble: an older lease elsewhere has our node id and another address.
	evDouble
	// evSettled: nobody lives who has our node id and an older lease.
	evSettled
	// evTaken: another owner holds the subnet, or the config rules it out.
	evTaken
	// evBlocked: the subnet is free, but the store holds no valid config.
	evBlocked
	// evFatal: the operator must decide.
	evFatal
)

// event is the outcome of a deed. A lease comes with the events that say what
// the key is now, an error with those that went wrong.
type event struct {
	kind  eventKind
	lease Lease
	err   error
	// sent is when the request was sent that the event answers: time that the
	// store grants counts from then at the latest.
	sent time.Duration
}

// input is one event, when it came, and a random number of [0, 1) for it.
type input struct {
	event
	now    time.Duration
	random float64
}

// rules are what a machine is made with.
type rules struct {
	// ttl stands in for a lease's own where that is not known.
	ttl    time.Duration
	margin time.Duration
	policy OnConflict
}

// machine is the keeper's whole memory. It is a value: step makes another.
type machine struct {
	rules
	state State
	since time.Duration
	// why explains every state but valid.
	why   error
	lease Lease
	want  Attrs
	// renewed is when the lease's time began.
	renewed time.Duration
	// confirmed: the store has answered to this process that the lease is ours.
	confirmed bool
	// dispute is about our key under another address, while it is.
	dispute dispute
	do      deed
	// next is when to act again, failures how often in a row it went wrong.
	next     time.Duration
	failures int
	// settleAt, when set, is when to ask the owners of older leases again, and
	// unsettled how often in a row that went wrong: renewals in between do not.
	settleAt  time.Duration
	unsettled int
}

const (
	// renewJitter is the part of an interval by which renewals come earlier at
	// most, so that hosts which started together drift apart.
	renewJitter = 0.1
	retryFirst  = 500 * time.Millisecond
	retryLast   = 30 * time.Second
	// hotRetries is how often in a row a lost lease is looked at without a
	// pause: races are over after one or two.
	hotRetries = 3
)

var errExpired = errors.New("the lease's time is over")

// step is the whole behaviour: what to do and be after an event. It is pure.
func (m machine) step(in input) machine {
	if in.now >= m.settleAt {
		m.settleAt = 0
	}
	if in.kind == evStop || in.kind == evFatal {
		m.why = in.err
		return m.enter(StateEnded, in.now, doStop)
	}
	switch in.kind {
	case evSettled:
		m.unsettled = 0
		return m.woken(in)
	case evTick, evNudge:
		return m.woken(in)
	case evWant:
		return m.wants(in)
	case evRenewed, evCreated, evUpdated:
		return m.holds(in)
	case evFailed:
		return m.failed(in)
	case evLost:
		return m.lost(in)
	default:
		return m.looked(in)
	}
}

// wants takes in that the key shall have other attributes. While we are without it
// they wait until it is ours again.
func (m machine) wants(in input) machine {
	in.kind = evTick
	if m.want != in.lease.Attrs {
		m.want, in.kind = in.lease.Attrs, evNudge
	}
	m = m.woken(in)
	if m.do == doRenew && m.lease.Attrs != m.want {
		m.do = doUpdate // it proves as much
	}
	return m
}

// woken decides what a wake-up is for.
func (m machine) woken(in input) machine {
	m = m.expire(in.now)
	due := in.now >= m.next || in.kind == evNudge
	switch m.state {
	case StateValid, StateDegraded, StateUnproven:
		m.do = doWait
		if due {
			m.do = m.proof()
		}
	case StateLost, StateConflict:
		m.do = doWait
		if due {
			m.do = doLook
		}
	case StateEnded:
		m.do = doStop
	}
	return m
}

// proof is the deed that tells whether the lease is ours. One of the cache may be
// another machine's, of which this one is a copy, to the last revision: a renewal
// would prove that the key is as it was, and not whose.
func (m machine) proof() deed {
	if m.confirmed {
		return doRenew
	}
	return doLook
}

// holds takes in that the lease is ours.
func (m machine) holds(in input) machine {
	in.lease.TTL = m.ttlOf(in.lease)
	m.lease, m.confirmed, m.dispute = in.lease, true, dispute{}
	if in.kind != evUpdated {
		m.renewed = in.sent
	}
	if m.lease.Attrs == m.want {
		// Otherwise an update that keeps failing would never slow down.
		m.failures = 0
	}
	// A store that takes no writes still renews: the state stays that of the
	// update that keeps failing.
	if m.state != StateDegraded || m.lease.Attrs == m.want {
		m.why = nil
		m = m.enter(StateValid, in.now, doWait)
	}
	m.next = in.sent + m.interval(in.random)
	switch {
	case m.lease.Attrs != m.want:
		m.do = doUpdate
	case in.kind == evUpdated:
		// How much time an updated key has left is not known, and a key that
		// was taken over may be about to expire.
		m.do = doRenew
	}
	return m
}

// failed takes in that the store could not be asked.
func (m machine) failed(in input) machine {
	m.why = in.err
	if m.do == doSettle {
		m.settleAt = in.now + min(retryFirst<<min(m.unsettled, 16), retryLast)
		m.unsettled++
	}
	if m.state == StateValid {
		m = m.enter(StateDegraded, in.now, doWait)
	}
	return m.expire(in.now).retry(in)
}

// lost takes in that an assumption did not hold: look what is true now.
func (m machine) lost(in input) machine {
	m.why = in.err
	if m.state != StateConflict {
		m = m.enter(StateLost, in.now, doLook)
	}
	if m.failures++; m.failures > hotRetries {
		return m.retry(in)
	}
	m.do = doLook
	return m
}

// looked takes in what became of the key.
func (m machine) looked(in input) machine {
	switch in.kind {
	case evAbsent:
		m = m.unheld(in.now)
		m.do = doCreate
	case evOurs:
		in.lease.TTL = m.ttlOf(in.lease)
		m.lease = in.lease
		// Its time first: a store may take no writes. A challenge has no time.
		m.do = doRenew
		if !m.lease.Attrs.Challenge.IsZero() {
			m.do = doUpdate
		}
	case evDouble:
		m.do = doSettle
	case evDisputed:
		return m.disputed(in)
	case evChallenged:
		m.dispute = asked(in.lease, in.now)
		m.next, m.do = m.dispute.until, doWait
	case evTaken:
		m.why = in.err
		m = m.enter(StateConflict, in.now, doRenumber)
		if m.policy != Renumber {
			return m.retry(in)
		}
	default: // evBlocked
		m.why = in.err
		return m.unheld(in.now).retry(in)
	}
	return m
}

// unheld takes in that nobody holds the subnet, us included.
func (m machine) unheld(now time.Duration) machine {
	if m.state == StateConflict {
		return m
	}
	return m.enter(StateLost, now, m.do)
}

// disputed takes in that the key has our node id and another address.
func (m machine) disputed(in input) machine {
	m.why = in.err
	if m.state != StateConflict { // Nobody has said yet that it is over.
		m = m.enter(StateLost, in.now, doWait)
	}
	m.do = doWait
	var v verdict
	m.dispute, v = m.dispute.judge(in.lease, challengeBy(m.want), in.now)
	switch v {
	case verdictWait:
		m.next = m.dispute.until
	case verdictAsk:
		m.do = doChallenge
	case verdictSilent:
		in.lease.TTL = m.ttlOf(in.lease)
		m.lease, m.do = in.lease, doUpdate
	case verdictAnswered:
		return m.enter(StateEnded, in.now, doStop)
	}
	return m
}

// ttlOf is l's TTL, which only a creation or a renewal tells.
func (m machine) ttlOf(l Lease) time.Duration {
	if l.TTL == 0 && l.ID == m.lease.ID {
		return m.lease.TTL
	}
	return l.TTL
}

// enter changes the state; since stays when it is the same one.
func (m machine) enter(s State, now time.Duration, do deed) machine {
	if m.state != s {
		m.state, m.since = s, now
	}
	m.do = do
	return m
}

// retry waits for longer and longer, between half of the pause and all of it.
func (m machine) retry(in input) machine {
	pause := min(retryFirst<<min(m.failures, 16), retryLast, max(m.ttlOr()/6, retryFirst))
	m.failures++
	m.next = in.now + pause/2 + time.Duration(in.random*float64(pause/2))
	m.do = doWait
	return m
}

// expire notices that the lease's time is over.
func (m machine) expire(now time.Duration) machine {
	if at, ok := m.expiry(); ok && now >= at && (m.state == StateValid || m.state == StateDegraded) {
		if m.why == nil {
			m.why = errExpired
		}
		m = m.enter(StateUnproven, now, m.do)
	}
	return m
}

// expiry is when the lease's time is over; false: never.
func (m machine) expiry() (time.Duration, bool) {
	return m.renewed + m.ttlOr(), !m.lease.Reservation()
}

// wake is when a waiting machine must be stepped at the latest.
func (m machine) wake() time.Duration {
	if m.settleAt > 0 {
		m.next = min(m.next, m.settleAt)
	}
	if at, ok := m.expiry(); ok && (m.state == StateValid || m.state == StateDegraded) {
		return min(m.next, at)
	}
	return m.next
}

func (m machine) ttlOr() time.Duration {
	if m.lease.TTL > 0 {
		return m.lease.TTL
	}
	return m.ttl
}

// interval is the time between renewals: a third of the TTL, so that two may
// fail, or less when the margin before the end asks for it.
func (m machine) interval(random float64) time.Duration {
	ttl := m.ttlOr()
	d := ttl / 3
	if m.margin > 0 {
		d = min(d, max(ttl-m.margin, min(time.Second, ttl/3)))
	}
	return d - time.Duration(random*renewJitter*float64(d))
}
