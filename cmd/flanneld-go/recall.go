package main

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/cmd/internal/catalog"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// recall is what this host knew last.
func (l *loop) recall(ctx context.Context) subnet.World {
	known := l.cache
	var added int
	if known.Peers, added = l.recallPeers(ctx); added > 0 {
		l.log.Info("peers that the cache lacks are known by their paths in the kernel", "peers", added)
	}
	return known.World()
}

// recallPeers are those of the cache and, since that is a second behind when a process
// is killed, those to which the kernel has paths of ours. The view lets go of both by
// the same rules once etcd answers.
func (l *loop) recallPeers(ctx context.Context) (peers []*subnet.Lease, added int) {
	paths, err := l.recallPaths(ctx)
	if err != nil {
		l.log.Warn("paths in the kernel cannot be read, those of peers that the cache lacks go", "error", err)
	}
	paths = beside(l.cache.World().Leases, paths)
	return slices.AppendSeq(slices.Clone(l.cache.Peers), subnet.Each(paths)), len(paths)
}

// recallTimes says for how long etcd has not been heard by any process of this host, as
// far as one has noted it, and for how much longer that one would have held deleted
// leases. Where the clock was set back since, that is not known: for too long.
func (l *loop) recallTimes() (unheard, holding time.Duration) {
	c, now := l.cache, l.clock.Now()
	if c.Identity == "" {
		return 0, 0
	}
	unheard = now.Sub(c.Heard)
	if unheard < 0 {
		unheard = l.opts.leaseTTL
	}
	return min(unheard, l.opts.leaseTTL), max(0, c.Held.Sub(now))
}

// noteTimes takes what [loop.recallTimes] reads into the cache. The wall clock is the
// only one that goes on while a host is down.
func (l *loop) noteTimes(c *statedir.Cache) {
	now := l.clock.Now().Round(0)
	c.Heard = now.Add(-l.view.Unheard())
	if left := l.snap.Held - l.clock.Uptime(); left > 0 {
		c.Held = now.Add(left)
	}
}

// timely reports whether the times of a cache that is written are near enough to those
// of the next. What is noted too seldom makes the next process hold what it need not.
func (l *loop) timely(c, next statedir.Cache) bool {
	part := l.opts.leaseTTL / 24
	return next.Heard.Sub(c.Heard).Abs() < max(part, heardLeast) && next.Held.Sub(c.Held).Abs() < max(part, cacheLeast)
}

// recallPaths returns the peers to which an earlier process left paths, if they are
// of the kind that this one makes: others will be removed.
func (l *loop) recallPaths(ctx context.Context) ([]subnet.Lease, error) {
	cfg, err := catalog.Parse(l.cache.Config.Text)
	if err != nil || !l.appliedLast(cfg) {
		return nil, nil //nolint:nilerr // takeConfig says what is wrong with it
	}
	b, err := catalog.Detached(cfg, l.opts.instance.Instance, l.host, nil)
	if err != nil {
		return nil, err
	}
	r, ok := b.(backend.Recaller)
	if !ok {
		return nil, nil
	}
	return r.Recall(ctx)
}

// beside returns those leases that overlap none of known. As a rule all do, and
// are found by their prefix.
func beside(known, leases []subnet.Lease) []subnet.Lease {
	prefixes := make(map[netip.Prefix]bool, len(known))
	for _, k := range known {
		for _, p := range k.Subnet {
			prefixes[p] = p.IsValid()
		}
	}
	return slices.DeleteFunc(leases, func(x subnet.Lease) bool {
		same := func(p netip.Prefix) bool { return prefixes[p] }
		overlaps := func(k subnet.Lease) bool { return k.Subnet.Overlaps(x.Subnet) }
		return slices.ContainsFunc(x.Subnet[:], same) || slices.ContainsFunc(known, overlaps)
	})
}
