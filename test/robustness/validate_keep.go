package robustness

import (
	"slices"
)

// keptLease looks at keys of hosts that went away. One that expired looks like one
// that was revoked: all other reasons are looked for, and if there is none, the
// daemon did not keep its lease alive. That it creates the key again at once is no
// excuse.
func (e *evidence) keptLease() []Violation {
	for _, host := range e.Hosts {
		leased := e.surely(func(x *state) bool {
			own := x.of(ownerOf(host))
			return len(own) == 1 && !own[0].bare()
		})
		for _, s := range both(leased, e.settled(host)) {
			e.judged += int((s.until - s.from) / e.bounds.TTL)
		}
	}
	var found []Violation
	for _, m := range e.line.moments {
		for _, event := range m.events {
			prev := m.before.holdings[event.Key]
			if !event.Deleted || prev == nil || prev.bare() {
				continue
			}
			host, ours := e.nodes[prev.owner]
			if !ours || !e.count(!e.letGo(m, event, prev, host)) {
				continue
			}
			w := write{moment: m, Event: event, host: host}
			found = append(found, w.violation("the leased key of %s went away, which nobody did and no fault explains: its lease was not kept alive", prev.owner))
		}
	}
	return found
}

// settled are the times in which a host has been able for Heal.
func (e *evidence) settled(host Host) []stretch {
	var out []stretch
	for _, s := range e.able[host.Name] {
		if s.from += e.bounds.Heal; s.from < min(s.until, e.Duration) {
			out = append(out, stretch{s.from, min(s.until, e.Duration)})
		}
	}
	return out
}

// letGo reports whether a key of a host's may have gone away for another reason
// than that its daemon kept no lease alive.
func (e *evidence) letGo(m *moment, event Event, prev *holding, host Host) bool {
	since, able := e.ableSince(host.Name, m.latest)
	switch {
	case event.Operator || e.orderedAway(host, m):
		return true
	case !able || m.earliest-since < e.bounds.Heal:
		// Not renewed in time, or revoked by a leader that woke up late.
		return true
	case prev.Operator && m.latest-prev.At < e.bounds.React+e.bounds.TTL:
		// The operator's put hung it on another lease, which the daemon may not
		// have heard of until that was over.
		return true
	}
	// A daemon gives up what it has beside its own key, and what the config does
	// not allow any more.
	ruledOut := m.before.config != nil && !m.before.config.Pool().Contains(prev.subnet)
	return ruledOut || len(m.before.of(prev.owner)) > 1
}

// orderedAway reports whether the schedule took a host's key away about the time
// of m: the answer to the operator got lost, so that the event does not say so. A
// daemon that releases on exit deletes it by itself.
func (e *evidence) orderedAway(host Host, m *moment) bool {
	return slices.ContainsFunc(e.Faults, func(f Fault) bool {
		takes := f.Kind == FaultDelete || f.Kind == FaultRevoke || f.Kind == FaultStop && host.Releases
		return takes && slices.Contains(f.To, host.Name) && f.From <= m.latest && m.earliest <= e.healed(f)+e.bounds.Request
	})
}
