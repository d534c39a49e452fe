package memstore

import (
	"context"
	"errors"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
	"github.com/flanneld-go/flanneld-go/subnet/storetest"
)

// broken is a store with one fault. Whatever is nil is as it should be.
type broken struct {
	*Store
	load   func(*Store, context.Context) (subnet.World, error)
	create func(*Store, context.Context, subnet.Lease, time.Duration, subnet.World) (subnet.Lease, error)
	renew  func(*Store, context.Context, subnet.Lease) (subnet.Lease, error)
	update func(*Store, context.Context, subnet.Lease) (subnet.Lease, error)
	remove func(*Store, context.Context, subnet.Lease) error
	hold   func(*Store, context.Context, subnet.Lease, subnet.World) (subnet.Lease, error)
	watch  func(*Store, context.Context, subnet.Revision) iter.Seq2[subnet.Batch, error]
}

func (b broken) Load(ctx context.Context) (subnet.World, error) {
	if b.load == nil {
		return b.Store.Load(ctx)
	}
	return b.load(b.Store, ctx)
}

func (b broken) Create(ctx context.Context, l subnet.Lease, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
	if b.create == nil {
		return b.Store.Create(ctx, l, ttl, w)
	}
	return b.create(b.Store, ctx, l, ttl, w)
}

func (b broken) Renew(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	if b.renew == nil {
		return b.Store.Renew(ctx, l)
	}
	return b.renew(b.Store, ctx, l)
}

func (b broken) Update(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	if b.update == nil {
		return b.Store.Update(ctx, l)
	}
	return b.update(b.Store, ctx, l)
}

func (b broken) Release(ctx context.Context, l subnet.Lease) error {
	if b.remove == nil {
		return b.Store.Release(ctx, l)
	}
	return b.remove(b.Store, ctx, l)
}

func (b broken) Reserve(ctx context.Context, l subnet.Lease, w subnet.World) (subnet.Lease, error) {
	if b.hold == nil {
		return b.Store.Reserve(ctx, l, w)
	}
	return b.hold(b.Store, ctx, l, w)
}

func (b broken) Watch(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
	if b.watch == nil {
		return b.Store.Watch(ctx, after)
	}
	return b.watch(b.Store, ctx, after)
}

// loading is a fault in what Load returns.
func loading(f func(*subnet.World)) broken {
	return broken{load: func(s *Store, ctx context.Context) (subnet.World, error) {
		w, err := s.Load(ctx)
		f(&w)
		return w, err
	}}
}

// creating is a fault in what Create is asked for.
func creating(f func(*Store, *subnet.Lease, *time.Duration, *subnet.World)) broken {
	return broken{create: func(s *Store, ctx context.Context, l subnet.Lease, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
		f(s, &l, &ttl, &w)
		return s.Create(ctx, l, ttl, w)
	}}
}

// watching is a fault in what Watch yields: f returns what to yield instead.
func watching(f func(subnet.Batch, error) []subnet.Batch) broken {
	return broken{watch: func(s *Store, ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
		return func(yield func(subnet.Batch, error) bool) {
			for b, err := range s.Watch(ctx, after) {
				if err != nil {
					yield(b, err)
					return
				}
				for _, b := range f(b, err) {
					if !yield(b, nil) {
						return
					}
				}
			}
		}
	}}
}

// reread replaces what l says of its key by what the key says: no compare is
// left of a compare-and-swap.
func reread(s *Store, l subnet.Lease) subnet.Lease {
	s.act(func(st *state) {
		if k, ok := st.kvs[layout.Subnets+l.Subnet.Key()]; ok {
			l.ID, l.Modified = k.lease, k.modified
		}
		s.known = st.identity()
	})
	return l
}

// ignore makes other than err of err.
func ignore(err, sentinel, other error) error {
	if errors.Is(err, sentinel) {
		return other
	}
	return err
}

// stubborn watches on after err: it waits for its context.
func stubborn(sentinel error) broken {
	return broken{watch: func(s *Store, ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
		return func(yield func(subnet.Batch, error) bool) {
			for b, err := range s.Watch(ctx, after) {
				if errors.Is(err, sentinel) {
					<-ctx.Done()
					err = ctx.Err()
				}
				if !yield(b, err) {
					return
				}
			}
		}
	}}
}

func faults() map[string]broken {
	one := func(b subnet.Batch) []subnet.Batch { return []subnet.Batch{b} }
	return map[string]broken{
		"Load drops what cannot be read":      loading(func(w *subnet.World) { w.Bad = nil }),
		"Load drops reservations":             loading(func(w *subnet.World) { w.Leases = withLease(w.Leases) }),
		"Load is not sorted":                  loading(func(w *subnet.World) { reverse(w.Leases) }),
		"Load returns yesterday's revision":   loading(func(w *subnet.World) { w.Revision-- }),
		"Load returns no config revision":     loading(func(w *subnet.World) { w.Config.Modified = 0 }),
		"Load gives another identity to each": loading(func(w *subnet.World) { w.Identity = layout.NewIdentity() }),
		"Load asks twice": {load: func(s *Store, ctx context.Context) (subnet.World, error) {
			early, err := s.Load(ctx)
			if err != nil {
				return early, err
			}
			time.Sleep(time.Millisecond) //nolint:forbidigo // This is how it is broken.
			late, err := s.Load(ctx)
			late.Config = early.Config
			return late, err
		}},

		"Create takes what is taken": creating(func(s *Store, l *subnet.Lease, _ *time.Duration, w *subnet.World) {
			if _, err := s.Create(context.Background(), *l, 0, *w); errors.Is(err, subnet.ErrTaken) {
				s.DeleteKey(l.Subnet.Key())
				return
			}
			s.DeleteKey(l.Subnet.Key())
		}),
		"Create does not compare the config": creating(func(s *Store, _ *subnet.Lease, _ *time.Duration, w *subnet.World) {
			s.act(func(st *state) { w.Config = st.document() })
		}),
		"Create does not compare the config's revision": creating(func(s *Store, _ *subnet.Lease, _ *time.Duration, w *subnet.World) {
			s.act(func(st *state) {
				if d := st.document(); d.Text == w.Config.Text {
					w.Config = d
				}
			})
		}),
		"Create does not compare the identity": creating(func(s *Store, _ *subnet.Lease, _ *time.Duration, w *subnet.World) {
			s.act(func(st *state) { w.Identity = st.identity() })
		}),
		"Create does not compare the witness": creating(func(_ *Store, _ *subnet.Lease, _ *time.Duration, w *subnet.World) { w.Leases = nil }),
		"Create does not compare the revision": creating(func(s *Store, _ *subnet.Lease, _ *time.Duration, w *subnet.World) {
			w.Revision = min(w.Revision, s.Revision())
		}),
		"Create makes leases of reservations": creating(func(_ *Store, _ *subnet.Lease, ttl *time.Duration, _ *subnet.World) {
			*ttl = max(*ttl, time.Hour)
		}),
		"Create makes reservations": creating(func(_ *Store, _ *subnet.Lease, ttl *time.Duration, _ *subnet.World) { *ttl = 0 }),
		"Create loses the owner":    creating(func(_ *Store, l *subnet.Lease, _ *time.Duration, _ *subnet.World) { l.Attrs.Owner = "" }),
		"Create leaves leases behind": {create: func(s *Store, ctx context.Context, l subnet.Lease, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
			got, err := s.Create(ctx, l, ttl, w)
			if err != nil {
				s.Grant(ttl)
			}
			return got, err
		}},
		"Create's sentinel is another": {create: func(s *Store, ctx context.Context, l subnet.Lease, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
			got, err := s.Create(ctx, l, ttl, w)
			return got, ignore(err, subnet.ErrTaken, errors.New("taken"))
		}},

		"Renew proves nothing": {renew: func(s *Store, _ context.Context, l subnet.Lease) (subnet.Lease, error) {
			s.Renew(context.Background(), l)
			return l, nil
		}},
		"Renew only proves": {renew: func(s *Store, ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
			err := s.do(ctx, "Renew", func(st *state) error { _, err := s.held(st, l); return err })
			return l, err
		}},
		"Renew trusts the keep-alive": {renew: func(s *Store, ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
			got, err := s.Renew(ctx, l)
			if _, _, alive := s.TTL(ctx, l.ID); alive == nil {
				return l, nil
			}
			return got, err
		}},
		"Renew takes any revision": {renew: func(s *Store, ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
			now := reread(s, l)
			now.ID = l.ID
			_, err := s.Renew(ctx, now)
			return l, err
		}},
		"Renew writes": {renew: func(s *Store, ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
			if _, err := s.Renew(ctx, l); err != nil {
				return l, err
			}
			_, err := s.Update(ctx, l)
			return l, err
		}},
		"Renew takes another store for ours": {renew: func(s *Store, ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
			got, err := s.Renew(ctx, l)
			return got, ignore(err, subnet.ErrStoreChanged, subnet.ErrLeaseLost)
		}},

		"Update overwrites": {update: func(s *Store, ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
			return s.Update(ctx, reread(s, l))
		}},
		"Update detaches": {update: func(s *Store, ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
			got, err := s.Update(ctx, l)
			if err == nil {
				e, _ := layout.Write(l)
				got.Modified, err = s.Put(e.Key, e.Value, 0)
			}
			return got, err
		}},
		"Update gives a reservation a lease": {update: func(s *Store, ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
			got, err := s.Update(ctx, l)
			if err == nil && l.Reservation() {
				e, _ := layout.Write(l)
				got.Modified, err = s.Put(e.Key, e.Value, s.Grant(time.Hour))
			}
			return got, err
		}},
		"Update does nothing": {update: func(_ *Store, _ context.Context, l subnet.Lease) (subnet.Lease, error) { return l, nil }},

		"Release deletes what is not ours": {remove: func(s *Store, ctx context.Context, l subnet.Lease) error { return s.Release(ctx, reread(s, l)) }},
		"Release leaves the lease": {remove: func(s *Store, ctx context.Context, l subnet.Lease) error {
			err := s.Release(ctx, l)
			if err == nil && !l.Reservation() {
				s.act(func(st *state) {
					st.leases[l.ID] = &lease{ttl: time.Hour}
					s.start(l.ID, st.leases[l.ID])
				})
			}
			return err
		}},
		"Release revokes others' keys": {remove: func(s *Store, ctx context.Context, l subnet.Lease) error {
			err := s.Release(ctx, l)
			if err == nil {
				s.Revoke(l.ID)
			}
			return err
		}},

		"Reserve keeps the lease attached": {hold: func(s *Store, ctx context.Context, l subnet.Lease, w subnet.World) (subnet.Lease, error) {
			if got, err := s.Load(ctx); err != nil || got.Config != w.Config || got.Identity != w.Identity {
				return s.Reserve(ctx, l, w)
			}
			got, err := s.Update(ctx, l)
			got.ID, got.TTL = 0, 0
			return got, err
		}},
		"Reserve leaves the lease": {hold: func(s *Store, ctx context.Context, l subnet.Lease, w subnet.World) (subnet.Lease, error) {
			id := l.ID
			if id != 0 {
				s.act(func(st *state) { st.put(layout.Subnets+"busy", "", id) })
				defer s.DeleteKey("busy")
			}
			return s.Reserve(ctx, l, w)
		}},
		"Reserve revokes others' keys": {hold: func(s *Store, ctx context.Context, l subnet.Lease, w subnet.World) (subnet.Lease, error) {
			got, err := s.Reserve(ctx, l, w)
			if err == nil {
				s.Revoke(l.ID)
			}
			return got, err
		}},
		"Reserve overwrites": {hold: func(s *Store, ctx context.Context, l subnet.Lease, w subnet.World) (subnet.Lease, error) {
			return s.Reserve(ctx, reread(s, l), w)
		}},
		"Reserve does not compare the config": {hold: func(s *Store, ctx context.Context, l subnet.Lease, w subnet.World) (subnet.Lease, error) {
			s.act(func(st *state) { w.Config = st.document() })
			return s.Reserve(ctx, l, w)
		}},
		"Reserve does not compare the identity": {hold: func(s *Store, ctx context.Context, l subnet.Lease, w subnet.World) (subnet.Lease, error) {
			s.act(func(st *state) { w.Identity, s.known = st.identity(), st.identity() })
			return s.Reserve(ctx, l, w)
		}},
		"Reserve loses the attributes": {hold: func(s *Store, ctx context.Context, l subnet.Lease, w subnet.World) (subnet.Lease, error) {
			if !l.Attrs.PublicIP[subnet.IPv4].IsValid() {
				return s.Reserve(ctx, l, w)
			}
			l.Attrs = subnet.Attrs{PublicIP: l.Attrs.PublicIP}
			return s.Reserve(ctx, l, w)
		}},
		"Reserve does nothing": {hold: func(_ *Store, _ context.Context, l subnet.Lease, _ subnet.World) (subnet.Lease, error) {
			l.ID, l.TTL = 0, 0
			return l, nil
		}},

		"Watch drops deletions": watching(func(b subnet.Batch, _ error) []subnet.Batch { b.Deleted = nil; return one(b) }),
		"Watch drops the unreadable": watching(func(b subnet.Batch, _ error) []subnet.Batch {
			b.Bad = nil
			return one(b)
		}),
		"Watch drops the config": watching(func(b subnet.Batch, _ error) []subnet.Batch { b.Config = nil; return one(b) }),
		"Watch splits a revision": watching(func(b subnet.Batch, _ error) []subnet.Batch {
			if b.Config == nil || len(b.Put) == 0 {
				return one(b)
			}
			return []subnet.Batch{{Revision: b.Revision, Config: b.Config}, {Revision: b.Revision, Put: b.Put, Bad: b.Bad}}
		}),
		"Watch makes no progress": watching(func(b subnet.Batch, _ error) []subnet.Batch {
			if b.Config == nil && len(b.Put)+len(b.Deleted)+len(b.Bad) == 0 {
				return nil
			}
			return one(b)
		}),
		"Watch repeats itself": watching(func(b subnet.Batch, _ error) []subnet.Batch { return []subnet.Batch{b, b} }),
		"Watch begins one late": {watch: func(s *Store, ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
			return s.Watch(ctx, after+1)
		}},
		"Watch begins now": {watch: func(s *Store, ctx context.Context, _ subnet.Revision) iter.Seq2[subnet.Batch, error] {
			return s.Watch(ctx, s.Revision())
		}},
		"Watch waits for what was compacted": stubborn(subnet.ErrCompacted),
		"Watch goes on in another store":     stubborn(subnet.ErrStoreChanged),
		"Watch outlives its context": {watch: func(s *Store, ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
			return func(yield func(subnet.Batch, error) bool) {
				for b, err := range s.Watch(ctx, after) {
					if errors.Is(err, context.Canceled) {
						return
					}
					if !yield(b, err) {
						return
					}
				}
			}
		}},
	}
}

func withLease(all []subnet.Lease) []subnet.Lease {
	var leased []subnet.Lease
	for _, l := range all {
		if !l.Reservation() {
			leased = append(leased, l)
		}
	}
	return leased
}

func reverse(all []subnet.Lease) {
	for i, j := 0, len(all)-1; i < j; i, j = i+1, j-1 {
		all[i], all[j] = all[j], all[i]
	}
}

// The suite is worth something if it notices each of these.
func TestSuiteNoticesBrokenStores(t *testing.T) {
	for name, fault := range faults() {
		t.Run(name, func(t *testing.T) {
			faulty := func(t testing.TB) storetest.Harness {
				h := harness(t)
				open := h.Open
				h.Open = func(t testing.TB) storetest.Store {
					b := fault
					b.Store = open(t).(*Store)
					return b
				}
				return h
			}
			failed := storetest.Failures(t, storetest.Factory{Shared: faulty, Own: faulty, Around: synctest.Test})
			if len(failed) == 0 {
				t.Error("the suite passes")
			}
			t.Logf("failed: %q", failed)
		})
	}
}

func TestSuiteFailsNoGoodStore(t *testing.T) {
	if failed := storetest.Failures(t, storetest.Factory{Shared: harness, Own: harness, Around: synctest.Test}); len(failed) > 0 {
		t.Errorf("failed: %q", failed)
	}
}
