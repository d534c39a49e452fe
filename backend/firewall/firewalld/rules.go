package firewalld

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// The objects of the first instance, see [owner] for others. A policy's name may have 17
// characters.
const (
	policyForward = "flanneld-go-fwd"
	policyInput   = "flanneld-go-in"
	// setPrefix and a family are the name of a set of ours.
	setPrefix = "flanneld-go-"
	// description is the proof that a policy or set is ours.
	description = "flanneld-go: rules are written at run time, by the daemon"
	// priority is behind whatever an administrator puts behind a zone's rules.
	priority = 32000
)

// Desired is what firewalld should let through. Families are data: what is zero
// for a family is off for it.
type Desired struct {
	// Networks are the ranges of the whole overlay.
	Networks subnet.ByFamily[netip.Prefix]
	// Own is this host's subnet.
	Own subnet.Subnet
	// Forward: let the overlay through.
	Forward bool
	// Port is the tunnel's UDP port, 0 for none.
	Port uint16
	// Peers are those who may send to Port, as prefixes that do not overlap.
	Peers []netip.Prefix
	// Interfaces are those that no zone with masquerade may have: the ways
	// by which packets for peers go out, if nobody else keeps their sources.
	Interfaces []string
}

// owner is an instance, as the one that objects belong to.
type owner kernel.Instance

// named is the owner's name for what the first instance calls name.
func (o owner) named(name string) string {
	return kernel.Instance(o).Alias() + strings.TrimPrefix(name, kernel.Alias)
}

// objects are the names of all that the owner may have.
func (o owner) objects() []string {
	return []string{o.named(policyForward), o.named(policyInput), o.named(setName(subnet.IPv4)), o.named(setName(subnet.IPv6))}
}

// content is what firewalld should hold of ours.
type content struct {
	forward, input policy
	// sets are those that input speaks of, and those that exist.
	sets []peerSet
}

// policy is one policy of ours with the rules it should have.
type policy struct {
	name string
	// egress is where packets go: "ANY" is through the host, "HOST" to it.
	egress string
	rules  []string
	// sets are the names of those that the rules speak of.
	sets []string
}

// compile says what firewalld should hold. Rules are in the form in which firewalld
// tells them. Peers are listed in a policy until they are many; from then on they
// are in a set, and remain there.
func (o owner) compile(d Desired, exists func(set string) bool) content {
	out := content{
		forward: policy{name: o.named(policyForward), egress: "ANY"},
		input:   policy{name: o.named(policyInput), egress: "HOST"},
	}
	for _, f := range subnet.Families() {
		network, own := d.Networks[f], d.Own[f]
		if d.Forward && network.IsValid() && own.IsValid() {
			out.forward.rules = append(out.forward.rules, pass(f, network, own), pass(f, own, network))
		}
		out.addInput(o.named(setName(f)), f, d.peers(f), d.Port, exists)
	}
	return out
}

// peers are those of a family, if there is anything to let in.
func (d Desired) peers(f subnet.Family) []netip.Prefix {
	if d.Port == 0 {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(d.Peers), func(p netip.Prefix) bool { return subnet.FamilyOf(p.Addr()) != f })
}

func (c *content) addInput(name string, f subnet.Family, peers []netip.Prefix, port uint16, exists func(set string) bool) {
	accept := func(source string) {
		c.input.rules = append(c.input.rules, fmt.Sprintf(
			`rule family="%s" source %s port port="%d" protocol="udp" accept`, family(f), source, port))
	}
	if len(peers) <= few && !exists(name) {
		for _, p := range peers {
			accept(fmt.Sprintf(`address="%s"`, p))
		}
		return
	}
	set := setOf(name, f, peers)
	c.sets = append(c.sets, set)
	if len(peers) > 0 {
		c.input.sets = append(c.input.sets, set.name)
		accept(fmt.Sprintf(`ipset="%s"`, set.name))
	}
}

// isOurs reports whether an object has a name of any instance's. Each writes its own
// again after a reload.
func isOurs(name string) bool {
	return slices.ContainsFunc(kernel.Instances(), func(i kernel.Instance) bool { return slices.Contains(owner(i).objects(), name) })
}

func setName(f subnet.Family) string { return setPrefix + family(f) }

func pass(f subnet.Family, from, to netip.Prefix) string {
	return fmt.Sprintf(`rule family="%s" source address="%s" destination address="%s" accept`, family(f), from, to)
}

// family is firewalld's name of it.
func family(f subnet.Family) string { return [2]string{"ipv4", "ipv6"}[f] }
