package etcdstore

import (
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// An address that the host has lost ends the connections from there, and no others;
// what is asked next gets through.
func TestAbandon(t *testing.T) {
	s := open(t, Options{Endpoints: startServer(t, etcdtest.Options{}).Endpoints(), Prefix: "/p"})
	w, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	results := follow(t, s, w.Revision)
	if r := <-results; r.err != nil { // it has arrived
		t.Fatal(r.err)
	}
	s.Abandon(netip.MustParseAddr("127.0.0.9"))
	if _, err := s.Load(t.Context()); err != nil || len(s.wire.open) != 1 {
		t.Errorf("%d connections after another's address is gone, %v", len(s.wire.open), err)
	}
	s.Abandon(netip.MustParseAddr("127.0.0.1"))
	deadline := time.After(10 * time.Second)
	for ended := false; !ended; {
		select {
		case r, ok := <-results:
			ended = !ok || r.err != nil
		case <-deadline:
			t.Fatal("the watch goes on by a connection from nowhere")
		}
	}
	if again, err := s.Load(t.Context()); err != nil || again.Identity != w.Identity {
		t.Errorf("Load = %+v, %v", again, err)
	}
	if err := s.Close(); err != nil || len(s.wire.open) != 0 {
		t.Errorf("%d connections after Close, %v", len(s.wire.open), err)
	}
}
