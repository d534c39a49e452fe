// Package native keeps one table of ours in nf_tables, by netlink and without any
// program: on every host whose kernel can, drops for forged packets and a rule that
// keeps sources inside the network; and, where iptables shall not be used for them,
// the other rules on source addresses.
//
//	Desired -- compile --> table (wanted) --\
//	                                         diff --> change --> one transaction
//	kernel  --- read ----> table (found)  --/
//
//	                +--- table ip flanneld-go, table ip6 flanneld-go ---+
//	 comes in ----> | prerouting  -300   from_tunnel     a device of the tunnel
//	                |                    from_elsewhere  a source of the network
//	                |                      from_uplink   ... plainly, by MAC
//	                | accept_mark -150   the mark that Docker accepts by
//	 for the host -> | input       -300   envelope        a datagram to the port
//	                |                      inner_4, _6   ... and what is in it
//	 leaves ------> | postrouting   90                   sources (NAT)
//	                +---------------------------------------------------+
//
// A table of our own can drop, and can decide on translation. It cannot accept:
// an accept ends our chain and no other. Accepts stand in package firewall.
//
// Where the drops are in somebody else's table of nf_tables, and that somebody lets
// through what has a mark, as a Docker with nftables does, our table sets it:
// [AcceptMark], on packets that come in by the tunnel, or plainly by the uplink,
// from inside the network and for our own subnet. Forged ones are gone by then.
//
// # What is dropped
//
// Each reason has a named counter in the table.
//
//   - foreign_source: out of a tunnel device, from outside of the network, or of
//     a family that has no network.
//   - own_source: from a tunnel, a peer or the uplink, from inside our own subnet.
//   - outside_source: from inside the network, by the uplink although peers come
//     by a tunnel, or by any interface that the route to that source does not
//     leave by: another LAN, or a container that takes another's address. What
//     is legitimate takes the way that its answers take: containers on docker0
//     and on bridges of the user's, those that a former subnet still has, VPNs
//     that have addresses of the network. Loopback is not looked at.
//   - peer_source: a source in another host's subnet. In datagrams to the tunnel's
//     port the pair of outer source and inner subnet is looked up before they are
//     decapsulated; plain packets are told apart by MAC, below.
//   - not_overlay: in VXLAN of our VNI and port, what is neither a packet of the
//     tunnel's family nor ARP, or is too short to tell. A VLAN tag, also the empty
//     one that the kernel would take off, moves the source to where we do not look.
//
// Conditions that cannot be read do not hold, so that each chain that judges
// ends in a drop rather than in an accept.
//
// Fragments: at input those of IPv4 are one packet again. Those of IPv6 are if
// connection tracking is loaded; if not, a first fragment too short to judge is
// dropped and later ones are nothing without it. GRO merges VXLAN only where the
// inner headers are alike, so that one look is enough. It merges datagrams of the
// udp backend by their outer headers alone: of those only the first is seen here,
// and the backend itself looks at each.
//
// An address of the network may be at home on the LAN when the uplink's own
// range overlaps the network; by the uplink then only the way back counts.
// A container that calls another host's public address without any masquerade
// comes in there by the uplink with a source of the overlay, and is dropped.
// So is a peer whose packets come from another address than its PublicIP.
//
// # Peers by MAC
//
// Where packets come plainly (host-gw, DirectRouting) only the MAC tells hosts
// apart, and a MAC proves little: hosts move, cards are replaced, routers answer
// for others. So that no peer ever loses traffic by it, only what is proven wrong
// is dropped: the source is in the subnet of a peer B whose MAC is known, and the
// packet has another MAC, which is known to be that of a peer A. Whatever is less
// than that passes:
//
//	MAC                     source of      verdict
//	of A                    A              passes
//	of A                    B, known       dropped, unless A and B share that MAC
//	of A                    B, not known   passes: B may be behind A's MAC
//	of nobody we know       anybody        passes: a new card, another path
//	of a router or by       any of those   passes: it is the MAC of them all
//	  proxy ARP             behind it
//
// Families are told apart: a peer's IPv6 may take another way than its IPv4.
//
// It stops what happens by itself, or from inside a container: packets that a host
// forwards have that host's MAC. A host that forges its MAC too, or answers ARP
// for others, is not found out: a segment of host-gw trusts its hosts.
//
// Peer.MAC is what the neighbour table has for the peer's address at the time of
// Apply, in an entry of whatever age (reachable, stale, delay, probe, permanent),
// and zero without one. Apply must follow within moments when an address that had a
// MAC gets another: a peer that takes over the MAC of another is dropped until
// then, as is one that the kernel has not noticed moving there. The kernel does not
// by itself where the peer is idle and nobody answers it, since all of its packets
// are dropped: while [PeerSource] is counted the caller has the kernel ask for what
// it has not used for long (NTF_USE), which takes it 8 s. MACs that come and
// go may wait: the first only sharpens the judgement, and to lose one means that
// the peer is idle or does not answer. So may the MAC of a peer that Follow puts in:
// it passes as one that is not known, and what it has in common with a peer that goes
// goes too.
//
// # Order
//
// A change is one transaction, so a packet sees the state before or after it:
// no order inside is needed, and none can lose a packet. A subnet that moves may
// stand in Desired.Peers twice, with its old and its new host; whoever holds a
// deleted lease for two seconds does so by leaving it there.
//
// # Translation
//
// Who keeps its source must be kept from everybody else's masquerade. Measured
// on 6.18 with Docker's `-s subnet ! -o docker0 -j MASQUERADE` in iptables-nft, in
// iptables-legacy and in both: behind a chain of ours at priority 90 that accepts
// or returns, the source is rewritten; behind one that says `snat to ip saddr` it
// is not. At priority 101 it is, whatever ours says; at -200 and below the kernel
// takes no NAT chain. A connection gets one binding, of the first chain that
// makes one; ours binds it to what it is.
//
// That one rule is always there, whoever does the rest: an accept in iptables
// ends iptables' table and no other, and behind it a zone of firewalld's that
// masquerades, or anybody's own table, would rewrite the source.
//
// Before 4.18 NAT chains of several tables hide each other: there
// [FeatureNAT] is not supported.
//
// # Contract
//
//   - New does not act. Apply converges and may be called again; it reads the table
//     and writes only what differs. Cleanup leaves `nft list ruleset` as it was
//     before. All act on the network namespace of the calling thread.
//   - All that is in tables of the name [TableName], or of another instance's with its
//     number behind, is that instance's: what we did not want
//     there is removed. A chain is written whole; a table with what cannot be
//     mended (another hook, a dormant flag) is made anew, and counts from zero.
//   - Rules that Apply compares are those that the kernel lists, not what it was
//     told: a table that anybody changed or flushed is mended by the next Apply.
//     What was found in order is not listed again while nf_tables stays in the
//     same [Generation] and the same is wanted, but for every [ReadAnyway].
//   - A wait for the kernel's answer ends with its context, within 50 ms, and after 30 s
//     anyway. What the kernel works on for us it ends first.
//   - A kernel that refuses is asked what it lacks, once; Apply goes on without
//     that and returns [ErrUnsupported]. A family that has no network and no
//     nf_tables either is no error.
//
// # Cost
//
// A lookup is one hash of eight bytes (IPv4), whatever the number of peers; there is
// one per length that subnets have. Reading back costs one exchange per chain
// and set, and is linear in the number of peers: with 10,000 of them, on a busy
// machine of two cores, 30 ms. The first write took 130 ms, one peer that moves 50
// ms, of which two keys are sent. An Apply that the kernel's generation tells that
// nothing has changed took 0.5 ms, nearly all of it to see that the same peers are
// wanted.
//
// # Shown by nft
//
// `nft list ruleset` shows all of it, and what it shows can be loaded again, as
// who saves a whole ruleset for the next boot does. Sets that are looked up at places
// that have no name (@th,336,32) carry a "typeof" for that, which nft before 1.0.6
// does not know: it cannot read again what it shows of those.
package native
