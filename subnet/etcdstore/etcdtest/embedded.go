package etcdtest

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
)

// embedded is a server in this process.
type embedded struct {
	etcd *embed.Etcd

	mu sync.Mutex
	// serving are the gRPC servers in it; guarded by mu.
	serving []*grpc.Server
}

func (e *embedded) register(s *grpc.Server) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.serving = append(e.serving, s)
}

func (s *Server) startEmbedded(ctx context.Context) (instance, error) {
	run := new(embedded)
	cfg := embed.NewConfig()
	cfg.ServiceRegister = run.register
	cfg.Name, cfg.Dir = s.opts.Name, s.data()
	cfg.TickMs, cfg.ElectionMs = s.heartbeatMillis(), s.electionMillis()
	cfg.QuotaBackendBytes = s.opts.QuotaBytes
	cfg.UnsafeNoFsync = true
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{s.client}, []url.URL{s.client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{s.peer}, []url.URL{s.peer}
	cfg.InitialCluster = s.cluster()
	cfg.ClientTLSInfo = transport.TLSInfo{
		CertFile: s.opts.Cert, KeyFile: s.opts.Key,
		TrustedCAFile: s.opts.ClientCA, ClientCertAuth: s.opts.ClientCA != "",
	}
	cfg.AuthToken, cfg.AuthTokenTTL = s.opts.AuthToken, s.authTokenTTL()
	cfg.BcryptCost = 4 // bcrypt.MinCost: passwords of tests are no secrets.
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(s.logger())
	e, err := startOnFreePorts(ctx, cfg)
	if err != nil {
		return nil, err
	}
	run.etcd = e
	select {
	case <-e.Server.ReadyNotify():
		return run, nil
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = errors.New("stopped by itself")
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(err, run.stop())
}

// takenFor is how long a port of a server that was stopped may be taken.
const takenFor = 5 * time.Second

// startOnFreePorts starts etcd, on ports that it may have had until now: a program that
// somebody starts has all sockets of this process between its fork and its exec, also
// those that were closed a moment ago, and a busy machine lets it wait there.
func startOnFreePorts(ctx context.Context, cfg *embed.Config) (*embed.Etcd, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(takenFor); ; {
		e, err := embed.StartEtcd(cfg)
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) {
			return e, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (e *embedded) stop() error {
	// All connections first, as when a process dies: Close alone would wait 5 s
	// for clients to end their streams, and watches never do.
	// (One that registers only now has none.)
	e.mu.Lock()
	serving := e.serving
	e.mu.Unlock()
	for _, s := range serving {
		s.Stop()
	}
	// Close waits for the servers of clients, and they wait for a majority that
	// may never be there, or for this.
	select {
	case <-e.etcd.Server.ReadyNotify():
	default:
		e.etcd.Server.HardStop()
	}
	e.etcd.Close()
	return nil
}

func (s *Server) logger() *zap.Logger {
	if s.opts.Log == nil {
		return zap.NewNop()
	}
	encoder := zapcore.NewConsoleEncoder(zap.NewProductionEncoderConfig())
	return zap.New(zapcore.NewCore(encoder, zapcore.AddSync(s.opts.Log), zapcore.InfoLevel))
}
