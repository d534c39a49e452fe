package lab

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Partition drops every packet of a host at its port of the switch, of whatever
// protocol and also to and from the switch itself, in a direction, beside those
// that are dropped already. Nobody is told: the link stays up.
func (h *Host) Partition(d Direction) error {
	return h.lab.partition(h, func(was Direction) Direction { return was | d })
}

// Rejoin ends the host's partition, and nobody else's.
func (h *Host) Rejoin() error {
	return h.lab.partition(h, func(Direction) Direction { return 0 })
}

// partition changes what is dropped of a host, in the kernel first: what is
// remembered is what is so.
func (l *Lab) partition(h *Host, change func(Direction) Direction) error {
	l.partitions.Lock()
	defer l.partitions.Unlock()
	was := h.dropped
	h.dropped = change(was)
	if err := l.Switch.nft(partitionRules(l.Hosts)); err != nil {
		h.dropped = was
		return fmt.Errorf("partition %s: %w", h.Name, err)
	}
	return nil
}

// partitionTable is in the switch's namespace, where nothing else is filtered.
const partitionTable = "bridge partitions"

// partitionRules is one transaction that makes the table what it should be. A
// frame from a port passes prerouting whether it is for the switch or for another
// port; a frame to a port passes postrouting wherever it comes from.
func partitionRules(hosts []*Host) string {
	var from, to []string
	for _, h := range hosts {
		if h.dropped&Out != 0 {
			from = append(from, h.port())
		}
		if h.dropped&In != 0 {
			to = append(to, h.port())
		}
	}
	// The table is there to be deleted, whether it was or not.
	rules := []string{"add table " + partitionTable, "delete table " + partitionTable}
	for _, c := range []struct {
		hook, match string
		ports       []string
	}{
		{"prerouting", "iifname", from},
		{"postrouting", "oifname", to},
	} {
		if len(c.ports) == 0 {
			continue
		}
		rules = append(rules,
			"add table "+partitionTable,
			fmt.Sprintf("add chain %s %s { type filter hook %s priority -300 ; }", partitionTable, c.hook, c.hook),
			fmt.Sprintf("add rule %s %s %s { %s } counter drop", partitionTable, c.hook, c.match, strings.Join(c.ports, ", ")),
		)
	}
	return strings.Join(rules, "; ")
}

// nftWithin bounds a run of nft, which waits for nobody but the kernel.
const nftWithin = 10 * time.Second

// nft applies rules in the namespace, all or none.
func (n *Node) nft(rules string) error {
	ctx, cancel := context.WithTimeout(context.Background(), nftWithin)
	defer cancel()
	_, err := n.Run(ctx, "nft", rules)
	return err
}
