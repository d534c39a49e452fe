package etcdstore

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// connections are those that are open.
func (s *Store) connections() map[*wireConn]bool {
	s.wire.mu.Lock()
	defer s.wire.mu.Unlock()
	return maps.Clone(s.wire.open)
}

// An address that the host has lost ends the connections from there, and no others;
// what is asked next gets through.
func TestAbandon(t *testing.T) {
	s := open(t, Options{Endpoints: startServer(t, etcdtest.Options{}).Endpoints(), Prefix: "/p", DialTimeout: time.Minute})
	w, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	results := follow(t, s, w.Revision)
	if r := next(t, results); r.err != nil { // it has arrived
		t.Fatal(r.err)
	}
	s.Abandon(netip.MustParseAddr("127.0.0.9"))
	if _, err := s.Load(t.Context()); err != nil || len(s.connections()) != 1 {
		t.Errorf("%d connections after another's address is gone, %v", len(s.connections()), err)
	}
	for range 20 { // Each time there is a moment in which the client could use the old one.
		before := slices.Collect(maps.Keys(s.connections()))
		s.Abandon(netip.MustParseAddr("127.0.0.1"))
		if again, err := s.Load(t.Context()); err != nil || again.Identity != w.Identity {
			t.Errorf("Load = %+v, %v", again, err)
		}
		for _, c := range before {
			if s.connections()[c] {
				t.Error("the connection is open")
			}
		}
	}
	// The watch finds another way by itself, and misses nothing.
	if _, err := s.PutConfig(t.Context(), "{}", w); err != nil {
		t.Fatal(err)
	}
	if got := config(t, results); got != "{}" {
		t.Errorf("config %q, want {}", got)
	}
	if err := s.Close(); err != nil || len(s.connections()) != 0 {
		t.Errorf("%d connections after Close, %v", len(s.connections()), err)
	}
}

// Events are read and not answered: to find out how wide its window should be, gRPC would
// send a ping for nearly each.
func TestEventsAreNotAnswered(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	var sent atomic.Int64
	r := startRelay(t, server.Endpoint(), func(b []byte) { sent.Add(int64(len(b))) })
	s := open(t, Options{Endpoints: []string{r.URL}, Prefix: "/p"})
	s.tick = time.Hour // no proofs meanwhile
	results := follow(t, s, loaded(t, s).Revision)
	if r := next(t, results); r.err != nil {
		t.Fatal(r.err)
	}
	time.Sleep(100 * time.Millisecond) // for what the opening leaves to be sent
	before, operator := sent.Load(), newOperator(t, server, "/p")
	const events, ping = 50, 17 // bytes of a frame
	for n := range events {
		text := fmt.Sprintf("{\"n\":%d}", n)
		operator.config(t, text)
		if got := config(t, results); got != text {
			t.Fatalf("config %s, want %s", got, text)
		}
	}
	if more := sent.Load() - before; more > events/5*ping {
		t.Errorf("%d bytes were sent on account of %d events", more, events)
	}
}
