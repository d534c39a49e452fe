package etcdstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// Each of three things tells another store: who it says it is, a revision that is behind
// ours, and that it does not know what we saw last. One that is not known yet is taken for
// the store's.
func TestVerify(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"})
	newOperator(t, server, "/p").config(t, "{}")
	world := loaded(t, s)
	event := func(rev subnet.Revision) *mvccpb.Event {
		return &mvccpb.Event{Type: mvccpb.PUT, Kv: &mvccpb.KeyValue{Key: []byte("/p/config"), ModRevision: int64(rev)}}
	}
	for name, tc := range map[string]struct {
		w    watch
		want error
	}{
		"the same":              {watch{identity: world.Identity, at: world.Revision, witness: event(world.Config.Modified)}, nil},
		"nobody knows it yet":   {watch{at: world.Revision}, nil},
		"another":               {watch{identity: "another", at: world.Revision}, subnet.ErrStoreChanged},
		"behind us":             {watch{identity: world.Identity, at: world.Revision + 100}, subnet.ErrStoreChanged},
		"without what we saw":   {watch{identity: world.Identity, at: world.Revision, witness: event(world.Revision + 1)}, subnet.ErrStoreChanged},
		"behind, not known yet": {watch{at: world.Revision + 100}, subnet.ErrStoreChanged},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			w := &tc.w
			w.Store = s
			if err := w.verify(ctx); !errors.Is(err, tc.want) {
				t.Errorf("verify: %v, want %v", err, tc.want)
			}
			if tc.want == nil && w.identity != world.Identity {
				t.Errorf("identity %q, want %q", w.identity, world.Identity)
			}
		})
	}
}

// The first stream of a watch has time for a store that is slow, and more of it where it
// was seen to be slower still; one that follows another has DialTimeout, so that what
// happened meanwhile is found out soon.
func TestWatchPatience(t *testing.T) {
	const dial = 5 * time.Second
	slow := status.Error(codes.OK, "")
	for name, tc := range map[string]struct {
		reopened bool
		took     time.Duration
		want     time.Duration
	}{
		"the first":                   {want: verifyWithin * dial},
		"the first, where it is slow": {took: 4 * time.Second, want: patienceFactor * 4 * time.Second},
		"another":                     {reopened: true, want: dial},
		"another, where it is slow":   {reopened: true, took: 4 * time.Second, want: dial},
	} {
		w := watch{Store: &Store{opts: Options{DialTimeout: dial}}, reopened: tc.reopened}
		if tc.took > 0 {
			w.pace.note(tc.took, slow)
		}
		if got := w.patience(); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}
