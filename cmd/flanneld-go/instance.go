package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// rival says why a config cannot be used next to the other instances on this host: a
// destination leads by one of them alone. By the same --etcd-prefix it would even be the
// same lease.
func (l *loop) rival(cfg *subnet.Config) error {
	for _, other := range l.dir.Neighbours(l.opts.instance.Instance) {
		if other.Err != nil {
			l.log.Warn("state of another instance is unreadable, going on without", "error", other.Err)
			continue
		}
		if ours, theirs, overlap := overlapping(cfg, other); overlap {
			return withHint(fmt.Errorf("network %s overlaps %s of instance %d on this host (state in %s): each instance needs a network of its own",
				ours, theirs, other.Instance, other.Dir),
				"--etcd-prefix of another network; or, if that instance is not to come back, flannelctl cleanup --instance=%d --state-dir=%s --yes", other.Instance, other.Dir)
		}
	}
	return nil
}

// takeNetworkWithin is how long a start waits for another instance's, which takes
// moments, or for its cleanup.
const takeNetworkWithin = 5 * time.Second

// takeNetwork writes down, before anything is done by the config, which networks this
// instance is in. Of two that start at the same moment one finds what the other wrote,
// and has no config then. What was applied by an earlier one stays written beside it,
// until takeBackend has removed that.
func (l *loop) takeNetwork(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, takeNetworkWithin)
	defer cancel()
	if err := l.dir.MakeFolder(); err != nil {
		// Nobody can write anything there, which is a problem when we do.
		l.log.DebugContext(ctx, "state cannot be locked", "error", err)
	}
	unlock, err := l.dir.Lock(ctx)
	if err == nil {
		defer unlock()
		err = l.rival(l.config.current)
	}
	if err != nil {
		l.config.current = nil
		return err
	}
	intent := l.saved
	for _, r := range ranges(l.config.current) {
		if !slices.Contains(intent.Ranges, r) {
			intent.Ranges = append(slices.Clip(intent.Ranges), r)
		}
	}
	if len(intent.Ranges) > len(l.saved.Ranges) {
		l.unsaved = l.dir.SaveHost(intent) != nil
	}
	return nil
}

// overlapping are the networks of a config and of another instance that have addresses
// in common.
func overlapping(cfg *subnet.Config, other statedir.Neighbour) (ours, theirs netip.Prefix, overlap bool) {
	for _, text := range other.Host.Ranges {
		text, _, _ = strings.Cut(text, " ")
		theirs, err := netip.ParsePrefix(text)
		if err != nil {
			continue // not by this version
		}
		for _, r := range cfg.Ranges {
			if r.Network.IsValid() && r.Network.Overlaps(theirs) {
				return r.Network, theirs, true
			}
		}
	}
	return netip.Prefix{}, netip.Prefix{}, false
}
