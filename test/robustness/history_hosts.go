package robustness

import (
	"slices"
	"sort"
	"time"
)

// stretch is a time with a beginning and an end.
type stretch struct{ from, until time.Duration }

// without is what of a lies outside of all of b.
func without(a, b []stretch) []stretch {
	for _, cut := range b {
		var rest []stretch
		for _, s := range a {
			if cut.until <= s.from || s.until <= cut.from {
				rest = append(rest, s)
				continue
			}
			for _, part := range []stretch{{s.from, cut.from}, {cut.until, s.until}} {
				if part.from < part.until {
					rest = append(rest, part)
				}
			}
		}
		a = rest
	}
	return a
}

// both is what lies inside of a and of b.
func both(a, b []stretch) []stretch { return without(a, without(a, b)) }

// evidence is a record prepared for judging.
type evidence struct {
	*Record
	bounds Bounds
	line   *timeline
	hosts  map[string]Host
	// nodes are the hosts by what they own under.
	nodes map[owner]Host
	// able are the times in which a host's daemon ran and could count on etcd, in
	// order.
	able map[string][]stretch
	// samples are those of one host, in order.
	samples map[string][]Sample
	// judged and excused are what the validator counts: see Verdict.
	judged, excused int
}

// count counts one thing that a validator is about, and returns whether it judges
// it.
func (e *evidence) count(judges bool) bool {
	if judges {
		e.judged++
	} else {
		e.excused++
	}
	return judges
}

// newEvidence prepares r.
func newEvidence(r *Record, b Bounds) *evidence {
	e := &evidence{
		Record: r, bounds: b, line: replay(r, b.Lag),
		hosts: map[string]Host{}, nodes: map[owner]Host{}, able: map[string][]stretch{}, samples: map[string][]Sample{},
	}
	for _, h := range r.Hosts {
		e.hosts[h.Name], e.nodes[ownerOf(h)] = h, h
		var up, cut []stretch
		for _, run := range r.Runs {
			if run.Host == h.Name {
				up = append(up, stretch{run.From, e.end(run)})
			}
		}
		for _, f := range r.Faults {
			if slices.Contains(f.Unreachable, h.Name) {
				cut = append(cut, stretch{f.From, e.healed(f)})
			}
		}
		e.able[h.Name] = without(up, cut)
	}
	for _, s := range r.Samples {
		e.samples[s.Host] = append(e.samples[s.Host], s)
	}
	return e
}

// forever is later than everything.
const forever = time.Duration(1<<63 - 1)

// end is when a run ended.
func (e *evidence) end(r Run) time.Duration {
	if r.Until == 0 {
		return forever
	}
	return r.Until
}

// healed is when a fault was over.
func (e *evidence) healed(f Fault) time.Duration {
	if f.Until < f.From {
		return forever
	}
	return f.Until
}

// ableSince is since when a host has been able to follow etcd at a time without
// a break; false: it is not.
func (e *evidence) ableSince(host string, at time.Duration) (time.Duration, bool) {
	for _, s := range e.able[host] {
		if s.from <= at && at < s.until {
			return s.from, true
		}
	}
	return 0, false
}

// ableFor reports whether a host has been able for at least d at a time.
func (e *evidence) ableFor(host string, at, d time.Duration) bool {
	since, ok := e.ableSince(host, at)
	return ok && at-since >= d
}

// run is the process of a host's daemon at a time; false: there was none.
func (e *evidence) run(host string, at time.Duration) (Run, bool) {
	for _, r := range e.Runs {
		if r.Host == host && r.From <= at && at < e.end(r) {
			return r, true
		}
	}
	return Run{}, false
}

// sampleBefore is a host's last sample that was complete by a time; nil: none.
func (e *evidence) sampleBefore(host string, when time.Duration) *Sample {
	all := e.samples[host]
	i := sort.Search(len(all), func(i int) bool { return all[i].Until > when })
	if i == 0 {
		return nil
	}
	return &all[i-1]
}

// jumped reports whether the clock of a host's daemon was made to jump at some
// time: then what it took for a while was none.
func (e *evidence) jumped(host string, from, until time.Duration) bool {
	return slices.ContainsFunc(e.Faults, func(f Fault) bool {
		return f.Kind == FaultClock && slices.Contains(f.To, host) && f.From <= until && e.healed(f) >= from
	})
}

// throughout reports whether something held in all states that may have been in
// force at some time from from to until: then it surely held all the time.
func (e *evidence) throughout(from, until time.Duration, held func(*state) bool) bool {
	for _, m := range e.line.window(from, until) {
		if !held(m.state) {
			return false
		}
	}
	return true
}

// surely are the times in which something held: from when it surely did to when
// that may have ended. It is asked of the states in their order.
func (e *evidence) surely(held func(*state) bool) []stretch {
	var out []stretch
	since := forever
	for _, m := range e.line.moments {
		switch holds := held(m.state); {
		case holds && since == forever:
			since = m.latest
		case !holds && since != forever:
			if m.earliest > since {
				out = append(out, stretch{since, m.earliest})
			}
			since = forever
		}
	}
	if since != forever {
		out = append(out, stretch{since, forever})
	}
	return out
}

// write is a daemon's put of a subnet's key.
type write struct {
	*moment
	Event
	// prev and now are the key before and after; prev is nil for a creation,
	// now where the key names no subnet.
	prev, now *holding
	// host is the one that the value names; the zero Host: none of the run's.
	host Host
}

// created reports whether the key was absent.
func (w write) created() bool { return w.Created == w.Revision }

// challenges reports whether the put asks whether the owner lives; it is then
// not the owner's.
func (w write) challenges() bool {
	return w.now != nil && w.now.err == nil && !w.now.attrs.Challenge.IsZero()
}

// writes are all puts below subnets/ that were not an operator's, in order.
func (e *evidence) writes() []write {
	var out []write
	for _, m := range e.line.moments {
		for _, event := range m.events {
			if event.Deleted || event.Operator || len(event.Key) <= len(keySubnets) || event.Key[:len(keySubnets)] != keySubnets {
				continue
			}
			w := write{moment: m, Event: event, prev: m.before.holdings[event.Key], now: m.state.holdings[event.Key]}
			if w.now != nil {
				w.host = e.nodes[w.now.owner]
			}
			out = append(out, w)
		}
	}
	return out
}
