package native

import (
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// TableName is the name of the first instance's table in the families ip and ip6; that of
// another is its alias. It is the proof: what is in a table of that name is ours,
// everything else is not.
const TableName = kernel.Alias

// Why a packet was dropped: the names of the counters, in the table and in
// [Table.Counters].
const (
	// ForeignSource: out of a tunnel device, from outside of the network.
	ForeignSource = "foreign_source"
	// OwnSource: from elsewhere, with a source in our own subnet.
	OwnSource = "own_source"
	// OutsideSource: with a source inside the network, but by an interface
	// that does not lead there.
	OutsideSource = "outside_source"
	// PeerSource: from one host, with a source in another's subnet.
	PeerSource = "peer_source"
	// NotOverlay: in VXLAN, but no whole packet of the tunnel's family.
	NotOverlay = "not_overlay"
)

// reasons are the counters of each table, sorted.
func reasons() []string {
	return []string{ForeignSource, NotOverlay, OutsideSource, OwnSource, PeerSource}
}

// Desired is what the table should hold. Families are data: what is zero for a
// family is off for it.
type Desired struct {
	// Networks are the ranges of the whole overlay.
	Networks subnet.ByFamily[netip.Prefix]
	// Own is this host's subnet.
	Own subnet.Subnet
	// Tunnel is what the backend says of itself.
	Tunnel backend.Tunnel
	// Uplink is the name of the interface that leads to the peers. Without it
	// packets that come by it are not looked at.
	Uplink string
	// AlsoUplinks are other such interfaces, while one replaces another. One may be
	// there twice, and Uplink among them.
	AlsoUplinks []string
	// Segments are the ranges of the uplink. Where one overlaps the network,
	// addresses of the network are at home on the uplink too.
	Segments []netip.Prefix
	// Peers are all hosts that may send, in any order. A subnet may stand
	// there twice, with two hosts, while it moves.
	Peers []Peer
	// AcceptMark: set the mark of that name on what comes in from the overlay,
	// for a Docker with nftables.
	AcceptMark bool
	// NAT: hold all rules on source addresses (EnableNFTables), not only the
	// one that keeps those inside the network.
	NAT bool
	// Masquerade: what our subnet sends out of the network gets the host's
	// address (--ip-masq); needs NAT.
	Masquerade bool
	// RandomFully: choose source ports at random
	// (not --ip-masq-fully-random-disable).
	RandomFully bool
}

// Interfaces are the ways by which packets of peers come in and go out.
func (d Desired) Interfaces() []string {
	out := slices.Clone(d.Tunnel.Devices)
	if d.Tunnel.Direct {
		out = append(out, d.uplinks()...)
	}
	return out
}

// uplinks are the interfaces that lead to the peers.
func (d Desired) uplinks() []string {
	var names []string
	for _, name := range append([]string{d.Uplink}, d.AlsoUplinks...) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Peer is another host.
type Peer struct {
	Subnet subnet.Subnet
	// PublicIP is where its encapsulated packets come from.
	PublicIP subnet.ByFamily[netip.Addr]
	// MAC is the Ethernet address that the uplink's neighbour table has for
	// PublicIP now; zero: none, see the package's text. Only used if
	// Tunnel.Direct.
	MAC subnet.ByFamily[kernel.MAC]
}
