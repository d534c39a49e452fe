package etcdstore

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// authenticate is the call that needs no token.
const authenticate = "/etcdserverpb.Auth/Authenticate"

// maxTokens is how many tokens are tried for one call: the first may have ended,
// and the second may be of the moment before an operator changed the roles.
const maxTokens = 3

// intercept is between the client and the wire: every unary call passes here,
// each of the client's attempts anew.
func (s *Store) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := s.discovered(ctx); err != nil {
		return err
	}
	call := func(ctx context.Context) error {
		began := time.Now()
		err := invoke(ctx, method, req, reply, cc, opts...)
		s.pace.note(time.Since(began), err)
		return err
	}
	if method == authenticate || s.tokens.user == "" {
		return s.explain(ctx, req, call(ctx))
	}
	for n := 1; ; n++ {
		token, err := s.tokens.get(ctx)
		if err != nil {
			return err
		}
		err = call(with(ctx, token))
		if !s.tokens.refused(token, err) {
			return s.explain(ctx, req, err)
		}
		if answer := (rpctypes.EtcdError{}); n == maxTokens && errors.As(rpctypes.Error(err), &answer) {
			return &tokenRefused{answer}
		}
	}
}

// interceptStream is the same for streams, but for the token: who opens one brings
// it along, since whether it is taken shows only in what the stream receives.
func (s *Store) interceptStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := s.discovered(ctx); err != nil {
		return nil, err
	}
	return open(ctx, desc, cc, method, opts...)
}

// explain makes a denial of an error that is one.
func (s *Store) explain(ctx context.Context, req any, err error) error {
	if errors.Is(rpctypes.Error(err), rpctypes.ErrPermissionDenied) {
		return s.explainDenial(ctx, needsOf(req), err)
	}
	return err
}

// discovered returns when there are endpoints to call.
func (s *Store) discovered(ctx context.Context) error {
	if s.discovery == nil {
		return nil
	}
	return s.discovery.await(ctx)
}

// Stats count what was exchanged with etcd since New.
type Stats struct {
	// Requests are unary calls and messages on streams that were sent,
	// repetitions included.
	Requests uint64
	// Failures are calls and streams that ended with an error, ours to end
	// them excepted.
	Failures uint64
	// Streams were opened: a watch each, and a keep-alive each.
	Streams uint64
	// BytesSent and BytesReceived are messages as gRPC frames them, without
	// HTTP/2's headers and TLS.
	BytesSent, BytesReceived uint64
}

// Stats returns the counters as they are now.
func (s *Store) Stats() Stats {
	c := &s.counters
	return Stats{
		Requests: c.requests.Load(), Failures: c.failures.Load(), Streams: c.streams.Load(),
		BytesSent: c.sent.Load(), BytesReceived: c.received.Load(),
	}
}

// counters are filled by gRPC: they implement [stats.Handler].
type counters struct{ requests, failures, streams, sent, received atomic.Uint64 }

// TagRPC implements [stats.Handler].
func (*counters) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// TagConn implements [stats.Handler].
func (*counters) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements [stats.Handler].
func (*counters) HandleConn(context.Context, stats.ConnStats) {}

// HandleRPC implements [stats.Handler].
func (c *counters) HandleRPC(_ context.Context, event stats.RPCStats) {
	switch e := event.(type) {
	case *stats.Begin:
		if e.IsClientStream {
			c.streams.Add(1)
		}
	case *stats.OutPayload:
		c.requests.Add(1)
		c.sent.Add(uint64(e.WireLength))
	case *stats.InPayload:
		c.received.Add(uint64(e.WireLength))
	case *stats.End:
		if e.Error != nil && status.Code(e.Error) != codes.Canceled {
			c.failures.Add(1)
		}
	}
}
