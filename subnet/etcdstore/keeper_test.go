package etcdstore

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
	"github.com/flanneld-go/flanneld-go/subnet/storetest"
)

// What package subnet tests of keepers and views in a memory store is here done
// to etcd, as far as etcd has a say in it.

// tenant is one host at work on a real etcd.
type tenant struct {
	*operator
	t      *testing.T
	ctx    context.Context
	store  *Store
	view   *subnet.View
	keeper *subnet.Keeper
	// ended is what the keeper's Run returned.
	ended chan error
}

const tenantConfig = `{"Network":"10.5.0.0/16"}`

func tenantClaim(instance, ip string) subnet.Claim {
	return subnet.Claim{
		Node: "node", Instance: instance, TTL: time.Minute,
		Attrs: subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{netip.MustParseAddr(ip)}, BackendType: "host-gw"},
	}
}

// settle leases and keeps a subnet until the test ends.
func settle(t *testing.T, server *etcdtest.Server, prefix string, c subnet.Claim) *tenant {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	k := &tenant{
		operator: newOperator(t, server, prefix), t: t, ctx: ctx, ended: make(chan error, 1),
		store: open(t, Options{Endpoints: server.Endpoints(), Prefix: prefix, DialTimeout: time.Second}),
	}
	if kv, err := k.Get(ctx, layout.Config); err != nil || kv.Value == "" {
		k.config(t, tenantConfig)
	}
	w := loaded(t, k.store)
	lease, err := subnet.Acquire(ctx, k.store, w, c)
	if err != nil {
		t.Fatal(err)
	}
	k.view = subnet.NewView(subnet.ViewOptions{Store: k.store, Clock: subnet.SystemClock{}, World: w})
	k.keeper = subnet.NewKeeper(subnet.KeeperOptions{
		Store: k.store, Clock: subnet.SystemClock{}, Claim: c, Lease: lease, Identity: w.Identity, View: k.view,
	})
	viewed := make(chan error, 1)
	go func() { viewed <- k.view.Run(ctx) }()
	go func() { k.ended <- k.keeper.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-viewed; err != nil {
			t.Errorf("view: %v", err)
		}
		<-k.ended
	})
	k.until("the first lease is valid", func(s *subnet.KeeperStatus) bool { return s.State == subnet.StateValid && k.view.Snapshot().Synced })
	return k
}

// until waits for a status of the keeper; etcd must agree with a valid one.
func (k *tenant) until(what string, f func(*subnet.KeeperStatus) bool) subnet.Lease {
	k.t.Helper()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		if s := k.keeper.Status(); f(s) && k.agrees(s) {
			return s.Lease
		}
		select {
		case <-poll.C:
		case <-k.ctx.Done():
			k.t.Fatalf("%s: never; %+v", what, *k.keeper.Status())
		}
	}
}

// agrees reports whether etcd holds a valid lease exactly as the keeper does.
func (k *tenant) agrees(s *subnet.KeeperStatus) bool {
	if s.State != subnet.StateValid {
		return true
	}
	kv, err := k.Get(k.ctx, path.Join(layout.Subnets, s.Lease.Subnet.Key()))
	return err == nil && kv.Modified == s.Lease.Modified && kv.Lease == s.Lease.ID
}

// value is l's attributes as they are stored.
func value(t *testing.T, a subnet.Attrs) string {
	t.Helper()
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestKeeperOnEtcd(t *testing.T) {
	shared := startServer(t, etcdtest.Options{})
	do := func(k *tenant, err error) {
		k.t.Helper()
		if err != nil {
			k.t.Fatal(err)
		}
	}
	put := func(k *tenant, value string, id subnet.LeaseID) {
		_, err := k.Put(k.ctx, storetest.KV{Path: path.Join(layout.Subnets, k.keeper.Lease().Subnet.Key()), Value: value, Lease: id})
		do(k, err)
	}
	grant := func(k *tenant, ttl time.Duration) subnet.LeaseID {
		id, err := k.Grant(k.ctx, ttl)
		do(k, err)
		return id
	}
	for _, tt := range []struct {
		name string
		// own: on a server of its own.
		own bool
		do  func(*tenant, subnet.Lease)
		// moved: to another subnet; bare: a reservation afterwards.
		moved, bare bool
	}{
		{name: "deleted", do: func(k *tenant, l subnet.Lease) {
			_, err := k.Delete(k.ctx, path.Join(layout.Subnets, l.Subnet.Key()))
			do(k, err)
		}},
		{name: "lease revoked", do: func(k *tenant, l subnet.Lease) { do(k, k.Revoke(k.ctx, l.ID)) }},
		{name: "another's", moved: true, do: func(k *tenant, _ subnet.Lease) {
			put(k, `{"PublicIP":"192.0.2.9","Owner":"other","Instance":"x"}`, grant(k, time.Minute))
		}},
		{name: "another's on our own lease", moved: true, do: func(k *tenant, l subnet.Lease) {
			put(k, `{"PublicIP":"192.0.2.9","Owner":"other","Instance":"x"}`, l.ID)
		}},
		{name: "unreadable", moved: true, do: func(k *tenant, _ subnet.Lease) { put(k, "nonsense", grant(k, time.Minute)) }},
		{name: "flannel of this host wrote it", do: func(k *tenant, _ subnet.Lease) {
			put(k, `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}`, grant(k, time.Minute))
		}},
		{name: "detached", bare: true, do: func(k *tenant, l subnet.Lease) { put(k, value(k.t, l.Attrs), 0) }},
		{name: "moved to another lease", do: func(k *tenant, l subnet.Lease) { put(k, value(k.t, l.Attrs), grant(k, time.Minute)) }},
		{name: "reserved", bare: true, do: func(k *tenant, l subnet.Lease) {
			_, err := subnet.Reserve(k.ctx, k.store, loaded(k.t, k.store), l.Subnet, subnet.Attrs{Owner: "node"})
			do(k, err)
		}},
		{name: "challenged", do: func(k *tenant, l subnet.Lease) {
			l.Attrs.Challenge.Instance = "dies"
			put(k, value(k.t, l.Attrs), l.ID)
		}},
		{name: "wiped, and the config put again", own: true, do: func(k *tenant, _ subnet.Lease) {
			do(k, k.Wipe(k.ctx))
			k.config(k.t, tenantConfig)
		}},
		{name: "identity of another cluster", do: func(k *tenant, l subnet.Lease) {
			_, err := k.Put(k.ctx, storetest.KV{Path: layout.Identity, Value: "another"})
			do(k, err)
			_, err = k.Delete(k.ctx, path.Join(layout.Subnets, l.Subnet.Key()))
			do(k, err)
		}},
		{name: "compacted in a gap", own: true, do: func(k *tenant, l subnet.Lease) {
			do(k, k.server.Stop())
			do(k, k.server.Restart(k.ctx))
			_, err := k.Delete(k.ctx, path.Join(layout.Subnets, l.Subnet.Key()))
			do(k, err)
			rev, err := k.Revision(k.ctx)
			do(k, err)
			do(k, k.Compact(k.ctx, rev))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := shared
			if tt.own {
				server = startServer(t, etcdtest.Options{})
			}
			k := settle(t, server, "/"+strings.ReplaceAll(tt.name, " ", "-"), tenantClaim("i", "192.0.2.1"))
			before := k.keeper.Lease()
			tt.do(k, before)
			got := k.until("a lease again", func(s *subnet.KeeperStatus) bool {
				return s.State == subnet.StateValid && s.Lease != before
			})
			if moved := got.Subnet != before.Subnet; moved != tt.moved || got.Reservation() != tt.bare {
				t.Errorf("%+v after %+v", got, before)
			}
			// The view learns of it by the watch, a moment after the keeper.
			for s := k.view.Snapshot(); ; s = k.view.Snapshot() {
				l, ok := s.Stored(before.Subnet)
				if !ok || l.Attrs.Challenge.IsZero() {
					break
				}
				select {
				case <-s.Changed():
				case <-k.ctx.Done():
					t.Fatalf("the view shows %+v", l)
				}
			}
		})
	}
}

// A key and etcd's lease of it are gone when the time is over; the host has them
// again when it can reach etcd.
func TestKeeperOutlivesItsLease(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	c := tenantClaim("i", "192.0.2.1")
	c.TTL = 2 * time.Second
	k := settle(t, server, "/p", c)
	before := k.keeper.Lease()
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	k.until("the lease is past its time", func(s *subnet.KeeperStatus) bool { return s.State == subnet.StateUnproven })
	if err := server.Restart(k.ctx); err != nil {
		t.Fatal(err)
	}
	// A restarted etcd gives every lease its whole time again, or it is gone.
	if got := k.until("it is valid again", func(s *subnet.KeeperStatus) bool { return s.State == subnet.StateValid }); got.Subnet != before.Subnet {
		t.Errorf("has %s, before %s", got.Subnet, before.Subnet)
	}
}

// In a restored etcd the lease that was younger than the backup is created
// again, by the view's word alone.
func TestKeeperOnRestoredEtcd(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	o := newOperator(t, server, "/p")
	o.config(t, tenantConfig)
	loaded(t, open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"}))
	var k *tenant
	var before subnet.Lease
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := o.Rewind(ctx, func() error {
		k = settle(t, server, "/p", tenantClaim("i", "192.0.2.1"))
		before = k.keeper.Lease()
		for range 10 {
			k.config(t, tenantConfig)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got := k.until("a lease again", func(s *subnet.KeeperStatus) bool {
		return s.State == subnet.StateValid && s.Lease.ID != before.ID
	})
	if got.Subnet != before.Subnet {
		t.Errorf("%+v after %+v", got, before)
	}
}

// haltedClock stands still until it is told that something has happened, and the time for
// an answer is over then.
type haltedClock struct {
	subnet.SystemClock
	at      time.Duration
	happens <-chan time.Time
}

func (c haltedClock) Uptime() time.Duration {
	select {
	case <-c.happens:
		return c.at + subnet.ChallengeWait
	default:
		return c.at
	}
}

func (c haltedClock) Timer(time.Duration) subnet.Timer {
	return subnet.Timer{C: c.happens, Stop: func() {}}
}

// untilAnswered is a clock that waits for the keeper's answer to a challenge, however slow
// the machine is that the keeper runs on.
func (k *tenant) untilAnswered() subnet.Clock {
	before := k.keeper.Lease()
	key := path.Join(layout.Subnets, before.Subnet.Key())
	happens, ended := make(chan time.Time), make(chan struct{})
	k.t.Cleanup(func() { <-ended })
	go func() {
		defer close(ended)
		defer close(happens)
		poll := time.NewTicker(10 * time.Millisecond)
		defer poll.Stop()
		for {
			kv, err := k.Get(k.ctx, key)
			if err != nil || kv.Modified > before.Modified && !strings.Contains(kv.Value, `"Challenge"`) {
				return
			}
			select {
			case <-poll.C:
			case <-k.ctx.Done():
				return
			}
		}
	}()
	return haltedClock{at: subnet.SystemClock{}.Uptime(), happens: happens}
}

// A clone is answered, and a host that moved is not.
func TestChallengeOnEtcd(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	k := settle(t, server, "/p", tenantClaim("first", "192.0.2.1"))
	ours := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"})
	second := tenantClaim("second", "192.0.2.2")
	second.Clock = k.untilAnswered()
	_, err := subnet.Acquire(k.ctx, ours, loaded(t, ours), second)
	var clone *subnet.ForeignInstanceError
	if !errors.As(err, &clone) || clone.Lease.Attrs.Instance != "first" {
		t.Fatalf("Acquire = %v, want the first instance named", err)
	}
	before := k.until("the first is as before", func(s *subnet.KeeperStatus) bool { return s.State == subnet.StateValid })

	// Somebody else has it from now on; the first one ends when it sees that.
	l := loaded(t, ours).Leases[0]
	l.Attrs.Instance, l.Attrs.PublicIP = "third", subnet.ByFamily[netip.Addr]{netip.MustParseAddr("192.0.2.3")}
	third := value(t, l.Attrs)
	if _, err := k.Put(k.ctx, storetest.KV{Path: path.Join(layout.Subnets, l.Subnet.Key()), Value: third, Lease: l.ID}); err != nil {
		t.Fatal(err)
	}
	k.until("the first takes back what is silent", func(s *subnet.KeeperStatus) bool {
		return s.State == subnet.StateValid && s.Lease.Modified > before.Modified
	})
}
