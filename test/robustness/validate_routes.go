package robustness

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// has reports whether an address is one of a holding's own. Of a key that
// cannot be read these are the last known.
func (h *holding) has(a netip.Addr) bool {
	return h != nil && a.IsValid() && slices.Contains(h.attrs.PublicIP[:], a)
}

// mac is where the tunnel's packets go inside; empty: this backend has none.
func (h *holding) mac() string {
	var data struct{ VtepMAC string }
	if json.Unmarshal([]byte(h.attrs.BackendData[subnet.IPv4]), &data) != nil {
		return ""
	}
	return strings.ToLower(data.VtepMAC)
}

// patience is how long a host may still route to a lease that is gone: Hold, or
// a TTL if the store lost its past or its config not long ago, or this host had not
// heard of it for long. One that has become able not long ago may notice only now
// what happened since it was so before.
func (e *evidence) patience(s Sample) time.Duration {
	if e.deafened(s) {
		return e.bounds.TTL
	}
	since := s.From - e.bounds.TTL - e.bounds.Heal
	if able, ok := e.ableSince(s.Host, s.From); ok && able > since {
		before := able
		for _, a := range e.able[s.Host] {
			if a.until <= able {
				before = a.until
			}
		}
		since = min(since, before)
	}
	moments := e.line.window(since, s.Until)
	for _, m := range moments {
		if m.epoch != moments[0].epoch || m.state.text == "" {
			return e.bounds.TTL
		}
	}
	return e.bounds.Hold
}

// deafened reports whether a host may have held on for a TTL, in s or not long
// before, to what etcd deleted when the host had not heard of it for half of one, or
// right afterwards. A process that has just begun knows when the one before it heard of
// etcd, but not to the second.
func (e *evidence) deafened(s Sample) bool {
	since := s.From - e.bounds.afterSilence()
	run, ok := e.run(s.Host, s.From)
	if !ok {
		return false
	}
	another := func(r Run) bool { return r.Host == s.Host && r.From < run.From }
	if run.From >= since && slices.ContainsFunc(e.Runs, another) {
		return true
	}
	heard := run.From // A start is with etcd, or what follows is not able.
	for _, a := range e.able[s.Host] {
		if a.from < run.From || a.from > s.From {
			continue
		}
		// Before that it may have heard nothing for the time between two renewals.
		if a.from >= since && a.from-heard >= e.bounds.TTL/2-e.bounds.TTL/3 {
			return true
		}
		if a.until-a.from >= e.bounds.Heal { // Otherwise it may not have got through.
			heard = a.until
		}
	}
	return e.jumped(s.Host, since, s.Until)
}

// configured reports whether there was a valid config all the time: a host that
// starts without waits for one.
func (e *evidence) configured(from, until time.Duration) bool {
	return e.throughout(from, until, func(x *state) bool { return x.config != nil })
}

// routeToOwner looks at every route of every sample.
func (e *evidence) routeToOwner() []Violation {
	return e.eachTable(func(s Sample, report reporter) {
		for _, r := range s.Routes {
			if e.astray(s, r) && !e.movedAway(s, r) {
				report(r.Subnet.String(), e.keysOf(r.Subnet), "routes %s to %s, which does not own it", r.Subnet, r.Via)
			}
		}
	})
}

// astray reports whether a route has led to somebody other than the owner for
// too long.
func (e *evidence) astray(s Sample, r Route) bool {
	if !r.Via.IsValid() || !e.count(e.ableFor(s.Host, s.From, e.bounds.Heal)) {
		return false
	}
	// Another's lease acts at once.
	from := s.From - e.bounds.React
	if e.configured(from, s.Until) && e.throughout(from, s.Until, func(x *state) bool { return x.takenFrom(r) }) {
		return true
	}
	patience := e.patience(s)
	from -= patience
	return e.ableFor(s.Host, s.From, e.bounds.Heal+patience) && e.configured(from, s.Until) &&
		e.throughout(from, s.Until, func(x *state) bool { return !x.exactly(r.Subnet).has(r.Via) })
}

// takenFrom reports whether the subnet of r is not that of its address, but
// covered by somebody else's lease.
func (s *state) takenFrom(r Route) bool {
	if s.exactly(r.Subnet).has(r.Via) {
		return false
	}
	for _, h := range s.holdings {
		if h.err == nil && h.subnet[subnet.FamilyOf(r.Subnet.Addr())].Overlaps(r.Subnet) {
			return true
		}
	}
	return false
}

// movedAway reports whether a route leads to where its owner was before: the
// owner is right, its address is old.
func (e *evidence) movedAway(s Sample, r Route) bool {
	now := e.line.at(s.Until)
	if now == nil {
		return false
	}
	h := now.state.exactly(r.Subnet)
	if h == nil || h.owner == "" {
		return false
	}
	for _, m := range e.line.moments {
		if m == now {
			break
		}
		if old := m.state.exactly(r.Subnet); old.has(r.Via) && old.owner == h.owner {
			return true
		}
	}
	return false
}

// routeFollows looks for what a host does not know of its peers although it
// believes itself in sync.
func (e *evidence) routeFollows() []Violation {
	return e.eachTable(func(s Sample, report reporter) {
		for _, r := range s.Routes {
			switch {
			case e.astray(s, r) && e.movedAway(s, r):
				report(r.Subnet.String(), e.keysOf(r.Subnet), "routes %s to %s, the former address of its owner", r.Subnet, r.Via)
			case e.oldMAC(s, r):
				report(r.Subnet.String(), e.keysOf(r.Subnet), "sends packets for %s to %s, the former MAC of its owner", r.Subnet, r.MAC)
			}
		}
		for _, h := range e.expected(s) {
			for _, p := range h.subnet {
				if p.IsValid() && !slices.ContainsFunc(s.Routes, func(r Route) bool { return leads(r, p) }) {
					report(p.String(), []string{h.Key}, "has no route to %s of %s, leased since revision %d", p, h.owner, h.introduced.Revision)
				}
			}
		}
	})
}

// leads reports whether a route carries packets for p: one of p's own that knows
// its next hop, or a wider one into a tunnel that finds the way by itself.
func leads(r Route, p netip.Prefix) bool {
	if r.Subnet == p {
		return r.Via.IsValid()
	}
	return r.Subnet.Bits() < p.Bits() && r.Subnet.Contains(p.Addr())
}

// oldMAC reports whether a route's inner destination has been wrong for too long.
func (e *evidence) oldMAC(s Sample, r Route) bool {
	return r.MAC != "" && e.ableFor(s.Host, s.From, e.bounds.Heal) &&
		e.throughout(s.From-e.bounds.React, s.Until, func(x *state) bool {
			h := x.exactly(r.Subnet)
			return h.has(r.Via) && h.mac() != "" && h.mac() != r.MAC
		})
}

// expected are the peers' leases that a host in s must have a path to: those that
// have been there for React, whoever wrote them, and that nothing speaks against.
func (e *evidence) expected(s Sample) []*holding {
	from := s.From - e.bounds.React
	if !isReady(s.Status) || !e.ableFor(s.Host, s.From, e.bounds.Heal) {
		e.excused++
		return nil
	}
	run, _ := e.run(s.Host, s.From)
	us := e.hosts[s.Host]
	window := e.line.window(from, s.Until)
	var out []*holding
	for _, h := range window[len(window)-1].state.order {
		steady := h.owner != ownerOf(us) && e.throughout(from, s.Until, func(x *state) bool {
			then := x.holdings[h.Key]
			return then != nil && then.owner == h.owner && x.routable(then, us)
		})
		if h.owner != ownerOf(us) && e.count(steady && e.insideNetworks(h.subnet, run.From, s.Until)) {
			out = append(out, h)
		}
	}
	return out
}

// routable reports whether nothing speaks against a path of us to h.
func (s *state) routable(h *holding, us Host) bool {
	if h.err != nil || h.has(us.Addr) || len(s.overlapping(h)) > 0 {
		return false
	}
	own := s.of(ownerOf(us))
	return len(own) > 0 && own[0].attrs.BackendType == h.attrs.BackendType
}

// insideNetworks reports whether a subnet lies in the network of every config of
// a time: a running host keeps the one that it started with.
func (e *evidence) insideNetworks(s subnet.Subnet, from, until time.Duration) bool {
	for _, m := range e.line.window(from, until) {
		if m.state.config == nil {
			continue
		}
		for f, p := range s {
			network := m.state.config.Ranges[f].Network
			if p.IsValid() && (!network.Contains(p.Addr()) || network.Bits() > p.Bits()) {
				return false
			}
		}
	}
	return true
}

// drops reports whether a host that had a path to x before a time, and has run
// since, does not have it in s any more. Hosts that withdrew their own data path
// have none, and of udp's paths only the daemon can tell.
func (e *evidence) drops(s Sample, x netip.Prefix, via func(netip.Addr) bool, before time.Duration) bool {
	has := func(s *Sample) bool {
		return slices.ContainsFunc(s.Routes, func(r Route) bool { return r.Subnet == x && via(r.Via) })
	}
	run, ok := e.run(s.Host, s.From)
	had := e.sampleBefore(s.Host, before)
	owes := ok && s.Status != nil && had != nil && had.From >= run.From && has(had)
	withdrew := e.hosts[s.Host].Policy != subnet.Keep && !isReady(s.Status) && len(s.Own) == 0
	return e.count(owes && !withdrew) && !has(&s)
}

// unreadable looks at keys whose values cannot be read: at who writes over them,
// and at whether their peers' paths stay.
func (e *evidence) unreadable() []Violation {
	var found []Violation
	for _, w := range e.writes() {
		if w.prev != nil && w.prev.err != nil {
			e.judged++
			found = append(found, w.violation("a daemon wrote over a key that cannot be read"))
			continue
		}
		if w.now == nil || !w.created() {
			continue
		}
		for _, other := range w.state.overlapping(w.now) {
			if other.err != nil && e.count(!e.unseen(w, other)) {
				v := w.violation("created although %s, which cannot be read, occupies %s", other.Key, other.subnet)
				v.Keys = append(v.Keys, other.Key)
				found = append(found, v)
			}
		}
	}
	return append(found, e.lostPaths()...)
}

// lostPaths looks for peers that were forgotten because their key cannot be read.
// There is nothing to wait for: the path was there, and must stay.
func (e *evidence) lostPaths() []Violation {
	return e.eachTable(func(s Sample, report reporter) {
		window := e.line.window(s.From-e.bounds.React, s.Until)
		for _, h := range window[len(window)-1].state.order {
			if h.former == "" || h.former == ownerOf(e.hosts[s.Host]) {
				continue
			}
			before := h.introduced.At - e.bounds.Lag
			if !e.becameUnreadable(h, s, before) {
				e.excused++
				continue
			}
			if e.drops(s, h.subnet[subnet.IPv4], h.has, before) {
				report(h.Key, []string{h.Key}, "dropped the path to %s, whose key cannot be read", h.subnet)
			}
		}
	})
}

// becameUnreadable reports whether nothing else happened to a key from a host's
// last sample before a time to s than that it became unreadable.
func (e *evidence) becameUnreadable(h *holding, s Sample, before time.Duration) bool {
	last := e.sampleBefore(s.Host, before)
	return last != nil && e.throughout(last.From, s.Until, func(x *state) bool {
		then := x.holdings[h.Key]
		switch {
		case then == nil || len(x.overlapping(then)) > 0:
			return false
		case then.err != nil:
			return then.introduced.Revision == h.introduced.Revision
		}
		return then.owner == h.former && then.attrs.PublicIP == h.attrs.PublicIP
	})
}
