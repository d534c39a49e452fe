package robustness

import (
	"fmt"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// noLoss looks at every ping that was not answered. Those without a pause between
// them are one violation.
func (e *evidence) noLoss() []Violation {
	found := e.noise()
	waiting := map[string][]stretch{}
	for _, h := range e.Hosts {
		waiting[h.Name] = e.waiting(h)
	}
	for _, p := range e.Pairs {
		excuses := e.excuses(p, append(slices.Clone(waiting[p.From]), waiting[p.To]...))
		e.countPackets(p, excuses)
		var burst []time.Duration
		report := func() {
			if len(burst) > 0 {
				found = append(found, Violation{At: burst[0], Host: p.From, Message: fmt.Sprintf(
					"%d packets to %s were lost, the last one at %s, and no fault touched the pair", len(burst), p.To, burst[len(burst)-1].Round(time.Millisecond))})
			}
			burst = nil
		}
		for _, at := range p.Lost {
			if slices.ContainsFunc(excuses, func(s stretch) bool { return s.from <= at && at <= s.until }) {
				continue
			}
			if len(burst) > 0 && at-burst[len(burst)-1] > time.Second {
				report()
			}
			burst = append(burst, at)
		}
		report()
	}
	return found
}

// countPackets counts those that were sent while nothing excused their loss.
func (e *evidence) countPackets(p Pair, excuses []stretch) {
	judged := 0
	for _, s := range without([]stretch{{p.Began, p.Ended}}, excuses) {
		judged += int((s.until - s.from) / max(p.Interval, time.Millisecond))
	}
	judged = min(judged, p.Sent)
	e.judged += judged
	e.excused += p.Sent - judged
}

// noise is a machine that lost so much by itself that what the pings say is not
// worth much.
func (e *evidence) noise() []Violation {
	took, most := e.muffled(), e.bounds.noise(e.Duration)
	if took <= most {
		return nil
	}
	return []Violation{{At: e.Duration, Message: fmt.Sprintf(
		"the machine itself lost packets, or kept etcd or everybody waiting, which excuses those of all pairs for %s of %s: at most %s", took.Round(time.Millisecond), e.Duration.Round(time.Second), most)}}
}

// muffled is for how long packets may have been lost by the machine, or leases because
// it gave etcd no time, or nothing was done because the kernel gave no answers.
func (e *evidence) muffled() time.Duration {
	whole := []stretch{{0, e.Duration}}
	var noisy []stretch
	for _, f := range e.Faults {
		switch f.Kind {
		case faultMachine:
			noisy = append(noisy, e.costs(f))
		case faultStarved, faultKernel:
			noisy = append(noisy, stretch{f.From, f.Until})
		default:
		}
	}
	took := e.Duration
	for _, s := range without(whole, noisy) {
		took -= s.until - s.from
	}
	return took
}

// costs is when packets may have been sent that were lost because of a fault.
func (e *evidence) costs(f Fault) stretch {
	if f.Kind == faultMachine { // Nobody has anything to mend after it.
		return stretch{f.From - e.bounds.Transit, f.Until + e.bounds.Transit}
	}
	return e.aftermath(stretch{f.From, e.healed(f)})
}

// aftermath is a stretch with what may be lost just before and after it.
func (e *evidence) aftermath(s stretch) stretch {
	s.from -= e.bounds.Transit
	if s.until != forever {
		s.until += e.bounds.Grace
	}
	return s
}

// excuses are the times in which a packet of a pair may be lost: because of a
// fault, or since one of the two waits for a subnet.
func (e *evidence) excuses(p Pair, waits []stretch) []stretch {
	var out []stretch
	for _, f := range e.Faults {
		if f.Every || slices.Contains(f.Hosts, p.From) || slices.Contains(f.Hosts, p.To) {
			out = append(out, e.costs(f))
		}
	}
	for _, w := range waits {
		out = append(out, e.aftermath(w))
	}
	return out
}

// waiting are the times in which a host had no lease and its policy made it wait
// for the one that it had lost, which another owner has: peers send elsewhere, for
// as long as that lasts.
func (e *evidence) waiting(host Host) []stretch {
	var out []stretch
	var former *holding
	since := forever
	for _, m := range e.line.moments {
		own := m.state.of(ownerOf(host))
		waits := host.Policy != subnet.Renumber && len(own) == 0 && former != nil && !e.could(m.state, host, former)
		if len(own) > 0 {
			former = own[0]
		}
		switch {
		case waits && since == forever:
			since = m.earliest
		case !waits && since != forever:
			out = append(out, stretch{since, m.latest})
			since = forever
		}
	}
	if since != forever {
		out = append(out, stretch{since, forever})
	}
	return out
}
