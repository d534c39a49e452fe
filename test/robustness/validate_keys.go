package robustness

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// violation is one about a write.
func (w write) violation(format string, args ...any) Violation {
	return Violation{
		At: w.At, Host: w.host.Name, Keys: []string{w.Key},
		Message: fmt.Sprintf("revision %d: %s: ", w.Revision, w.Key) + fmt.Sprintf(format, args...),
	}
}

func (e *evidence) wholeRecord() []Violation {
	e.judged = len(e.line.moments) - len(e.Epochs)
	return e.line.flaws
}

// oneOwner looks at the writes that made a key its owner's: an overlap cannot
// begin otherwise.
func (e *evidence) oneOwner() []Violation {
	var found []Violation
	for _, w := range e.writes() {
		if w.now == nil || w.prev != nil && w.prev.owner == w.now.owner {
			continue
		}
		e.judged++
		for _, other := range w.state.overlapping(w.now) {
			if other.err != nil || other.owner == w.now.owner || !e.count(!e.unseen(w, other)) {
				continue
			}
			v := w.violation("%s takes it, but %s holds %s since revision %d", w.now.owner, other.owner, other.subnet, other.introduced.Revision)
			v.Keys = append(v.Keys, other.Key)
			found = append(found, v)
		}
	}
	return found
}

// unseen reports whether other is an operator's doing that the writer need not
// have seen when it decided: etcd compares the key to be created, the config and
// the identity, but not keys of other names. The writer ran at that time already,
// and has not been able for longer than a request takes since.
func (e *evidence) unseen(w write, other *holding) bool {
	did := other.introduced
	if !did.Operator {
		return false
	}
	ran := false
	for _, r := range e.Runs {
		ran = ran || r.Host == w.host.Name && r.From <= did.At+e.bounds.Lag && e.end(r) >= did.At
	}
	var able time.Duration
	for _, s := range e.able[w.host.Name] {
		able += max(0, min(s.until, w.earliest)-max(s.from, did.At))
	}
	return ran && able <= e.bounds.Request
}

// lostWrite also keeps which processes of an owner have been superseded: all
// that wrote before the present one.
func (e *evidence) lostWrite() []Violation {
	var found []Violation
	instances := map[owner][]string{}
	for _, w := range e.writes() {
		e.judged++
		if why := e.illegal(w); why != "" {
			found = append(found, w.violation("%s", why))
			continue
		}
		if w.now.err != nil || w.challenges() {
			continue
		}
		seen, instance := instances[w.now.owner], w.now.attrs.Instance
		i := slices.Index(seen, instance)
		switch {
		case i == len(seen)-1 && i >= 0:
			continue
		case i >= 0 && !e.wasUnderWay(w) && !challenged(w):
			found = append(found, w.violation("instance %s was superseded by %s and must not write any more", instance, seen[len(seen)-1]))
		case i < 0 || challenged(w):
			instances[w.now.owner] = append(slices.DeleteFunc(seen, func(s string) bool { return s == instance }), instance)
		}
	}
	return found
}

// illegal says why a daemon must not have made a write; empty: it may have.
// Keys that could not be read before are another validator's.
func (e *evidence) illegal(w write) string {
	switch {
	case w.now == nil:
		return "a daemon wrote a key that names no subnet"
	case w.now.err != nil:
		return fmt.Sprintf("a daemon wrote what cannot be read: %v", w.now.err)
	case w.now.attrs.Owner == "" || w.now.attrs.Instance == "":
		return "a daemon wrote a value without Owner or Instance"
	case w.host.Name == "":
		return fmt.Sprintf("a daemon wrote for %s, which is no host of this run", w.now.owner)
	case w.prev == nil && w.challenges():
		return "a challenge to nobody"
	case w.prev == nil || w.prev.err != nil:
		return ""
	case w.prev.owner != w.now.owner:
		return fmt.Sprintf("%s wrote over the key of %s, held since revision %d", w.now.owner, w.prev.owner, w.prev.introduced.Revision)
	case w.challenges():
		return illegalChallenge(w)
	}
	return e.illegalTakeover(w)
}

// illegalChallenge: a challenge is the only thing that somebody other than the
// owner may write, and it changes nothing else.
func illegalChallenge(w write) string {
	was, is := w.prev.attrs, w.now.attrs
	was.Challenge, is.Challenge = subnet.Challenge{}, subnet.Challenge{}
	if was != is || w.prev.Lease != w.Lease {
		return "a challenge that changes more than the challenge"
	}
	return ""
}

// challenged reports whether a write takes over what it has challenged.
func challenged(w write) bool {
	return w.prev != nil && w.prev.err == nil && w.prev.attrs.Challenge.Instance == w.now.attrs.Instance
}

// illegalTakeover: another process of the same node may take the key, but from
// another address only after its challenge was not answered for a while.
func (e *evidence) illegalTakeover(w write) string {
	was, is := w.prev.attrs, w.now.attrs
	if was.Instance == is.Instance || was.Instance == "" || was.Owner == "" || sameHost(was.PublicIP, is.PublicIP) {
		return ""
	}
	if !challenged(w) {
		return fmt.Sprintf("instance %s at %s took over from instance %s at %s without a challenge", is.Instance, is.PublicIP, was.Instance, was.PublicIP)
	}
	if e.waited(w) < subnet.ChallengeWait && !e.jumped(w.host.Name, w.prev.At-e.bounds.Lag, w.latest) {
		return fmt.Sprintf("instance %s waited less than %s for an answer to its challenge", is.Instance, subnet.ChallengeWait)
	}
	return ""
}

// waited is for how long at the most a process waited after its challenge before it
// took the key over. The challenge may have been written up to Lag before it was
// received, but by a process that lived then and, if it is one of the run's, is
// known by the address that the takeover names: whatever it did, it did in its
// lifetime.
func (e *evidence) waited(w write) time.Duration {
	asked := w.prev.At - e.bounds.Lag
	longest, known := time.Duration(0), false
	for _, r := range e.Runs {
		if w.now.has(e.hosts[r.Host].Addr) && r.From <= w.prev.At && e.end(r) >= asked {
			known = true
			longest = max(longest, min(w.latest, e.end(r))-max(asked, r.From))
		}
	}
	if !known {
		return w.latest - asked
	}
	return longest
}

// sameHost reports whether two values share an address.
func sameHost(a, b subnet.ByFamily[netip.Addr]) bool {
	for f, addr := range a {
		if addr.IsValid() && addr == b[f] {
			return true
		}
	}
	return false
}

// wasUnderWay reports whether a write of a process that is gone may have been
// sent before its end: etcd compared what it rests upon, so that it took nothing
// from anybody, not from its successor either.
func (e *evidence) wasUnderWay(w write) bool {
	if w.prev != nil && w.prev.attrs.Instance != w.now.attrs.Instance {
		return false
	}
	return slices.ContainsFunc(e.Runs, func(r Run) bool {
		return r.Host == w.host.Name && r.Until != 0 && r.Until <= w.At && w.earliest-r.Until <= e.bounds.Request
	})
}

func (e *evidence) silentRenewal() []Violation {
	var found []Violation
	for _, w := range e.writes() {
		if w.prev == nil || w.now == nil || w.prev.err != nil || w.now.err != nil {
			continue
		}
		if e.judged++; w.prev.attrs == w.now.attrs {
			found = append(found, w.violation("put again with the value it had: a renewal must not write"))
		}
	}
	return found
}

func (e *evidence) lastingReservation() []Violation {
	var found []Violation
	for _, m := range e.line.moments {
		for _, event := range m.events {
			prev := m.before.holdings[event.Key]
			if !event.Deleted || prev == nil || !prev.bare() || !e.count(!event.Operator) {
				continue
			}
			w := write{moment: m, Event: event, host: e.nodes[prev.owner]}
			found = append(found, w.violation("the reservation of %s was deleted, and no operator did it", prev.owner))
		}
	}
	for _, w := range e.writes() {
		e.judged++
		switch {
		case w.prev == nil && w.Lease == 0:
			found = append(found, w.violation("a daemon created a key without a lease: only an operator reserves"))
		case w.prev == nil:
		case w.prev.bare() && w.Lease != 0:
			found = append(found, w.violation("the reservation now hangs on a lease: it must stay bare"))
		case !w.prev.bare() && w.Lease == 0:
			found = append(found, w.violation("the leased key was detached: only an operator reserves"))
		case w.prev.bare() && w.now != nil && w.prev.owner != w.now.owner:
			found = append(found, w.violation("the reservation of %s now belongs to %s", w.prev.owner, w.now.owner))
		}
	}
	return append(found, e.saidOfReservations()...)
}

// saidOfReservations compares what hosts say of their leases with what etcd has.
func (e *evidence) saidOfReservations() []Violation {
	return e.eachSample(func(s Sample, report reporter) {
		st := s.Status
		if st == nil || st.LeaseState != subnet.StateValid.String() || !e.count(e.ableFor(s.Host, s.From, e.bounds.Heal)) {
			return
		}
		wrong := e.throughout(s.From-e.bounds.React, s.Until, func(x *state) bool {
			h := x.exactly(st.Subnet)
			return h != nil && h.owner == ownerOf(e.hosts[s.Host]) && h.bare() != st.Reservation
		})
		if wrong {
			report(st.Subnet.String(), e.keysOf(st.Subnet), "says reservation=%t of %s, and etcd has it otherwise", st.Reservation, st.Subnet)
		}
	})
}

func (e *evidence) allocation() []Violation {
	var found []Violation
	for _, w := range e.writes() {
		if !w.created() || w.now == nil {
			continue
		}
		e.judged++
		cfg := w.before.config
		switch {
		case cfg == nil:
			found = append(found, w.violation("created without a valid network config (%q)", w.before.text))
			continue
		case !cfg.Pool().Contains(w.now.subnet):
			found = append(found, w.violation("created outside the pool of %s", w.before.text))
		}
		for _, p := range w.host.Foreign {
			if w.now.subnet[subnet.FamilyOf(p.Addr())].Overlaps(p) {
				found = append(found, w.violation("created although the host routes %s elsewhere", p))
			}
		}
	}
	return found
}
