package subnet

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"time"
)

// Snapshot is what a [View] knew at one revision. It does not change, and may
// be read by any number of goroutines for as long as they like.
type Snapshot struct {
	Revision Revision
	// Identity is the store's.
	Identity string
	Config   Document
	// Bad are the keys that cannot be read, sorted by key.
	Bad []BadKey
	// Synced: the store is being followed. Since when it is or is not, by the
	// wall clock of then, and why not: nil if it is.
	Synced bool
	Since  time.Time
	Err    error

	// Held is until when deleted leases are held, on [Clock.Uptime]: the latest that
	// was ever so, over or not.
	Held time.Duration

	// lives counts how often the store was found to have lost its past.
	lives int
	// kin are the leases in the store that have the view's own node id.
	kin []Lease
	// beside are those of the store that overlap one of kin.
	beside []Lease
	// freed is when a key was deleted last, or may have been.
	freed   Revision
	list    leaseList
	changed chan struct{}
}

// Changed is closed when there is a newer snapshot that shows something else,
// so a reader waits without missing any, and sees a burst as one:
//
//	for s := view.Snapshot(); ; s = view.Snapshot() {
//		use(s)
//		select {
//		case <-s.Changed():
//		case <-ctx.Done():
//			return
//		}
//	}
func (s *Snapshot) Changed() <-chan struct{} { return s.changed }

// Leases are the leases in effect, sorted by subnet: those in the store, those
// deleted a moment ago and still held, and the last readable ones of keys that
// became unreadable. What is yielded may be kept, and is not to be changed: it is
// shared with other snapshots, since a copy for each user would be most of what a
// host with thousands of peers needs.
func (s *Snapshot) Leases() iter.Seq[*Lease] {
	return func(yield func(*Lease) bool) {
		for e := range s.list.all() {
			if !yield(&e.lease) {
				return
			}
		}
	}
}

// Len is the number of leases in effect.
func (s *Snapshot) Len() int { return s.list.len }

// Stored returns the lease of exactly this subnet as the store had it at the
// snapshot's revision; false: there was none that could be read.
func (s *Snapshot) Stored(x Subnet) (Lease, bool) {
	e := s.list.get(x)
	if e == nil || !e.stored() {
		return Lease{}, false
	}
	return e.lease, true
}

// World is what the store held at the snapshot's revision, as a Load would have
// read it. It may be the past, which a write that rests upon it finds out.
func (s *Snapshot) World() World {
	stored := make([]*Lease, 0, s.list.len)
	for e := range s.list.all() {
		if e.stored() {
			stored = append(stored, &e.lease)
		}
	}
	return World{Identity: s.Identity, Revision: s.Revision, Config: s.Config, Bad: s.Bad, Leases: ByKey(stored)}
}

// blocker returns the first key in the store that overlaps x and is not a lease of
// x. It looks at every lease: who has a subnet of his own does not ask.
func (s *Snapshot) blocker(x Subnet) blocker {
	for e := range s.list.all() {
		if e.stored() && e.lease.Subnet != x && e.lease.Subnet.Overlaps(x) {
			return blocker{e.lease.Subnet, e.lease.Modified}
		}
	}
	for _, b := range s.Bad {
		if b.Occupies.Overlaps(x) {
			return blocker{b.Occupies, b.Modified}
		}
	}
	return blocker{}
}

// projection turns loads and batches into the leases in effect. It belongs to
// one goroutine and knows no clock: times are handed in.
type projection struct {
	hold, ttl time.Duration
	node      NodeID
	hearing   *hearing

	revision Revision
	// freed is when a key was deleted last, or may have been.
	freed    Revision
	identity string
	config   Document
	leases   leaseList
	index    overlapIndex
	bad      map[string]BadKey
	// kin are the subnets in the store that are leased by our node id.
	kin map[Subnet]bool
	// held are the deleted leases that still are in effect, and until when;
	// none of them ends before due. Latest is the last end that any of them had,
	// those of an earlier process included.
	held        map[Subnet]time.Duration
	due, latest time.Duration
	// distrusted: the store has lost its past since the last load; lives
	// counts how often it had.
	distrusted bool
	lives      int
	// partial: what is known comes from a file, which holds what a host works
	// with, and not all that was in the store.
	partial bool
}

func newProjection(node NodeID, hold time.Duration, h *hearing) projection {
	return projection{
		node: node, hold: hold, ttl: h.ttl, hearing: h, index: newOverlapIndex(),
		bad: map[string]BadKey{}, kin: map[Subnet]bool{}, held: map[Subnet]time.Duration{},
	}
}

// distrust makes the next load a list that deletes no peer for one TTL.
func (p *projection) distrust() { p.distrusted = true }

// patience is how long a lease that is deleted now stays in effect. A store that
// lost its past, or has no config, has lost leases that live on: their
// owners will create them again. Those that are held when that happens get as long.
// One that was silent may delete those of hosts that could not renew: it may take
// them a while to find that out, in a store that has just come round.
func (p *projection) patience(now time.Duration) time.Duration {
	if p.distrusted || p.config.Text == "" || p.hearing.wary(now) {
		return p.ttl
	}
	return p.hold
}

// load makes w the truth, and reports whether anything but the revision
// changed. What w lacks is treated as deleted at this moment.
func (p *projection) load(w World, now time.Duration) bool {
	before := *p
	if p.identity != "" && (w.Identity != p.identity || w.Revision < p.revision || p.contradicts(w)) {
		p.distrusted = true
	}
	if p.distrusted {
		p.lives++
	}
	disaster := p.distrusted || p.loses(w.Config)
	p.revision, p.freed, p.identity, p.config = w.Revision, w.Revision, w.Identity, w.Config
	patience := p.patience(now)
	if p.partial {
		// It may have been deleted long ago, and held by the process that knew it.
		patience = max(patience, p.latest-now)
	}
	p.distrusted, p.partial = false, false

	entries := make(map[Subnet]*entry, max(p.leases.len, len(w.Leases)))
	for e := range p.leases.all() {
		if !e.gone || disaster && p.brief(e.until-now) {
			e = &entry{lease: e.lease, gone: true, until: now + patience}
		}
		entries[e.lease.Subnet] = e
	}
	p.bad = make(map[string]BadKey, len(w.Bad))
	for _, b := range w.Bad {
		p.bad[b.Key] = b
		if b.Key != b.Occupies.Key() {
			continue
		}
		l, halves := joined(func(s Subnet) *entry { return entries[s] }, b.Occupies)
		for _, s := range halves {
			delete(entries, s)
		}
		if len(halves) > 0 {
			entries[b.Occupies] = &entry{lease: l, unreadable: true}
		}
	}
	index := newOverlapIndex()
	p.kin = map[Subnet]bool{}
	for _, l := range w.Leases {
		e := p.leases.get(l.Subnet)
		if e == nil || !e.stored() || e.lease != l {
			e = &entry{lease: l} // else who has the old one shares it
		}
		entries[l.Subnet] = e
		index.add(l.Subnet)
		p.relate(l)
	}
	p.rebuild(entries, index)
	return !p.shows(before)
}

// joined returns what is known of s, whose key cannot be read, and the entries that say
// so: its own, or those of its halves. The paths that a process left in the kernel tell
// of the families one by one, and not of when a key was created.
func joined(get func(Subnet) *entry, s Subnet) (l Lease, by []Subnet) {
	if e := get(s); e != nil {
		return e.lease, []Subnet{s}
	}
	l.Subnet = s
	for f, p := range s {
		var half Subnet
		half[f] = p
		e := get(half)
		if e == nil || e.lease.Created != 0 {
			continue
		}
		by = append(by, half)
		l.Attrs.BackendType = e.lease.Attrs.BackendType
		l.Attrs.PublicIP[f], l.Attrs.BackendData[f] = e.lease.Attrs.PublicIP[f], e.lease.Attrs.BackendData[f]
	}
	return l, by
}

// contradicts reports whether w, of the same identity and no earlier revision,
// cannot have come of what is known. An older snapshot that was restored, and
// written to since until its revision was no longer behind, looks like that: what
// w says of revisions up to ours must be what we know of them, to the letter.
//
// A restored store that merely lacks keys, and all of whose later writes are of
// revisions that we have not seen, contradicts nothing: it is what a store would be
// in which they were deleted. Their owners, who followed them, know better.
func (p *projection) contradicts(w World) bool {
	if w.Config.Modified != 0 && w.Config != p.config && w.Config.Modified <= p.seen(p.config.Modified) {
		return true
	}
	for _, b := range w.Bad {
		then, known := p.bad[b.Key]
		if !p.partial && b.Modified <= p.revision && (!known || then.Modified != b.Modified) {
			return true
		}
	}
	return slices.ContainsFunc(w.Leases, p.denies)
}

// denies reports whether l, as a store reads that has no other past than ours,
// cannot have come of what is known of its key.
func (p *projection) denies(l Lease) bool {
	e := p.leases.get(l.Subnet)
	bad, unreadable := p.bad[l.Subnet.Key()]
	switch {
	case unreadable: // When it was created is not known.
		return l.Modified <= p.revision || l.Created > bad.Modified && l.Created <= p.revision
	case e == nil || e.gone:
		return !p.partial && l.Created <= p.revision
	case l.Modified <= p.seen(e.lease.Modified):
		then := e.lease
		return l.Modified != then.Modified || l.Created != then.Created || l.ID != then.ID || !p.partial && l.Attrs != then.Attrs
	}
	return l.Created != e.lease.Created && l.Created <= p.seen(e.lease.Modified)
}

// seen is up to which revision all is known of a key that was last known to change
// at modified.
func (p *projection) seen(modified Revision) Revision {
	if p.partial {
		return modified
	}
	return p.revision
}

// shows reports whether p shows the same as another projection.
func (p *projection) shows(q projection) bool {
	sameKey := func(a, b BadKey) bool { return a.Key == b.Key && a.Modified == b.Modified }
	sameEntry := func(a, b *entry) bool { return *a == *b }
	return p.identity == q.identity && p.lives == q.lives && p.config == q.config && maps.EqualFunc(p.bad, q.bad, sameKey) &&
		slices.EqualFunc(slices.Collect(p.leases.all()), slices.Collect(q.leases.all()), sameEntry)
}

// rebuild makes the list anew. Live is the index of the leases in the store:
// what is gone and overlaps one of them goes at once.
func (p *projection) rebuild(entries map[Subnet]*entry, live overlapIndex) {
	p.held = make(map[Subnet]time.Duration)
	for s, e := range entries {
		switch {
		case !e.gone:
		case len(live.overlapping(s)) > 0:
			delete(entries, s)
		default:
			p.keep(s, e.until)
		}
	}
	sorted := slices.SortedFunc(maps.Values(entries), func(a, b *entry) int { return a.lease.Subnet.Compare(b.lease.Subnet) })
	for _, e := range sorted {
		live.add(e.lease.Subnet)
	}
	p.leases, p.index = listOf(sorted), live
}

// apply follows one batch, and reports whether anything but the revision
// changed.
func (p *projection) apply(b Batch, now time.Duration) bool {
	changed := b.Config != nil || len(b.Put)+len(b.Deleted)+len(b.Bad) > 0
	p.revision = b.Revision
	if b.Config != nil {
		lost := p.loses(*b.Config)
		p.config = *b.Config
		if lost {
			p.extend(now)
		}
	}
	for _, key := range b.Deleted {
		p.freed = b.Revision
		p.delete(key, now)
	}
	for _, bad := range b.Bad {
		p.spoil(bad)
	}
	for _, l := range b.Put {
		p.put(l)
	}
	return changed
}

// spoil takes in that a key became unreadable.
func (p *projection) spoil(bad BadKey) {
	p.bad[bad.Key] = bad
	delete(p.kin, bad.Occupies)
	if bad.Key != bad.Occupies.Key() {
		return
	}
	l, by := joined(p.leases.get, bad.Occupies)
	for _, s := range by {
		p.drop(s)
	}
	if len(by) > 0 {
		p.leases = p.leases.put(&entry{lease: l, unreadable: true})
		p.index.add(l.Subnet)
	}
}

// put takes in a lease that was created or changed. It ends what is held of
// others in its place at once.
func (p *projection) put(l Lease) {
	delete(p.bad, l.Subnet.Key())
	delete(p.held, l.Subnet)
	for _, s := range p.index.overlapping(l.Subnet) {
		if _, held := p.held[s]; held {
			p.drop(s)
		}
	}
	p.leases = p.leases.put(&entry{lease: l})
	p.index.add(l.Subnet)
	p.relate(l)
}

// relate notes whether l has our node id.
func (p *projection) relate(l Lease) {
	if p.node != "" && l.Attrs.Owner == p.node {
		p.kin[l.Subnet] = true
		return
	}
	delete(p.kin, l.Subnet)
}

// delete takes in that a key was deleted: its lease is held, unless another
// covers its subnet already.
func (p *projection) delete(key string, now time.Duration) {
	delete(p.bad, key)
	s, err := ParseSubnet(key)
	if err != nil {
		return
	}
	delete(p.kin, s)
	e := p.leases.get(s)
	if e == nil {
		return
	}
	for _, other := range p.index.overlapping(s) {
		if _, held := p.held[other]; !held {
			p.drop(s)
			return
		}
	}
	until := now + p.patience(now)
	p.keep(s, until)
	p.leases = p.leases.put(&entry{lease: e.lease, gone: true, until: until})
}

// loses reports whether the config is gone with this one. Who was about to create
// his key again then cannot.
func (p *projection) loses(next Document) bool { return p.config.Text != "" && next.Text == "" }

// brief reports whether a lease with so much time left is held as one is that was
// merely deleted. Only that is made longer: a store that is lost again and again
// must not hold the dead for ever.
func (p *projection) brief(left time.Duration) bool { return left <= p.hold }

// extend holds as long as a disaster asks for what is held briefly.
func (p *projection) extend(now time.Duration) {
	for s, until := range p.held {
		if p.brief(until - now) {
			until = now + p.patience(now)
			p.leases = p.leases.put(&entry{lease: p.leases.get(s).lease, gone: true, until: until})
			p.keep(s, until)
		}
	}
	// Too early costs a look.
	p.due = now
}

// drop ends a lease's effect.
func (p *projection) drop(s Subnet) {
	delete(p.held, s)
	p.leases = p.leases.remove(s)
	p.index.remove(s)
}

// keep holds a deleted lease.
func (p *projection) keep(s Subnet, until time.Duration) {
	if len(p.held) == 0 || until < p.due {
		p.due = until
	}
	p.held[s] = until
	p.latest = max(p.latest, until)
}

// release ends the held leases whose time has come, and reports whether there
// were any. It looks at them only when one may be due: after a disaster
// thousands are held, and every batch asks.
func (p *projection) release(now time.Duration) bool {
	if len(p.held) == 0 || now < p.due {
		return false
	}
	old := p.held
	p.held = make(map[Subnet]time.Duration, len(old))
	for s, until := range old {
		if now >= until {
			p.drop(s)
			continue
		}
		p.keep(s, until)
	}
	ended := len(p.held) < len(old)
	if ended { // Of many in a row some end together.
		p.due = max(p.due, now+releaseEvery)
	}
	return ended
}

// nextRelease is when to call release again; false: nothing is held.
func (p *projection) nextRelease() (time.Duration, bool) {
	return p.due, len(p.held) > 0
}

// snapshot shows the projection as it is.
func (p *projection) snapshot() *Snapshot {
	var kin, beside []Lease
	for _, s := range slices.SortedFunc(maps.Keys(p.kin), Subnet.Compare) {
		kin = append(kin, p.leases.get(s).lease)
		for _, other := range p.index.overlapping(s) {
			if e := p.leases.get(other); e.stored() {
				beside = append(beside, e.lease)
			}
		}
	}
	return &Snapshot{
		Revision: p.revision,
		Identity: p.identity,
		Config:   p.config,
		Held:     p.latest,
		Bad:      slices.SortedFunc(maps.Values(p.bad), func(a, b BadKey) int { return cmp.Compare(a.Key, b.Key) }),
		lives:    p.lives,
		freed:    p.freed,
		kin:      kin,
		beside:   beside,
		list:     p.leases,
	}
}
