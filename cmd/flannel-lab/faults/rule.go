package faults

import (
	"context"
	"fmt"
	"strings"
	"time"
)

func ruleFaults() []Fault {
	return []Fault{
		{Name: "rules-flushed", Title: "iptables -F in every table", bounds: alike(1000 * ms), look: lookAtRules, do: flushTables("iptables", "filter", "nat", "raw", "mangle")},
		{Name: "nft-flushed", Title: "nft flush table of every table", bounds: alike(1000 * ms), look: lookAtRules, do: flushNFT},
		{Name: "forwarding-off", Title: "sysctl ip_forward=0", bounds: alike(1000 * ms), look: lookAtForwarding, do: sysctl("net.ipv4.ip_forward=0")},
		{
			Name: "interface-forwarding-off", Title: "sysctl forwarding=0 of the interface that peers' packets come in by", bounds: alike(1000 * ms),
			look: lookAtForwarding, do: stopForwarding,
		},
		{
			Name: "rp-filter", Title: "sysctl rp_filter=1 everywhere", bounds: alike(0), do: rpFilter("1"),
			undo: func(ctx context.Context, n *network) error { _, err := rpFilter("0")(ctx, n); return err },
		},
	}
}

func flushTables(tool string, tables ...string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		for _, t := range tables {
			if err := n.run(ctx, "%s -w -t %s -F", tool, t); err != nil {
				return time.Time{}, err
			}
		}
		return time.Time{}, acceptOwn(ctx, n.host())
	}
}

// flushNFT empties all tables. Their chains stay, and with them the policies that
// drop.
func flushNFT(ctx context.Context, n *network) (time.Time, error) {
	tables, err := n.host().Run(ctx, "nft", "list", "tables")
	if err != nil {
		return time.Time{}, err
	}
	var flush strings.Builder
	for line := range strings.Lines(tables) {
		fmt.Fprintf(&flush, "flush %s;", strings.TrimSpace(line))
	}
	if _, err = n.host().Run(ctx, "nft", flush.String()); err != nil {
		return time.Time{}, err
	}
	return time.Time{}, acceptOwn(ctx, n.host())
}

func sysctl(assignment string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		return time.Time{}, n.run(ctx, "sysctl -qw %s", assignment)
	}
}

// entry is the interface by which the overlay's packets come in.
func (n *network) entry() string {
	if n.backend == hostGW {
		return uplink
	}
	return n.device()
}

func stopForwarding(_ context.Context, n *network) (time.Time, error) {
	return time.Time{}, n.kernel.SetSysctl("net/ipv4/conf/"+n.entry()+"/forwarding", "0")
}

// rpFilter sets the filter of all interfaces, as distributions do.
func rpFilter(value string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		links, err := n.kernel.Links(ctx)
		if err != nil {
			return time.Time{}, err
		}
		for _, name := range append([]string{"all", "default"}, names(links)...) {
			if err := n.kernel.SetSysctl("net/ipv4/conf/"+name+"/rp_filter", value); err != nil {
				return time.Time{}, err
			}
		}
		return time.Time{}, nil
	}
}
