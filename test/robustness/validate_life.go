package robustness

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func (e *evidence) livingProcess() []Violation {
	var found []Violation
	for _, r := range e.Runs {
		// One that was asked in the moment of its start had no hand for signals.
		// Nor had one that waited for the kernel.
		if !e.count(r.Asked == 0 || r.Asked-r.From > e.bounds.Transit && !e.wasMute(stretch{r.Asked, e.end(r)})) {
			continue
		}
		if r.Asked != 0 {
			found = append(found, e.departure(r)...)
		}
		if r.Until != 0 && !r.Killed {
			found = append(found, Violation{At: r.Until, Host: r.Host, Message: fmt.Sprintf(
				"the daemon started at %s ended with status %d, and nobody had ended it: %s", r.From, r.Status, strings.TrimSpace(r.Tail))})
		}
	}
	return found
}

// wasMute reports whether the kernel gave no answers at some time of a stretch.
func (e *evidence) wasMute(s stretch) bool {
	return slices.ContainsFunc(e.Faults, func(f Fault) bool {
		return f.Kind == faultKernel && f.From < s.until && s.from < e.healed(f)
	})
}

// departure looks at the end of a daemon that was asked to end.
func (e *evidence) departure(r Run) []Violation {
	most := e.bounds.Stop
	if e.hosts[r.Host].Releases {
		most += e.bounds.Release
	}
	until := r.Until
	if until == 0 {
		until = e.Duration
	}
	var found []Violation
	if until-r.Asked > most {
		found = append(found, Violation{At: r.Asked + most, Host: r.Host, Message: fmt.Sprintf(
			"was asked to end at %s and did not within %s", r.Asked.Round(time.Millisecond), most)})
	}
	if r.Until != 0 && r.Status != 0 {
		found = append(found, Violation{At: r.Until, Host: r.Host, Message: fmt.Sprintf(
			"was asked to end, and did with status %d instead of 0: %s", r.Status, strings.TrimSpace(r.Tail))})
	}
	return found
}

// leased looks for times in which a host had no lease although it could.
func (e *evidence) leased() []Violation {
	var found []Violation
	for _, host := range e.Hosts {
		able := both(e.able[host.Name], []stretch{{0, e.Duration}})
		for _, s := range able {
			e.count(s.until-s.from > e.bounds.Heal)
		}
		for _, s := range both(e.idle(host), able) {
			if s.until-s.from > e.bounds.Heal {
				found = append(found, Violation{At: s.from + e.bounds.Heal, Host: host.Name, Message: fmt.Sprintf(
					"has had no lease since %s, while the pool had room and etcd could be reached", s.from.Round(time.Millisecond))})
			}
		}
	}
	return found
}

// idle are the times in which a host surely had no lease, and surely could have
// had one.
func (e *evidence) idle(host Host) []stretch {
	var former *holding
	return e.surely(func(x *state) bool {
		own := x.of(ownerOf(host))
		if len(own) > 0 {
			former = own[0]
		}
		return len(own) == 0 && e.could(x, host, former)
	})
}

// could reports whether a host without a lease could have one: any, or by its
// policy only the one that it had.
func (e *evidence) could(x *state, host Host, former *holding) bool {
	if host.Policy != subnet.Renumber && former != nil {
		return x.allows(host, former.subnet)
	}
	return x.room(host)
}

// sameSubnet looks at the first thing that a restarted daemon wrote.
func (e *evidence) sameSubnet() []Violation {
	var found []Violation
	writes := e.writes()
	for i, r := range e.Runs {
		if r.Until == 0 {
			continue
		}
		next := slices.IndexFunc(e.Runs[i+1:], func(n Run) bool { return n.Host == r.Host })
		if next < 0 || e.Runs[i+1+next].From-r.Until >= e.bounds.TTL {
			continue
		}
		n := e.Runs[i+1+next]
		m := e.line.at(r.Until)
		if m == nil {
			continue
		}
		own := m.state.of(ownerOf(e.hosts[r.Host]))
		w, ok := e.first(writes, n)
		could := len(own) == 1 && ok && w.epoch == m.epoch && !preferred(w, own[0]) && e.stayedOpen(own[0], m, w)
		if e.count(could) && w.Key != own[0].Key {
			found = append(found, w.violation("restarted after %s, inside the TTL, with another subnet than %s, which it could have kept", n.From-r.Until, own[0].subnet))
		}
	}
	return found
}

// preferred reports whether a write takes over what is better than the subnet of
// a previous process: a reservation, or a key of the host's own when that subnet
// is gone.
func preferred(w write, previous *holding) bool {
	return w.prev != nil && (w.prev.bare() || w.before.holdings[previous.Key] == nil)
}

// first is the first thing that a process wrote: the first with an instance that
// was not there before, which tells it from what its predecessor had sent.
func (e *evidence) first(writes []write, r Run) (write, bool) {
	seen := map[string]bool{}
	for _, w := range writes {
		if w.now == nil || w.host.Name != r.Host || w.challenges() {
			continue
		}
		instance := w.now.attrs.Instance
		if w.latest >= r.From && !seen[instance] {
			return w, w.earliest < e.end(r)
		}
		seen[instance] = true
	}
	return write{}, false
}

// stayedOpen reports whether the config that w was made with lets its host have a
// former key of its own, and nobody else had it from m until then.
func (e *evidence) stayedOpen(own *holding, m *moment, w write) bool {
	if !w.before.allows(w.host, own.subnet) {
		return false
	}
	for _, then := range e.line.moments {
		between := then.epoch == w.epoch && then.revision >= m.revision && then.revision < w.revision
		if between && then.state.obstructed(w.host, own.subnet) {
			return false
		}
	}
	return true
}

// storeIdentity looks at what follows after an epoch's beginning: at who creates
// what, and at what is dropped.
func (e *evidence) storeIdentity() []Violation {
	var found []Violation
	writes := e.writes()
	for _, begin := range e.line.begins {
		for _, host := range e.Hosts {
			own := begin.before.of(ownerOf(host))
			i := slices.IndexFunc(writes, func(w write) bool {
				return w.epoch == begin.epoch && w.host.Name == host.Name && !w.challenges()
			})
			could := len(own) == 1 && e.used(host, own[0].subnet, begin.earliest) &&
				i >= 0 && writes[i].created() && e.stayedOpen(own[0], begin, writes[i])
			if e.count(could) && writes[i].Key != own[0].Key {
				found = append(found, writes[i].violation("the first subnet after etcd's %s is not %s, which nobody else had", e.Epochs[begin.epoch].Why, own[0].subnet))
			}
		}
	}
	return append(found, e.forgotten()...)
}

// used reports whether a host had a subnet, and no other, when it was last looked
// at before a time. Its only key may be one that it has beside the lost one that
// it uses.
func (e *evidence) used(host Host, x subnet.Subnet, before time.Duration) bool {
	s := e.sampleBefore(host.Name, before)
	return s == nil || !slices.ContainsFunc(s.Own, func(p netip.Prefix) bool {
		return !x[subnet.FamilyOf(p.Addr())].Contains(p.Addr())
	})
}

// forgotten looks for peers that were dropped because etcd no longer knew them.
func (e *evidence) forgotten() []Violation {
	return e.eachTable(func(s Sample, report reporter) {
		begin := e.lastBeginning(s)
		if begin == nil || s.Until >= begin.earliest+e.bounds.TTL {
			return
		}
		run, ok := e.run(s.Host, s.From)
		there := ok && run.From <= begin.earliest && !e.jumped(s.Host, begin.earliest, s.Until)
		for _, h := range begin.before.order {
			if h.err != nil || h.owner == ownerOf(e.hosts[s.Host]) {
				continue
			}
			if !there || !e.lostWith(begin, h, s.Until) {
				e.excused++
				continue
			}
			if e.drops(s, h.subnet[subnet.IPv4], h.has, begin.earliest) {
				report(h.Key, []string{h.Key}, "dropped the path to %s of %s within a TTL of etcd's %s", h.subnet, h.owner, e.Epochs[begin.epoch].Why)
			}
		}
	})
}

// lastBeginning is the beginning of the epoch that was the last one at the time
// of s; nil: it is the first.
func (e *evidence) lastBeginning(s Sample) *moment {
	var last *moment
	for _, m := range e.line.begins {
		if m.earliest <= s.Until {
			last = m
		}
	}
	return last
}

// lostWith reports whether a key was steady before an epoch began, and nothing
// but its own owner's return may have happened to it since.
func (e *evidence) lostWith(begin *moment, h *holding, until time.Duration) bool {
	steady := begin.earliest - e.bounds.React - e.bounds.Hold
	was := func(x *state) bool { return x.holdings[h.Key] != nil && x.holdings[h.Key].attrs == h.attrs }
	for _, m := range e.line.window(steady, until) {
		then := m.state.holdings[h.Key]
		switch {
		case m.epoch != begin.epoch && (m.epoch < begin.epoch-1 || !was(m.state)):
			return false
		case m.epoch != begin.epoch:
		case then != nil && (then.owner != h.owner || then.attrs.PublicIP != h.attrs.PublicIP):
			return false
		case then == nil && m.before.holdings[h.Key] != nil && m != begin:
			return false
		case len(m.state.overlapping(h)) > 0:
			return false
		}
	}
	return true
}

// recovery judges what was measured after the last fault; nothing, if nothing
// was.
func (e *evidence) recovery() []Violation {
	if e.Final.Leased == nil {
		return nil
	}
	var found []Violation
	late := func(d time.Duration) bool { return d < 0 || d > e.bounds.Heal }
	unpromised := e.unpromised()
	for _, host := range e.Hosts {
		if !e.count(!unpromised[host.Name]) {
			continue
		}
		for _, what := range []struct {
			name string
			took time.Duration
		}{{"leased", elapsed(e.Final.Leased, host.Name)}, {"ready", elapsed(e.Final.Ready, host.Name)}} {
			if late(what.took) {
				found = append(found, Violation{At: e.Final.Healed + e.bounds.Heal, Host: host.Name, Message: fmt.Sprintf(
					"was not %s within %s of the last fault, but %s", what.name, e.bounds.Heal, took(what.took))})
			}
		}
	}
	for _, pair := range e.Final.Silent {
		from, to, _ := strings.Cut(pair, " -> ")
		if !unpromised[from] && !unpromised[to] {
			found = append(found, Violation{At: e.Final.Healed + e.bounds.Heal, Host: from, Message: fmt.Sprintf("no answer on %s after the last fault", pair)})
		}
	}
	if len(e.Final.Silent)+len(unpromised) == 0 && late(e.Final.Mesh) {
		found = append(found, Violation{At: e.Final.Healed + e.bounds.Heal, Message: fmt.Sprintf(
			"the mesh was not whole within %s of the last fault, but %s", e.bounds.Heal, took(e.Final.Mesh))})
	}
	return found
}

// elapsed is what m says of a host: -1 if nothing.
func elapsed(m map[string]time.Duration, key string) time.Duration {
	if d, ok := m[key]; ok {
		return d
	}
	return -1
}

// took words a duration that is -1 for never.
func took(d time.Duration) string {
	if d < 0 {
		return "never"
	}
	return "after " + d.Round(time.Millisecond).String()
}

// unpromised are the hosts that nothing is promised to after the last fault: those
// whose daemon does not run, all without a lease if the pool does not suffice for
// them together, and those whose policy makes them wait for a subnet that they
// cannot have.
func (e *evidence) unpromised() map[string]bool {
	out := map[string]bool{}
	m := e.line.at(e.Final.Healed)
	formers := e.formers(m)
	var needy []Host
	for _, host := range e.Hosts {
		_, alive := e.run(host.Name, e.Final.Healed)
		switch {
		case !alive || m == nil:
			out[host.Name] = true
		case len(m.state.of(ownerOf(host))) > 0:
		case !e.could(m.state, host, formers[host.Name]):
			out[host.Name] = true
		default:
			needy = append(needy, host)
		}
	}
	if len(needy) > 0 && m.state.vacancies() < uint64(len(needy)) {
		for _, host := range needy {
			out[host.Name] = true
		}
	}
	return out
}

// vacancies counts the subnets of the pool that nobody holds.
func (s *state) vacancies() uint64 {
	if s.config == nil {
		return 0
	}
	pool := s.config.Pool()
	// Nobody has the zero host's address, or its name.
	return pool.Len() - pool.Taken(s.obstacles(Host{})).Len()
}

// formers are the keys that hosts held last, until m.
func (e *evidence) formers(m *moment) map[string]*holding {
	out := map[string]*holding{}
	for _, then := range e.line.moments {
		for _, h := range then.state.order {
			if host, ok := e.nodes[h.owner]; ok {
				out[host.Name] = h
			}
		}
		if then == m {
			break
		}
	}
	return out
}
