package firewalld

import (
	"fmt"
	"net/netip"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// The policies of ours. A name may have 17 characters.
const (
	policyForward = "flanneld-go-fwd"
	policyInput   = "flanneld-go-in"
	// description is the proof that a policy is ours.
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
	// Peers are those who may send to Port.
	Peers []netip.Prefix
	// Interfaces are those that no zone with masquerade may have: the ways
	// by which packets for peers go out, if nobody else keeps their sources.
	Interfaces []string
}

// policy is one policy of ours with the rules it should have.
type policy struct {
	name string
	// egress is where packets go: "ANY" is through the host, "HOST" to it.
	egress string
	rules  []string
}

// compile returns the policies, always both. Rules are in the form in which
// firewalld tells them.
func compile(d Desired) []policy {
	forward, input := policy{name: policyForward, egress: "ANY"}, policy{name: policyInput, egress: "HOST"}
	for _, f := range subnet.Families() {
		network, own := d.Networks[f], d.Own[f]
		if d.Forward && network.IsValid() && own.IsValid() {
			forward.rules = append(forward.rules, pass(f, network, own), pass(f, own, network))
		}
	}
	if d.Port != 0 {
		for _, p := range d.Peers {
			input.rules = append(input.rules, fmt.Sprintf(
				`rule family="%s" source address="%s" port port="%d" protocol="udp" accept`,
				family(subnet.FamilyOf(p.Addr())), p, d.Port))
		}
	}
	return []policy{forward, input}
}

func pass(f subnet.Family, from, to netip.Prefix) string {
	return fmt.Sprintf(`rule family="%s" source address="%s" destination address="%s" accept`, family(f), from, to)
}

// family is firewalld's name of it.
func family(f subnet.Family) string { return [2]string{"ipv4", "ipv6"}[f] }
