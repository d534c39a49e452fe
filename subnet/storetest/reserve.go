package storetest

import (
	"encoding/json"
	"slices"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

func reserveCases() []testCase {
	return []testCase{
		{name: "Reserve detaches the key and ends its lease", own: true, run: reserveLease},
		{name: "Reserve of a reservation keeps it bare", run: reserveReservation},
		{name: "Reserve leaves others' keys on a shared lease", run: reserveShared},
		{name: "Reserve of what is lost changes nothing", run: reserveLost},
		{name: "Reserve in another world changes nothing", run: reserveConditions},
		{name: "Reserve of what came after a backup", own: true, run: reserveRestored},
	}
}

// reserveLease also lets the time of the lease pass: the key must outlive it.
func reserveLease(e *env) {
	s, w := e.seeded()
	l := e.create(s, host(1, dual("10.5.1.0/24", "fd05:0:0:1::/64")), e.ShortTTL, w)
	watch := e.watch(s, l.Modified)
	change := l
	change.Attrs.BackendData = attrs(2).BackendData
	got, err := s.Reserve(e.ctx, change, w)
	e.ok(err)
	if got.Modified <= l.Modified {
		e.Errorf("reserved at revision %d, want a later one than %d", got.Modified, l.Modified)
	}
	want := change
	want.ID, want.TTL, want.Modified = 0, 0, got.Modified
	e.diff("Reserve", want, got)
	e.diff("Watch", subnet.Batch{Revision: got.Modified, Put: []subnet.Lease{want}}, watch.next())
	value, err := json.Marshal(change.Attrs)
	e.ok(err)
	bare := KV{Path: path(l.Subnet), Value: string(value), Modified: got.Modified}
	e.diff("the key", bare, e.get(path(l.Subnet)))
	lasting := e.create(s, host(1, v4("10.5.2.0/24")), long, w)
	_, err = s.Reserve(e.ctx, lasting, w)
	e.ok(err)
	ids, err := e.Leases(e.ctx)
	e.ok(err)
	if slices.Contains(ids, lasting.ID) {
		e.Errorf("lease %x lives on", int64(lasting.ID))
	}
	e.pause(e.ShortTTL + e.ShortTTL/2)
	e.diff("the key when the lease's time is over", bare, e.get(path(l.Subnet)))
	if _, err := s.Renew(e.ctx, got); err != nil {
		e.Errorf("Renew of the reservation: %v", err)
	}
	_, err = s.Renew(e.ctx, l)
	e.is("Renew of what it was", err, subnet.ErrLeaseLost)
	_, err = s.Reserve(e.ctx, l, w)
	e.is("Reserve of what it was", err, subnet.ErrLeaseLost)
}

func reserveReservation(e *env) {
	e.staysBare("Reserve", func(s Store, l subnet.Lease, w subnet.World) (subnet.Lease, error) { return s.Reserve(e.ctx, l, w) })
}

func reserveShared(e *env) {
	s, w := e.seeded()
	l := e.create(s, host(1, v4("10.5.1.0/24")), long, w)
	e.put(KV{Path: "flanneld-go/other", Value: "other's", Lease: l.ID})
	got, err := s.Reserve(e.ctx, l, w)
	e.ok(err)
	if kv := e.get("flanneld-go/other"); kv.Value == "" {
		e.Error("the other key is gone")
	}
	e.diff("Load", []subnet.Lease{got}, e.load(s).Leases)
}

func reserveLost(e *env) {
	all := append(losses(),
		loss{"detached", func(e *env, l subnet.Lease) {
			e.put(KV{Path: path(l.Subnet), Value: e.get(path(l.Subnet)).Value})
		}},
		loss{"revoked", func(e *env, l subnet.Lease) { e.ok(e.Revoke(e.ctx, l.ID)) }},
	)
	s, w := e.seeded()
	for _, c := range all {
		l := e.create(s, host(1, v4("10.5.1.0/24")), long, w)
		c.do(e, l)
		before := e.get(path(l.Subnet))
		_, err := s.Reserve(e.ctx, l, w)
		e.is(c.name+": Reserve", err, subnet.ErrLeaseLost)
		e.diff(c.name+": the key", before, e.get(path(l.Subnet)))
		e.remove(path(l.Subnet))
	}
	_, err := s.Reserve(e.ctx, host(1, v4("10.5.2.0/24")), w)
	e.is("Reserve of what was never stored", err, subnet.ErrLeaseLost)
	l := e.create(s, host(1, v4("10.5.3.0/24")), long, w)
	l.Attrs = subnet.Attrs{}
	if got, err := s.Reserve(e.ctx, l, w); err == nil {
		e.Errorf("Reserve for nobody = %+v, want an error", got)
	}
}

func reserveConditions(e *env) {
	key := v4("10.5.1.0/24")
	e.outdated("Reserve", key, func(s Store, w subnet.World) func() error {
		l := e.create(s, host(1, key), long, w)
		return func() error {
			_, err := s.Reserve(e.ctx, l, w)
			return err
		}
	})
	s, w := e.seeded()
	l := e.create(s, host(1, key), long, w)
	_, err := s.Reserve(e.ctx, l, subnet.World{})
	e.is("Reserve with a World that nobody loaded", err, subnet.ErrStoreChanged)
	restored := w
	restored.Config.Text += " "
	_, err = s.Reserve(e.ctx, l, restored)
	e.is("Reserve beside another config of that revision", err, subnet.ErrConfigChanged)
	// The store that the world was read from is compared, whoever read it.
	e.put(KV{Path: layout.Identity, Value: "a third"})
	other := e.load(e.store())
	_, err = s.Reserve(e.ctx, l, other)
	e.is("Reserve in a store that this one does not know", err, subnet.ErrStoreChanged)
}

func reserveRestored(e *env) {
	s, w := e.seeded()
	e.load(s)
	var late subnet.Lease
	e.ok(e.Rewind(e.ctx, func() error {
		for range 5 {
			e.put(KV{Path: "flanneld-go/unknown", Value: "moves the revision"})
		}
		late = e.create(s, host(3, v4("10.5.3.0/24")), long, w)
		return nil
	}))
	_, err := s.Reserve(e.ctx, late, w)
	e.is("Reserve of what came after the backup", err, subnet.ErrStoreChanged)
	e.diff("Load", []subnet.Lease(nil), e.load(s).Leases)
}
