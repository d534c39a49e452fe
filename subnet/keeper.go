package subnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// requestTimeout bounds one deed of the keeper and one Load of the view.
	requestTimeout = 10 * time.Second
	// leastTimeout is what a deed has at least when the lease's time ends,
	// fairTimeout what it has if there is that much: a slow link is no dead one.
	// attempts is how many there are to be time for until the end, where fair.
	leastTimeout = time.Second
	fairTimeout  = 2 * time.Second
	attempts     = 3
)

// SupersededError is a lease that another process of this host has taken over.
type SupersededError struct{ Lease Lease }

// Error names the subnet and the other process.
func (e *SupersededError) Error() string {
	return fmt.Sprintf("another daemon of this host (instance %s) has taken over %s", e.Lease.Attrs.Instance, e.Lease.Subnet)
}

// KeeperOptions is what a [Keeper] is made of.
type KeeperOptions struct {
	Store Store
	Clock Clock
	// Claim is what the lease was acquired with. Its Attrs are published.
	Claim Claim
	// Lease is what Acquire returned, Identity the [World.Identity] in which.
	Lease    Lease
	Identity string
	// Asked, when set, is the uptime at which Acquire was called. The time of a
	// lease that it created began then or later, so that it need not be renewed
	// to know how much is left: the first request that is saved where all hosts
	// start at once. It wants a View, which shows what becomes of the key.
	Asked time.Duration
	// Cached: the lease comes from a file, and no store has confirmed it yet.
	Cached bool
	// Margin is how long before its end a lease is renewed at the latest; it
	// can only shorten the interval of a third of the TTL. Zero: no say.
	Margin     time.Duration
	OnConflict OnConflict
	// View, when set, is watched for changes of our own key, so that they are
	// noticed at once and not at the next renewal. It is told when the store
	// answered us.
	View *View
	// Avoid, when set, returns what [Claim.Avoid] is by now, for the lease of
	// another subnet.
	Avoid func(ctx context.Context) ([]netip.Prefix, error)
	// Log, when set, is told every change of state.
	Log *slog.Logger
	// Random returns numbers of [0, 1) for jitter; nil: math/rand.
	Random func() float64
}

// Keeper keeps one lease alive and this host's, for as long as it runs:
//
//	             created, updated, renewed
//	   .-----------------------------------------------.
//	   v                                               |
//	[valid] --- store fails ---> [degraded] -- TTL --> [unproven] <-- start from
//	   |                             |                     |          a cache
//	   |  the key or the store is    |                     |
//	   |  not what it was            v                     |
//	   '------------------------> [lost] <-----------------'
//	      free: create again        |  ^
//	      ours: take it back        |  | look again, later and later; after
//	      our node id elsewhere:    |  | a challenge, in 3 s: silence makes
//	        challenge its owner     |  | it ours, an answer ends Run
//	                                v  |
//	      another's, or ruled out: [conflict]
//	        renumber: another subnet -> valid
//	        fence, keep: until it is free or ours again
//
// All of it ends when the context does, when another process of this host takes
// the lease over, or when another host with our node id answers our challenge:
// one that has our key, or a subnet of its own for longer than we have ours.
// Ours is answered without a word about challenges: somebody else's changed our
// key, and it is taken back as after every other change.
//
// Of two leases that overlap the older one holds, and everybody routes to that
// one. If ours is the younger, that is a conflict as well, as it is for a host
// that starts; if ours is the older, the other is refused, and its owner yields.
//
// What operators do to the key counts. One that was put without a lease is a
// reservation from then on. A reservation that was deleted was released: the
// subnet is created again as an ordinary lease. One that was moved to another
// lease stays there, and that lease is kept alive.
type Keeper struct {
	o      KeeperOptions
	status atomic.Pointer[KeeperStatus]
	// wanted are attributes that Run has not taken in yet, and news says so.
	wanted atomic.Pointer[Attrs]
	news   chan struct{}

	// What follows belongs to Run.

	// world is what the last look read.
	world World
	// seen is the last sight of our key in the view that made us look, and
	// what we expected to see: what it means is known until we hold another.
	seen struct{ now, expected sighting }
	// lives is how often the store had lost its past when the view last made
	// us look for that.
	lives int
	// silent are the older leases with our node id whose owners did not
	// answer, as they read at the revision settled.
	silent  map[Subnet]Revision
	settled Revision
	// unsure: a request failed since the last Load, and may have been carried out.
	unsure bool
	m      machine
}

// KeeperStatus is a lease at one moment. It does not change.
type KeeperStatus struct {
	State State
	// Since is when the state began, by the wall clock of then.
	Since time.Time
	// Why explains every state but valid.
	Why string
	// Lease is what the host has, or had last.
	Lease Lease
	// Identity is that of the store that holds it.
	Identity string
	// Expires is the end of the lease's time on [Clock.Uptime]; 0: never.
	Expires time.Duration
	// Withdraw: the host must not use the subnet now (policy fence).
	Withdraw bool

	changed chan struct{}
}

// Changed is closed when state, reason or lease are no longer these.
func (s *KeeperStatus) Changed() <-chan struct{} { return s.changed }

// NewKeeper returns a keeper; it does nothing before Run.
func NewKeeper(o KeeperOptions) *Keeper {
	if o.Random == nil {
		o.Random = rand.Float64
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Claim.TTL = cmp.Or(o.Claim.TTL, DefaultTTL)
	o.Claim.Clock = o.Clock
	now := o.Clock.Uptime()
	m := machine{
		rules: rules{ttl: o.Claim.TTL, margin: o.Margin, policy: o.OnConflict},
		state: StateValid, since: now, lease: o.Lease, want: o.Claim.attrs(),
		renewed: now, confirmed: true, do: doRenew,
	}
	if o.Asked > 0 && o.Lease.TTL > 0 && o.View != nil {
		m.renewed, m.do = o.Asked, doWait
		m.next = o.Asked + m.interval(o.Random())
	}
	if o.Cached {
		m.state, m.confirmed, m.do, m.why = StateUnproven, false, doLook, errors.New("the lease comes from the cache")
	}
	k := &Keeper{o: o, m: m, news: make(chan struct{}, 1), silent: map[Subnet]Revision{}, world: World{Identity: o.Identity}}
	if o.View != nil {
		k.lives = o.View.Snapshot().lives
	}
	k.status.Store(k.describe(make(chan struct{})))
	return k
}

// Status returns the lease as it stands; it never blocks.
func (k *Keeper) Status() *KeeperStatus { return k.status.Load() }

// Lease is the lease as it stands.
func (k *Keeper) Lease() Lease { return k.Status().Lease }

// Publish makes attrs what the key says of this host from now on, in place of the
// claim's, by a write that keeps the lease. It returns at once and may be called at
// any time: [KeeperStatus.Lease] has them when they are written.
func (k *Keeper) Publish(attrs Attrs) {
	k.wanted.Store(&attrs)
	select {
	case k.news <- struct{}{}:
	default:
	}
}

// Release gives the lease up; it must not be called before Run has returned. A
// reservation stays, which is no error. [ErrLeaseLost]: the lease is not ours any
// more, and whoever has the subnet keeps it. While there is no answer it asks again
// until ctx ends: a request that was carried out although its answer was lost finds
// no lease of ours then, which the error says. After any other error the outcome is
// open, unless it is [ErrStoreChanged].
func (k *Keeper) Release(ctx context.Context) error {
	l := k.Lease()
	if l.Reservation() {
		return nil
	}
	for asked := false; ; asked = true {
		err := k.release(ctx, l)
		switch {
		case asked && errors.Is(err, ErrLeaseLost):
			return fmt.Errorf("an earlier request got no answer, and may have been the one that released it: %w", err)
		case err == nil, errors.Is(err, ErrLeaseLost), errors.Is(err, ErrStoreChanged):
			return err
		}
		if waitUntil(ctx, k.o.Clock, k.o.Clock.Uptime()+retryFirst) != nil || ctx.Err() != nil {
			return err
		}
	}
}

func (k *Keeper) release(ctx context.Context, l Lease) error {
	ctx, cancel := context.WithTimeout(ctx, fairTimeout)
	defer cancel()
	return k.o.Store.Release(ctx, l)
}

// Run keeps the lease until ctx ends, and returns nil then. A
// *[SupersededError] or *[ForeignInstanceError] ends it too. It runs once.
func (k *Keeper) Run(ctx context.Context) error {
	for k.m.do != doStop {
		did := k.m.do
		ev := k.perform(ctx)
		if ev.kind == evFailed && ctx.Err() != nil {
			ev = stopped()
		}
		k.m = k.m.step(input{event: ev, now: k.o.Clock.Uptime(), random: k.o.Random()})
		if did != doWait && did != doLook && ev.kind != evFailed {
			k.answered()
		}
		k.publish(ctx)
	}
	if ctx.Err() != nil {
		return nil
	}
	return k.m.why
}

// perform does what the machine wants next.
func (k *Keeper) perform(ctx context.Context) event {
	if k.m.do == doWait {
		return k.wait(ctx)
	}
	sent := k.o.Clock.Uptime()
	ctx, cancel := context.WithTimeout(ctx, k.patience(sent))
	defer cancel()
	var ev event
	switch k.m.do {
	case doRenew:
		l, err := k.o.Store.Renew(ctx, k.m.lease)
		ev = outcome(evRenewed, l, k.explain(err))
	case doLook:
		ev = k.look(ctx)
	case doCreate:
		l, err := k.o.Store.Create(ctx, Lease{Subnet: k.m.lease.Subnet, Attrs: k.m.want}, k.o.Claim.TTL, k.world)
		ev = outcome(evCreated, l, err)
	case doUpdate:
		l := k.m.lease
		l.Attrs = k.m.want
		l, err := k.o.Store.Update(ctx, l)
		ev = outcome(evUpdated, l, err)
	case doChallenge:
		l := k.m.dispute.lease
		l.Attrs.Challenge = challengeBy(k.m.want)
		l, err := k.o.Store.Update(ctx, l)
		ev = outcome(evChallenged, l, err)
	case doSettle:
		ev = k.settle(ctx)
	case doRenumber:
		ev = k.renumber(ctx)
	default: // doWait and doStop are not performed here
	}
	ev.sent = sent
	k.unsure = k.unsure || ev.kind == evFailed && !errors.As(ev.err, new(*ExhaustedError))
	return ev
}

// answered tells the view that the store answered, to a lease of seconds more often
// than its watch does. A reservation is proven as often as a lease is renewed.
func (k *Keeper) answered() {
	if k.o.View != nil {
		k.o.View.hearing.answered(k.o.Clock.Uptime(), k.m.ttlOr()/3)
	}
}

// patience is how long the next deed may take. A request that hangs, as one to a
// member that is paused does, must leave time to ask another, and not hide that
// the lease's time is over.
func (k *Keeper) patience(now time.Duration) time.Duration {
	if k.m.do == doRenumber || k.m.do == doSettle {
		return requestTimeout + 2*ChallengeWait // There may be answers to wait for.
	}
	at, ok := k.m.expiry()
	switch {
	case !ok:
		return requestTimeout
	case at <= now: // Peers are about to let go of us: there is no less hurry.
		return min(requestTimeout, max(k.m.ttlOr()/attempts, fairTimeout))
	}
	return min(requestTimeout, max((at-now)/attempts, min(at-now, fairTimeout), leastTimeout))
}

// answerWithin is how long one of the requests of a deed may take that has many: twice
// as long after each time that it went wrong, since what is slow must get through too.
// The first failure is none yet: it may be the loss that the deed is about.
func (k *Keeper) answerWithin(failures int) time.Duration {
	return min(requestTimeout, fairTimeout<<min(max(failures-1, 0), 3))
}

// stopped is the event of a context that ended. What a deed achieved before
// that is taken in first, so that Release knows it.
func stopped() event { return event{kind: evStop, err: errors.New("stopped")} }

// outcome sorts a write's or renewal's result.
func outcome(success eventKind, l Lease, err error) event {
	switch {
	case err == nil:
		return event{kind: success, lease: l}
	case errors.Is(err, ErrLeaseLost), errors.Is(err, ErrStoreChanged), errors.Is(err, ErrTaken), errors.Is(err, ErrConfigChanged):
		return event{kind: evLost, err: err}
	}
	return event{kind: evFailed, err: err}
}

// explain says why a lease is lost, where the view has seen it.
func (k *Keeper) explain(err error) error {
	if k.o.View == nil || !errors.Is(err, ErrLeaseLost) {
		return err
	}
	s, own := k.o.View.Snapshot(), k.m.lease
	_, there := s.Stored(own.Subnet)
	unreadable := slices.ContainsFunc(s.Bad, func(b BadKey) bool { return b.Occupies == own.Subnet })
	if there || unreadable || !s.Synced || s.Identity != k.world.Identity || s.Revision <= own.Modified {
		return err
	}
	return fmt.Errorf("key %s was deleted: %w", own.Subnet.Key(), err)
}

// wait returns when it is time, or earlier for a reason.
func (k *Keeper) wait(ctx context.Context) event {
	timer := k.o.Clock.Timer(k.m.wake() - k.o.Clock.Uptime())
	defer timer.Stop()
	for {
		if attrs := k.wanted.Swap(nil); attrs != nil {
			k.o.Claim.Attrs = *attrs
			return event{kind: evWant, lease: Lease{Attrs: k.o.Claim.attrs()}}
		}
		var changed <-chan struct{}
		if k.o.View != nil {
			s := k.o.View.Snapshot()
			if k.concerns(s) {
				return k.noticed(s)
			}
			if k.doubled(s) {
				return event{kind: evDouble}
			}
			changed = s.Changed()
		}
		select {
		case <-ctx.Done():
			return stopped()
		case <-timer.C:
			return event{kind: evTick}
		case <-k.news:
		case <-changed:
		}
	}
}

// publish shows the machine to others, and wakes them when it matters.
func (k *Keeper) publish(ctx context.Context) {
	old := k.Status()
	s := k.describe(old.changed)
	same := s.State == old.State && s.Why == old.Why && s.Lease == old.Lease && s.Identity == old.Identity
	if same {
		k.status.Store(s)
		return
	}
	s.changed = make(chan struct{})
	k.status.Store(s)
	close(old.changed)
	if s.State != old.State || s.Lease.Subnet != old.Lease.Subnet {
		k.log(ctx, s, old)
	}
}

func (k *Keeper) log(ctx context.Context, s, old *KeeperStatus) {
	level := slog.LevelWarn
	if slices.Contains([]State{StateValid, StateEnded}, s.State) {
		level = slog.LevelInfo
	}
	attrs := []any{"state", s.State.String(), "before", old.State.String(), "subnet", s.Lease.Subnet.String()}
	if s.Why != "" {
		attrs = append(attrs, "reason", s.Why)
	}
	k.o.Log.Log(ctx, level, "lease state changed", attrs...)
}

// describe is the machine as others see it.
func (k *Keeper) describe(changed chan struct{}) *KeeperStatus {
	s := &KeeperStatus{
		State:    k.m.state,
		Since:    k.o.Clock.Now().Add(k.m.since - k.o.Clock.Uptime()),
		Lease:    k.m.lease,
		Identity: k.world.Identity,
		Withdraw: k.m.state == StateConflict && k.m.policy == Fence,
		changed:  changed,
	}
	if at, ok := k.m.expiry(); ok {
		s.Expires = at
	}
	if k.m.why != nil {
		s.Why = k.m.why.Error()
	}
	return s
}
