package storetest

import (
	"slices"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

func heldCases() []testCase {
	return []testCase{
		{name: "Renew keeps a lease alive and writes nothing", run: renewLease},
		{name: "Renew of a reservation only proves it", run: renewReservation},
		{name: "Renew, Update and Release of a lease that is lost", run: lostLease},
		{name: "Renew, Update and Release of a reservation that is lost", run: lostReservation},
		{name: "Renew, Update and Release after the store was replaced", run: heldElsewhere},
		{name: "Update keeps the lease attached", run: updateLease},
		{name: "Update keeps a reservation bare", run: updateReservation},
		{name: "Release deletes the key and its lease", own: true, run: releaseLease},
		{name: "Release leaves others' keys on a shared lease", run: releaseShared},
	}
}

func renewLease(e *env) {
	s, w := e.seeded()
	l := e.create(s, host(1, v4("10.5.1.0/24")), e.ShortTTL, w)
	const rounds = 4 // longer than it would live
	for range rounds {
		e.pause(e.ShortTTL / 3)
		got, err := s.Renew(e.ctx, l)
		if err != nil {
			e.Fatalf("Renew: %v", err)
		}
		e.diff("Renew", l, got)
	}
	if kv := e.get(path(l.Subnet)); kv.Modified != l.Modified {
		e.Errorf("after %d renewals the key is of revision %d, want %d", rounds, kv.Modified, l.Modified)
	}
}

func renewReservation(e *env) {
	s, w := e.seeded()
	l := e.create(s, host(1, v4("10.5.1.0/24")), 0, w)
	got, err := s.Renew(e.ctx, l)
	e.ok(err)
	e.diff("Renew", l, got)
	e.diff("Load", []subnet.Lease{l}, e.load(s).Leases)
}

// A loss is what others do to a key that we hold as l.
type loss struct {
	name string
	do   func(e *env, l subnet.Lease)
}

// losses are those that concern a lease and a reservation alike.
func losses() []loss {
	value := flannel("192.0.2.99")
	return []loss{
		{"overwritten", func(e *env, l subnet.Lease) { e.put(KV{Path: path(l.Subnet), Value: value, Lease: l.ID}) }},
		{"overwritten with the same", func(e *env, l subnet.Lease) {
			e.put(KV{Path: path(l.Subnet), Value: e.get(path(l.Subnet)).Value, Lease: l.ID})
		}},
		{"moved to another lease", func(e *env, l subnet.Lease) {
			e.put(KV{Path: path(l.Subnet), Value: e.get(path(l.Subnet)).Value, Lease: e.grant(long)})
		}},
		{"deleted", func(e *env, l subnet.Lease) { e.remove(path(l.Subnet)) }},
		{"deleted and put again", func(e *env, l subnet.Lease) {
			kv := e.get(path(l.Subnet))
			e.remove(path(l.Subnet))
			e.put(KV{Path: path(l.Subnet), Value: kv.Value, Lease: l.ID})
		}},
	}
}

func lostLease(e *env) {
	all := append(losses(),
		loss{"detached", func(e *env, l subnet.Lease) {
			e.put(KV{Path: path(l.Subnet), Value: e.get(path(l.Subnet)).Value})
		}},
		loss{"revoked", func(e *env, l subnet.Lease) { e.ok(e.Revoke(e.ctx, l.ID)) }},
		loss{"revoked and put again", func(e *env, l subnet.Lease) {
			kv := e.get(path(l.Subnet))
			e.ok(e.Revoke(e.ctx, l.ID))
			e.put(KV{Path: path(l.Subnet), Value: kv.Value, Lease: e.grant(long)})
		}},
	)
	s, w := e.seeded()
	for i, c := range all {
		l := e.create(s, host(1, dual("10.5.1.0/24", "fd05:0:0:1::/64")), long, w)
		c.do(e, l)
		e.lost(c.name, s, l)
		if i%2 == 0 { // Its lease may live on or not: both must do.
			_ = e.Revoke(e.ctx, l.ID)
		}
		e.remove(path(l.Subnet))
	}
	l := e.create(s, host(1, v4("10.5.2.0/24")), long, w)
	l.ID++
	e.lost("held under another lease id", s, l)
}

func lostReservation(e *env) {
	s, w := e.seeded()
	for _, c := range losses() {
		l := e.create(s, host(1, v4("10.5.1.0/24")), 0, w)
		c.do(e, l)
		e.lost(c.name, s, l)
		e.remove(path(l.Subnet))
	}
}

// lost checks that nothing can be done with l, and that nothing is done.
func (e *env) lost(name string, s Store, l subnet.Lease) {
	e.Helper()
	before := e.get(path(l.Subnet))
	_, err := s.Renew(e.ctx, l)
	e.is(name+": Renew", err, subnet.ErrLeaseLost)
	changed := l
	changed.Attrs = attrs(7)
	_, err = s.Update(e.ctx, changed)
	e.is(name+": Update", err, subnet.ErrLeaseLost)
	e.is(name+": Release", s.Release(e.ctx, l), subnet.ErrLeaseLost)
	e.diff(name+": the key", before, e.get(path(l.Subnet)))
}

func heldElsewhere(e *env) {
	s, w := e.seeded()
	l := e.create(s, host(1, v4("10.5.1.0/24")), long, w)
	e.put(KV{Path: layout.Identity, Value: "another"})
	before := e.get(path(l.Subnet))
	_, err := s.Renew(e.ctx, l)
	e.is("Renew", err, subnet.ErrStoreChanged)
	_, err = s.Update(e.ctx, l)
	e.is("Update", err, subnet.ErrStoreChanged)
	e.is("Release", s.Release(e.ctx, l), subnet.ErrStoreChanged)
	e.diff("the key", before, e.get(path(l.Subnet)))
}

func updateLease(e *env) {
	s, w := e.seeded()
	l := e.create(s, host(1, dual("10.5.1.0/24", "fd05:0:0:1::/64")), long, w)
	change := l
	change.Attrs = attrs(2)
	got, err := s.Update(e.ctx, change)
	e.ok(err)
	if got.Modified <= l.Modified {
		e.Errorf("updated at revision %d, want a later one than %d", got.Modified, l.Modified)
	}
	want := change
	want.Modified = got.Modified
	e.diff("Update", want, got)
	e.diff("Load", []subnet.Lease{asListed(want)}, e.load(s).Leases)
	if _, err := s.Renew(e.ctx, got); err != nil {
		e.Errorf("Renew after Update: %v", err)
	}
	_, err = s.Update(e.ctx, l)
	e.is("Update of what was held before", err, subnet.ErrLeaseLost)
	if _, err := s.Update(e.ctx, subnet.Lease{Subnet: l.Subnet, ID: got.ID, Modified: got.Modified}); err == nil {
		e.Error("Update to attributes that nobody could read succeeds")
	}
}

func updateReservation(e *env) {
	e.staysBare("Update", func(s Store, l subnet.Lease, _ subnet.World) (subnet.Lease, error) { return s.Update(e.ctx, l) })
}

func releaseLease(e *env) {
	s, w := e.seeded()
	l := e.create(s, host(1, v4("10.5.1.0/24")), long, w)
	reserved := e.create(s, host(1, v4("10.5.2.0/24")), 0, w)
	for _, held := range []subnet.Lease{l, reserved} {
		e.ok(s.Release(e.ctx, held))
		e.is("Release again", s.Release(e.ctx, held), subnet.ErrLeaseLost)
	}
	e.diff("Load", []subnet.Lease(nil), e.load(s).Leases)
	ids, err := e.Leases(e.ctx)
	e.ok(err)
	if slices.Contains(ids, l.ID) {
		e.Errorf("lease %x lives on", int64(l.ID))
	}
}

func releaseShared(e *env) {
	s, w := e.seeded()
	l := e.create(s, host(1, v4("10.5.1.0/24")), long, w)
	e.put(KV{Path: "flanneld-go/other", Value: "other's", Lease: l.ID})
	e.ok(s.Release(e.ctx, l))
	if kv := e.get("flanneld-go/other"); kv.Value == "" {
		e.Error("the other key is gone")
	}
	e.diff("Load", []subnet.Lease(nil), e.load(s).Leases)
}
