package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

// Members of an embedded cluster ask each other over HTTP with transports of
// their own, whose idle connections they forget when they end. This package has
// no HTTP of its own that could hide behind that.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("net/http.(*conn).serve"),
		goleak.IgnoreAnyFunction("net/http.(*connReader).backgroundRead"),
	)
}

func TestServer(t *testing.T) {
	for name, binary := range map[string]string{"embedded": "", "debian": "/usr/bin/etcd"} {
		t.Run(name, func(t *testing.T) {
			if binary != "" {
				if _, err := exec.LookPath(binary); err != nil {
					t.Skipf("needs package etcd-server: %v", err)
				}
			}
			testServer(t, Options{Binary: binary})
		})
	}
}

func testServer(t *testing.T, opts Options) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	s, err := Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	client, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	count := func() int64 {
		resp, err := client.Get(ctx, "k", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		return resp.Count
	}
	endpoint := s.Endpoint()
	if err := s.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != 1 {
		t.Errorf("%d keys after a restart, want 1", got)
	}
	err = s.Rewind(ctx, func() error {
		_, err := client.Put(ctx, "k/later", "v")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := count(); got != 1 {
		t.Errorf("%d keys after a rewind, want the 1 from before", got)
	}
	if err := s.Wipe(ctx); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != 0 {
		t.Errorf("%d keys after a wipe, want 0", got)
	}
	if s.Endpoint() != endpoint {
		t.Errorf("endpoint %s, was %s", s.Endpoint(), endpoint)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if _, err := os.Stat(s.opts.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("data folder %s is left: %v", s.opts.Dir, err)
	}
}

func TestStartFails(t *testing.T) {
	s, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, opts := range map[string]Options{
		"port taken":          {Listen: s.Endpoint()},
		"no such binary":      {Binary: "/nonexistent/etcd"},
		"https without files": {Listen: "https://127.0.0.1:0"},
	} {
		if other, err := Start(t.Context(), opts); err == nil {
			t.Errorf("%s: started on %s", name, other.Endpoint())
			other.Close()
		}
	}
}

// A server outlives the thread that it was started on, though not this process.
func TestServerOutlivesItsThread(t *testing.T) {
	const binary = "/usr/bin/etcd"
	if _, err := exec.LookPath(binary); err != nil {
		t.Skipf("needs package etcd-server: %v", err)
	}
	var s *Server
	var err error
	thread, started, release := 0, make(chan struct{}), make(chan struct{})
	defer close(release)
	var start func()
	start = func() {
		runtime.LockOSThread()
		if thread = syscall.Gettid(); thread == os.Getpid() { // the first one never ends
			defer runtime.UnlockOSThread()
			go start()
			<-release
			return
		}
		defer close(started)
		s, err = Start(t.Context(), Options{Binary: binary})
	}
	go start()
	<-started
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", thread)); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the thread is still there")
		}
	}
	for range 3 {
		if !s.serves(t.Context()) {
			t.Fatal("it serves no more")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A program that is being started may have a port of a server that is stopped for a
// moment: the server waits for it.
func TestRestartWaitsForItsPort(t *testing.T) {
	s, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	former, err := net.Listen("tcp", s.client.Host)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { former.Close() })
	if err := s.Restart(t.Context()); err != nil {
		t.Error(err)
	}
}
