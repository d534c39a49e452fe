package storm

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
)

// commit is a change and when etcd acknowledged it.
type commit struct {
	revision subnet.Revision
	at       time.Time
}

// strangers are further hosts that come, change and go. For the crowd they are
// nothing but their keys, so one connection does for all of them.
type strangers struct {
	store *etcdstore.Store
	world subnet.World
	// here are the leases of those that are here.
	here []subnet.Lease
	came int
}

func newStrangers(ctx context.Context, endpoint string) (*strangers, error) {
	store, err := etcdstore.New(etcdstore.Options{Endpoints: []string{endpoint}, Prefix: Prefix})
	if err != nil {
		return nil, err
	}
	s := &strangers{store: store}
	if s.world, err = store.Load(ctx); err != nil {
		store.Close()
		return nil, err
	}
	return s, nil
}

// firstStranger is the number of the first one, above those of all crowds.
const firstStranger = 1 << 20

// step makes one change: a join, a change of somebody's attributes, and a leave, in
// turn. It returns the revision of it, or zero for a leave, of which etcd's answer
// does not say one.
func (s *strangers) step(ctx context.Context, n int) (subnet.Revision, error) {
	const kinds = 3
	switch n % kinds {
	case 0:
		s.came++
		h := host{number: firstStranger + s.came}
		claim := h.claim()
		claim.TTL = subnet.DefaultTTL
		l, err := subnet.Acquire(ctx, s.store, s.world, claim)
		if err != nil {
			return 0, fmt.Errorf("a host joins: %w", err)
		}
		s.here = append(s.here, l)
		return l.Modified, nil
	case 1:
		l := s.here[len(s.here)-1]
		l.Attrs.PublicIP[subnet.IPv4] = netip.AddrFrom4([4]byte{100, 127, byte(n >> 8), byte(n)})
		l, err := s.store.Update(ctx, l)
		if err != nil {
			return 0, fmt.Errorf("a host changes: %w", err)
		}
		s.here[len(s.here)-1] = l
		return l.Modified, nil
	default:
		l := s.here[0]
		s.here = s.here[1:]
		if err := s.store.Release(ctx, l); err != nil {
			return 0, fmt.Errorf("a host leaves: %w", err)
		}
		return 0, nil
	}
}

// churn makes changes at a rate for a while, and returns them.
func (s *strangers) churn(ctx context.Context, perSecond float64, lasting time.Duration) ([]commit, error) {
	var commits []commit
	tick := time.NewTicker(time.Duration(float64(time.Second) / perSecond))
	defer tick.Stop()
	for n := range int(perSecond * lasting.Seconds()) {
		revision, err := s.step(ctx, n)
		if err != nil {
			return nil, err
		}
		if revision > 0 {
			commits = append(commits, commit{revision, time.Now()})
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return commits, nil
}

// witness notes when a host's view had reached which revision.
type witness struct {
	mu sync.Mutex
	// seen is guarded by mu.
	seen []commit
}

// watch notes what the host sees until ctx ends.
func (w *witness) watch(ctx context.Context, h *host) {
	for {
		s := h.view.Snapshot()
		w.mu.Lock()
		w.seen = append(w.seen, commit{s.Revision, time.Now()})
		w.mu.Unlock()
		select {
		case <-s.Changed():
		case <-ctx.Done():
			return
		}
	}
}

// delays are how long after each commit the host had seen it, as far as it has.
func (w *witness) delays(commits []commit) []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []time.Duration
	for _, c := range commits {
		i, _ := slices.BinarySearchFunc(w.seen, c.revision, func(s commit, r subnet.Revision) int { return int(s.revision - r) })
		if i < len(w.seen) {
			all = append(all, max(0, w.seen[i].at.Sub(c.at)))
		}
	}
	return all
}
