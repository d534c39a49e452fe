package main

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// clash is an address that leases of several owners publish.
type clash struct {
	addr   netip.Addr
	leases []subnet.Lease
}

// clashes finds them, in the order of their leases.
func clashes(leases iter.Seq[*subnet.Lease]) []clash {
	var all []clash
	for _, group := range subnet.SamePublicIP(leases) {
		for _, f := range subnet.Families() {
			same := slices.DeleteFunc(slices.Clone(group), func(x subnet.Lease) bool { return x.Attrs.PublicIP[f] != group[0].Attrs.PublicIP[f] })
			if len(same) == len(group) && group[0].Attrs.PublicIP[f].IsValid() {
				all = append(all, clash{group[0].Attrs.PublicIP[f], group})
			}
		}
	}
	return all
}

// of returns the leases that belong to node, or those that do not.
func (c clash) of(node subnet.NodeID, belong bool) []subnet.Lease {
	return slices.DeleteFunc(slices.Clone(c.leases), func(x subnet.Lease) bool { return (x.Attrs.Owner == node) != belong })
}

// findClashes looks for addresses with several owners, and shows them.
func (l *loop) findClashes() {
	if l.path.judged == l.snap {
		return
	}
	l.path.clashes, l.path.judged = clashes(l.snap.Leases()), l.snap
	var shown []status.SharedAddress
	for _, c := range l.path.clashes {
		a := status.SharedAddress{PublicIP: c.addr.String()}
		for _, x := range c.leases {
			a.Holders = append(a.Holders, status.Holder{Subnet: x.Subnet.String(), Node: string(x.Attrs.Owner)})
		}
		shown = append(shown, a)
	}
	l.board.Update(func(s *status.Status) { s.SharedAddresses = shown })
}

// sharedByUs is the problem that another owner publishes this host's address: as
// a rule the lease of this very machine before it was installed anew. Traffic to
// us is as it should be.
func (l *loop) sharedByUs() error {
	for _, c := range l.path.clashes {
		ours, others := c.of(l.node, true), c.of(l.node, false)
		if len(ours) == 0 {
			continue
		}
		return &harmless{withHint(fmt.Errorf("this host's address %s is published by another owner too: ours is %s, the other %s: "+
			"a lease that this machine had before it was installed anew, or two hosts with one --public-ip", c.addr, listHolders(ours), listHolders(others)),
			"%s, if no other host has it; else give one of them another --public-ip", releaseOneOf(others))}
	}
	return nil
}

// sharedByPeers says which peers publish one address, and what to type; both are
// empty where none do.
func (l *loop) sharedByPeers() (problem, hint string) {
	others := slices.DeleteFunc(slices.Clone(l.path.clashes), func(c clash) bool { return len(c.of(l.node, true)) > 0 })
	if len(others) == 0 {
		return "", ""
	}
	first := others[0]
	problem = fmt.Sprintf("several owners publish %s: %s", first.addr, listHolders(first.leases))
	if len(others) > 1 {
		problem += fmt.Sprintf("; and %d more such addresses", len(others)-1)
	}
	return problem, releaseOneOf(first.leases) + ", whichever is of a host that is gone; if none is, give one of them another --public-ip"
}

// releaseOneOf is what to type to release one of the leases. Which, the operator
// knows: no revision tells who lives.
func releaseOneOf(leases []subnet.Lease) string {
	var lines []string
	for _, x := range leases {
		lines = append(lines, fmt.Sprintf("flannelctl release %s --yes", x.Subnet))
	}
	return strings.Join(lines, " or ")
}

// listHolders names leases by subnet and owner.
func listHolders(leases []subnet.Lease) string {
	var names []string
	for _, x := range leases {
		names = append(names, fmt.Sprintf("%s of node %s", x.Subnet, x.Attrs.Owner))
	}
	return strings.Join(names, " and ")
}

// badKeys is the status of keys that are no leases.
func badKeys(bad []subnet.BadKey) []status.BadKey {
	var list []status.BadKey
	for _, b := range bad {
		err := b.Err
		if err == nil {
			err = errors.New("is no lease")
		}
		list = append(list, status.BadKey{Key: b.Key, Error: err.Error()})
	}
	return list
}
