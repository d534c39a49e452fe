package etcdtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// defaultHeartbeat suits a server that has nobody to send heartbeats to.
const defaultHeartbeat = 20 * time.Millisecond

// electionHeartbeats is the election timeout, in heartbeats.
const electionHeartbeats = 10

// startTimeout is how long a lone server may take to serve its first request. etcd
// asks the kernel for routes before anything else, and waits while others, in
// whatever namespace, keep its lock on the network.
const startTimeout = 2 * time.Minute

// Options say what kind of server to start. The zero value is an embedded one
// on a free port of 127.0.0.1.
type Options struct {
	// Listen is the URL for clients; "http://127.0.0.1:0" by default, and
	// https when Cert is set. Port 0 is replaced by one that is reserved until Close:
	// it stays the same over Restart and Wipe. Peers' port is on the same host.
	Listen string
	// Dir is the data folder: a temporary one by default, in memory if
	// possible, removed by Close.
	Dir string
	// Binary, when set, is the etcd to run instead of the embedded one.
	Binary string
	// Cert and Key are files in PEM: serve TLS. With ClientCA, a file too,
	// clients must have a certificate of that authority.
	Cert, Key, ClientCA string
	// AuthToken is what kind of tokens is given to users, as etcd's --auth-token
	// has it; "simple" by default. AuthTokenTTL is the life of simple ones, in
	// whole seconds; 5 minutes by default.
	AuthToken    string
	AuthTokenTTL time.Duration
	// Log receives the server's log; nil: nobody.
	Log io.Writer
	// Name is the member's own, "default" by default. Peer is the URL that it
	// listens on for other members: by default on a free port.
	Name, Peer string
	// Cluster, when set, lists all members as etcd's --initial-cluster does:
	// "e1=http://192.0.2.1:2380,...", this one included. Such a server serves
	// once a majority runs, and Start and Restart wait for that as long as
	// their context lets them.
	Cluster string
	// Heartbeat is between two messages of a leader; 20 ms by default. An
	// election takes ten of them. The smallest TTL that a server grants is one
	// and a half election timeouts in whole seconds: 1 s by default.
	Heartbeat time.Duration
	// QuotaBytes is the size of the database that raises NOSPACE; 0 is etcd's
	// own, 2 GiB.
	QuotaBytes int64
}

// authTokenTTL is as etcd's flag wants it.
func (s *Server) authTokenTTL() uint { return uint(s.opts.AuthTokenTTL.Seconds()) }

// cluster is the value of --initial-cluster.
func (s *Server) cluster() string {
	if s.opts.Cluster != "" {
		return s.opts.Cluster
	}
	return s.opts.Name + "=" + s.peer.String()
}

// heartbeatMillis and electionMillis are as etcd's flags want them.
func (s *Server) heartbeatMillis() uint { return uint(s.opts.Heartbeat.Milliseconds()) }
func (s *Server) electionMillis() uint  { return electionHeartbeats * s.heartbeatMillis() }

// instance is one run of a server.
type instance interface {
	// stop returns when the server is gone.
	stop() error
}

// Server is one member of an etcd, as a rule the only one. Its methods must not be called
// concurrently.
type Server struct {
	opts      Options
	temporary bool
	client    url.URL
	peer      url.URL
	// reserved are the ports that the caller left open.
	reserved []*Reservation
	running  instance
}

// Start starts a server and returns when it serves.
func Start(ctx context.Context, opts Options) (s *Server, err error) {
	s = &Server{opts: opts}
	s.opts.fill()
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
	if err = s.choosePorts(listen); err != nil {
		return s, err
	}
	return s, s.Restart(ctx)
}

// fill puts the defaults of what need not be chosen.
func (o *Options) fill() {
	if o.Listen == "" {
		o.Listen = "http://127.0.0.1:0"
		if o.Cert != "" {
			o.Listen = "https://127.0.0.1:0"
		}
	}
	if o.Name == "" {
		o.Name = "default"
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = defaultHeartbeat
	}
	o.AuthToken = cmp.Or(o.AuthToken, "simple")
	o.AuthTokenTTL = cmp.Or(o.AuthTokenTTL, 5*time.Minute)
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

// choosePorts fills in the ports that the caller left open, and keeps them until Close.
func (s *Server) choosePorts(listen *url.URL) error {
	peer := &url.URL{Scheme: "http", Host: net.JoinHostPort(listen.Hostname(), "0")}
	if s.opts.Peer != "" {
		var err error
		if peer, err = url.Parse(s.opts.Peer); err != nil {
			return fmt.Errorf("start etcd: address for peers: %w", err)
		}
	}
	s.client, s.peer = *listen, *peer
	for _, u := range []*url.URL{&s.client, &s.peer} {
		if u.Port() != "0" {
			continue
		}
		r, err := Reserve(u.Hostname())
		if err != nil {
			return fmt.Errorf("start etcd: %w", err)
		}
		s.reserved = append(s.reserved, r)
		u.Host = r.Addr.String()
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
	if s.opts.Cluster == "" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
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

// Close stops the server, gives its ports back and removes its temporary folder. It may
// be called again.
func (s *Server) Close() error {
	err := s.Stop()
	for _, r := range s.reserved {
		err = errors.Join(err, r.Close())
	}
	s.reserved = nil
	if s.temporary {
		err = errors.Join(err, os.RemoveAll(s.opts.Dir))
	}
	return err
}
