package etcdstore

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
	"github.com/flanneld-go/flanneld-go/subnet/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// debianEtcd is the oldest server that we promise to work with: 3.4, as
// bookworm's package etcd-server installs it.
const debianEtcd = "/usr/bin/etcd"

// testTick makes watches prove themselves often enough for tests.
const testTick = 500 * time.Millisecond

func needDebian(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath(debianEtcd); err != nil {
		t.Skipf("needs package etcd-server: %v", err)
	}
}

func TestConformance(t *testing.T) {
	t.Run("embedded", func(t *testing.T) { conformance(t, etcdtest.Options{}) })
	t.Run("debian", func(t *testing.T) {
		needDebian(t)
		conformance(t, etcdtest.Options{Binary: debianEtcd})
	})
}

func conformance(t *testing.T, opts etcdtest.Options) {
	shared := startServer(t, opts)
	var prefixes atomic.Int64
	storetest.Run(t, storetest.Factory{
		Shared: func(t testing.TB) storetest.Harness {
			return harness(t, shared, fmt.Sprintf("/test/%d", prefixes.Add(1)))
		},
		Own: func(t testing.TB) storetest.Harness {
			return harness(t, startServer(t, opts), "/coreos.com/network")
		},
		Around: around(4),
	})
}

// around runs cases in parallel, but only so many at once: each may have a
// server of its own.
func around(limit int) func(*testing.T, func(*testing.T)) {
	slots := make(chan struct{}, limit)
	return func(t *testing.T, body func(*testing.T)) {
		t.Parallel()
		slots <- struct{}{}
		defer func() { <-slots }()
		body(t)
	}
}

func startServer(t testing.TB, opts etcdtest.Options) *etcdtest.Server {
	t.Helper()
	s, err := etcdtest.Start(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func open(t testing.TB, opts Options) *Store {
	t.Helper()
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.tick = testTick
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func harness(t testing.TB, server *etcdtest.Server, prefix string) storetest.Harness {
	return storetest.Harness{
		Open: func(t testing.TB) storetest.Store {
			return open(t, Options{Endpoints: server.Endpoints(), Prefix: prefix})
		},
		Operator: newOperator(t, server, prefix),
		ShortTTL: 6 * time.Second,
	}
}

// operator uses the client as etcdctl does.
type operator struct {
	server *etcdtest.Server
	prefix string
	client *clientv3.Client
}

func newOperator(t testing.TB, server *etcdtest.Server, prefix string) *operator {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: server.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return &operator{server: server, prefix: prefix + "/", client: client}
}

func (o *operator) commit(ctx context.Context, ops []clientv3.Op) (subnet.Revision, error) {
	resp, err := o.client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return 0, err
	}
	return subnet.Revision(resp.Header.Revision), nil
}

func (o *operator) Put(ctx context.Context, kvs ...storetest.KV) (subnet.Revision, error) {
	var ops []clientv3.Op
	for _, kv := range kvs {
		ops = append(ops, clientv3.OpPut(o.prefix+kv.Path, kv.Value, clientv3.WithLease(clientv3.LeaseID(kv.Lease))))
	}
	return o.commit(ctx, ops)
}

func (o *operator) Delete(ctx context.Context, paths ...string) (subnet.Revision, error) {
	var ops []clientv3.Op
	for _, p := range paths {
		ops = append(ops, clientv3.OpDelete(o.prefix+p))
	}
	return o.commit(ctx, ops)
}

func (o *operator) Get(ctx context.Context, path string) (storetest.KV, error) {
	resp, err := o.client.Get(ctx, o.prefix+path)
	if err != nil || len(resp.Kvs) == 0 {
		return storetest.KV{}, err
	}
	kv := resp.Kvs[0]
	return storetest.KV{
		Path: strings.TrimPrefix(string(kv.Key), o.prefix), Value: string(kv.Value),
		Lease: subnet.LeaseID(kv.Lease), Modified: subnet.Revision(kv.ModRevision),
	}, nil
}

func (o *operator) Revision(ctx context.Context) (subnet.Revision, error) {
	resp, err := o.client.Get(ctx, o.prefix)
	if err != nil {
		return 0, err
	}
	return subnet.Revision(resp.Header.Revision), nil
}

func (o *operator) Grant(ctx context.Context, ttl time.Duration) (subnet.LeaseID, error) {
	resp, err := o.client.Grant(ctx, int64(ttl/time.Second))
	if err != nil {
		return 0, err
	}
	return subnet.LeaseID(resp.ID), nil
}

func (o *operator) Revoke(ctx context.Context, id subnet.LeaseID) error {
	_, err := o.client.Revoke(ctx, clientv3.LeaseID(id))
	return err
}

func (o *operator) Leases(ctx context.Context) ([]subnet.LeaseID, error) {
	resp, err := o.client.Leases(ctx)
	if err != nil {
		return nil, err
	}
	var ids []subnet.LeaseID
	for _, l := range resp.Leases {
		ids = append(ids, subnet.LeaseID(l.ID))
	}
	return ids, nil
}

func (o *operator) Compact(ctx context.Context, revision subnet.Revision) error {
	_, err := o.client.Compact(ctx, int64(revision), clientv3.WithCompactPhysical())
	return err
}

func (o *operator) Wipe(ctx context.Context) error { return o.server.Wipe(ctx) }

func (o *operator) Rewind(ctx context.Context, f func() error) error { return o.server.Rewind(ctx, f) }
