package storm

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// slowServer is an etcd whose every answer comes late, as those of one come that has
// thousands to answer.
type slowServer struct {
	*etcdtest.Server
	listener net.Listener
	late     time.Duration

	tasks sync.WaitGroup
	mu    sync.Mutex
	// conns is guarded by mu.
	conns []net.Conn
}

func newSlowServer(t *testing.T, s *etcdtest.Server, late time.Duration) *slowServer {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	slow := &slowServer{Server: s, listener: l, late: late}
	slow.tasks.Go(slow.serve)
	t.Cleanup(slow.close)
	return slow
}

// Endpoint implements [Server].
func (s *slowServer) Endpoint() string { return "http://" + s.listener.Addr().String() }

func (s *slowServer) close() {
	s.listener.Close()
	s.mu.Lock()
	for _, c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.tasks.Wait()
}

func (s *slowServer) serve() {
	var dialer net.Dialer
	for {
		client, err := s.listener.Accept()
		if err != nil {
			return
		}
		server, err := dialer.DialContext(context.Background(), "tcp", s.Server.Endpoint()[len("http://"):])
		if err != nil {
			client.Close()
			continue
		}
		s.mu.Lock()
		s.conns = append(s.conns, client, server)
		s.mu.Unlock()
		s.tasks.Go(func() {
			_, _ = io.Copy(server, client) // until either ends
			server.Close()
		})
		s.tasks.Go(func() {
			s.delay(client, server)
			client.Close()
		})
	}
}

// chunk is what arrived together, and when it is passed on.
type chunk struct {
	bytes []byte
	due   time.Time
}

// delay passes on all that from says, late but at full speed.
func (s *slowServer) delay(to io.Writer, from io.Reader) {
	const most = 1 << 16
	chunks := make(chan chunk, most)
	s.tasks.Go(func() {
		defer close(chunks)
		for {
			b := make([]byte, most)
			n, err := from.Read(b)
			if err != nil {
				return
			}
			chunks <- chunk{b[:n], time.Now().Add(s.late)}
		}
	})
	for c := range chunks {
		<-time.After(time.Until(c.due))
		if _, err := to.Write(c.bytes); err != nil && !errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// An etcd that is slow is asked no more often than one that is quick: who gives up
// and asks again makes it slower still. Three seconds for each answer are longer than
// what a watch and its proof once had together.
func TestSlowEtcdIsAskedNoMoreOften(t *testing.T) {
	const hosts, late = 100, 3 * time.Second
	ctx := t.Context()
	server, err := etcdtest.Start(ctx, etcdtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	phases, err := Crowd(ctx, newSlowServer(t, server, late), Options{Hosts: hosts, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", phases[0])
	checkBoot(t, phases[0])
}
