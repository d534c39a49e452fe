package storm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
)

// Prefix is where a crowd's config and leases are: flannel's own.
const Prefix = "/coreos.com/network"

// host is what a daemon is for etcd: one connection, a lease and a view.
type host struct {
	number int
	ttl    time.Duration
	store  *etcdstore.Store

	// What follows is set by join.

	view   *subnet.View
	keeper *subnet.Keeper
	tasks  errgroup.Group
	stop   context.CancelFunc
	// retries is how often etcd had no time for a request.
	retries int
	// asked is how many requests it had sent when it knew everybody.
	asked uint64
}

// newHost makes the host of a number; nothing is asked yet.
func newHost(number int, endpoint string, ttl time.Duration) (*host, error) {
	store, err := etcdstore.New(etcdstore.Options{Endpoints: []string{endpoint}, Prefix: Prefix})
	if err != nil {
		return nil, err
	}
	return &host{number: number, ttl: ttl, store: store}, nil
}

// publicAddr is the address of the host of a number, out of those that carriers
// share and nobody routes to.
func publicAddr(number int) netip.Addr {
	return netip.AddrFrom4([4]byte{100, 64 + byte(number>>16), byte(number >> 8), byte(number)})
}

// attrs are what vxlan publishes. The generation makes another value of it.
func (h *host) attrs(generation int) subnet.Attrs {
	mac := fmt.Sprintf("02:%02x:00:%02x:%02x:%02x", byte(generation), byte(h.number>>16), byte(h.number>>8), byte(h.number))
	return subnet.Attrs{
		PublicIP:    subnet.ByFamily[netip.Addr]{subnet.IPv4: publicAddr(h.number)},
		BackendType: "vxlan",
		BackendData: subnet.ByFamily[subnet.RawJSON]{subnet.IPv4: subnet.RawJSON(fmt.Sprintf(`{"VNI":1,"VtepMAC":%q}`, mac))},
	}
}

// claim says what the daemon would.
func (h *host) claim() subnet.Claim {
	return subnet.Claim{
		Node: subnet.NodeID(fmt.Sprintf("storm-%d", h.number)), Instance: fmt.Sprintf("instance-%d", h.number),
		Attrs: h.attrs(0), TTL: h.ttl, Clock: subnet.SystemClock{},
	}
}

// joinWithin bounds one host's start: many wait for the same etcd.
const joinWithin = 2 * time.Minute

// join does what a daemon does at its start, in its order: one load, which is
// where the view begins, a subnet, and then a keeper and a watch. It returns with the
// lease.
func (h *host) join(ctx context.Context) error {
	starting, cancel := context.WithTimeout(ctx, joinWithin)
	defer cancel()
	claim, clock := h.claim(), subnet.SystemClock{}
	began := clock.Uptime()
	world, err := h.load(starting)
	if err != nil {
		return fmt.Errorf("host %d: %w", h.number, err)
	}
	ctx, h.stop = context.WithCancel(ctx)
	h.view = subnet.NewView(subnet.ViewOptions{Store: h.store, Clock: clock, Node: claim.Node, TTL: h.ttl, World: world})
	asked := clock.Uptime()
	lease, err := h.acquire(starting, world, claim)
	if err != nil {
		return fmt.Errorf("host %d: %w", h.number, err)
	}
	pause := subnet.CrowdPause(world, lease, clock.Uptime()-began, rand.Float64())
	h.tasks.Go(func() error {
		if lab.Wait(ctx, pause) != nil {
			return nil // The host has left.
		}
		return h.view.Run(ctx)
	})
	h.keeper = subnet.NewKeeper(subnet.KeeperOptions{
		Store: h.store, Clock: clock, Claim: claim, Lease: lease, Identity: world.Identity, Asked: asked, View: h.view,
	})
	h.tasks.Go(func() error { return h.keeper.Run(ctx) })
	return nil
}

// retryAfter is how long a host waits after a request that etcd had no time for,
// and up to half as long again.
const retryAfter = time.Second

// load reads the world, however often it takes.
func (h *host) load(ctx context.Context) (subnet.World, error) {
	for {
		world, err := h.store.Load(ctx)
		if err == nil || !h.again(ctx) {
			return world, err
		}
	}
}

// again waits before another try; false: there is no time left for one.
func (h *host) again(ctx context.Context) bool {
	h.retries++
	timer := time.NewTimer(retryAfter + rand.N(retryAfter/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// acquire leases a subnet. It loads anew when the world is out of date, and when it
// does not know what came of a request.
func (h *host) acquire(ctx context.Context, world subnet.World, claim subnet.Claim) (subnet.Lease, error) {
	for {
		l, err := subnet.Acquire(ctx, h.store, world, claim)
		if err == nil {
			return l, nil
		}
		stale := errors.Is(err, subnet.ErrConfigChanged) || errors.Is(err, subnet.ErrStoreChanged) || errors.Is(err, subnet.ErrLeaseLost)
		if !stale && !h.again(ctx) {
			return l, err
		}
		if world, err = h.load(ctx); err != nil {
			return subnet.Lease{}, err
		}
	}
}

// await returns when the host's view shows what is wanted.
func (h *host) await(ctx context.Context, wanted func(*subnet.Snapshot) bool) error {
	for {
		s := h.view.Snapshot()
		if wanted(s) {
			return nil
		}
		select {
		case <-s.Changed():
		case <-ctx.Done():
			return fmt.Errorf("host %d: it has %d leases at revision %d, synced %t: %w",
				h.number, s.Len(), s.Revision, s.Synced, cmp.Or(s.Err, context.Cause(ctx)))
		}
	}
}

// leave ends the host as a daemon ends: its lease stays.
func (h *host) leave() error {
	if h.stop != nil {
		h.stop()
	}
	err := h.tasks.Wait()
	return errors.Join(err, h.store.Close())
}
