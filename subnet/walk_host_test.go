package subnet_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// machine is one host: it leases, keeps and follows, as a daemon does.
type machine struct {
	w      *walker
	name   string
	claim  subnet.Claim
	policy subnet.OnConflict
	clock  *bubbleClock
	// random is what all jitter of the host is made of.
	random float64
	mem    *memstore.Store
	store  subnet.Store
	// lose is how many answers get lost, delay how many writes are sent late,
	// after their caller was told that they failed.
	lose, delay atomic.Int64
	// oneWay is how long requests and answers travel.
	oneWay atomic.Int64
	// faulty: the store cannot be reached, or only with losses.
	faulty bool

	starts int
	stop   context.CancelFunc
	done   chan struct{}
	keeper atomic.Pointer[subnet.Keeper]
	view   atomic.Pointer[subnet.View]
	// cache is what a process knew at its end; nil: there was none.
	cache *cached
}

// cached is what a file remembers.
type cached struct {
	lease subnet.Lease
	world subnet.World
	// former: the lease is not to be used without asking.
	former bool
	// Uptimes of when the store was heard, and until when deleted leases are held.
	heard, held time.Duration
}

func newMachine(w *walker, name, ip string, policy subnet.OnConflict) *machine {
	h := &machine{w: w, name: name, claim: claim(name, ip), policy: policy, clock: newClock(), random: 0.5}
	h.claim.TTL, h.claim.Clock = walkTTL, h.clock
	h.mem = w.data.Open(memstore.Options{Before: func(method string) error {
		if w.full.Load() && (method == "Create" || method == "Update") {
			return errFull
		}
		return nil
	}, After: func(method string) error {
		if method != "Load" && h.lose.Add(-1) >= 0 {
			return errDown
		}
		return nil
	}})
	h.oneWay.Store(int64(2 * time.Millisecond))
	h.store = faultyStore{h.mem, h}
	return h
}

// start boots the host unless it runs.
func (h *machine) start() {
	if h.done != nil {
		select {
		case <-h.done:
		default:
			return
		}
	}
	h.starts++
	h.claim.Instance = fmt.Sprintf("%s-%d", h.name, h.starts)
	ctx, stop := context.WithCancel(context.Background())
	h.stop, h.done = stop, make(chan struct{})
	go func() { defer close(h.done); h.run(ctx, h.claim) }()
}

// kill ends the process as kill -9 does.
func (h *machine) kill() {
	h.stop()
	<-h.done
}

// leave ends the process with --release-on-exit.
func (h *machine) leave() {
	k := h.keeper.Load()
	h.kill()
	if k != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		h.cache.former = true
		_ = k.Release(ctx)
	}
}

func (h *machine) mend() {
	h.mem.SetUnavailable(nil)
	h.lose.Store(0)
	h.delay.Store(0)
	h.faulty = false
}

// move gives the host another address, which takes a restart if it runs.
func (h *machine) move(ip string) {
	running := h.keeper.Load() != nil
	if running {
		h.kill()
	}
	h.claim.Attrs.PublicIP = addr4(ip)
	if running {
		h.start()
	}
}

func (h *machine) run(ctx context.Context, c subnet.Claim) {
	o := subnet.KeeperOptions{Store: h.store, Clock: h.clock, Claim: c, OnConflict: h.policy, Random: func() float64 { return h.random }}
	vo := subnet.ViewOptions{Store: h.store, Clock: h.clock, Node: c.Node, TTL: walkTTL, Random: o.Random}
	if err := h.acquire(ctx, &o, &vo); err != nil {
		return
	}
	o.View = subnet.NewView(vo)
	k := subnet.NewKeeper(o)
	h.view.Store(o.View)
	h.keeper.Store(k)
	ctx, stop := context.WithCancel(ctx)
	followed := make(chan struct{})
	go func() { defer close(followed); _ = o.View.Run(ctx) }()
	// An end that is not ours is one that names another: it is started again.
	_ = k.Run(ctx)
	h.keeper.Store(nil)
	stop()
	<-followed
	s := o.View.Snapshot()
	h.cache = &cached{
		lease: k.Lease(), former: k.Status().Withdraw,
		world: subnet.World{Identity: s.Identity, Revision: s.Revision, Config: s.Config, Leases: leasesOf(s)},
		heard: h.clock.Uptime() - o.View.Unheard(), held: s.Held,
	}
}

// acquire leases a subnet, for as long as it takes, or takes up the lease of the
// cache while the store is silent or has lost the config.
func (h *machine) acquire(ctx context.Context, o *subnet.KeeperOptions, vo *subnet.ViewOptions) error {
	if h.cache != nil {
		o.Claim.Previous = []subnet.Subnet{h.cache.lease.Subnet}
	}
	for ctx.Err() == nil {
		w, err := h.store.Load(ctx)
		if h.cache != nil {
			vo.Unheard, vo.Holding = h.clock.Uptime()-h.cache.heard, max(0, h.cache.held-h.clock.Uptime())
		}
		if h.cache != nil && !h.cache.former && (err != nil || w.Config.Text == "") {
			o.Lease, o.Identity, o.Cached = h.cache.lease, h.cache.world.Identity, true
			vo.World, vo.Cached = h.cache.world, true
			return nil
		}
		if err == nil {
			if o.Lease, err = subnet.Acquire(ctx, h.store, w, o.Claim); err == nil {
				o.Identity, vo.World = w.Identity, w
				if h.cache != nil {
					vo.Former = h.cache.world
				}
				return nil
			}
		}
		pause := time.NewTimer(time.Second)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
	}
	return ctx.Err()
}
