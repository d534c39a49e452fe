package storetest

import (
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

func createCases() []testCase {
	return []testCase{
		{name: "Create stores a lease with a time to live", run: createLease},
		{name: "Create stores a dual-stack lease", run: createDualStack},
		{name: "Create stores a reservation", run: createReservation},
		{name: "Create refuses what nobody could read", run: createUnreadable},
		{name: "Create fails with its sentinel and changes nothing", run: createConditions},
		{name: "Create without a config needs that there is none", run: createWithoutConfig},
		{name: "Create needs the lease that was written last", run: createWitness},
		{name: "Create in a store that was restored since", own: true, run: createRestored},
		{name: "Create at once for one subnet: one wins", run: createRace},
		{name: "Create that fails leaves no leases behind", own: true, run: createLeavesNoLeases},
		{name: "Create's lease expires", run: createExpires},
	}
}

func createLease(e *env) {
	s, w := e.seeded()
	l := host(1, v4("10.5.1.0/24"))
	got := e.create(s, l, long, w)
	if got.ID == 0 || got.Created <= w.Revision {
		e.Errorf("lease %d created at %d, want one, after %d", got.ID, got.Created, w.Revision)
	}
	want := l
	want.ID, want.TTL, want.Created, want.Modified = got.ID, long, got.Created, got.Created
	e.diff("Create", want, got)

	value, err := json.Marshal(l.Attrs)
	e.ok(err)
	e.diff("the key", KV{Path: path(l.Subnet), Value: string(value), Lease: got.ID, Modified: got.Modified}, e.get(path(l.Subnet)))
	e.diff("Load", []subnet.Lease{asListed(got)}, e.load(s).Leases)
	remaining, granted, err := s.TTL(e.ctx, got.ID)
	if err != nil || granted != long || remaining <= 0 || remaining > long {
		e.Errorf("TTL = %s of %s, %v, want almost %s", remaining, granted, err, long)
	}
}

func createDualStack(e *env) {
	s, w := e.seeded()
	l := host(1, dual("10.5.1.0/24", "fd05:0:0:52::/64"))
	got := e.create(s, l, long, w)
	if kv := e.get("subnets/10.5.1.0-24&fd05:0:0:52::-64"); kv.Lease != got.ID {
		e.Errorf("no key in flannel's form with lease %d: %+v", got.ID, kv)
	}
	e.diff("Load", []subnet.Lease{asListed(got)}, e.load(s).Leases)
}

func createReservation(e *env) {
	s, w := e.seeded()
	got := e.create(s, host(1, v4("10.5.1.0/24")), 0, w)
	if !got.Reservation() || got.TTL != 0 {
		e.Errorf("Create with ttl 0 = lease %d for %s, want a reservation", got.ID, got.TTL)
	}
	if kv := e.get(path(got.Subnet)); kv.Modified != got.Modified || kv.Lease != 0 {
		e.Errorf("the key is %+v, want a bare one of revision %d", kv, got.Modified)
	}
}

func createUnreadable(e *env) {
	s, w := e.seeded()
	for name, l := range map[string]subnet.Lease{
		"without a subnet": {Attrs: attrs(1)},
		"of nobody":        {Subnet: v4("10.5.1.0/24")},
		"with host bits":   host(1, v4("10.5.1.1/24")),
	} {
		if got, err := s.Create(e.ctx, l, long, w); err == nil {
			e.Errorf("Create of a lease %s = %+v, want an error", name, got)
		}
	}
	e.diff("Load", []subnet.Lease(nil), e.load(s).Leases)
}

func createConditions(e *env) {
	key := v4("10.5.1.0/24")
	put := func(value string) []func(*env) {
		return []func(*env){func(e *env) { e.put(KV{Path: path(key), Value: value}) }}
	}
	e.outdated("Create", key, func(s Store, w subnet.World) func() error {
		return func() error {
			_, err := s.Create(e.ctx, host(1, key), long, w)
			return err
		}
	}, condition{"taken", put(flannel("192.0.2.9")), subnet.ErrTaken}, condition{"taken by an unreadable key", put("?"), subnet.ErrTaken})
	s, w := e.seeded()
	_, err := s.Create(e.ctx, host(1, key), long, subnet.World{})
	e.is("Create with a World that nobody loaded", err, subnet.ErrStoreChanged)
	// After a restore another config may have the revision of the one that was read.
	w.Config.Text += " "
	_, err = s.Create(e.ctx, host(1, key), long, w)
	e.is("Create beside another config of that revision", err, subnet.ErrConfigChanged)
}

func createWithoutConfig(e *env) {
	s := e.store()
	w := e.load(s)
	e.create(s, host(1, v4("10.5.1.0/24")), long, w)
	e.put(KV{Path: layout.Config, Value: configText})
	_, err := s.Create(e.ctx, host(2, v4("10.5.2.0/24")), long, w)
	e.is("Create after a config appeared", err, subnet.ErrConfigChanged)
}

// What the world rests upon is the last lease in it; others come and go.
func createWitness(e *env) {
	s, w := e.seeded()
	other := e.create(s, host(1, v4("10.5.1.0/24")), long, w)
	for _, c := range losses() {
		last := e.create(s, host(2, v4("10.5.2.0/24")), long, w)
		seen := e.load(s)
		c.do(e, last)
		_, err := s.Create(e.ctx, host(3, v4("10.5.3.0/24")), long, seen)
		e.is(c.name+": Create", err, subnet.ErrLeaseLost)
		e.diff(c.name+": the key", KV{}, e.get(path(v4("10.5.3.0/24"))))
		_, err = s.Create(e.ctx, host(3, last.Subnet), long, seen)
		if kv := e.get(path(last.Subnet)); kv != (KV{}) {
			e.is(c.name+": Create of what is there", err, subnet.ErrTaken)
		}
		e.remove(path(last.Subnet))
	}
	e.create(s, host(2, v4("10.5.2.0/24")), 0, w)
	seen := e.load(s)
	e.remove(path(other.Subnet))
	e.put(KV{Path: path(v4("10.5.4.0/24")), Value: flannel("192.0.2.4")})
	e.create(s, host(3, v4("10.5.3.0/24")), long, seen)
}

// Neither identity nor config tell of a backup that was restored, in which a
// subnet is leased that was free in the meantime.
func createRestored(e *env) {
	for _, c := range []struct {
		name string
		// written: there is a lease that the backup lacks. grown: the
		// revision has caught up.
		written, grown bool
		ttl            time.Duration
		want           error
	}{
		{"nothing was written", false, false, long, subnet.ErrStoreChanged},
		{"nothing was written, for a reservation", false, false, 0, subnet.ErrStoreChanged},
		{"a lease was written", true, false, long, subnet.ErrStoreChanged},
		{"a lease was written, and the revision has caught up", true, true, long, subnet.ErrLeaseLost},
	} {
		s, w := e.seeded()
		wide := e.create(s, host(1, v4("10.5.0.0/20")), 0, w)
		e.ok(e.Rewind(e.ctx, func() error {
			e.remove(path(wide.Subnet))
			for range 5 {
				e.put(KV{Path: "flanneld-go/unknown", Value: "moves the revision"})
			}
			if c.written {
				e.create(s, host(2, v4("10.5.32.0/24")), long, w)
			}
			w = e.load(s)
			return nil
		}))
		for c.grown && e.put(KV{Path: "flanneld-go/unknown", Value: "moves the revision"}) <= w.Revision {
		}
		before := e.load(s)
		_, err := s.Create(e.ctx, host(3, v4("10.5.1.0/24")), c.ttl, w)
		e.is(c.name+": Create", err, c.want)
		e.diff(c.name+": Load", before.Leases, e.load(s).Leases)
		e.remove(path(wide.Subnet))
	}
}

func createRace(e *env) {
	const hosts = 8
	s, w := e.seeded()
	key := v4("10.5.1.0/24")
	leases := make([]subnet.Lease, hosts)
	errs := make([]error, hosts)
	var wg sync.WaitGroup
	for i := range hosts {
		s := e.store()
		wg.Go(func() { leases[i], errs[i] = s.Create(e.ctx, host(i+1, key), long, w) })
	}
	wg.Wait()
	var winners []subnet.Lease
	for i, err := range errs {
		if err == nil {
			winners = append(winners, asListed(leases[i]))
			continue
		}
		e.is("Create of a loser", err, subnet.ErrTaken)
	}
	if len(winners) != 1 {
		e.Errorf("%d hosts won one subnet, want 1", len(winners))
	}
	e.diff("Load", winners, e.load(s).Leases)
}

func createLeavesNoLeases(e *env) {
	s, w := e.seeded()
	key := v4("10.5.1.0/24")
	e.put(KV{Path: path(key), Value: flannel("192.0.2.9")})
	count := func() int {
		ids, err := e.Leases(e.ctx)
		e.ok(err)
		return len(ids)
	}
	for range 10 {
		_, err := s.Create(e.ctx, host(1, key), long, w)
		e.is("Create", err, subnet.ErrTaken)
	}
	// One may be kept in reserve for the next candidate.
	e.eventually("at most one lease is left", func() bool { return count() <= 1 })
	e.create(s, host(1, v4("10.5.2.0/24")), long, w)
	e.eventually("the only lease is the one in use", func() bool { return count() == 1 })
	e.put(KV{Path: layout.Config, Value: "{}"})
	_, err := s.Create(e.ctx, host(1, v4("10.5.3.0/24")), long, w)
	e.is("Create", err, subnet.ErrConfigChanged)
	e.eventually("the only lease is the one in use", func() bool { return count() == 1 })
}

func createExpires(e *env) {
	s, w := e.seeded()
	born := time.Now()
	got := e.create(s, host(1, v4("10.5.1.0/24")), e.ShortTTL, w)
	if got.TTL != e.ShortTTL {
		e.Errorf("granted %s, want %s", got.TTL, e.ShortTTL)
	}
	stream := e.watch(s, got.Modified)
	b := stream.next()
	e.diff("expiry", subnet.Batch{Revision: b.Revision, Deleted: []string{got.Subnet.Key()}}, b)
	if lived := time.Since(born); lived < e.ShortTTL {
		e.Errorf("expired after %s, want %s", lived, e.ShortTTL)
	}
	e.diff("Load", []subnet.Lease(nil), e.load(s).Leases)
	if _, _, err := s.TTL(e.ctx, got.ID); !errors.Is(err, subnet.ErrLeaseLost) {
		e.Errorf("TTL of an expired lease: %v, want %v", err, subnet.ErrLeaseLost)
	}
}
