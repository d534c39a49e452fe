package dockerd

import "slices"

// Firewall is where Docker's rules are.
type Firewall uint8

// The firewalls of Docker. Before 28.2 the engine does not say which it is, and
// has iptables only.
const (
	// IPTables: chains of iptables, DOCKER-USER among them.
	IPTables Firewall = iota
	// Firewalld: the same, by firewalld's leave.
	Firewalld
	// NFTables: tables docker-bridges of its own, and no DOCKER-USER.
	NFTables
)

// String is the engine's own word for it.
func (f Firewall) String() string {
	switch f {
	case IPTables:
		return "iptables"
	case Firewalld:
		return "iptables+firewalld"
	case NFTables:
		return "nftables"
	}
	return "unknown"
}

// Capabilities are what can be done with a Docker, and what it does to us: see
// the table of the package.
type Capabilities struct {
	Version  Version
	Firewall Firewall
	// Validate: dockerd can judge a file before it is in place.
	Validate bool
	// NetworkOpts: daemon.json may say which MTU networks get that are made
	// later.
	NetworkOpts bool
	// Drops: what comes to a container from elsewhere than its own bridge is
	// lost unless somebody accepts it ahead of Docker.
	Drops bool
	// TrustedInterfaces: a network may name interfaces to accept from.
	TrustedInterfaces bool
	// AcceptMark: packets may be accepted by a mark.
	AcceptMark bool
	// NeedsMark: there is no other way.
	NeedsMark bool
	// LiveRestore: containers outlive dockerd, and docker0 keeps its address
	// while any of them runs.
	LiveRestore bool
	// Rootless: its networks are in a namespace of its own, and not this host's.
	Rootless bool
}

// CapabilitiesOf says what a Docker is capable of. It is pure; a Docker that is
// down has no info, and an unknown version knows nothing.
func CapabilitiesOf(v Version, info Info) Capabilities {
	c := Capabilities{
		Version:           v,
		Validate:          v.AtLeast(23, 0),
		NetworkOpts:       v.AtLeast(24, 0),
		Drops:             v.AtLeast(28, 0),
		TrustedInterfaces: v.AtLeast(28, 2),
		AcceptMark:        v.AtLeast(29, 0),
		LiveRestore:       info.LiveRestore,
		Rootless:          slices.Contains(info.SecurityOptions, "name=rootless"),
	}
	switch info.FirewallBackend.Driver {
	case "iptables+firewalld":
		c.Firewall = Firewalld
	case "nftables", "nftables+firewalld":
		c.Firewall = NFTables
	default: // nothing before 28.2
		c.Firewall = IPTables
	}
	c.NeedsMark = c.Firewall == NFTables && c.AcceptMark
	return c
}
