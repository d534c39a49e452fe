package etcdstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
	"github.com/flanneld-go/flanneld-go/subnet/storetest"
)

// A store that is restored from a backup while a host cannot see it, and written
// to until its revision has caught up, has the same identity. It is another all
// the same.
func TestWatchNoticesAnotherPast(t *testing.T) {
	const key = "subnets/10.5.1.0-24"
	for name, change := range map[string]func(context.Context, *operator) error{
		"a key deleted": func(ctx context.Context, o *operator) error { _, err := o.Delete(ctx, key); return err },
		"a key put": func(ctx context.Context, o *operator) error {
			_, err := o.Put(ctx, storetest.KV{Path: key, Value: `{"PublicIP":"192.0.2.2"}`})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			server := startServer(t, etcdtest.Options{})
			p := newProxy(t, server)
			s := open(t, Options{Endpoints: []string{p.URL}, Prefix: "/p", DialTimeout: time.Minute})
			s.tick = time.Hour // Only a stream that breaks makes it look.
			o := newOperator(t, server, "/p")
			if _, err := o.Put(ctx, storetest.KV{Path: key, Value: `{"PublicIP":"192.0.2.1"}`}); err != nil {
				t.Fatal(err)
			}
			results := follow(t, s, loaded(t, s).Revision)
			var seen subnet.Revision
			err := server.Rewind(ctx, func() error {
				if err := change(ctx, o); err != nil {
					return err
				}
				for seen == 0 {
					r := next(t, results)
					if r.err != nil {
						return r.err
					}
					if len(r.Put)+len(r.Deleted) > 0 {
						seen = r.Revision
					}
				}
				p.Freeze()
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			for at := subnet.Revision(0); at <= seen; {
				if at, err = o.Put(ctx, storetest.KV{Path: "flanneld-go/unknown", Value: "moves the revision"}); err != nil {
					t.Fatal(err)
				}
			}
			p.Thaw()
			for {
				if r := next(t, results); r.err != nil {
					if !errors.Is(r.err, subnet.ErrStoreChanged) {
						t.Errorf("Watch: %v, want %v", r.err, subnet.ErrStoreChanged)
					}
					return
				}
			}
		})
	}
}

func TestContradicts(t *testing.T) {
	event := func(kind mvccpb.Event_EventType, rev int64) *mvccpb.Event {
		return &mvccpb.Event{Type: kind, Kv: &mvccpb.KeyValue{ModRevision: rev}}
	}
	now := func(created, modified int64) []*mvccpb.KeyValue {
		return []*mvccpb.KeyValue{{CreateRevision: created, ModRevision: modified}}
	}
	for name, tc := range map[string]struct {
		now  []*mvccpb.KeyValue
		then *mvccpb.Event
		want bool
	}{
		"put, unchanged":               {now(5, 7), event(mvccpb.PUT, 7), false},
		"put, changed since":           {now(5, 9), event(mvccpb.PUT, 7), false},
		"put, deleted since":           {nil, event(mvccpb.PUT, 7), false},
		"put, created again since":     {now(9, 9), event(mvccpb.PUT, 7), false},
		"put, older now":               {now(5, 6), event(mvccpb.PUT, 7), true},
		"deleted, absent":              {nil, event(mvccpb.DELETE, 7), false},
		"deleted, created again since": {now(8, 8), event(mvccpb.DELETE, 7), false},
		"deleted, never gone":          {now(5, 6), event(mvccpb.DELETE, 7), true},
		"deleted, changed instead":     {now(5, 9), event(mvccpb.DELETE, 7), true},
	} {
		if got := contradicts(tc.now, tc.then); got != tc.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
