package main

import (
	"fmt"
	"net/netip"
	"strings"

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
