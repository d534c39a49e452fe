package robustness

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// noLoss looks at every ping that was not answered. Those without a pause between
// them are one violation.
func (e *evidence) noLoss() []Violation {
	var found []Violation
	waiting := map[string][]stretch{}
	for _, h := range e.Hosts {
		waiting[h.Name] = e.waiting(h)
	}
	for _, p := range e.Pairs {
		waits := append(slices.Clone(waiting[p.From]), waiting[p.To]...)
		var burst []time.Duration
		report := func() {
			if len(burst) > 0 {
				found = append(found, Violation{At: burst[0], Host: p.From, Message: fmt.Sprintf(
					"%d packets to %s were lost, the last one at %s, and no fault touched the pair", len(burst), p.To, burst[len(burst)-1].Round(time.Millisecond))})
			}
			burst = nil
		}
		for _, at := range p.Lost {
			if e.touched(p, at) || slices.ContainsFunc(waits, func(w stretch) bool { return e.costs(w, at) }) {
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

// touched reports whether a packet of a pair may be lost because of a fault.
func (e *evidence) touched(p Pair, at time.Duration) bool {
	return slices.ContainsFunc(e.Faults, func(f Fault) bool {
		about := f.Every || slices.Contains(f.Hosts, p.From) || slices.Contains(f.Hosts, p.To)
		if f.Kind == faultMachine { // Nobody has anything to mend after it.
			return f.From-e.bounds.Transit <= at && at <= f.Until+e.bounds.Transit
		}
		return about && e.costs(stretch{f.From, e.healed(f)}, at)
	})
}

// costs reports whether what happened in a stretch may cost a packet sent at a
// time.
func (e *evidence) costs(s stretch, at time.Duration) bool {
	return s.from-e.bounds.Transit <= at && (s.until == forever || at <= s.until+e.bounds.Grace)
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

func (e *evidence) boundedLoad() []Violation {
	var found []Violation
	for _, l := range e.Load {
		starts := 0
		for _, r := range e.Runs {
			if r.Host == l.Host {
				starts++
			}
		}
		used := map[string][2]float64{
			"requests to etcd": {float64(l.Requests), e.bounds.Requests.of(e.Duration, len(e.Faults), starts)},
			"seconds of CPU":   {l.CPU.Seconds(), e.bounds.CPU.of(e.Duration, len(e.Faults), starts)},
			"log lines":        {float64(l.LogLines), e.bounds.LogLines.of(e.Duration, len(e.Faults), starts)},
		}
		for _, what := range slices.Sorted(maps.Keys(used)) {
			if u := used[what]; u[0] > u[1] {
				found = append(found, Violation{At: e.Duration, Host: l.Host, Message: fmt.Sprintf(
					"%.1f %s in %s, with %d faults and %d starts: at most %.1f", u[0], what, e.Duration, len(e.Faults), starts, u[1])})
			}
		}
	}
	slices.SortStableFunc(found, func(a, b Violation) int { return cmp.Compare(a.Host, b.Host) })
	return found
}
