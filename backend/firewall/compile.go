package firewall

import (
	"net/netip"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall/firewalld"
	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// What proves that something is ours.
const (
	// ChainPrefix starts the names of all chains of the first instance.
	ChainPrefix = "FLANNELD-GO-"
	// Mark starts the comments of all rules of ours.
	Mark = "flanneld-go"
)

// The chains of the first instance, see [owner] for others. Names may have 28
// characters.
const (
	chainForward = ChainPrefix + "FWD"
	chainInput   = ChainPrefix + "INPUT"
	chainPeers   = ChainPrefix + "IN-"
	chainNAT     = ChainPrefix + "NAT"
	chainRaw     = ChainPrefix + "RAW"
	// chainMade is empty and says that we created the table it is in.
	chainMade = madePrefix + madeTable
)

// The chains of others that we look at.
const (
	dockerUser        = "DOCKER-USER"
	dockerForward     = "DOCKER-FORWARD" // since 28.0.1
	dockerBridges     = "DOCKER"
	flannelForward    = "FLANNEL-FWD"
	flannelMasquerade = "FLANNEL-POSTRTG"
)

// Desired is what the firewall should let through. Families are data: what is
// zero for a family is off for it.
type Desired struct {
	// Networks are the ranges of the whole overlay.
	Networks subnet.ByFamily[netip.Prefix]
	// Own is this host's subnet.
	Own subnet.Subnet
	// Tunnel is what the backend says of itself.
	Tunnel backend.Tunnel
	// Uplink is the name of the interface by which packets of peers come in
	// plainly; needed if Tunnel.Direct.
	Uplink string
	// AlsoUplinks are other such interfaces, while one replaces another. One may be
	// there twice, and Uplink among them.
	AlsoUplinks []string
	// Segments are the ranges of the uplink.
	Segments []netip.Prefix
	// Peers are all other hosts, in any order.
	Peers []native.Peer
	// ForwardRules: write the accepts in FORWARD, DOCKER-USER and raw
	// PREROUTING (--iptables-forward-rules).
	ForwardRules bool
	// Masquerade: what our subnet sends out of the network gets the host's
	// address (--ip-masq).
	Masquerade bool
	// RandomFully: choose source ports at random where iptables can
	// (not --ip-masq-fully-random-disable).
	RandomFully bool
	// Native: translate sources in our own table of nf_tables and not in
	// iptables (EnableNFTables).
	Native bool
	// AcceptMark: Docker keeps its rules in nf_tables, and lets through what has
	// the mark of [native.AcceptMark]; set it on what ForwardRules accept.
	AcceptMark bool
}

// native is the part of d that our own table does.
func (d Desired) native(nat bool) native.Desired {
	return native.Desired{
		Networks: d.Networks, Own: d.Own, Tunnel: d.Tunnel,
		Uplink: d.Uplink, AlsoUplinks: d.AlsoUplinks, Segments: d.Segments, Peers: d.Peers, AcceptMark: d.AcceptMark && d.ForwardRules,
		NAT: nat, Masquerade: d.Masquerade, RandomFully: d.RandomFully,
	}
}

// firewalld is the part of d that a firewalld with nf_tables must let through.
// Where our own table cannot keep sources, a zone must not masquerade.
func (d Desired) firewalld(lacksNAT subnet.ByFamily[bool]) firewalld.Desired {
	out := firewalld.Desired{
		Networks: d.Networks, Own: d.Own, Forward: d.ForwardRules, Port: d.Tunnel.Port,
	}
	for _, family := range subnet.Families() {
		if lacksNAT[family] && d.Networks[family].IsValid() {
			out.Interfaces = d.interfaces()
		}
		out.Peers = append(out.Peers, peersOf(d.addresses(family), family)...)
	}
	return out
}

// addresses are what peers send from in one family.
func (d Desired) addresses(f subnet.Family) []netip.Addr {
	out := make([]netip.Addr, 0, len(d.Peers))
	for i := range d.Peers {
		if a := d.Peers[i].PublicIP[f]; a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// interfaces are the ways by which packets of peers come in and go out.
func (d Desired) interfaces() []string { return d.native(false).Interfaces() }

// place says where in a chain of others our jump stands, counted without our
// own jumps.
type place uint8

const (
	// placeFirst: before everything.
	placeFirst place = iota
	// placeBehindDockerUser: right behind the jump to DOCKER-USER; first where
	// there is none.
	placeBehindDockerUser
	// placeClosing: before the first rule that ends the chain for every
	// packet by a RETURN; last where there is none. The chain is not created.
	placeClosing
	// placeBeforeDirectDrops: before the first rule by which Docker drops
	// what comes straight to a container of our subnet; last where there is
	// none.
	placeBeforeDirectDrops
)

// hook is a jump of ours in a chain of others.
type hook struct {
	chain string
	place place
	rule  rule
	// own is our subnet, for the places that depend on it.
	own netip.Prefix
}

// tableSpec is everything of ours in one table.
type tableSpec struct {
	owner  owner
	name   string
	chains []chainSpec
	hooks  []hook
}

// chainSpec is one chain of ours, whole.
type chainSpec struct {
	name  string
	rules []rule
}

// tableRaw is written only beside a Docker that drops in it: see directDrops.
const tableRaw = "raw"

// share is the part of a family's work that iptables does.
type share struct {
	// nat: translate sources.
	nat bool
	// drops: drop what the tunnel delivers from outside of the network.
	drops bool
	// randomFully: it knows how to choose ports at random.
	randomFully bool
}

// compile says what one family's tables should hold of ours. It returns a spec
// for each of raw, filter and nat, in the order of writing, empty where nothing is wanted.
func (o owner) compile(d Desired, f subnet.Family, does share) []tableSpec {
	raw, filter, nat := tableSpec{owner: o, name: tableRaw}, tableSpec{owner: o, name: "filter"}, tableSpec{owner: o, name: "nat"}
	network, own := d.Networks[f], d.Own[f]
	if network.IsValid() && own.IsValid() {
		if d.ForwardRules {
			raw.addArrivals(arrivals(d.interfaces(), network, own), own)
			var forged []rule
			if does.drops {
				forged = forgeries(d.Tunnel.Devices, network)
			}
			filter.addForwards(append(forged, forwards(d.interfaces(), network, own)...))
		}
		if does.nat {
			nat.addNAT(translations(d, network, own, d.RandomFully && does.randomFully))
		}
	}
	filter.addInput(d.Tunnel.Port, peersOf(d.addresses(f), f))
	return []tableSpec{raw, filter, nat}
}

func (t *tableSpec) addArrivals(rules []rule, own netip.Prefix) {
	if len(rules) == 0 {
		return
	}
	t.chains = append(t.chains, chainSpec{t.owner.named(chainRaw), rules})
	t.hooks = append(t.hooks, hook{
		chain: "PREROUTING", place: placeBeforeDirectDrops, own: own,
		rule: rule{comment: Mark, target: t.owner.named(chainRaw)},
	})
}

func (t *tableSpec) addForwards(rules []rule) {
	if len(rules) == 0 {
		return
	}
	t.chains = append(t.chains, chainSpec{t.owner.named(chainForward), rules})
	jump := rule{comment: Mark, target: t.owner.named(chainForward)}
	t.hooks = append(t.hooks,
		hook{chain: "FORWARD", place: placeBehindDockerUser, rule: jump},
		hook{chain: dockerUser, place: placeClosing, rule: jump})
}

func (t *tableSpec) addNAT(rules []rule) {
	if len(rules) == 0 {
		return
	}
	t.chains = append(t.chains, chainSpec{t.owner.named(chainNAT), rules})
	t.hooks = append(t.hooks, hook{
		chain: "POSTROUTING", place: placeFirst, rule: rule{comment: Mark, target: t.owner.named(chainNAT)},
	})
}

func (t *tableSpec) addInput(port uint16, peers []netip.Prefix) {
	if port == 0 || len(peers) == 0 {
		return
	}
	t.chains = append(t.chains, t.owner.peerChains(t.owner.named(chainInput), peers)...)
	t.hooks = append(t.hooks, hook{chain: "INPUT", place: placeFirst, rule: rule{
		proto: "udp", dport: port, comment: Mark, target: t.owner.named(chainInput),
	}})
}

// arrivals are what forwards accepts of what comes in, one rule per interface.
func arrivals(interfaces []string, network, own netip.Prefix) []rule {
	var out []rule
	for _, name := range interfaces {
		out = append(out, rule{
			src: network, dst: own, in: name, target: "ACCEPT",
			comment: Mark + ": in from the overlay",
		})
	}
	return out
}

// forwards are the two accepts per interface. Whoever starts a connection, each
// direction of it is one of the two on both hosts: no connection tracking is
// needed.
func forwards(interfaces []string, network, own netip.Prefix) []rule {
	var out []rule
	for i, in := range arrivals(interfaces, network, own) {
		out = append(out, in, rule{
			src: own, dst: network, out: interfaces[i], target: "ACCEPT",
			comment: Mark + ": out to the overlay",
		})
	}
	return out
}

// forgeries are what our own table drops where the kernel has none, as far as
// iptables can tell.
func forgeries(devices []string, network netip.Prefix) []rule {
	var out []rule
	for _, name := range devices {
		out = append(out, rule{
			src: network, notSrc: true, in: name, target: "DROP",
			comment: Mark + ": from outside of the network",
		})
	}
	return out
}

// translations are the rules on source addresses, first match wins. An ACCEPT
// ends the whole hook, so that nobody's masquerade is reached; a RETURN goes on
// to the rules of others.
func translations(d Desired, network, own netip.Prefix, full bool) []rule {
	out := []rule{{
		dst: own, target: "RETURN",
		comment: Mark + ": into our own subnet is not ours to rewrite",
	}, {
		src: own, dst: network, target: "ACCEPT",
		comment: Mark + ": keep sources inside the network",
	}}
	for _, name := range d.interfaces() {
		out = append(out, rule{
			src: network, notSrc: true, dst: network, out: name,
			// Others' packets (of the LAN, of other bridges) are
			// translated only if we were told to masquerade.
			srcLocal: !d.Masquerade,
			target:   "SNAT", toSource: own.Addr().Next(), randomFully: full,
			comment: Mark + ": enter the network as this host",
		})
	}
	if d.Masquerade {
		out = append(out, rule{
			src: own, dst: multicast(own.Addr()), notDst: true,
			target: "MASQUERADE", randomFully: full,
			comment: Mark + ": masquerade to the outside",
		})
	}
	return out
}

func multicast(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
}
