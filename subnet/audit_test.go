package subnet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// auditor follows the store and judges every revision.
type auditor struct {
	store *memstore.Store
	// doing is what the walk does at the moment.
	doing atomic.Value

	mu sync.Mutex
	// The fields below are guarded by mu.

	config    string
	leases    map[subnet.Subnet]subnet.Lease
	operators map[subnet.Revision]bool
	violation string
	// latest is when the store was changed last.
	latest time.Time
}

func newAuditor(data *memstore.Store) *auditor {
	a := &auditor{store: data.Open(memstore.Options{}), operators: map[subnet.Revision]bool{}}
	a.doing.Store("start")
	return a
}

// expect announces that the next revision is the operator's. The hosts must be
// at rest.
func (a *auditor) expect(data *memstore.Store) {
	next := data.Revision() + 1
	a.mu.Lock()
	defer a.mu.Unlock()
	a.operators[next] = true
}

// forget prepares for revisions that begin anew.
func (a *auditor) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.operators)
}

func (a *auditor) found() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.violation
}

func (a *auditor) report(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.blame(format, args...)
}

// blame is report with mu held.
func (a *auditor) blame(format string, args ...any) {
	if a.violation == "" {
		a.violation = fmt.Sprintf("%v: ", a.doing.Load()) + fmt.Sprintf(format, args...)
	}
}

func (a *auditor) run(ctx context.Context) {
	for ctx.Err() == nil {
		w, err := a.store.Load(ctx)
		if err != nil {
			return
		}
		a.reset(w)
		for b, err := range a.store.Watch(ctx, w.Revision) {
			if err != nil {
				break
			}
			a.judge(b)
		}
	}
}

func (a *auditor) reset(w subnet.World) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.config, a.leases, a.latest = w.Config.Text, map[subnet.Subnet]subnet.Lease{}, time.Now()
	for _, l := range w.Leases {
		a.leases[l.Subnet] = l
	}
}

// unchanged is for how long nothing has changed.
func (a *auditor) unchanged() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.latest)
}

func (a *auditor) judge(b subnet.Batch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b.Config != nil || len(b.Put)+len(b.Deleted)+len(b.Bad) > 0 {
		a.latest = time.Now()
	}
	operator := a.operators[b.Revision]
	if b.Config != nil {
		a.config = b.Config.Text
	}
	for _, key := range b.Deleted {
		if s, err := subnet.ParseSubnet(key); err == nil {
			if l, ok := a.leases[s]; ok && l.Reservation() && !operator {
				a.blame("reservation %s was deleted", l.Subnet)
			}
			delete(a.leases, s)
		}
	}
	for _, bad := range b.Bad {
		delete(a.leases, bad.Occupies)
	}
	for _, l := range b.Put {
		if before, had := a.leases[l.Subnet]; operator {
		} else if had {
			a.changed(before, l)
		} else {
			a.created(l)
		}
		a.leases[l.Subnet] = l
	}
	a.overlaps()
}

// created checks what a host created.
func (a *auditor) created(l subnet.Lease) {
	cfg, err := subnet.ParseConfig(a.config)
	if err != nil {
		a.blame("%s was created with the config %q", l.Subnet, a.config)
	} else if !cfg.Pool().Contains(l.Subnet) {
		a.blame("%s was created, which %s does not allow", l.Subnet, a.config)
	}
	if l.Created != l.Modified {
		a.blame("%s took the place of something unreadable", l.Subnet)
	}
	if l.Reservation() {
		a.blame("%s was created without a time", l.Subnet)
	}
}

// changed checks what a host made of a lease.
func (a *auditor) changed(before, now subnet.Lease) {
	was, is := before.Attrs, now.Attrs
	switch {
	case before.ID != now.ID:
		a.blame("%s hung on %d and was moved to %d", now.Subnet, before.ID, now.ID)
	case now.Created != before.Created:
		a.blame("%s was created over %+v", now.Subnet, was)
	case was.Owner != "" && was.Owner != is.Owner:
		a.blame("%s of %s was overwritten by %s", now.Subnet, was.Owner, is.Owner)
	case was.Owner == "" && was.PublicIP != is.PublicIP:
		a.blame("%s of flannel at %s was overwritten by %s at %s", now.Subnet, was.PublicIP, is.Owner, is.PublicIP)
	}
}

// overlaps checks that no two hosts own one address.
func (a *auditor) overlaps() {
	for s, l := range a.leases {
		for r, other := range a.leases {
			if s != r && s.Overlaps(r) && l.Attrs.Owner != other.Attrs.Owner && l.Attrs.Owner != "" && other.Attrs.Owner != "" {
				a.blame("%s of %s overlaps %s of %s", s, l.Attrs.Owner, r, other.Attrs.Owner)
			}
		}
	}
}

// brokenStore is a host's store with one fault.
type brokenStore struct {
	subnet.Store
	load   func(subnet.World) subnet.World
	create func(context.Context, subnet.Lease, time.Duration, subnet.World) (subnet.Lease, error)
	renew  func(context.Context, subnet.Lease) (subnet.Lease, error)
	update func(context.Context, subnet.Lease) (subnet.Lease, error)
	watch  func(context.Context, subnet.Revision) iter.Seq2[subnet.Batch, error]
}

func (s brokenStore) Load(ctx context.Context) (subnet.World, error) {
	w, err := s.Store.Load(ctx)
	if s.load != nil {
		w = s.load(w)
	}
	return w, err
}

func (s brokenStore) Create(ctx context.Context, l subnet.Lease, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
	if s.create != nil {
		return s.create(ctx, l, ttl, w)
	}
	return s.Store.Create(ctx, l, ttl, w)
}

func (s brokenStore) Renew(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	if s.renew != nil {
		return s.renew(ctx, l)
	}
	return s.Store.Renew(ctx, l)
}

func (s brokenStore) Update(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	if s.update != nil {
		return s.update(ctx, l)
	}
	return s.Store.Update(ctx, l)
}

func (s brokenStore) Watch(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
	if s.watch != nil {
		return s.watch(ctx, after)
	}
	return s.Store.Watch(ctx, after)
}

// write puts a lease without asking what is there.
func write(h *machine, l subnet.Lease, id subnet.LeaseID) (subnet.Lease, error) {
	value, err := json.Marshal(l.Attrs)
	if err != nil {
		return l, err
	}
	rev, err := h.w.data.Put(l.Subnet.Key(), string(value), id)
	l.ID, l.Modified = id, rev
	return l, err
}

// What the auditor is worth: hosts that break the rules are caught.
func TestWalkNoticesBrokenHosts(t *testing.T) {
	for name, tt := range map[string]struct {
		// deeds are those that show the fault soon.
		deeds  []string
		broken func(*machine, subnet.Store) subnet.Store
	}{
		"a renewal that puts": {[]string{"overwrite", "delete", "cut", "mend", "wait", "wait"}, func(h *machine, good subnet.Store) subnet.Store {
			return brokenStore{Store: good, renew: func(_ context.Context, l subnet.Lease) (subnet.Lease, error) {
				if got, err := write(h, l, l.ID); err == nil {
					return got, nil
				}
				return write(h, l, h.w.data.Grant(walkTTL))
			}}
		}},
		"a renewal that proves nothing": {[]string{"overwrite", "delete", "revoke", "wait", "wait"}, func(h *machine, good subnet.Store) subnet.Store {
			return brokenStore{Store: good, renew: func(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
				if got, err := good.Renew(ctx, l); !errors.Is(err, subnet.ErrLeaseLost) {
					return got, err
				}
				return l, nil
			}}
		}},
		"a create without a compare": {[]string{"delete", "config", "boot all", "overwrite", "wait", "wait"}, func(h *machine, good subnet.Store) subnet.Store {
			return brokenStore{Store: good, create: func(_ context.Context, l subnet.Lease, ttl time.Duration, _ subnet.World) (subnet.Lease, error) {
				return write(h, l, h.w.data.Grant(ttl))
			}}
		}},
		"an update without a compare": {[]string{"overwrite", "flannel", "move", "slow", "wait", "wait"}, func(h *machine, good subnet.Store) subnet.Store {
			return brokenStore{Store: good, update: func(_ context.Context, l subnet.Lease) (subnet.Lease, error) {
				return write(h, l, l.ID)
			}}
		}},
		"an update that takes a reservation for a lease": {[]string{"detach", "move", "boot all", "wait", "wait"}, func(h *machine, good subnet.Store) subnet.Store {
			return brokenStore{Store: good, update: func(_ context.Context, l subnet.Lease) (subnet.Lease, error) {
				return write(h, l, h.w.data.Grant(walkTTL))
			}}
		}},
		"a load that drops what is not ours": {[]string{"config", "boot all", "delete", "wait", "wait"}, func(h *machine, good subnet.Store) subnet.Store {
			return brokenStore{Store: good, load: func(w subnet.World) subnet.World {
				var mine []subnet.Lease
				for _, l := range w.Leases {
					if l.Attrs.Owner == h.claim.Node {
						mine = append(mine, l)
					}
				}
				w.Leases = mine
				return w
			}}
		}},
		"a load that believes in a former config": {[]string{"config", "boot all", "slow", "wait", "wait"}, func(h *machine, good subnet.Store) subnet.Store {
			return brokenStore{Store: good, create: func(ctx context.Context, l subnet.Lease, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
				if now, err := good.Load(ctx); err == nil {
					w = now
				}
				return good.Create(ctx, l, ttl, w)
			}}
		}},
		"a watch that says nothing": {[]string{"overwrite", "delete", "wait", "wait"}, func(h *machine, good subnet.Store) subnet.Store {
			return brokenStore{Store: good, watch: func(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
				return func(yield func(subnet.Batch, error) bool) {
					for b, err := range good.Watch(ctx, after) {
						if !yield(subnet.Batch{Revision: b.Revision}, err) {
							return
						}
					}
				}
			}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range 400 {
				if v := runWalk(t, deedsOf(tt.deeds...).Example(seed), tt.broken); v != "" {
					t.Logf("seed %d: %s", seed, v)
					return
				}
			}
			t.Error("nothing was found")
		})
	}
}
