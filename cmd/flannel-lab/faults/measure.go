package faults

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// Sample is what one fault did to one network in one round.
type Sample struct {
	Sent, Received int
	// Gap is the longest time without an answered ping, of both ways; 0 when
	// none was lost.
	Gap time.Duration
	// Heal is how long after the fault the host was as before; negative: not
	// within healWithin.
	Heal time.Duration
	// Disturbed: the machine dropped packets, and did so each time.
	Disturbed bool
	// Wrong is what was not as it should be besides; empty: nothing.
	Wrong string
}

// Lost is the number of pings without an answer, both ways.
func (s Sample) Lost() int { return s.Sent - s.Received }

// Healed reports whether the host was as before again.
func (s Sample) Healed() bool { return s.Heal >= 0 }

// worse returns what is worse of each.
func (s Sample) worse(o Sample) Sample {
	worst := s
	if o.Lost() > s.Lost() {
		worst.Sent, worst.Received = o.Sent, o.Received
	}
	worst.Gap = max(s.Gap, o.Gap)
	worst.Heal = max(s.Heal, o.Heal)
	if !s.Healed() || !o.Healed() {
		worst.Heal = never
	}
	worst.Disturbed = s.Disturbed || o.Disturbed
	worst.Wrong = cmp.Or(s.Wrong, o.Wrong)
	return worst
}

const (
	never = -1
	// quiet goes before a fault and after its healing.
	quiet = 250 * time.Millisecond
	// answerWithin is how late the last answers may be, after quiet.
	answerWithin = 300 * time.Millisecond
	// healWithin is how long a fault may last to be called healed by itself.
	healWithin = 10 * time.Second
	// healLook is how often the host is looked at.
	healLook = 5 * time.Millisecond
	// attempts are for machines that drop packets.
	attempts = 3
)

// measure does a fault to networks, all of them at once, and returns the samples
// in their order. What the machine itself disturbed is done again.
func measure(ctx context.Context, f *Fault, nets []*network) ([]Sample, error) {
	for attempt := 1; ; attempt++ {
		before, err := lab.MachineDrops()
		if err != nil {
			return nil, err
		}
		samples, err := once(ctx, f, nets)
		if err != nil {
			return nil, err
		}
		after, err := lab.MachineDrops()
		if err != nil || after == before {
			return samples, err
		}
		if attempt == attempts || f.once {
			for i := range samples {
				samples[i].Disturbed = true
			}
			return samples, nil
		}
	}
}

// series are the pings of one network, and what it was before.
type series struct {
	net    *network
	before string
	pings  []*lab.Pinging
}

func once(ctx context.Context, f *Fault, nets []*network) (_ []Sample, err error) {
	var all []*series
	defer func() {
		for _, s := range all {
			s.stop()
		}
	}()
	for _, n := range nets {
		if err := n.waitWell(ctx); err != nil {
			return nil, fmt.Errorf("before: %w", err)
		}
		if f.prepare != nil {
			if err := f.prepare(ctx, n); err != nil {
				return nil, fmt.Errorf("prepare: %w", err)
			}
		}
		s := &series{net: n}
		if s.before, err = n.state(ctx, f.look); err != nil {
			return nil, err
		}
		if err := s.start(ctx); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	if err := lab.Wait(ctx, quiet); err != nil {
		return nil, err
	}
	since, err := f.do(ctx, nets[0])
	var wrong *wrongError
	if err != nil && !errors.As(err, &wrong) {
		return nil, err
	}
	samples, err := finish(ctx, f, all, since)
	if err == nil && wrong != nil {
		samples[0].Wrong = wrong.Error()
	}
	return samples, err
}

// wrongError is what a fault has found that should not be. It is a result: the run
// goes on, and misses what is wanted.
type wrongError struct{ error }

// finish waits for the healing and counts what was lost since a time.
func finish(ctx context.Context, f *Fault, all []*series, since time.Time) ([]Sample, error) {
	done := time.Now()
	samples := make([]Sample, len(all))
	for i, s := range all {
		healed, err := s.awaitHealing(ctx, f)
		if err != nil {
			return nil, err
		}
		if samples[i].Heal = time.Since(done); !healed {
			samples[i].Heal = never
		}
	}
	for _, s := range all {
		if err := s.awaitAnswers(ctx); err != nil {
			return nil, err
		}
	}
	if err := lab.Wait(ctx, quiet); err != nil {
		return nil, err
	}
	for i, s := range all {
		s.stop()
		for _, p := range s.pings {
			r := p.Since(since)
			samples[i].Sent += r.Sent
			samples[i].Received += r.Received
			samples[i].Gap = max(samples[i].Gap, r.Gap)
		}
	}
	for i, s := range all {
		if err := s.tidy(ctx, f, samples[i]); err != nil {
			return nil, err
		}
	}
	return samples, nil
}

// start begins to ping, both ways.
func (s *series) start(ctx context.Context) error {
	a, b := s.net.host().Container, s.net.peer().Container
	for _, way := range [][2]*lab.Container{{a, b}, {b, a}} {
		p, err := way[0].StartPing(ctx, lab.PingOptions{To: way[1].Addr(), Timeout: answerWithin})
		if err != nil {
			return err
		}
		s.pings = append(s.pings, p)
	}
	return nil
}

// stop waits for the last answers, each way at the same time. It may be called
// twice.
func (s *series) stop() {
	var ended sync.WaitGroup
	for _, p := range s.pings {
		ended.Go(func() { p.Stop() })
	}
	ended.Wait()
}

// awaitHealing reports whether the host is as before in time.
func (s *series) awaitHealing(ctx context.Context, f *Fault) (bool, error) {
	limit, cancel := context.WithTimeout(ctx, healWithin)
	defer cancel()
	for {
		healed, err := s.look(limit, f)
		switch {
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case limit.Err() != nil:
			return false, nil
		case err != nil || healed:
			return healed, err
		}
		if err := lab.Wait(limit, healLook); err != nil && ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
	}
}

// awaitAnswers waits until packets pass again, both ways, or for healWithin: the
// host may be as before, and still nobody answers.
func (s *series) awaitAnswers(ctx context.Context) error {
	from := time.Now()
	for _, p := range s.pings {
		for !p.Answered(from) && time.Since(from) < healWithin {
			if err := lab.Wait(ctx, healLook); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *series) look(ctx context.Context, f *Fault) (bool, error) {
	if f.healed != nil {
		return f.healed(ctx, s.net)
	}
	now, err := s.net.state(ctx, f.look)
	return now == s.before, err
}

// tidy leaves the network as it was, by a new start of the daemon if need be.
func (s *series) tidy(ctx context.Context, f *Fault, found Sample) error {
	if f.undo != nil {
		if err := f.undo(ctx, s.net); err != nil {
			return fmt.Errorf("undo: %w", err)
		}
	}
	if found.Healed() {
		return nil
	}
	h := s.net.host()
	err := errors.Join(h.Daemon.Stop(ctx), h.RelaunchDaemon(), s.net.waitWell(ctx))
	if err != nil {
		return fmt.Errorf("start anew what was never healed: %w", err)
	}
	return nil
}
