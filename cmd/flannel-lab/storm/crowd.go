package storm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
)

// crowdConfig is the network of a crowd: the largest that there is, a /8 of /24s.
const crowdConfig = `{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`

// crowd is many hosts on one etcd.
type crowd struct {
	endpoint string
	ttl      time.Duration
	hosts    []*host
}

// newCrowd makes n hosts, numbered from first, that have not joined yet.
func newCrowd(endpoint string, first, n int, ttl time.Duration) (*crowd, error) {
	c := &crowd{endpoint: endpoint, ttl: ttl}
	for number := first; number < first+n; number++ {
		h, err := newHost(number, endpoint, ttl)
		if err != nil {
			return nil, errors.Join(err, c.leave())
		}
		c.hosts = append(c.hosts, h)
	}
	return c, nil
}

// putConfig is the operator.
func putConfig(ctx context.Context, endpoint, config string) error {
	s, err := etcdstore.New(etcdstore.Options{Endpoints: []string{endpoint}, Prefix: Prefix})
	if err != nil {
		return err
	}
	defer s.Close()
	w, err := s.Load(ctx)
	if err != nil {
		return err
	}
	_, err = s.PutConfig(ctx, config, w)
	return err
}

// each runs f for all hosts at once.
func (c *crowd) each(ctx context.Context, f func(context.Context, *host) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, h := range c.hosts {
		g.Go(func() error { return f(ctx, h) })
	}
	return g.Wait()
}

// join is the storm: everybody at once. It returns when all are leased.
func (c *crowd) join(ctx context.Context) error {
	// What runs on must not end with the group's context.
	return c.each(ctx, func(_ context.Context, h *host) error { return h.join(ctx) })
}

// meet returns when everybody follows etcd and knows so many leases. That is the end
// of a host's start: what it asks for while it waits for others is none of it.
func (c *crowd) meet(ctx context.Context, leases int) error {
	return c.each(ctx, func(ctx context.Context, h *host) error {
		err := h.await(ctx, func(s *subnet.Snapshot) bool { return s.Synced && s.Len() == leases })
		h.asked = h.store.Stats().Requests
		return err
	})
}

// late is how many requests all hosts have sent since their starts ended.
func (c *crowd) late() uint64 {
	var sum uint64
	for _, h := range c.hosts {
		sum += h.store.Stats().Requests - h.asked
	}
	return sum
}

// catchUp returns when everybody follows etcd and has seen a revision.
func (c *crowd) catchUp(ctx context.Context, revision subnet.Revision) error {
	return c.each(ctx, func(ctx context.Context, h *host) error {
		return h.await(ctx, func(s *subnet.Snapshot) bool { return s.Synced && s.Revision >= revision })
	})
}

// watched waits until etcd has a watch of everybody.
func (c *crowd) watched(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		now, err := c.counts(ctx)
		if err != nil || int(now.Streams) >= len(c.hosts) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%g of %d hosts watch: %w", now.Streams, len(c.hosts), context.Cause(ctx))
		}
	}
}

// retries is how often etcd had no time for a request of the boot's.
func (c *crowd) retries() int {
	sum := 0
	for _, h := range c.hosts {
		sum += h.retries
	}
	return sum
}

// subnets is how many different ones the hosts have leased.
func (c *crowd) subnets() int {
	owners := map[subnet.Subnet]int{}
	for _, h := range c.hosts {
		if s := h.keeper.Lease().Subnet; !s.IsZero() {
			owners[s] = h.number
		}
	}
	return len(owners)
}

// leave ends all hosts.
func (c *crowd) leave() error {
	var g errgroup.Group
	for _, h := range c.hosts {
		g.Go(h.leave)
	}
	return g.Wait()
}

// counts asks the etcd.
func (c *crowd) counts(ctx context.Context) (Counts, error) {
	return fetchCounts(ctx, http.DefaultClient, c.endpoint)
}
