package faults

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// look is what of a host is compared with what it was.
type look uint8

const (
	// lookAtPaths: the device, its entries, and the routes.
	lookAtPaths look = iota
	// lookAtRules: the firewall's.
	lookAtRules
	// lookAtForwarding: whether the kernel forwards what peers send.
	lookAtForwarding
)

// state prints what is looked at.
func (n *network) state(ctx context.Context, l look) (string, error) {
	switch l {
	case lookAtRules:
		return n.rules(ctx)
	case lookAtForwarding:
		host, err := n.kernel.Sysctl("net/ipv4/ip_forward")
		if err != nil {
			return "", err
		}
		entry, err := n.kernel.Sysctl("net/ipv4/conf/" + n.entry() + "/forwarding")
		return host + " " + entry, err
	case lookAtPaths:
	}
	return n.paths(ctx)
}

// paths prints the host's device, its entries and the routes to peers. Indexes are
// not among it: a device that is made anew has another.
func (n *network) paths(ctx context.Context) (string, error) {
	links, err := n.kernel.Links(ctx)
	if err != nil {
		return "", err
	}
	device := map[int]string{}
	var lines []string
	for _, l := range links {
		device[l.Index] = l.Name
		if l.Name == n.device() {
			lines = append(lines, fmt.Sprintf("%s mtu %d mac %s up %t alias %s", l.Name, l.MTU, l.MAC, l.Up, l.Alias))
		}
	}
	routes, err := n.routes(ctx)
	if err != nil {
		return "", err
	}
	for _, r := range routes {
		lines = append(lines, r.Notation(device[r.Link]))
	}
	for _, l := range links {
		if l.Name != n.device() {
			continue
		}
		entries, err := entriesOn(ctx, n.kernel, l)
		if err != nil {
			return "", err
		}
		lines = append(lines, entries...)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}

// routes are those of the daemon's.
func (n *network) routes(ctx context.Context) ([]kernel.Route, error) {
	routes, err := n.kernel.Routes().List(ctx)
	return slices.DeleteFunc(routes, func(r kernel.Route) bool { return r.Protocol != kernel.Protocol }), err
}

// entriesOn prints what hangs on a device.
func entriesOn(ctx context.Context, k *kernel.Netlink, l kernel.Link) ([]string, error) {
	lines, err := rows(ctx, k.Addrs(l.Index), func(a kernel.Addr) string { return a.Notation(l.Name) })
	if err != nil || l.Type != "vxlan" {
		return lines, err
	}
	fdb, err := rows(ctx, k.FDB(l.Index), func(e kernel.FDB) string { return e.Notation(l.Name) })
	if err != nil {
		return nil, err
	}
	neighbours, err := rows(ctx, k.Neighbours(l.Index), func(e kernel.Neighbour) string { return e.Notation(l.Name) })
	return slices.Concat(lines, fdb, neighbours), err
}

func rows[E any](ctx context.Context, table reconcile.Table[E], notation func(E) string) ([]string, error) {
	entries, err := table.List(ctx)
	if err != nil {
		return nil, err
	}
	lines := make([]string, len(entries))
	for i, e := range entries {
		lines[i] = notation(e)
	}
	return lines, nil
}

// rules prints the daemon's rules; those of others are not looked for, since
// nobody brings them back.
func (n *network) rules(ctx context.Context) (string, error) {
	text, err := n.host().Run(ctx, "iptables-save")
	if err != nil {
		return "", err
	}
	var ours []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "-A ") && strings.Contains(line, "flannel") {
			ours = append(ours, strings.TrimSpace(line))
		}
	}
	slices.Sort(ours)
	return strings.Join(ours, "\n"), nil
}

func names(links []kernel.Link) []string {
	var all []string
	for _, l := range links {
		all = append(all, l.Name)
	}
	return all
}
