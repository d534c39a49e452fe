package memstore

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	storetest.Run(t, storetest.Factory{Shared: harness, Own: harness, Around: synctest.Test})
}

func harness(testing.TB) storetest.Harness {
	s := New(Options{})
	return storetest.Harness{
		Open:     func(testing.TB) storetest.Store { return s.Open(Options{}) },
		Operator: operator{s},
		ShortTTL: 2 * time.Second,
	}
}

// operator is the suite's view of a Store's own operator moves.
type operator struct{ s *Store }

func (o operator) Put(_ context.Context, kvs ...storetest.KV) (subnet.Revision, error) {
	return o.s.act(func(st *state) {
		first := len(st.log)
		for _, kv := range kvs {
			st.put(kv.Path, kv.Value, kv.Lease)
		}
		st.merge(first)
	}), nil
}

// merge makes one revision of the log's entries from first on.
func (st *state) merge(first int) {
	merged := entry{revision: st.log[first].revision}
	for _, e := range st.log[first:] {
		for _, c := range e.changes {
			c.kv.modified, c.kv.created = merged.revision, min(c.kv.created, merged.revision)
			st.kvs[c.key] = *c.kv
			merged.changes = append(merged.changes, c)
		}
	}
	st.log, st.revision = append(st.log[:first], merged), merged.revision
}

func (o operator) Delete(_ context.Context, paths ...string) (subnet.Revision, error) {
	return o.s.act(func(st *state) { st.remove(paths...) }), nil
}

func (o operator) Get(_ context.Context, path string) (kv storetest.KV, err error) {
	o.s.act(func(st *state) {
		if k, ok := st.kvs[path]; ok {
			kv = storetest.KV{Path: path, Value: k.value, Lease: k.lease, Modified: k.modified}
		}
	})
	return kv, nil
}

func (o operator) Grant(_ context.Context, ttl time.Duration) (subnet.LeaseID, error) {
	return o.s.Grant(ttl), nil
}

func (o operator) Revoke(_ context.Context, id subnet.LeaseID) error {
	o.s.Revoke(id)
	return nil
}

func (o operator) Leases(context.Context) (ids []subnet.LeaseID, err error) {
	o.s.act(func(st *state) {
		for id := range st.leases {
			ids = append(ids, id)
		}
	})
	slices.Sort(ids)
	return ids, nil
}

func (o operator) Compact(_ context.Context, revision subnet.Revision) error {
	o.s.Compact(revision)
	return nil
}

func (o operator) Wipe(context.Context) error {
	o.s.Wipe()
	return nil
}

func (o operator) Rewind(_ context.Context, f func() error) error {
	backup := o.s.Snapshot()
	if err := f(); err != nil {
		return err
	}
	o.s.Restore(backup)
	return nil
}
