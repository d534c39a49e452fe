package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// grant is a lease of etcd's that no key hangs on yet.
type grant struct {
	id subnet.LeaseID
	// asked is the TTL wanted, ttl the one granted.
	asked, ttl time.Duration
	at         time.Time
}

// freshFor is how long a grant left over by a lost race is used instead of a new
// one: what it has lost of its TTL by then does not matter.
const freshFor = time.Second

// revokeTimeout is how long Close waits for a revocation at most.
const revokeTimeout = 2 * time.Second

// take returns a lease, or none for a ttl of zero.
func (s *Store) take(ctx context.Context, ttl time.Duration) (grant, error) {
	if ttl <= 0 {
		return grant{}, nil
	}
	s.mu.Lock()
	spare := s.spare
	s.spare = grant{}
	s.mu.Unlock()
	if spare.asked == ttl && time.Since(spare.at) < min(freshFor, ttl/10) {
		return spare, nil
	}
	s.discard(ctx, spare)
	at := time.Now()
	resp, err := s.client.Grant(ctx, int64(math.Ceil(ttl.Seconds())))
	if err != nil {
		return grant{}, err
	}
	return grant{id: subnet.LeaseID(resp.ID), asked: ttl, ttl: seconds(resp.TTL), at: at}, nil
}

// keep saves g for the next candidate.
func (s *Store) keep(ctx context.Context, g grant) {
	s.mu.Lock()
	if s.spare.id == 0 && !s.closed {
		s.spare, g = g, grant{}
	}
	s.mu.Unlock()
	s.discard(ctx, g)
}

// discard revokes g while nobody waits, and though ctx may have ended. If that
// fails, it expires.
func (s *Store) discard(ctx context.Context, g grant) {
	if g.id == 0 {
		return
	}
	s.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.revokeWithin)
		defer cancel()
		s.revoke(ctx, g.id)
	})
}

// revoke ends a lease, or leaves it to expire.
func (s *Store) revoke(ctx context.Context, id subnet.LeaseID) {
	if _, err := s.client.Revoke(ctx, clientv3.LeaseID(id)); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		s.opts.Log.Debug("etcd lease is left to expire", "lease_id", int64(id), "error", err)
	}
}

// revokeUnused ends the lease of a key that was deleted, unless somebody hung
// another key on it, which would be deleted with it.
func (s *Store) revokeUnused(ctx context.Context, id subnet.LeaseID) {
	resp, err := s.client.TimeToLive(ctx, clientv3.LeaseID(id), clientv3.WithAttachedKeys())
	if err != nil {
		s.opts.Log.Debug("etcd lease is left to expire", "lease_id", int64(id), "error", err)
		return
	}
	if len(resp.Keys) == 0 {
		s.revoke(ctx, id)
	}
}

// keepAlive extends a lease by its TTL, once. The client's KeepAliveOnce tries
// again and again without a pause while etcd is unavailable.
func (s *Store) keepAlive(ctx context.Context, id subnet.LeaseID) (ttl time.Duration, err error) {
	for range 2 { // The first token may have ended.
		var token string
		if token, err = s.tokens.get(ctx); err != nil {
			return 0, err
		}
		if ttl, err = s.keepAliveOnce(with(ctx, token), id); !s.tokens.refused(token, err) {
			break
		}
	}
	return ttl, err
}

func (s *Store) keepAliveOnce(ctx context.Context, id subnet.LeaseID) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.leases.LeaseKeepAlive(ctx, grpc.WaitForReady(true))
	if err != nil {
		return 0, err
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
		return 0, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return 0, err
	}
	if resp.TTL <= 0 {
		return 0, subnet.ErrLeaseLost
	}
	return seconds(resp.TTL), nil
}

// TTL tells how long a lease will live if it is not renewed, and for how long
// it was granted. [subnet.ErrLeaseLost]: there is no such lease.
func (s *Store) TTL(ctx context.Context, id subnet.LeaseID) (remaining, granted time.Duration, err error) {
	resp, err := s.client.TimeToLive(ctx, clientv3.LeaseID(id))
	if err == nil && resp.TTL <= 0 || errors.Is(err, rpctypes.ErrLeaseNotFound) {
		err = subnet.ErrLeaseLost
	}
	if err != nil {
		return 0, 0, s.fail(ctx, fmt.Sprintf("ask for the time of lease %x", int64(id)), err)
	}
	return seconds(resp.TTL), seconds(resp.GrantedTTL), nil
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }
