package storetest

import (
	"fmt"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

func changedCases() []testCase {
	return []testCase{
		{name: "Watch ends when the identity is replaced", run: identityReplaced},
		{name: "Watch ends when the identity is deleted", run: identityDeleted},
		{name: "Watch of the future is of another store", run: watchFuture},
		{name: "a store that was wiped is another", own: true, run: wiped},
		{name: "a store that was wiped and grew past the old revision is another", own: true, run: wipedAndGrown},
		{name: "a store that was restored from a backup is another", own: true, run: restored},
	}
}

func identityReplaced(e *env) {
	s, w := e.seeded()
	watch := e.watch(s, w.Revision)
	rev := e.put(KV{Path: layout.Config, Value: "{}"})
	if b := watch.next(); b.Revision != rev {
		e.Errorf("batch of revision %d, want %d", b.Revision, rev)
	}
	e.put(KV{Path: layout.Identity, Value: "another"})
	e.is("Watch", watch.end(), subnet.ErrStoreChanged)
	e.is("Watch again", e.watch(s, w.Revision).end(), subnet.ErrStoreChanged)
	again := e.load(s)
	if again.Identity != "another" {
		e.Errorf("Load returns identity %q, want the new one", again.Identity)
	}
	rev = e.put(KV{Path: layout.Config, Value: "{}"})
	if b := e.watch(s, again.Revision).next(); b.Revision != rev {
		e.Errorf("after a Load, batch of revision %d, want %d", b.Revision, rev)
	}
}

func identityDeleted(e *env) {
	s, w := e.seeded()
	watch := e.watch(s, w.Revision)
	e.remove(layout.Identity)
	e.is("Watch", watch.end(), subnet.ErrStoreChanged)
	if again := e.load(s); again.Identity == "" || again.Identity == w.Identity {
		e.Errorf("Load returns identity %q after %q, want a new one", again.Identity, w.Identity)
	}
}

func watchFuture(e *env) {
	s, w := e.seeded()
	e.is("Watch", e.watch(s, w.Revision+1_000_000).end(), subnet.ErrStoreChanged)
}

// replaced checks that the watch ends because the store is another. While that
// one came up, it could also end because there was none; another watch tells.
func (e *env) replaced(s Store, watch *stream) {
	e.Helper()
	for {
		at := watch.at
		err := watch.end()
		if watch.at > at {
			e.Errorf("the watch yields revision %d of the other store", watch.at)
		}
		if sentinel(err) {
			e.is("Watch", err, subnet.ErrStoreChanged)
			return
		}
		watch = e.watch(s, watch.at)
	}
}

func wiped(e *env) {
	s, w := e.seeded()
	var leases []subnet.Lease
	for i := range 5 {
		leases = append(leases, e.create(s, host(i, v4(fmt.Sprintf("10.5.%d.0/24", i+1))), long, w))
	}
	reserved := e.create(s, host(9, v4("10.5.9.0/24")), 0, w)
	watch := e.watch(s, reserved.Modified)
	e.ok(e.Wipe(e.ctx))
	e.replaced(s, watch)
	for _, l := range []subnet.Lease{leases[0], reserved} {
		_, err := s.Renew(e.ctx, l)
		e.is("Renew", err, subnet.ErrStoreChanged)
		_, err = s.Update(e.ctx, l)
		e.is("Update", err, subnet.ErrStoreChanged)
		e.is("Release", s.Release(e.ctx, l), subnet.ErrStoreChanged)
	}
	e.put(KV{Path: layout.Config, Value: configText})
	_, err := s.Create(e.ctx, host(1, v4("10.5.1.0/24")), long, w)
	e.is("Create", err, subnet.ErrStoreChanged)
	again := e.load(s)
	if again.Identity == w.Identity || again.Revision >= reserved.Modified {
		e.Errorf("Load returns identity %q at %d, before the wipe %q at %d", again.Identity, again.Revision, w.Identity, reserved.Modified)
	}
	e.create(s, host(1, v4("10.5.1.0/24")), long, again)
}

// The revision alone does not give such a store away.
func wipedAndGrown(e *env) {
	s, w := e.seeded()
	l := e.create(s, host(1, v4("10.5.1.0/24")), long, w)
	watch := e.watch(s, l.Modified)
	for receiving := true; receiving; { // The watch is known to run.
		receiving = !progress(watch.receive().Batch)
	}
	e.ok(e.Wipe(e.ctx))
	for e.put(KV{Path: layout.Config, Value: configText}) <= l.Modified+5 {
	}
	e.load(e.store())
	e.replaced(s, watch)
	e.is("Watch again", e.watch(s, l.Modified).end(), subnet.ErrStoreChanged)
	e.put(KV{Path: path(l.Subnet), Value: flannel("192.0.2.1")})
	_, err := s.Renew(e.ctx, l)
	e.is("Renew", err, subnet.ErrStoreChanged)
}

// Here it is the revision alone, since the identity is in the backup.
func restored(e *env) {
	s, w := e.seeded()
	kept := e.create(s, host(1, v4("10.5.1.0/24")), long, w)
	reserved := e.create(s, host(2, v4("10.5.2.0/24")), 0, w)
	var late subnet.Lease
	var watch *stream
	e.ok(e.Rewind(e.ctx, func() error {
		for range 5 {
			e.put(KV{Path: "flanneld-go/unknown", Value: "moves the revision"})
		}
		late = e.create(s, host(3, v4("10.5.3.0/24")), long, w)
		watch = e.watch(s, late.Modified)
		return nil
	}))
	e.replaced(s, watch)
	_, err := s.Renew(e.ctx, late)
	e.is("Renew of what came after the backup", err, subnet.ErrStoreChanged)
	e.is("Release of what came after the backup", s.Release(e.ctx, late), subnet.ErrStoreChanged)
	for _, l := range []subnet.Lease{kept, reserved} {
		if got, err := s.Renew(e.ctx, l); err != nil {
			e.Errorf("Renew of what was there before: %v", err)
		} else {
			e.diff("Renew", l, got)
		}
	}
	again := e.load(s)
	if again.Identity != w.Identity || again.Revision >= late.Modified {
		e.Errorf("Load returns identity %q at %d, want %q before %d", again.Identity, again.Revision, w.Identity, late.Modified)
	}
	e.diff("Load", []subnet.Lease{asListed(kept), asListed(reserved)}, again.Leases)
}
