package etcdstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
	"github.com/flanneld-go/flanneld-go/subnet/storetest"
)

const nonsense = "subnets/nonsense"

func TestRemoveBad(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	for _, tc := range []struct {
		name    string
		between func(context.Context, *operator, subnet.LeaseID) error
		want    error
		// left is whether the key is there afterwards, leases how many.
		left   bool
		leases int
	}{
		{
			name:    "unchanged",
			between: func(context.Context, *operator, subnet.LeaseID) error { return nil },
		},
		{
			name: "written again",
			between: func(ctx context.Context, o *operator, id subnet.LeaseID) error {
				_, err := o.Put(ctx, storetest.KV{Path: nonsense, Value: "no JSON", Lease: id})
				return err
			},
			want: subnet.ErrLeaseLost, left: true, leases: 1,
		},
		{
			name: "deleted",
			between: func(ctx context.Context, o *operator, _ subnet.LeaseID) error {
				_, err := o.Delete(ctx, nonsense)
				return err
			},
			want: subnet.ErrLeaseLost, leases: 1,
		},
		{
			name: "another store",
			between: func(ctx context.Context, o *operator, _ subnet.LeaseID) error {
				_, err := o.Put(ctx, storetest.KV{Path: "flanneld-go/store", Value: "another"})
				return err
			},
			want: subnet.ErrStoreChanged, left: true, leases: 1,
		},
		{
			name: "another's key on the lease",
			between: func(ctx context.Context, o *operator, id subnet.LeaseID) error {
				_, err := o.Put(ctx, storetest.KV{Path: "mine", Value: "1", Lease: id})
				return err
			},
			leases: 1,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			o := newOperator(t, server, "/p")
			id, err := o.Grant(ctx, 10*time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				// With the keys that hang on it; what is gone is gone.
				_ = o.Revoke(ctx, id)
			}()
			if _, err := o.Put(ctx, storetest.KV{Path: nonsense, Value: "no JSON", Lease: id}); err != nil {
				t.Fatal(err)
			}
			s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"})
			w := loaded(t, s)
			if len(w.Bad) != 1 || w.Bad[0].Key != "nonsense" {
				t.Fatalf("bad keys %v, want nonsense", w.Bad)
			}
			if err := tc.between(ctx, o, id); err != nil {
				t.Fatal(err)
			}
			if err := s.RemoveBad(ctx, w.Bad[0]); !errors.Is(err, tc.want) {
				t.Errorf("RemoveBad = %v, want %v", err, tc.want)
			}
			kv, err := o.Get(ctx, nonsense)
			if err != nil || (kv.Path != "") != tc.left {
				t.Errorf("key %v, %v; want it there: %t", kv, err, tc.left)
			}
			if ids, err := o.Leases(ctx); err != nil || len(ids) != tc.leases {
				t.Errorf("leases %v, %v; want %d", ids, err, tc.leases)
			}
		})
	}
}
