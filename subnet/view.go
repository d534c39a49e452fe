package subnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

const (
	// defaultHold is how long a deleted lease stays in view: time enough for
	// its owner to create it again (decision 6 of the design).
	defaultHold = 2 * time.Second
	// releaseEvery is the least time between two ends of holding: one in a row of many
	// is no reason to wake everybody.
	releaseEvery = 100 * time.Millisecond
	// missedProgress is how often a store may fail to show progress. A longer
	// silence is a dead connection.
	missedProgress = 3
	// loadPatience is how often the time for a load doubles after failures.
	loadPatience   = 3
	reconnectFirst = 200 * time.Millisecond
	reconnectLast  = 10 * time.Second
	// fullLoadLeast and fullLoadPerHost say how often everything is read
	// again although nothing seems wrong, at a cost that stays the same however many
	// hosts do it.
	fullLoadLeast   = 10 * time.Minute
	fullLoadPerHost = 500 * time.Millisecond
	// spreadPerHost is over how long loads are spread that all hosts have the
	// same cause for: a store that is back, a compaction. Each loads as many
	// leases as there are hosts, and at once it would be more than a store can
	// answer in time, again and again.
	spreadPerHost = 5 * time.Millisecond
	// mostAtOnce is how many batches are shown as one at the most.
	mostAtOnce = 256
	// spreadLeast is the spread that is worth a thought: with fewer hosts all
	// load at once, and see what there is without delay.
	spreadLeast = time.Second
)

var (
	errUnread   = errors.New("the store has not been read yet")
	errCached   = errors.New("this comes from the cache")
	errSilent   = errors.New("the watch made no progress")
	errFullLoad = errors.New("time for a full load")
)

// ViewOptions is what a [View] is made of. Store and Clock are needed.
type ViewOptions struct {
	Store Store
	Clock Clock
	// World, when its Identity is set, is where the view starts: the one
	// Load that Acquire needed as well. Cached: it comes from a file.
	World  World
	Cached bool
	// Found, when its Identity is set and World is Cached, is what the store was
	// just found to hold: it is shown second, in place of Run's first Load. So a
	// host takes up the config that the store has lost.
	Found World
	// Former, when its Identity is set, is what an earlier process of this host
	// knew last: a World that was just loaded is taken as the next thing that
	// process would have read. What it lacks was deleted this moment.
	Former World
	// Unheard is how long ago that process heard the store, and Holding for how
	// much longer it would have held deleted leases: what [View.Unheard] and
	// [Snapshot.Held] said of it. They count where World is Cached, or there is a
	// Former, up to the first list of the store.
	Unheard, Holding time.Duration
	// Node is this host: a [Keeper] that follows the view notices then that
	// another machine has its node id.
	Node NodeID
	// TTL is how long deletions are held back after the store lost its past,
	// while there is no config, and when the store was silent for so long that
	// leases of hosts that live ran out; zero: [DefaultTTL].
	TTL time.Duration
	// Hold is how long other deletions are; zero: 2 s.
	Hold time.Duration
	// Log, when set, is told when the view loses and finds the store.
	Log *slog.Logger
	// Random returns numbers of [0, 1) for jitter; nil: math/rand.
	Random func() float64
}

// View follows the store: it loads all, watches from there, and shows the result
// as one [Snapshot] after the other.
//
//	     Load                  Watch: batches
//	       |                        |
//	       v                        v
//	[ difference ]------->[ leases, deleted ones held ]---> Snapshot --> readers
//	       ^                        |                      (atomic)
//	       '--- compacted, store changed, disconnected,
//	            silent for too long, or time for a full load
//
// Where hosts are many, one that was disconnected goes on with its watch, which
// costs the store what has changed and not all there is; the load that would show
// what a watch cannot (see [projection.load]) follows at a time of its own, and so do the
// loads that nobody is spared.
//
// One goroutine owns what changes. Readers take the latest snapshot and never
// make it wait.
type View struct {
	o       ViewOptions
	current atomic.Pointer[Snapshot]
	// hearing is also told by the keeper.
	hearing *hearing

	// What follows belongs to Run.

	p projection
	// failures counts failed attempts since the last batch.
	failures int
	// behind: only a load tells what the store holds.
	behind bool
	// reload is how long after it began a watch ends for a full load.
	reload time.Duration
}

// NewView returns a view; it does nothing before Run.
func NewView(o ViewOptions) *View {
	o.TTL = cmp.Or(o.TTL, DefaultTTL)
	o.Hold = cmp.Or(o.Hold, defaultHold)
	if o.Random == nil {
		o.Random = rand.Float64
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	now := o.Clock.Uptime()
	h := newHearing(o.TTL, now-o.Unheard)
	v := &View{o: o, hearing: h, p: newProjection(o.Node, o.Hold, h)}
	s := &Snapshot{Since: o.Clock.Now(), Err: errUnread, changed: make(chan struct{})}
	if o.World.Identity != "" {
		v.p.latest = now + min(o.Holding, o.TTL)
		if o.Former.Identity != "" && !o.Cached {
			v.p.load(o.Former, now)
			v.p.partial = true // as every file is
		}
		if !o.Cached {
			h.heard(now)
		}
		v.p.load(o.World, now)
		v.p.partial = o.Cached
		s = v.p.snapshot()
		s.Synced, s.Since, s.changed = !o.Cached, o.Clock.Now(), make(chan struct{})
		if o.Cached {
			s.Err = errCached
		}
	}
	v.o.World, v.o.Former = World{}, World{} // they are in p, and a view lives long
	v.current.Store(s)
	return v
}

// Unheard is for how long the store has not been heard, by this process or by the
// earlier one that it follows.
func (v *View) Unheard() time.Duration { return v.hearing.ago(v.o.Clock.Uptime()) }

// Snapshot returns the latest state, never nil; it does not block.
func (v *View) Snapshot() *Snapshot { return v.current.Load() }

// Run follows the store until ctx ends, and returns nil then. It runs once.
func (v *View) Run(ctx context.Context) error {
	v.behind = !v.Snapshot().Synced
	v.reload = v.fullLoadEvery()
	for ctx.Err() == nil {
		err := v.load(ctx)
		if err == nil {
			err = v.follow(ctx)
		}
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errFullLoad) {
			v.behind = true
			continue
		}
		v.stale(err)
		v.pause(ctx, v.recover(err))
	}
	return nil
}

// recover decides what to do after a failure, and how long to leave the store
// alone before.
func (v *View) recover(err error) time.Duration {
	if errors.Is(err, ErrStoreChanged) {
		v.p.distrust()
	}
	pause := v.backoff()
	spread := time.Duration(v.p.leases.len) * spreadPerHost
	crowded := spread >= spreadLeast
	jittered := time.Duration(v.o.Random() * float64(spread))
	switch {
	case errors.Is(err, ErrStoreChanged), errors.Is(err, ErrCompacted):
		if v.behind = true; crowded {
			return pause + jittered
		}
	case errors.Is(err, errSilent), !crowded:
		v.behind = true
	case !v.behind:
		v.reload = jittered
	}
	return pause
}

// load reads everything, unless a watch can go on from where the view is, and
// shows what is different.
func (v *View) load(ctx context.Context) error {
	if !v.behind {
		return nil
	}
	// A store with a long queue does in vain what nobody waits for, and then
	// once more.
	ctx, cancel := context.WithTimeout(ctx, requestTimeout<<min(v.failures, loadPatience))
	defer cancel()
	w := v.o.Found
	v.o.Found = World{}
	if w.Identity == "" {
		var err error
		if w, err = v.o.Store.Load(ctx); err != nil {
			return err // it says that this was the load
		}
	}
	now := v.o.Clock.Uptime()
	v.hearing.heard(now)
	v.publish(volumeOf(v.p.load(w, now)))
	v.behind, v.reload = false, v.fullLoadEvery()
	return nil
}

// follow watches from where the view is, until that ends for any reason. The
// watch runs in a goroutine of its own, since held leases run out and progress is
// missed while it is silent; it has ended when follow returns.
func (v *View) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	batches, end, ended := make(chan Batch, mostAtOnce), make(chan error, 1), make(chan struct{})
	go func(after Revision) {
		defer close(ended)
		end <- v.watch(ctx, after, batches)
	}(v.p.revision)
	defer func() {
		cancel()
		<-ended
	}()
	clock := v.o.Clock
	patience := missedProgress * ProgressWithin(v.p.leases.len)
	now := clock.Uptime()
	silent := now + patience
	// It counts from when the store is followed again: one that is still away
	// must not make everybody load when it is back.
	reload := time.Duration(math.MaxInt64)
	for {
		timer := clock.Timer(v.wake(min(silent, reload)) - now)
		select {
		case b := <-batches:
			timer.Stop()
			if now = clock.Uptime(); now >= silent {
				// It waited for us, while this machine slept say: etcd may have
				// been restored meanwhile, and be past this revision again.
				return fmt.Errorf("%w for %s", errSilent, patience)
			}
			silent, reload = now+patience, min(reload, now+v.reload)
			v.take(b, batches, now)
		case err := <-end:
			timer.Stop()
			// The store goes on from its last batch, and must not know more of
			// where that is than we do.
			if now = clock.Uptime(); len(batches) > 0 && now < silent {
				v.take(<-batches, batches, now)
			}
			return err
		case <-timer.C:
			now = clock.Uptime()
		}
		if v.p.release(now) {
			v.publish(loud)
		}
		switch {
		case now >= silent:
			return fmt.Errorf("%w for %s", errSilent, patience)
		case now >= reload:
			return errFullLoad
		}
	}
}

// watch hands the store's batches over until the stream or ctx ends.
func (v *View) watch(ctx context.Context, after Revision, to chan<- Batch) error {
	for b, err := range v.o.Store.Watch(ctx, after) {
		if err != nil {
			return err
		}
		select {
		case to <- b:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return errors.New("watch leases: the stream ended without a reason")
}

// take shows what a batch changed, together with those that came meanwhile: where
// thousands of hosts start at once, that is what most of the work would be for.
func (v *View) take(b Batch, more <-chan Batch, now time.Duration) {
	v.failures = 0
	changed := v.accept(b, now)
	for range len(more) {
		changed = v.accept(<-more, now) || changed
	}
	v.publish(volumeOf(changed))
}

// accept takes in a batch, and reports whether it changed anything but the revision.
// One that only deletes is no word of a store that answers: it deletes what ran out
// even if it has no time for anybody.
func (v *View) accept(b Batch, now time.Duration) bool {
	if len(b.Deleted) == 0 || len(b.Put)+len(b.Bad) > 0 || b.Config != nil {
		v.hearing.heard(now)
	}
	return v.p.apply(b, now)
}

// wake is the earlier of at and the end of the next held lease.
func (v *View) wake(at time.Duration) time.Duration {
	if next, ok := v.p.nextRelease(); ok {
		return min(at, next)
	}
	return at
}

// fullLoadEvery grows with the number of hosts, all of which do it, and is
// shortened by up to a fifth so that they do not do it together.
func (v *View) fullLoadEvery() time.Duration {
	d := max(fullLoadLeast, time.Duration(v.p.leases.len)*fullLoadPerHost)
	return d - time.Duration(v.o.Random()*float64(d)/5)
}

// backoff is how long to leave the store alone after a failure.
func (v *View) backoff() time.Duration {
	d := min(reconnectFirst<<min(v.failures, 16), reconnectLast)
	v.failures++
	return d/2 + time.Duration(v.o.Random()*float64(d/2))
}

// pause waits, and goes on ending held leases meanwhile. While the store cannot
// be asked only those end that it had deleted before.
func (v *View) pause(ctx context.Context, d time.Duration) {
	clock := v.o.Clock
	for until := clock.Uptime() + d; clock.Uptime() < until; {
		timer := clock.Timer(v.wake(until) - clock.Uptime())
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if v.p.release(clock.Uptime()) {
			v.publishAs(v.Snapshot())
		}
	}
}

// volume says whether a new snapshot wakes who waits for a change.
type volume uint8

const (
	// loud snapshots differ from the last in what they show.
	loud volume = iota
	// quiet ones differ in their revision alone.
	quiet
)

// volumeOf a change: what changed nothing is quiet.
func volumeOf(changed bool) volume {
	if changed {
		return loud
	}
	return quiet
}

// publish shows the projection as it is now, in sync with the store.
func (v *View) publish(how volume) {
	old, s := v.Snapshot(), v.p.snapshot()
	s.Synced, s.Since, s.changed = true, old.Since, old.changed
	if !old.Synced {
		s.Since, how = v.o.Clock.Now(), loud
		v.o.Log.Info("leases in sync", "revision", int64(s.Revision), "leases", s.Len())
	}
	v.replace(old, s, how)
}

// publishAs shows the projection as it is now, in sync or not as old was.
func (v *View) publishAs(old *Snapshot) {
	s := v.p.snapshot()
	s.Synced, s.Since, s.Err = old.Synced, old.Since, old.Err
	v.replace(old, s, loud)
}

// stale shows that the store is not followed at the moment.
func (v *View) stale(why error) {
	old := v.Snapshot()
	s := v.p.snapshot()
	s.Synced, s.Since, s.Err = false, old.Since, why
	if old.Synced {
		s.Since = v.o.Clock.Now()
		v.o.Log.Warn("leases out of sync", "error", why)
	}
	v.replace(old, s, loud)
}

func (v *View) replace(old, s *Snapshot, how volume) {
	if how == quiet {
		s.changed = old.changed
		v.current.Store(s)
		return
	}
	s.changed = make(chan struct{})
	v.current.Store(s)
	close(old.changed)
}
