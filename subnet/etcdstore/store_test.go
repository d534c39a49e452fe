package etcdstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// Constructing a store does not connect, not even to fetch a token.
func TestNewStaysOffTheNetwork(t *testing.T) {
	var connections atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	addr := listen(t, func(c net.Conn) { connections.Add(1); c.Close(); cancel() })
	s := open(t, Options{Endpoints: []string{"http://" + addr}, Prefix: "/p", Username: "host", Password: password})
	await(t, 200*time.Millisecond)
	if n := connections.Load(); n != 0 {
		t.Fatalf("%d connections after New, want none", n)
	}
	if _, err := s.Load(ctx); err == nil {
		t.Error("Load succeeds")
	}
	if connections.Load() == 0 {
		t.Error("no connection after Load: the test tests nothing")
	}
}

func TestReadOnlyWritesNothing(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	opts := Options{Endpoints: server.Endpoints(), Prefix: "/p", ReadOnly: true}
	s := open(t, opts)
	o := newOperator(t, server, "/p")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	before, err := o.Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w := loaded(t, s)
	if w.Identity != "" {
		t.Errorf("identity %q in a store that nobody wrote to", w.Identity)
	}
	l := subnet.Lease{Subnet: mustSubnet(t, "10.5.1.0-24"), Attrs: subnet.Attrs{Owner: "node"}}
	for method, call := range map[string]func() error{
		"Create":    func() error { _, err := s.Create(ctx, l, time.Hour, w); return err },
		"Renew":     func() error { _, err := s.Renew(ctx, l); return err },
		"Update":    func() error { _, err := s.Update(ctx, l); return err },
		"Release":   func() error { return s.Release(ctx, l) },
		"PutConfig": func() error { _, err := s.PutConfig(ctx, "{}", w); return err },
		"RemoveBad": func() error { return s.RemoveBad(ctx, subnet.BadKey{Key: "nonsense", Modified: 1}) },
	} {
		if err := call(); !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s = %v, want %v", method, err, ErrReadOnly)
		}
	}
	if after, err := o.Revision(ctx); err != nil || after != before {
		t.Errorf("revision %d, %v, want %d", after, err, before)
	}
	if ids, err := o.Leases(ctx); err != nil || len(ids) != 0 {
		t.Errorf("leases %v, %v, want none", ids, err)
	}
	// An identity that comes later is no change.
	results := follow(t, s, w.Revision)
	opts.ReadOnly = false
	loaded(t, open(t, opts))
	o.config(t, "{}")
	if got := config(t, results); got != "{}" {
		t.Errorf("config %q, want {}", got)
	}
}

func TestCloseRevokesTheSpareLease(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	o := newOperator(t, server, "/p")
	s, err := New(Options{Endpoints: server.Endpoints(), Prefix: "/p"})
	if err != nil {
		t.Fatal(err)
	}
	s.revokeWithin = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w := loaded(t, s)
	l := subnet.Lease{Subnet: mustSubnet(t, "10.5.1.0-24"), Attrs: subnet.Attrs{Owner: "node"}}
	if l, err = s.Create(ctx, l, time.Hour, w); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, l, time.Hour, w); !errors.Is(err, subnet.ErrTaken) {
		t.Fatalf("Create = %v, want %v", err, subnet.ErrTaken)
	}
	if ids, _ := o.Leases(ctx); len(ids) != 2 {
		t.Errorf("%d leases before Close, want that of the key and the spare", len(ids))
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if ids, _ := o.Leases(ctx); len(ids) != 1 || ids[0] != l.ID {
		t.Errorf("leases %v after Close, want %v", ids, l.ID)
	}
	if _, err := s.Load(ctx); err == nil {
		t.Error("Load after Close succeeds")
	}
}

// A race that was lost costs one transaction, not another lease.
func TestLostRacesShareALease(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"})
	w := loaded(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l := subnet.Lease{Subnet: mustSubnet(t, "10.5.1.0-24"), Attrs: subnet.Attrs{Owner: "node"}}
	if _, err := s.Create(ctx, l, time.Hour, w); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, l, time.Hour, w); !errors.Is(err, subnet.ErrTaken) {
		t.Fatalf("Create = %v, want %v", err, subnet.ErrTaken)
	}
	spare := s.spare
	l.Subnet = mustSubnet(t, "10.5.2.0-24")
	got, err := s.Create(ctx, l, time.Hour, w)
	if err != nil {
		t.Fatal(err)
	}
	if time.Since(spare.at) < freshFor && got.ID != spare.id {
		t.Errorf("created under lease %x, want the one left over, %x", int64(got.ID), int64(spare.id))
	}
	// Another time to live, or an old one, is another lease.
	s.keep(ctx, grant{id: got.ID + 1, asked: time.Hour, at: time.Now().Add(-time.Minute)})
	for i, ttl := range []time.Duration{time.Hour, 2 * time.Hour} {
		g, err := s.take(ctx, ttl)
		if err != nil {
			t.Fatal(err)
		}
		if g.id == got.ID+1 || g.ttl != ttl {
			t.Errorf("%d: took lease %x for %s, want a new one for %s", i, int64(g.id), g.ttl, ttl)
		}
		s.keep(ctx, g)
	}
}

func TestSecretShowsItselfToNobody(t *testing.T) {
	secret := Secret(password)
	opts := Options{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/p", Username: "host", Password: secret}
	s := open(t, opts)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "secret", secret, "options", opts)
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "secret", secret, "options", opts)
	encoded, err := json.Marshal(struct{ S Secret }{secret})
	if err != nil {
		t.Fatal(err)
	}
	seen := log.String() + string(encoded)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		for _, v := range []any{secret, &secret, opts, s, []Secret{secret}} {
			seen += fmt.Sprintf(verb, v)
		}
	}
	for _, form := range []string{password, fmt.Sprintf("%x", password), fmt.Sprintf("%X", password)} {
		if strings.Contains(seen, form) {
			t.Errorf("the password shows as %s in\n%s", form, seen)
		}
	}
	if !strings.Contains(seen, redacted) {
		t.Error("nothing was printed: the test tests nothing")
	}
}

// expired is a lease service that knows no lease.
type expired struct{ pb.LeaseClient }

type expiredStream struct{ pb.Lease_LeaseKeepAliveClient }

func (e expired) LeaseKeepAlive(ctx context.Context, opts ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error) {
	stream, err := e.LeaseClient.LeaseKeepAlive(ctx, opts...)
	return expiredStream{stream}, err
}

func (s expiredStream) Recv() (*pb.LeaseKeepAliveResponse, error) {
	resp, err := s.Lease_LeaseKeepAliveClient.Recv()
	if err == nil {
		resp.TTL = 0
	}
	return resp, err
}

// A lease that etcd does not know any more is lost even while its key is still
// there, about to be deleted.
func TestRenewNeedsTheLeaseAndTheKey(t *testing.T) {
	s := open(t, Options{Endpoints: startServer(t, etcdtest.Options{}).Endpoints(), Prefix: "/p"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w := loaded(t, s)
	l := subnet.Lease{Subnet: mustSubnet(t, "10.5.1.0-24"), Attrs: subnet.Attrs{Owner: "node"}}
	l, err := s.Create(ctx, l, time.Hour, w)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Renew(ctx, l); err != nil {
		t.Fatal(err)
	}
	s.leases = expired{s.leases}
	if got, err := s.Renew(ctx, l); !errors.Is(err, subnet.ErrLeaseLost) {
		t.Errorf("Renew = %+v, %v, want %v", got, err, subnet.ErrLeaseLost)
	}
}
