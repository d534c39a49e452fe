package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// forwardingState is what is known of forwarding.
type forwardingState struct {
	// whole: it was on everywhere at the end of the last round, so that what is off
	// now somebody else has turned off.
	whole bool
	// inner are the indexes of the interfaces with an address out of our subnet when
	// their names were looked up last, and names those.
	inner []int
	names []string
}

// keepForwarding turns forwarding on where it is off, of the host and of each
// interface that the overlay's packets come in by, and remembers that for the
// cleanup.
func (l *loop) keepForwarding(ctx context.Context) error {
	entries, unread := l.entries(ctx)
	changed, err := firewall.Forwarding{
		Families: l.families(), Uplink: l.uplink.Link.Name, Ours: l.forwardsIPv6(), Entries: entries,
	}.Ensure(ctx, l.host)
	if l.forwarding.whole && len(changed) > 0 {
		l.repaired(reconcile.Result{Put: len(changed)}, kernel.Topic(l.heard.Load())) //nolint:gosec // it was one
	}
	for _, c := range changed {
		if l.quarrel.wait == 0 {
			l.log.Info("forwarding turned on", "sysctl", c.Name, "before", c.From, "after", c.To)
		}
	}
	if len(changed) > 0 {
		l.saved.Remember(changed)
		l.saveHost()
	}
	l.forwarding.whole = err == nil && l.path.applied // then all that is ours is there
	return errors.Join(err, unread)
}

// forwardsIPv6 reports whether it is for our sake that the host forwards IPv6.
func (l *loop) forwardsIPv6() bool {
	return slices.ContainsFunc(l.saved.Sysctls, func(c firewall.SysctlChange) bool {
		return c.Name == firewall.ForwardingIPv6
	})
}

// entries are the interfaces that packets from or to our containers come in by: the
// tunnel, the uplink where peers send plainly, and who has an address out of our
// subnet, such as docker0.
func (l *loop) entries(ctx context.Context) ([]string, error) {
	tunnel := l.backend.Tunnel()
	names := slices.Clone(tunnel.Devices)
	if tunnel.Direct {
		names = append(names, l.uplink.Link.Name)
		names = append(names, interfaces(l.move.also(l.clock.Uptime()))...)
	}
	addrs, err := l.host.Addrs(0).List(ctx)
	if err != nil {
		return names, fmt.Errorf("look for containers: %w", err)
	}
	var inner []int
	for _, a := range addrs {
		within := func(own netip.Prefix) bool { return own.IsValid() && own.Contains(a.Prefix.Addr()) }
		if slices.ContainsFunc(l.lease.own.Subnet[:], within) && !slices.Contains(inner, a.Link) {
			inner = append(inner, a.Link)
		}
	}
	slices.Sort(inner)
	if f := &l.forwarding; !slices.Equal(inner, f.inner) {
		links, err := l.host.Links(ctx)
		if err != nil {
			return names, fmt.Errorf("look for containers: %w", err)
		}
		f.inner, f.names = inner, nil
		for _, link := range links {
			if slices.Contains(inner, link.Index) && !slices.Contains(tunnel.Devices, link.Name) {
				f.names = append(f.names, link.Name)
			}
		}
	}
	return append(names, l.forwarding.names...), nil
}
