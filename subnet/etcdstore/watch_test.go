package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
	"github.com/flanneld-go/flanneld-go/subnet/storetest"
)

// follow runs a watch until the test ends and hands on what it yields.
func follow(t *testing.T, s *Store, after subnet.Revision) <-chan result {
	ctx, cancel := context.WithCancel(context.Background())
	results := make(chan result)
	go func() {
		defer close(results)
		for b, err := range s.Watch(ctx, after) {
			select {
			case results <- result{b, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range results {
		}
	})
	return results
}

type result struct {
	subnet.Batch
	err error
}

// next is what comes next, within a generous time.
func next(t *testing.T, results <-chan result) result {
	t.Helper()
	select {
	case r := <-results:
		return r
	case <-time.After(2 * time.Minute):
		t.Fatal("watch yields nothing")
		return result{}
	}
}

// config is the text of the next config that the watch yields.
func config(t *testing.T, results <-chan result) string {
	t.Helper()
	for {
		r := next(t, results)
		if r.err != nil {
			t.Fatalf("Watch: %v", r.err)
		}
		if r.Config != nil {
			return r.Config.Text
		}
	}
}

func loaded(t *testing.T, s *Store) subnet.World {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w, err := s.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (o *operator) config(t *testing.T, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := o.Put(ctx, storetest.KV{Path: "config", Value: text}); err != nil {
		t.Fatal(err)
	}
}

// A member that restarts, and what is written meanwhile, is no reason to load
// everything again.
func TestWatchSurvivesBrokenConnections(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	p := newProxy(t, server)
	s := open(t, Options{Endpoints: []string{p.URL}, Prefix: "/p", DialTimeout: time.Minute})
	o := newOperator(t, server, "/p")
	results := follow(t, s, loaded(t, s).Revision)
	for i := range 5 {
		text := fmt.Sprint(i)
		if i%2 == 1 {
			p.Cut()
		}
		o.config(t, text)
		if got := config(t, results); got != text {
			t.Errorf("config %q, want %q", got, text)
		}
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.config(t, "after the restart")
	if got := config(t, results); got != "after the restart" {
		t.Errorf("config %q after a restart", got)
	}
}

// Without etcd a watch ends, and says why. It takes as long as there is for a store that
// comes back, and that is enough for a busy machine to find out why there is none.
func TestWatchEndsWithoutEtcd(t *testing.T) {
	t.Parallel()
	const dial = 5 * time.Second
	server := startServer(t, etcdtest.Options{})
	for name, c := range map[string]struct {
		lose func(*etcdtest.Relay)
		// why is one of what it may say.
		why []string
	}{
		// A connection that was silent for 15 s is made anew.
		"silence": {(*etcdtest.Relay).Freeze, []string{"no answer in time", "does not answer"}},
		"refused": {(*etcdtest.Relay).Refuse, []string{"connection refused"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProxy(t, server)
			s := open(t, Options{Endpoints: []string{p.URL}, Prefix: "/p", DialTimeout: dial})
			results := follow(t, s, loaded(t, s).Revision)
			if r := next(t, results); r.err != nil {
				t.Fatalf("Watch: %v", r.err)
			}
			c.lose(p)
			var err error
			for err == nil {
				err = next(t, results).err
			}
			if !errors.Is(err, ErrUnreachable) || !slices.ContainsFunc(c.why, func(why string) bool { return strings.Contains(err.Error(), why) }) {
				t.Errorf("Watch = %v, want one of %q", err, c.why)
			}
			if _, ok := <-results; ok {
				t.Error("watch goes on after its error")
			}
		})
	}
	t.Run("from the beginning", func(t *testing.T) {
		t.Parallel()
		s := open(t, Options{Endpoints: []string{"http://" + vacant(t)}, Prefix: "/p", DialTimeout: dial})
		for _, err := range s.Watch(t.Context(), 1) {
			if !errors.Is(err, ErrUnreachable) {
				t.Errorf("Watch without etcd = %v, want %v", err, ErrUnreachable)
			}
		}
	})
}

// The stream may be the first to see that the context has ended, and be gone by
// the time that the watch looks: in either order it is the context's error.
func TestWatchIsCanceledAtAnyTime(t *testing.T) {
	s := open(t, Options{Endpoints: startServer(t, etcdtest.Options{}).Endpoints(), Prefix: "/p"})
	s.tick = 100 * time.Millisecond
	w := loaded(t, s)
	for range 10 {
		ctx, cancel := context.WithCancel(t.Context())
		for _, err := range s.Watch(ctx, w.Revision) {
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("Watch = %v, want %v", err, context.Canceled)
				}
				break
			}
			cancel()
			<-time.After(10 * time.Millisecond)
		}
		cancel()
	}
}

// tampered is a watch service whose streams' messages go through edit, which
// may drop one by returning nil.
type tampered struct {
	pb.WatchClient
	edit func(*pb.WatchResponse) *pb.WatchResponse
}

type tamperedStream struct {
	pb.Watch_WatchClient
	edit func(*pb.WatchResponse) *pb.WatchResponse
}

func (w tampered) Watch(ctx context.Context, opts ...grpc.CallOption) (pb.Watch_WatchClient, error) {
	stream, err := w.WatchClient.Watch(ctx, opts...)
	return tamperedStream{stream, w.edit}, err
}

func (s tamperedStream) Recv() (*pb.WatchResponse, error) {
	for {
		resp, err := s.Watch_WatchClient.Recv()
		if err != nil {
			return nil, err
		}
		if resp = s.edit(resp); resp != nil {
			return resp, nil
		}
	}
}

// A stream on which nothing comes although the store answers is not waited on.
func TestWatchNoticesASilentStream(t *testing.T) {
	s := open(t, Options{Endpoints: startServer(t, etcdtest.Options{}).Endpoints(), Prefix: "/p"})
	s.tick = 50 * time.Millisecond
	s.watches = tampered{s.watches, func(m *pb.WatchResponse) *pb.WatchResponse {
		if !m.Created {
			return nil
		}
		return m
	}}
	results := follow(t, s, loaded(t, s).Revision)
	if r := next(t, results); r.err != nil {
		t.Fatalf("Watch of a store that was just proven = %v", r.err)
	}
	if r := next(t, results); !errors.Is(r.err, errStalled) {
		t.Errorf("Watch = %+v, %v, want %v", r.Batch, r.err, errStalled)
	}
}

// slowKV answers transactions late.
type slowKV struct {
	clientv3.KV
	late time.Duration
}

type slowTxn struct {
	clientv3.Txn
	late time.Duration
}

func (s slowKV) Txn(ctx context.Context) clientv3.Txn { return slowTxn{s.KV.Txn(ctx), s.late} }

func (s slowTxn) Then(ops ...clientv3.Op) clientv3.Txn { return slowTxn{s.Txn.Then(ops...), s.late} }

func (s slowTxn) Commit() (*clientv3.TxnResponse, error) {
	<-time.After(s.late)
	return s.Txn.Commit()
}

// A store that takes longer for each proof than there is between two of them is slow, and
// its stream is not silent.
func TestWatchOfASlowStoreGoesOn(t *testing.T) {
	s := open(t, Options{Endpoints: startServer(t, etcdtest.Options{}).Endpoints(), Prefix: "/p"})
	w := loaded(t, s)
	s.tick = 100 * time.Millisecond
	s.client.KV = slowKV{s.client.KV, 2 * s.tick}
	results := follow(t, s, w.Revision)
	for range 12 {
		if r := next(t, results); r.err != nil {
			t.Fatalf("Watch of a slow store = %v", r.err)
		}
	}
}

// floodedStream is a stream on which there is always one more message, once it is open.
type floodedStream struct {
	pb.Watch_WatchClient
	open bool
}

func (s *floodedStream) Recv() (*pb.WatchResponse, error) {
	if s.open {
		return &pb.WatchResponse{Header: &pb.ResponseHeader{}}, nil
	}
	s.open = true
	return s.Watch_WatchClient.Recv()
}

type flooded struct{ pb.WatchClient }

func (w flooded) Watch(ctx context.Context, opts ...grpc.CallOption) (pb.Watch_WatchClient, error) {
	stream, err := w.WatchClient.Watch(ctx, opts...)
	return &floodedStream{stream, false}, err
}

// A reader that is slower than what comes keeps nobody from proofs of the store.
func TestWatchProvesTheStoreInAFlood(t *testing.T) {
	s := open(t, Options{Endpoints: startServer(t, etcdtest.Options{}).Endpoints(), Prefix: "/p"})
	w := loaded(t, s)
	s.tick = time.Millisecond
	s.watches = flooded{s.watches}
	results := follow(t, s, w.Revision)
	const proofs, asked = 50, 2 // requests each
	before := s.Stats().Requests
	for end := time.Now().Add(within); s.Stats().Requests-before < asked*proofs; await(t, time.Millisecond) {
		if r := next(t, results); r.err != nil {
			t.Fatalf("Watch: %v", r.err)
		}
		if time.Now().After(end) {
			t.Fatalf("%d requests, want %d", s.Stats().Requests-before, asked*proofs)
		}
	}
}

// An etcd that takes long to open a stream is asked for nothing else meanwhile: where
// thousands start at once all of them would be.
func TestWatchAsksForNoProofBeforeItIsOpen(t *testing.T) {
	s := open(t, Options{Endpoints: startServer(t, etcdtest.Options{}).Endpoints(), Prefix: "/p"})
	s.tick = 20 * time.Millisecond
	w := loaded(t, s)
	before, asked := s.Stats().Requests, make(chan uint64, 1)
	s.watches = tampered{s.watches, func(m *pb.WatchResponse) *pb.WatchResponse {
		if m.Created {
			<-time.After(10 * s.tick)
			asked <- s.Stats().Requests
		}
		return m
	}}
	if r := next(t, follow(t, s, w.Revision)); r.err != nil {
		t.Fatalf("Watch of a store that takes its time = %v", r.err)
	}
	if n := <-asked - before; n != 1 {
		t.Errorf("%d requests until the stream was open, want the one that opens it", n)
	}
}

// etcd 3.4.23 may answer a progress request with a revision ahead of events that
// are still to come: they must come nevertheless.
func TestWatchDoesNotBelieveProgressAhead(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"})
	s.tick = 50 * time.Millisecond
	s.watches = tampered{s.watches, func(m *pb.WatchResponse) *pb.WatchResponse {
		if m.WatchId == streamWide {
			m.Header.Revision += 1000
		}
		return m
	}}
	w := loaded(t, s)
	results := follow(t, s, w.Revision)
	for range 3 {
		if r := next(t, results); r.err != nil || r.Revision != w.Revision {
			t.Fatalf("progress %+v, %v, want revision %d", r.Batch, r.err, w.Revision)
		}
	}
	newOperator(t, server, "/p").config(t, "{}")
	if got := config(t, results); got != "{}" {
		t.Errorf("config %q, want {}", got)
	}
}

// What is larger than a message comes in fragments, and as whole revisions.
func TestWatchPutsFragmentsTogether(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	fragments := 0
	s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"})
	s.watches = tampered{s.watches, func(m *pb.WatchResponse) *pb.WatchResponse {
		if m.Fragment {
			fragments++
		}
		return m
	}}
	o := newOperator(t, server, "/p")
	w := loaded(t, s)
	const configs = 6
	filler := strings.Repeat(" ", 1<<20)
	for i := range configs {
		o.config(t, fmt.Sprint(i)+filler)
	}
	results := follow(t, s, w.Revision)
	for i := range configs {
		if got := strings.TrimSpace(config(t, results)); got != fmt.Sprint(i) {
			t.Errorf("config %s, want %d", got, i)
		}
	}
	if fragments == 0 {
		t.Error("nothing was fragmented: the test tests nothing")
	}
}

// newProxy stands between a store and its server, until the test's end.
func newProxy(t *testing.T, server *etcdtest.Server) *etcdtest.Relay {
	t.Helper()
	return startRelay(t, server.Endpoint(), nil)
}

// startRelay starts one that ends with the test, after the clients.
func startRelay(t *testing.T, endpoint string, sent func([]byte)) *etcdtest.Relay {
	t.Helper()
	r, err := etcdtest.StartRelay(endpoint, sent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// The identity is in the stream: nobody waits for the next tick to learn that it
// changed, nor sees what comes behind.
func TestWatchSeesTheIdentityChangeAtOnce(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, change := range map[string]func(*operator) error{
		"replaced": func(o *operator) error {
			_, err := o.Put(ctx, storetest.KV{Path: "flanneld-go/store", Value: "another"})
			return err
		},
		"deleted": func(o *operator) error { _, err := o.Delete(ctx, "flanneld-go/store"); return err },
	} {
		s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/" + name})
		s.tick = time.Hour
		o := newOperator(t, server, "/"+name)
		results := follow(t, s, loaded(t, s).Revision)
		o.config(t, "before")
		if got := config(t, results); got != "before" {
			t.Errorf("%s: config %q, want that from before", name, got)
		}
		if err := change(o); err != nil {
			t.Fatal(err)
		}
		o.config(t, "behind")
		if r := next(t, results); !errors.Is(r.err, subnet.ErrStoreChanged) {
			t.Errorf("%s: Watch = %+v, %v, want %v", name, r.Batch, r.err, subnet.ErrStoreChanged)
		}
	}
}
