package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The smallest TTL that a server grants is a second and a half election
// timeout, in whole seconds: these make it 1 s.
const (
	heartbeatMillis = 20
	electionMillis  = 200
)

// startTimeout is how long a server may take to serve its first request. etcd asks
// the kernel for routes before anything else, and waits while others, in whatever
// namespace, keep its lock on the network.
const startTimeout = 2 * time.Minute

// Options say what kind of server to start. The zero value is an embedded one
// on a free port of 127.0.0.1.
type Options struct {
	// Listen is the URL for clients; "http://127.0.0.1:0" by default, and
	// https when Cert is set. Port 0 is replaced by a free one, which stays the same over
	// Restart and Wipe. Peers' port is on the same host.
	Listen string
	// Dir is the data folder: a temporary one by default, in memory if
	// possible, removed by Close.
	Dir string
	// Binary, when set, is the etcd to run instead of the embedded one.
	Binary string
	// Cert and Key are files in PEM: serve TLS. With ClientCA, a file too,
	// clients must have a certificate of that authority.
	Cert, Key, ClientCA string
	// Log receives the server's log; nil: nobody.
	Log io.Writer
}

// instance is one run of a server.
type instance interface {
	// stop returns when the server is gone.
	stop() error
}

// Server is an etcd with one member. Its methods must not be called
// concurrently.
type Server struct {
	opts      Options
	temporary bool
	client    url.URL
	peer      url.URL
	running   instance
}

// Start starts a server and returns when it serves.
func Start(ctx context.Context, opts Options) (s *Server, err error) {
	s = &Server{opts: opts}
	if s.opts.Listen == "" {
		s.opts.Listen = "http://127.0.0.1:0"
		if opts.Cert != "" {
			s.opts.Listen = "https://127.0.0.1:0"
		}
	}
	listen, err := url.Parse(s.opts.Listen)
	if err != nil {
		return nil, fmt.Errorf("start etcd: listen address: %w", err)
	}
	if (listen.Scheme == "https") != (opts.Cert != "") {
		return nil, fmt.Errorf("start etcd: %s needs a certificate exactly if it is https", listen)
	}
	if s.opts.Dir == "" {
		if s.opts.Dir, err = os.MkdirTemp(memory(), "etcdtest-"); err != nil {
			return nil, fmt.Errorf("start etcd: %w", err)
		}
		s.temporary = true
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	// A free port can be taken by another before etcd listens on it.
	for range 5 {
		if err = s.choosePorts(ctx, listen); err != nil {
			return s, err
		}
		err = s.Restart(ctx)
		if taken := errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, errExited); !taken || listen.Port() != "0" {
			break
		}
	}
	return s, err
}

// memory is a folder in memory, so that a busy disk does not delay a server that
// cannot be told not to sync; empty where there is none.
func memory() string {
	const shm = "/dev/shm"
	if info, err := os.Stat(shm); err != nil || !info.IsDir() {
		return ""
	}
	return shm
}

// choosePorts fills in the ports that the caller left open.
func (s *Server) choosePorts(ctx context.Context, listen *url.URL) error {
	s.client = *listen
	s.peer = url.URL{Scheme: "http"}
	for _, u := range []*url.URL{&s.client, &s.peer} {
		if u == &s.client && listen.Port() != "0" {
			continue
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(listen.Hostname(), "0"))
		if err != nil {
			return fmt.Errorf("start etcd: find a free port: %w", err)
		}
		u.Host = l.Addr().String()
		if err := l.Close(); err != nil {
			return fmt.Errorf("start etcd: find a free port: %w", err)
		}
	}
	return nil
}

// Endpoint is the URL that clients connect to.
func (s *Server) Endpoint() string { return s.client.String() }

// Endpoints is Endpoint as clients' options want it.
func (s *Server) Endpoints() []string { return []string{s.Endpoint()} }

// data is the folder that a wipe removes; Options.Dir itself may be a mount.
func (s *Server) data() string { return filepath.Join(s.opts.Dir, "member-data") }

// Stop stops the server and keeps its address and its data. A server that is
// stopped already stays so.
func (s *Server) Stop() error {
	if s.running == nil {
		return nil
	}
	running := s.running
	s.running = nil
	if err := running.stop(); err != nil {
		return fmt.Errorf("stop etcd: %w", err)
	}
	return nil
}

// Restart starts a server that was stopped, with the address and the data it
// had, or stops and starts one that runs.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	if err := os.MkdirAll(s.data(), 0o700); err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	start := s.startEmbedded
	if s.opts.Binary != "" {
		start = s.startBinary
	}
	running, err := start(ctx)
	if err != nil {
		return fmt.Errorf("start etcd on %s: %w", s.Endpoint(), err)
	}
	s.running = running
	return nil
}

// Wipe is a server that lost its disk: it starts again with the same address
// and flags and without any data.
func (s *Server) Wipe(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	if err := os.RemoveAll(s.data()); err != nil {
		return fmt.Errorf("wipe etcd: %w", err)
	}
	return s.Restart(ctx)
}

// Rewind is a server restored from a backup: it makes one, runs f, and puts the
// backup in the place of what was written meanwhile. The server restarts twice.
func (s *Server) Rewind(ctx context.Context, f func() error) error {
	backup := filepath.Join(s.opts.Dir, "backup")
	if err := s.Stop(); err != nil {
		return err
	}
	if err := os.CopyFS(backup, os.DirFS(s.data())); err != nil {
		return fmt.Errorf("back up etcd: %w", err)
	}
	if err := s.Restart(ctx); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	if err := s.Stop(); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(s.data()), os.Rename(backup, s.data())); err != nil {
		return fmt.Errorf("restore etcd: %w", err)
	}
	return s.Restart(ctx)
}

// Close stops the server and removes its temporary folder. It may be called
// again.
func (s *Server) Close() error {
	err := s.Stop()
	if s.temporary {
		err = errors.Join(err, os.RemoveAll(s.opts.Dir))
	}
	return err
}
