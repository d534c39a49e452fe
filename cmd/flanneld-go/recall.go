package main

import (
	"context"
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/cmd/internal/catalog"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// recall is what this host knew last: the cache and, since that is a second behind
// when a process is killed, the peers to which the kernel has paths of ours. The view
// lets go of both by the same rules once etcd answers.
func (l *loop) recall(ctx context.Context) subnet.World {
	leases, err := l.recallPaths(ctx)
	if err != nil {
		l.log.Warn("paths in the kernel cannot be read, those of peers that the cache lacks go", "error", err)
	}
	known := l.cache
	added := beside(known.World().Leases, leases)
	if len(added) > 0 {
		l.log.Info("peers that the cache lacks are known by their paths in the kernel", "peers", len(added))
	}
	known.Peers = slices.AppendSeq(slices.Clone(known.Peers), subnet.Each(added))
	return known.World()
}

// recallPaths returns the peers to which an earlier process left paths, if they are
// of the kind that this one makes: others will be removed.
func (l *loop) recallPaths(ctx context.Context) ([]subnet.Lease, error) {
	cfg, err := catalog.Parse(l.cache.Config.Text)
	if err != nil || !l.appliedLast(cfg) {
		return nil, nil //nolint:nilerr // takeConfig says what is wrong with it
	}
	b, err := catalog.Detached(cfg, l.host, nil)
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
