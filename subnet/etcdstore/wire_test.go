package etcdstore

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
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

// What an endpoint has said of how it speaks counts until it says something else: one that
// is too busy to answer the question again has not.
func TestBusyEndpointSpeaksAsBefore(t *testing.T) {
	pki := writePKI(t)
	pair, err := tls.LoadX509KeyPair(pki.ServerCert, pki.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	secure := func(c net.Conn) { _ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake() }
	plain := func(c net.Conn) { _, _ = c.Write([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00")) }
	busy := func(net.Conn) {}
	gone := func(c net.Conn) { c.Close() }
	for name, tc := range map[string]struct {
		speaks func(net.Conn)
		// ends is how a connection ends.
		ends func(*wire, string)
		want string
		// otherwise is what is said of one that does not speak.
		otherwise string
	}{
		"TLS": {
			secure, func(w *wire, addr string) { (&wireConn{wire: w, addr: addr, plain: true}).unanswered(io.EOF) },
			"speaks TLS: use https:// in --etcd-endpoints", "closes the connection: EOF",
		},
		"plain": {
			plain, func(w *wire, addr string) { w.refused(t.Context(), addr, io.EOF) },
			"does not speak TLS: use http:// in --etcd-endpoints", "TLS handshake: EOF",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var serve atomic.Pointer[func(net.Conn)]
			addr := listen(t, func(c net.Conn) { (*serve.Load())(c) })
			w := newWire(time.Minute, nil, nil)
			w.record(addr, ErrTLS, errors.New("certificate not trusted")) // which is another matter
			const soon, long = 50 * time.Millisecond, time.Minute
			for i, step := range []struct {
				serve  func(net.Conn)
				askFor time.Duration
				want   string
			}{{busy, soon, tc.otherwise}, {tc.speaks, long, tc.want}, {busy, soon, tc.want}, {gone, long, tc.otherwise}, {busy, soon, tc.otherwise}} {
				serve.Store(&step.serve)
				w.askFor = step.askFor
				tc.ends(w, addr)
				if got := w.trouble[addr].err.Error(); got != step.want {
					t.Errorf("step %d: %s, want %s", i, got, step.want)
				}
			}
		})
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
