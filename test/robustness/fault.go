package robustness

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"syscall"
)

// faultBackup is the first half of FaultRestore in a record.
const faultBackup FaultKind = "backup"

// healing undoes a fault. It may change what is noted of it.
type healing func(context.Context, *deed) error

// perform does one step at its time, and heals it.
func (t *trial) perform(ctx context.Context, s Step) error {
	if !after(ctx, t.begun+s.At-t.rec.now()) {
		return nil
	}
	defer t.only(s)()
	f := &deed{Fault: Fault{Kind: s.Kind, From: t.rec.now(), Detail: s.what(), To: t.names(s.Hosts)}, variant: s.Variant}
	t.log("%s", s)
	heal, err := t.begin(ctx, s, f)
	f.Until = t.rec.now()
	refused, err := refusals(err)
	if heal != nil {
		// What has begun is healed although the trial is given up.
		after(ctx, t.begun+s.until()-t.rec.now())
		healCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healWithin)
		defer cancel()
		err = errors.Join(err, heal(healCtx, f))
		f.Until = max(f.Until, t.rec.now())
	}
	f.refuse(refused)
	if f.Err != "" {
		t.log("  refused: %s: %s", f.Detail, f.Err)
	}
	t.note(*f)
	t.count(s.Kind, f.void)
	if err != nil {
		return fmt.Errorf("%s: %w", s.what(), err)
	}
	return nil
}

// refuse notes why a fault could not be done. One of which nothing was done, and
// nothing may be done yet, touches nobody.
func (d *deed) refuse(refused []*refusedError) {
	d.void = len(refused) > 0 && !d.partly
	var errs []error
	for _, r := range refused {
		errs = append(errs, r)
		d.void = d.void && !r.open
	}
	if err := errors.Join(errs...); err != nil {
		d.Err = err.Error()
	}
	if d.void {
		d.Hosts, d.Every, d.Unreachable, d.To = nil, false, nil, nil
	}
}

// count counts what was tried of a kind.
func (t *trial) count(kind FaultKind, void bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tried == nil {
		t.tried = map[FaultKind]attempts{}
	}
	a := t.tried[kind]
	a.all++
	a.void += btoi(void)
	t.tried[kind] = a
}

// attempts are how often a fault was tried, and how often nothing came of it.
type attempts struct{ all, void int }

// severalTimes is how often in vain is no accident.
const severalTimes = 3

// errFutile: the run did not do what it was to do.
var errFutile = errors.New("a fault was refused every time")

// futile names the faults that were tried several times, and never done.
func (t *trial) futile() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, kind := range slices.Sorted(maps.Keys(t.tried)) {
		if a := t.tried[kind]; a.all >= severalTimes && a.void == a.all {
			errs = append(errs, fmt.Errorf("%w: %s, %d times", errFutile, kind, a.all))
		}
	}
	return errors.Join(errs...)
}

// only waits until nobody else changes what a step changes of etcd as a whole,
// and returns a function that lets others do so: a fault is healed later than
// planned where etcd needs time for that.
func (t *trial) only(s Step) func() {
	claims := claimsOf(s)
	var held []*sync.Mutex
	for i, c := range []claim{claimEtcd, claimConfig, claimPool} {
		if claims&c != 0 {
			t.exclusive[i].Lock()
			held = append(held, &t.exclusive[i])
		}
	}
	return func() {
		for _, lock := range held {
			lock.Unlock()
		}
	}
}

// note adds a fault to the record.
func (t *trial) note(d deed) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = append(t.done, d)
}

func (t *trial) log(format string, args ...any) {
	t.telling.Lock()
	defer t.telling.Unlock()
	if t.Log != nil {
		t.Log(format, args...)
	}
}

// begin does a fault and returns how it is healed; nil: there is nothing to heal.
func (t *trial) begin(ctx context.Context, s Step, f *deed) (healing, error) {
	switch s.Kind {
	case FaultKill, FaultStop, FaultPause:
		return t.beginDaemon(ctx, s, f)
	case FaultPartition, FaultBlock, FaultSlow, FaultCut:
		return t.beginLink(s, f) //nolint:contextcheck // it does not wait
	case FaultMemberKill, FaultMemberPause, FaultMajority, FaultDown, FaultOffline:
		return t.beginMembers(ctx, s, f)
	case FaultCompact, FaultDefragment, FaultNoSpace, FaultWipe, FaultRestore:
		return t.beginData(ctx, s, f)
	case FaultRevoke, FaultDelete, FaultOverwrite, FaultReserve, FaultExhaust, FaultUsurp, FaultMove:
		return t.beginKeys(ctx, s, f)
	case FaultConfig, FaultNoConfig:
		return t.beginConfig(ctx, s)
	case FaultClock, FaultDisk:
		return t.beginHost(s)
	default:
		return nil, fmt.Errorf("no such fault: %q", s.Kind)
	}
}

// chosen are the hosts of a step.
func (t *trial) chosen(s Step) []*host {
	var all []*host
	for _, n := range s.Hosts {
		all = append(all, t.hosts[n-1])
	}
	return all
}

// each does something to every host and joins what goes wrong.
func each(hosts []*host, f func(*host) error) error {
	var errs []error
	for _, h := range hosts {
		errs = append(errs, f(h))
	}
	return errors.Join(errs...)
}

// releasing are the hosts that give up what they have when they are asked to end.
func releasing(hosts []*host) []string {
	var names []string
	for _, h := range hosts {
		if h.plan.Releases {
			names = append(names, h.name)
		}
	}
	return names
}

// beginDaemon: traffic goes on without a daemon, for as long as its lease lives.
func (t *trial) beginDaemon(ctx context.Context, s Step, f *deed) (healing, error) {
	hosts := t.chosen(s)
	if s.Kind == FaultPause {
		f.Unreachable = t.names(s.Hosts)
		resume := func(context.Context, *deed) error {
			return each(hosts, func(h *host) error { return h.signal(syscall.SIGCONT) })
		}
		return resume, each(hosts, func(h *host) error { return h.signal(syscall.SIGSTOP) })
	}
	f.Hosts = t.misfits(hosts)
	sig := syscall.SIGKILL
	if s.Kind == FaultStop {
		sig, f.released = syscall.SIGTERM, releasing(hosts)
		f.Hosts = append(f.Hosts, f.released...)
	}
	release := func(context.Context, *deed) error { return each(hosts, (*host).release) }
	return release, each(hosts, func(h *host) error { return h.hold(ctx, sig) })
}
