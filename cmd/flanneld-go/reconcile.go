package main

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// resyncEvery is how long drift that no event told of may last.
	resyncEvery = 30 * time.Second
	// settle is how long kernel events are collected before a round: one
	// cause makes many.
	settle = 20 * time.Millisecond
	// A failed round is tried again after retryMin, then ever later.
	retryMin, retryMax = 250 * time.Millisecond, 10 * time.Second
	// cacheAfter is how long etcd may be silent at start before the host
	// starts from what it knew last.
	cacheAfter = 3 * time.Second
)

// loop owns what is done to this host: one goroutine, one round at a time.
//
//	round: config -> uplink -> backend -> lease -> apply -> firewall -> files
//
// Each stage needs those before it. A stage that fails is a problem on the
// board and ends the round, unless traffic can do without it. Start is nothing
// special: its first rounds end early.
type loop struct {
	*daemon
	host  kernel.Host
	group *errgroup.Group
	beat  *heartbeat
	// retry is the pause after a failed round.
	retry time.Duration

	// saved is what host.json is to hold; unsaved: it does not yet.
	saved   statedir.Host
	unsaved bool

	cache statedir.Cache
	view  *subnet.View
	// firstLoad is how the first load failed; the view knows better as soon
	// as it shows anything but firstSnap.
	firstLoad error
	firstSnap *subnet.Snapshot
	// began is the uptime at which that load was asked for; following: the view
	// runs, or will after a pause.
	began     time.Duration
	following bool
	// snap is what this round sees.
	snap *subnet.Snapshot

	journal journal
	config  configState
	uplink  backend.Uplink
	// uplinkIndex is its interface's, for other goroutines.
	uplinkIndex atomic.Int64
	move        moveState
	backend     backend.Backend
	attrs       subnet.Attrs
	lease       leaseState
	path        pathState
	forwarding  forwardingState
	quarrel     quarrel
	// heard are the topics of the kernel's events since the last Apply.
	heard atomic.Uint32
	// neighbours is shared with the one who sifts events.
	neighbours neighbourState
	files      fileState
	docker     dockerState
	heir       heirState
}

// heartbeat is the uptime at which the loop last finished a round: a clock that is set
// back must not hide that it hangs.
type heartbeat struct{ nanos atomic.Int64 }

func (h *heartbeat) set(uptime time.Duration) { h.nanos.Store(int64(uptime)) }
func (h *heartbeat) last() time.Duration      { return time.Duration(h.nanos.Load()) }

func newLoop(d *daemon, host kernel.Host, group *errgroup.Group) *loop {
	l := &loop{daemon: d, host: host, group: group, beat: &heartbeat{}, retry: retryMin, heir: heirState{kept: map[string]syscall.RawConn{}}}
	l.path.down = make(chan struct{}, 1)
	l.beat.set(d.clock.Uptime())
	return l
}

// stage is one step of a round.
type stage struct {
	component string
	weight    weight
	run       func(context.Context) error
}

// weight is what a stage's failure means.
type weight uint8

const (
	// minor: the host is degraded, and ready all the same.
	minor weight = iota
	// gating: traffic passes, but the host is not ready.
	gating
	// vital: the stages behind it cannot run.
	vital
)

func (l *loop) stages() []stage {
	return []stage{
		{status.ComponentEtcd, minor, l.followStore},
		{status.ComponentConfig, vital, l.takeConfig},
		{status.ComponentUplink, vital, l.takeUplink},
		{status.ComponentBackend, vital, l.takeBackend},
		{status.ComponentLease, vital, l.takeLease},
		{status.ComponentForwarding, minor, l.keepForwarding},
		{status.ComponentKernel, vital, l.apply},
		{status.ComponentDataPath, gating, l.watchDataPath},
		{status.ComponentFirewall, minor, l.applyFirewall},
		{status.ComponentFiles, gating, l.writeFiles},
		{status.ComponentDocker, minor, l.writeDocker},
		{status.ComponentCache, minor, l.keepState},
	}
}

// run makes rounds until ctx ends.
func (l *loop) run(ctx context.Context) error {
	if err := l.remember(); err != nil {
		return err
	}
	l.resume(ctx)
	events, err := l.events(ctx)
	if err != nil {
		return err
	}
	drift := l.firewall.Drift(ctx)
	w, stages := &wakes{events, drift}, l.stages()
	for {
		complete, err := l.round(ctx, stages)
		if err != nil {
			l.leave()
			return err
		}
		l.runView(ctx, 0) // There may be no lease to wait for.
		l.beat.set(l.clock.Uptime())
		l.makePeace()
		l.idle(ctx, w, l.untilMove(l.untilCache(l.inGrace(l.pause(complete)))))
		if ctx.Err() != nil {
			l.leave()
			return nil
		}
	}
}

// wakes are what others say; one that is closed is nil.
type wakes struct {
	events <-chan kernel.Event
	drift  <-chan struct{}
}

// idle waits until a round is due. Meanwhile it follows changes that are of peers and
// nothing else.
func (l *loop) idle(ctx context.Context, w *wakes, pause time.Duration) {
	due := l.clock.Uptime() + pause
	for {
		round := l.path.follow.until(due)
		wake, news := l.path.former.next(round), l.snap.Changed()
		if rest := l.path.follow.rest; l.clock.Uptime() < rest {
			wake, news = min(wake, rest), nil
		}
		timer := l.clock.Timer(wake - l.clock.Uptime())
		again := false
		// News is worth a try at once, and ends the patience with what failed.
		select {
		case <-ctx.Done():
		case <-news:
			again = l.path.follow.gather(l.clock.Uptime()) || l.follow(ctx)
			l.retry = retryMin
		case <-l.lease.changed():
			l.retry = retryMin
		case <-l.path.down:
			l.path.follow.end()
		case <-timer.C:
			again = l.clock.Uptime() < round && l.letGo(ctx)
		case _, ok := <-w.events:
			if !ok {
				w.events, again = nil, true
				break
			}
			l.move.stale = true
			l.path.follow.end()
			l.drain(ctx, w)
		case _, ok := <-w.drift:
			if !ok {
				w.drift, again = nil, true
				break
			}
			again = l.firewall.Undisturbed(ctx)
		}
		timer.Stop()
		if !again || ctx.Err() != nil {
			return
		}
	}
}

// drain collects events for a moment, so that one cause makes one round.
func (l *loop) drain(ctx context.Context, w *wakes) {
	timer := l.clock.Timer(l.quarrel.settle(l.clock.Uptime()))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.snap.Changed(): // a quarrel must not hold up peers
			return
		case <-l.lease.changed():
			return
		case <-l.path.down: // nor packets that nobody forwards
			return
		case <-timer.C:
			return
		case _, ok := <-w.events:
			if !ok {
				return
			}
		case _, ok := <-w.drift: // nor the firewall
			if !ok {
				w.drift = nil
			} else if !l.firewall.Undisturbed(ctx) {
				return
			}
		}
	}
}

// pause says when to look again although nothing woke us.
func (l *loop) pause(complete bool) time.Duration {
	if complete {
		l.retry = retryMin
		return min(resyncEvery, l.opts.iptablesResync)
	}
	// What failed must not make the firewall wait for its check.
	pause := min(l.retry, l.opts.iptablesResync)
	l.retry = min(2*l.retry, retryMax)
	return pause
}

// round runs the stages and reports whether all of them succeeded. Its error
// ends the process.
func (l *loop) round(ctx context.Context, stages []stage) (complete bool, _ error) {
	began := l.clock.Uptime()
	defer func() { l.path.follow.rounded(began, l.clock.Uptime()) }()
	complete, ready, broken := true, true, false
	for _, s := range stages {
		err := s.run(ctx)
		if ctx.Err() != nil || errors.Is(err, errConflict) {
			return false, nil
		}
		if end := (*fatal)(nil); errors.As(err, &end) {
			return false, end.error
		}
		s.weight = weigh(s.weight, err)
		l.report(s, err)
		if err == nil {
			continue
		}
		complete = false
		ready = ready && s.weight == minor
		if broken = s.weight == vital; broken {
			l.path.follow.end()
			break
		}
	}
	took := l.clock.Uptime() - began
	var counters map[string]uint64
	if c, ok := l.backend.(backend.Counter); ok {
		counters = c.Counters()
	}
	var level backend.Level
	if v, ok := l.backend.(backend.Leveler); ok {
		level = v.Level()
	}
	l.board.Update(func(s *status.Status) {
		s.Backend.Counters, s.Backend.DataPath = counters, l.dataPath()
		s.Backend.Queues, s.Backend.Offloads = level.Queues, level.Offloads
		s.Sync.Runs++
		s.Sync.LastRun = l.clock.Now()
		s.Sync.LastSeconds = took.Seconds()
		if !complete {
			s.Sync.Failures++
		}
		s.State = status.StateRunning
		if broken && !l.path.applied {
			s.State = status.StateWaiting
		}
		s.Ready = ready
	})
	return complete, nil
}

// dataPath says how it stands.
func (l *loop) dataPath() status.DataPath {
	switch {
	case l.path.applied:
		return status.PathApplied
	case l.lease.withdrawn:
		return status.PathWithdrawn
	}
	return status.PathPending
}

// report puts a stage's outcome on the board, and into the log if that has not
// got it.
func (l *loop) report(s stage, err error) {
	if err == nil {
		l.board.Clear(s.component)
		if since, tell := l.journal.recovery(s.component, l.clock.Uptime()); tell {
			l.log.Info("recovered", "component", s.component, "duration", l.clock.Now().Sub(since))
		}
		return
	}
	p := status.Problem{Component: s.component, Message: err.Error(), Blocking: s.weight != minor}
	var h *hintError
	if asHint(err, &h) {
		p.Hint = h.hint
	}
	l.board.Report(p)
	if l.journal.problem(s.component, p.Message, l.clock.Now(), l.clock.Uptime()) {
		log := l.log
		if !strings.Contains(p.Message, p.Hint) {
			log = log.With("hint", p.Hint)
		}
		log.Warn("problem", "component", s.component, "error", err)
	}
}

// remember reads what an earlier process left.
func (l *loop) remember() error {
	var err error
	if l.saved, err = l.dir.LoadHost(); err != nil {
		l.log.Warn("state is unreadable, starting without", "error", err)
		l.saved = statedir.Host{}
	}
	if l.cache, err = l.dir.LoadCache(); err != nil {
		l.log.Warn("cache is unreadable, starting without", "error", err)
		l.cache = statedir.Cache{}
	}
	l.lease.cached, l.lease.former = l.cache, l.cache.Former
	l.docker.recallAttempt(l.saved.DockerAttempt)
	if l.docker.change, err = l.dir.LoadDockerChange(); err != nil {
		l.log.Warn("change of docker's file is unreadable, going on without the way back", "error", err)
	}
	return nil
}
