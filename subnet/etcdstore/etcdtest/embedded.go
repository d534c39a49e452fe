package etcdtest

import (
	"context"
	"errors"
	"net/url"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// embedded is a server in this process.
type embedded struct{ etcd *embed.Etcd }

func (s *Server) startEmbedded(ctx context.Context) (instance, error) {
	cfg := embed.NewConfig()
	cfg.Dir = s.data()
	cfg.TickMs, cfg.ElectionMs = heartbeatMillis, electionMillis
	cfg.UnsafeNoFsync = true
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{s.client}, []url.URL{s.client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{s.peer}, []url.URL{s.peer}
	cfg.InitialCluster = cfg.Name + "=" + s.peer.String()
	cfg.ClientTLSInfo = transport.TLSInfo{
		CertFile: s.opts.Cert, KeyFile: s.opts.Key,
		TrustedCAFile: s.opts.ClientCA, ClientCertAuth: s.opts.ClientCA != "",
	}
	cfg.BcryptCost = 4 // bcrypt.MinCost: passwords of tests are no secrets.
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(s.logger())
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-e.Server.ReadyNotify():
		return &embedded{e}, nil
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = errors.New("stopped by itself")
	case <-ctx.Done():
		err = ctx.Err()
	}
	e.Close()
	return nil, err
}

func (e *embedded) stop() error {
	// First the server: Close alone waits for clients to end their streams,
	// and watches do not.
	e.etcd.Server.HardStop()
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
