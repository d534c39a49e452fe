package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

var _ subnet.Store = (*Store)(nil)

// A connection without traffic is asked whether it lives. etcd closes those that
// ask more often than every 5 s.
const (
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 5 * time.Second
	// maxReconnect is the longest pause between attempts to connect: gRPC's
	// own two minutes would be too long after etcd is back.
	maxReconnect = 2 * time.Second
	// tick is how often a watch proves that the store is the same and the
	// stream alive, where nothing else shows it: see [subnet.ProgressWithin].
	tick = 8 * time.Second
	// window is how many bytes etcd may send ahead of what we have read: more than is
	// under way on a fast link, and less than a page of leases, for which gRPC widens it.
	window = 1 << 20
)

// Store is one connection to etcd. See [New].
type Store struct {
	opts   Options
	files  *files
	client *clientv3.Client
	wire   *wire
	// discovery is nil where the options name endpoints.
	discovery *discovery
	tokens    *tokens
	counters  counters
	pace      pace
	// watches, leases and auth are calls on the client's connection that the
	// client offers in a form that does not suit us.
	watches pb.WatchClient
	leases  pb.LeaseClient
	auth    pb.AuthClient
	tick    time.Duration
	page    int64
	// revokeWithin bounds a revocation that nobody but Close waits for.
	revokeWithin time.Duration

	identityKey, configKey, subnets, prefix string

	// background are revocations that nobody waits for but Close.
	background sync.WaitGroup

	mu sync.Mutex
	// The fields below are guarded by mu.

	// known is the identity that the last Load returned.
	known string
	// loaded is the past that the last Load read, watched the one that the last
	// watch followed.
	loaded, watched past
	// hosts is how many leases the last Load read.
	hosts int
	// spare is a lease that a lost race left over.
	spare  grant
	closed bool
}

// New returns a store that connects at its first call. It fails if an option is
// bad or a file cannot be read, and must be closed.
func New(opts Options) (*Store, error) {
	opts, err := opts.validated()
	if err != nil {
		return nil, err
	}
	access, err := openFiles(&opts)
	if err != nil {
		return nil, err
	}
	opts.Password = "" // The files have it.
	s := &Store{
		opts:         opts,
		files:        access,
		tokens:       newTokens(opts.Username, access.secret),
		wire:         newWire(opts.DialTimeout, opts.Resolver, access.tlsConfig),
		tick:         tick,
		page:         pageSize,
		revokeWithin: revokeTimeout,
		prefix:       opts.Prefix + "/",
		identityKey:  path.Join(opts.Prefix, layout.Identity),
		configKey:    path.Join(opts.Prefix, layout.Config),
		subnets:      path.Join(opts.Prefix, layout.Subnets) + "/",
	}
	if opts.DiscoverySRV != "" {
		s.discovery = newDiscovery(&opts, s.use)
		s.wire.onTrouble = s.discovery.refresh
	} else {
		s.aim(opts.Endpoints)
	}
	if s.client, err = s.connect(); err != nil {
		return nil, fmt.Errorf("make etcd client: %w", err)
	}
	conn := s.client.ActiveConnection()
	s.watches, s.leases, s.auth = pb.NewWatchClient(conn), pb.NewLeaseClient(conn), pb.NewAuthClient(conn)
	s.tokens.auth = s.auth
	return s, nil
}

// aim tells the wire whether endpoints speak TLS.
func (s *Store) aim(endpoints []string) {
	s.wire.secure.Store(secure(endpoints))
	if !secure(endpoints) && (s.opts.CAFile != "" || s.opts.CertFile != "") {
		s.opts.Log.Warn("etcd endpoints are plain http: certificates are not used", "endpoints", endpoints)
	}
}

// use turns to endpoints that were discovered.
func (s *Store) use(endpoints []string) {
	s.aim(endpoints)
	s.opts.Log.Info("etcd endpoints discovered", "domain", s.opts.DiscoverySRV, "endpoints", endpoints)
	s.client.SetEndpoints(endpoints...)
}

// Endpoints are those of the options, or those that were discovered: none before
// the first call.
func (s *Store) Endpoints() []string {
	if s.discovery == nil {
		return s.opts.Endpoints
	}
	endpoints, _ := s.discovery.known()
	return endpoints
}

// Format implements [fmt.Formatter]: the store is where it is. By reflection,
// package fmt would find the password.
func (s *Store) Format(f fmt.State, _ rune) {
	// The state collects into memory and does not fail.
	_, _ = fmt.Fprintf(f, "etcd %s%s", strings.Join(s.whereabouts(), ","), s.opts.Prefix)
}

// whereabouts are the endpoints, or the domain that none are known of.
func (s *Store) whereabouts() []string {
	if endpoints := s.Endpoints(); len(endpoints) > 0 {
		return endpoints
	}
	return []string{s.opts.DiscoverySRV}
}

// connect makes the client, which dials when it is used.
func (s *Store) connect() (*clientv3.Client, error) {
	endpoints := s.opts.Endpoints
	if s.discovery != nil {
		// The client wants one. No call gets through to it: see discovered.
		endpoints = []string{"http://" + s.opts.DiscoverySRV}
	}
	// It is not told of the user: see tokens.
	return clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		// What it would log it also returns, and we say it once.
		Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(s.wire.dial),
			grpc.WithTransportCredentials(wireCreds{s.wire}),
			grpc.WithChainUnaryInterceptor(s.intercept),
			grpc.WithChainStreamInterceptor(s.interceptStream),
			grpc.WithStatsHandler(&s.counters),
			// Of a fixed size: to find one out gRPC would answer each message
			// of a watch by a ping, which costs more than the message.
			grpc.WithStaticStreamWindowSize(window),
			grpc.WithStaticConnWindowSize(window),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxReconnect},
				MinConnectTimeout: s.opts.DialTimeout,
			}),
			// An idle channel would build its resolver anew at the next call,
			// while others may change what it resolves to.
			grpc.WithIdleTimeout(0),
		},
	})
}

// Abandon ends the connections from an address that this host has no more. Nothing
// comes back to there, and TCP would find out after many seconds; others are made at
// once.
func (s *Store) Abandon(local netip.Addr) { s.wire.abandon(local) }

// Close ends all connections. It may be called again.
func (s *Store) Close() error {
	s.mu.Lock()
	spare, closed := s.spare, s.closed
	s.spare, s.closed = grant{}, true
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.discard(context.Background(), spare)
	s.background.Wait()
	if s.discovery != nil {
		s.discovery.close()
	}
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close etcd client: %w", err)
	}
	return nil
}

// identify gives the store an identity unless somebody else just did.
func (s *Store) identify(ctx context.Context) error {
	_, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(s.identityKey), "=", 0)).
		Then(clientv3.OpPut(s.identityKey, layout.NewIdentity())).
		Commit()
	return err
}

func (s *Store) identity() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// answer returns the keys that the i-th operation of a transaction read.
func answer(resp *clientv3.TxnResponse, i int) []*mvccpb.KeyValue {
	return resp.Responses[i].GetResponseRange().GetKvs()
}

// identityOf reads a range of one key or none.
func identityOf(kvs []*mvccpb.KeyValue) string {
	if len(kvs) == 0 {
		return ""
	}
	return string(kvs[0].Value)
}

// documentOf reads a range of one key or none.
func documentOf(kvs []*mvccpb.KeyValue) subnet.Document {
	if len(kvs) == 0 {
		return subnet.Document{}
	}
	return subnet.Document{Text: string(kvs[0].Value), Modified: subnet.Revision(kvs[0].ModRevision)}
}
