package robustness

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// The keys below the prefix, as events name them.
const (
	keyConfig  = "config"
	keySubnets = "subnets/"
)

// timeline is etcd's life replayed: the state of all keys after every revision
// of every epoch, and when it can have been in force. A recorder receives a
// change after it happened, so each has a time before which it had not happened
// and one at which it surely had:
//
//	           earliest   latest           earliest   latest
//	moment i       |---------|   moment i+1    |---------|
//	in force       ?????????  surely  .........?????????
type timeline struct {
	moments []*moment
	// begins are those with which epochs began, the first left out.
	begins []*moment
	// flaws are what cannot be in a whole record.
	flaws []Violation
}

// moment is one revision, or the beginning of an epoch with what it began with.
type moment struct {
	epoch    int
	revision subnet.Revision
	// earliest and latest enclose when it came into force.
	earliest, latest time.Duration
	// events are empty at the beginning of an epoch.
	events        []Event
	before, state *state
}

// owner tells hosts apart, by whatever a value names them: two values of one
// host have the same owner although flannel wrote one and we the other. The
// empty owner is nobody's.
type owner string

// holding is one key below subnets/ that names a subnet.
type holding struct {
	// Event is the key's last put.
	Event
	subnet subnet.Subnet
	// attrs and owner are those of the value, or where that cannot be read the
	// last ones that could: the owner is nobody then.
	attrs subnet.Attrs
	owner owner
	// err is why the value cannot be read, former whose the key was before.
	err    error
	former owner
	// introduced is the put that made the key its owner's, or unreadable.
	introduced Event
}

// bare reports a reservation.
func (h *holding) bare() bool { return h.Lease == 0 }

// state is all keys at one revision. It does not change.
type state struct {
	// keys are all that exist, holdings those that occupy a subnet, by their
	// names below the prefix.
	keys     map[string]bool
	holdings map[string]*holding
	// order are the holdings sorted by their keys.
	order []*holding
	// config is nil while there is none or none that is valid.
	config *subnet.Config
	text   string
}

// replay makes the timeline of r.
func replay(r *Record, lag time.Duration) *timeline {
	t := &timeline{}
	names := ownersOf(r.Hosts)
	last := &state{}
	var earliest, latest time.Duration
	for i, e := range r.Epochs {
		earliest, latest = max(earliest, e.Began-lag), max(latest, e.Began)
		s := &state{keys: map[string]bool{}, holdings: map[string]*holding{}}
		for _, event := range e.Base {
			s = s.apply([]Event{event}, names)
		}
		m := &moment{epoch: i, earliest: earliest, latest: latest, before: last, state: s}
		t.moments = append(t.moments, m)
		if i > 0 {
			t.begins = append(t.begins, m)
		}
		for _, events := range revisions(e.Events) {
			at := events[len(events)-1].At
			earliest, latest = max(earliest, at-lag), max(latest, at)
			next := &moment{
				epoch: i, revision: events[0].Revision, earliest: earliest, latest: latest,
				events: events, before: m.state, state: m.state.apply(events, names),
			}
			t.inspect(m, next)
			t.moments = append(t.moments, next)
			m = next
		}
		last = m.state
	}
	return t
}

// revisions groups events.
func revisions(events []Event) [][]Event {
	var groups [][]Event
	for i, e := range events {
		if i == 0 || e.Revision != events[i-1].Revision {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], e)
	}
	return groups
}

// inspect notes what etcd cannot have done: then events are missing, and no
// verdict is worth anything.
func (t *timeline) inspect(before, m *moment) {
	flaw := func(e Event, format string, args ...any) {
		t.flaws = append(t.flaws, Violation{
			Validator: WholeRecord, At: e.At, Keys: []string{e.Key},
			Message: fmt.Sprintf("revision %d: %s: ", e.Revision, e.Key) + fmt.Sprintf(format, args...),
		})
	}
	for _, e := range m.events {
		existed := before.state.keys[e.Key]
		switch {
		case e.Revision <= before.revision:
			flaw(e, "comes after revision %d", before.revision)
		case e.Deleted && !existed:
			flaw(e, "is deleted, but nobody created it")
		case !e.Deleted && existed && e.Created == e.Revision:
			flaw(e, "is created, but it exists")
		case !e.Deleted && !existed && e.Created != e.Revision:
			flaw(e, "is put, but it does not exist")
		}
	}
}

// ownersOf names the hosts by their addresses.
func ownersOf(hosts []Host) map[netip.Addr]owner {
	names := map[netip.Addr]owner{}
	for _, h := range hosts {
		names[h.Addr] = ownerOf(h)
	}
	return names
}

// ownerOf is what h owns under.
func ownerOf(h Host) owner { return owner("node " + h.Node) }

// apply returns the state after the events of one revision.
func (s *state) apply(events []Event, names map[netip.Addr]owner) *state {
	next := &state{keys: maps.Clone(s.keys), holdings: maps.Clone(s.holdings), config: s.config, text: s.text}
	for _, e := range events {
		if next.keys[e.Key] = true; e.Deleted {
			delete(next.keys, e.Key)
		}
		name, ours := strings.CutPrefix(e.Key, keySubnets)
		switch {
		case e.Key == keyConfig:
			next.config, next.text = nil, e.Value
			if c, err := subnet.ParseConfig(e.Value); err == nil && !e.Deleted {
				next.config = c
			}
		case ours && e.Deleted:
			delete(next.holdings, e.Key)
		case ours:
			if h := readHolding(name, e, s.holdings[e.Key], names); h != nil {
				next.holdings[e.Key] = h
			}
		}
	}
	next.order = slices.SortedFunc(maps.Values(next.holdings), func(a, b *holding) int { return strings.Compare(a.Key, b.Key) })
	return next
}

// readHolding reads a put of a key that was prev before; nil: it occupies
// nothing.
func readHolding(name string, e Event, prev *holding, names map[netip.Addr]owner) *holding {
	// A spelling that is not the canonical one occupies its subnet all the same.
	s, nameErr := subnet.ParseSubnet(name)
	if s.IsZero() {
		return nil
	}
	h := &holding{Event: e, subnet: s, introduced: e}
	h.err = nameErr
	if h.err == nil {
		h.err = json.Unmarshal([]byte(e.Value), &h.attrs)
	}
	if h.err == nil {
		h.owner = names[h.attrs.PublicIP[subnet.IPv4]]
		if h.owner == "" {
			h.owner = owner(fmt.Sprintf("address %s", h.attrs.PublicIP))
		}
		if h.attrs.Owner != "" {
			h.owner = owner("node " + h.attrs.Owner)
		}
	}
	if prev == nil {
		return h
	}
	if h.owner == prev.owner {
		h.introduced = prev.introduced
	}
	if h.err != nil {
		h.attrs, h.former = prev.attrs, prev.owner
		if prev.err != nil {
			h.former = prev.former
		}
	}
	return h
}

// where are the holdings of which something holds, sorted by their keys.
func (s *state) where(holds func(*holding) bool) []*holding {
	var out []*holding
	for _, h := range s.order {
		if holds(h) {
			out = append(out, h)
		}
	}
	return out
}

// overlapping are the holdings under other keys that share an address with h's.
func (s *state) overlapping(h *holding) []*holding {
	return s.where(func(o *holding) bool { return o.Key != h.Key && o.subnet.Overlaps(h.subnet) })
}

// of are the holdings of one owner.
func (s *state) of(o owner) []*holding {
	return s.where(func(h *holding) bool { return h.owner == o })
}

// exactly returns the holding of which p is a half; nil: there is none.
func (s *state) exactly(p netip.Prefix) *holding {
	for _, h := range s.order {
		if p.IsValid() && slices.Contains(h.subnet[:], p) {
			return h
		}
	}
	return nil
}

// obstacles yields what a new subnet of host must not overlap: what others hold,
// and what the host routes elsewhere.
func (s *state) obstacles(host Host) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for _, h := range s.order {
			if h.owner == ownerOf(host) {
				continue
			}
			for _, p := range h.subnet {
				if p.IsValid() && !yield(p) {
					return
				}
			}
		}
		for _, p := range host.Foreign {
			if !yield(p) {
				return
			}
		}
	}
}

// room reports whether host could be given some subnet.
func (s *state) room(host Host) bool {
	if s.config == nil {
		return false
	}
	pool := s.config.Pool()
	for range pool.Free(0, pool.Taken(s.obstacles(host))) {
		return true
	}
	return false
}

// allows reports whether host could be given x.
func (s *state) allows(host Host, x subnet.Subnet) bool {
	return s.config != nil && s.config.Pool().Contains(x) && !s.obstructed(host, x)
}

// obstructed reports whether others have some of x.
func (s *state) obstructed(host Host, x subnet.Subnet) bool {
	for p := range s.obstacles(host) {
		if x[subnet.FamilyOf(p.Addr())].Overlaps(p) {
			return true
		}
	}
	return false
}

// window are the moments that may have been in force at some time from from to
// until, in order. Both times of moments only rise.
func (t *timeline) window(from, until time.Duration) []*moment {
	// The first is the one before the first that surely was in force then.
	first := sort.Search(len(t.moments), func(i int) bool { return t.moments[i].latest >= from }) - 1
	end := sort.Search(len(t.moments), func(i int) bool { return t.moments[i].earliest > until })
	return t.moments[min(max(first, 0), end):end]
}

// at is the last moment that surely was in force at a time or before; nil before
// the first.
func (t *timeline) at(when time.Duration) *moment {
	i := sort.Search(len(t.moments), func(i int) bool { return t.moments[i].latest > when })
	if i == 0 {
		return nil
	}
	return t.moments[i-1]
}
