package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
	"github.com/flanneld-go/flanneld-go/subnet/storetest"
)

// disturbedKV does something before every page but the first.
type disturbedKV struct {
	clientv3.KV
	before func()
}

func (d disturbedKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	d.before()
	return d.KV.Get(ctx, key, opts...)
}

// filled is an etcd with ten leases and an unreadable key.
func filled(t *testing.T) (*etcdtest.Server, *operator) {
	t.Helper()
	server := startServer(t, etcdtest.Options{})
	o := newOperator(t, server, "/p")
	kvs := []storetest.KV{{Path: "config", Value: "{}"}, {Path: "subnets/README", Value: "nonsense"}}
	for i := range 10 {
		kvs = append(kvs, storetest.KV{Path: fmt.Sprintf("subnets/10.5.%d.0-24", i+1), Value: fmt.Sprintf(`{"PublicIP":"192.0.2.%d"}`, i+1)})
	}
	for _, kv := range kvs {
		if _, err := o.Put(t.Context(), kv); err != nil {
			t.Fatal(err)
		}
	}
	return server, o
}

func TestLoadInPages(t *testing.T) {
	server, o := filled(t)
	whole := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"})
	want := loaded(t, whole)
	if len(want.Leases) != 10 || len(want.Bad) != 1 {
		t.Fatalf("%d leases and %d bad keys, want 10 and 1", len(want.Leases), len(want.Bad))
	}
	for page, requests := range map[int64]uint64{1: 11, 3: 4, 10: 2, 11: 1, 12: 1} {
		t.Run(fmt.Sprintf("of %d", page), func(t *testing.T) {
			s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"})
			s.page = page
			before := s.Stats().Requests
			got := loaded(t, s)
			same := cmp.Comparer(func(a, b error) bool { return a.Error() == b.Error() })
			if d := cmp.Diff(want, got, same, cmp.Comparer(func(a, b subnet.Lease) bool { return a == b }), cmp.Comparer(func(a, b subnet.Subnet) bool { return a == b })); d != "" {
				t.Errorf("-whole +in pages\n%s", d)
			}
			if n := s.Stats().Requests - before; n != requests {
				t.Errorf("%d requests, want %d", n, requests)
			}
		})
	}
	// Changes between two pages are not in the world: it is of one revision.
	s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"})
	s.page = 4
	s.client.KV = disturbedKV{s.client.KV, func() {
		if _, err := o.Delete(t.Context(), "subnets/10.5.9.0-24"); err != nil {
			t.Error(err)
		}
		if _, err := o.Put(t.Context(), storetest.KV{Path: "subnets/10.5.99.0-24", Value: `{"PublicIP":"192.0.2.99"}`}); err != nil {
			t.Error(err)
		}
	}}
	if got := loaded(t, s); got.Revision != want.Revision || !slices.Equal(got.Leases, want.Leases) {
		t.Errorf("changed while it was read: %v at revision %d, want %v at %d", got.Leases, got.Revision, want.Leases, want.Revision)
	}
}

func TestLoadOverACompaction(t *testing.T) {
	for compactions, want := range map[int]string{1: "", 2: "", 100: "has been compacted"} {
		t.Run(fmt.Sprint(compactions), func(t *testing.T) {
			server, o := filled(t)
			s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"})
			s.page = 4
			done := 0
			s.client.KV = disturbedKV{s.client.KV, func() {
				if done++; done > compactions {
					return
				}
				rev, err := o.Put(t.Context(), storetest.KV{Path: "config", Value: "{}"})
				if err == nil {
					err = o.Compact(t.Context(), rev)
				}
				if err != nil {
					t.Error(err)
				}
			}}
			w, err := s.Load(t.Context())
			switch {
			case want != "":
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("Load = %v, want %q", err, want)
				}
			case err != nil || len(w.Leases) != 10:
				t.Errorf("Load = %d leases, %v, want 10", len(w.Leases), err)
			}
		})
	}
}

// A watch that begins where a load or another watch ended knows the past as well as
// one that never ended, whatever others have loaded meanwhile.
func TestWatchGoesOnInTheSamePastOnly(t *testing.T) {
	for name, tt := range map[string]struct{ watched, others bool }{
		"after a load":                       {},
		"after a watch":                      {watched: true},
		"after a watch and a load of others": {watched: true, others: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			server := startServer(t, etcdtest.Options{})
			s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p", DialTimeout: time.Minute})
			o := newOperator(t, server, "/p")
			loaded(t, s) // for the identity
			const key = "subnets/10.5.1.0-24"
			if _, err := o.Put(ctx, storetest.KV{Path: key, Value: `{"PublicIP":"192.0.2.1"}`}); err != nil {
				t.Fatal(err)
			}
			var at subnet.Revision
			err := server.Rewind(ctx, func() (err error) {
				from := loaded(t, s).Revision
				if at, err = o.Put(ctx, storetest.KV{Path: key, Value: `{"PublicIP":"192.0.2.2"}`}); err != nil {
					return err
				}
				if !tt.watched {
					at = loaded(t, s).Revision
					return nil
				}
				for b, err := range s.Watch(ctx, from) {
					if err != nil || b.Revision >= at {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			for past := subnet.Revision(0); past <= at; {
				if past, err = o.Put(ctx, storetest.KV{Path: "flanneld-go/unknown", Value: "moves the revision"}); err != nil {
					t.Fatal(err)
				}
			}
			if tt.others {
				loaded(t, s)
			}
			for _, err := range s.Watch(ctx, at) {
				if !errors.Is(err, subnet.ErrStoreChanged) {
					t.Errorf("Watch = %v, want %v", err, subnet.ErrStoreChanged)
				}
				break
			}
		})
	}
}
