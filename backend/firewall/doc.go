// Package firewall lets the overlay through the firewall of a Docker host, and
// nothing else: rules in iptables and ip6tables, in whichever of their variants
// (nf_tables, legacy) the host uses, and a table of our own in nf_tables.
//
//	Desired --- compile ---> tables: chains of ours, and where they are hooked
//	                            |
//	iptables-save --- parse --> plan --- restore --noflush ---> the kernel
//	    ^                                                          |
//	    +---------- read again: nothing left to do? <--------------+
//	                                                               |
//	Drift: somebody changed rules <--- nfnetlink events, a poll ---+
//
// # Who does what
//
// An accept stands where the drops are, and so in iptables. Forged packets are
// dropped, with counters, by our own table: package native. Sources are translated
// by iptables, or by our own table if the config has EnableNFTables or the host
// has no iptables; that sources inside the network are kept both say, since an
// accept in iptables does not bind the tables of others (firewalld's, when a
// zone masquerades). What the kernel lacks for our own table iptables does: all of
// the translation, and of the drops that of sources outside of the network that a
// tunnel delivers for our containers.
//
// Where firewalld uses nf_tables, what its own table rejects is let through by
// policies over D-Bus: package firewalld.
//
// # What is written
//
//	filter FORWARD      -> FLANNELD-GO-FWD     two accepts per tunnel device:
//	filter DOCKER-USER  -> FLANNELD-GO-FWD       in, source in the network and
//	                                             destination in our subnet; out
//	filter INPUT        -> FLANNELD-GO-INPUT   the tunnel's port, from peers
//	nat    POSTROUTING  -> FLANNELD-GO-NAT     our subnet to the rest of the
//	                                             network keeps its source
//	raw    PREROUTING   -> FLANNELD-GO-RAW     the accept of what comes in,
//	                                             beside Docker 28 and later
//
// In DOCKER-USER we stand behind the user's own rules and before the closing
// RETURN, so that blocks of the user keep their effect; in FORWARD right behind
// the jump to DOCKER-USER, or first where there is none; first everywhere else.
// Each of the two places in FORWARD alone would do: with both, traffic passes
// while Docker restarts and puts its own chains in front.
//
// In nat only an ACCEPT that is reached first keeps Docker's MASQUERADE from
// rewriting a source: after a RETURN the packet would still meet it. What goes
// to our own subnet is left alone, since Docker's hairpin rules stand there.
// A packet into the overlay with a source outside of the network (the host's
// own by host-gw, or a process bound to the uplink's address) gets the first
// address of our subnet as its source: peers drop it otherwise, for their
// accept is exactly as narrow as ours, and by that address the answer finds
// the way back through the overlay.
//
// # Docker 28 and later
//
// Such a Docker drops in raw PREROUTING what comes to a container by anything but
// its bridge ("-d 10.5.3.2/32 ! -i docker0 -j DROP"), and again at the end of its
// chain in filter. The second is never reached, for DOCKER-USER and our jump behind
// it come first. For the first an accept must stand in raw, and in front.
//
// It stands right in front of the first such drop for our subnet, not first: an
// accept ends the table, and a drop of the user's that stands before Docker's is to
// keep its effect. Docker appends its drops when a container starts, so they come
// behind ours by themselves. Until there is one ours stands last, for the same
// reason. It is written before the first container, as soon as filter shows that
// kind of Docker; otherwise raw is not touched. What a user appends behind Docker's
// drops does not see the overlay's packets: without us Docker would have dropped
// them there.
//
// # Contract
//
//   - New does not act. Apply converges to what is desired and may be called
//     again; when nothing has changed it runs no program, see below.
//     Cleanup removes everything of ours.
//   - Chains of ours are named [ChainPrefix]..., jumps to them stand in chains
//     of others, and every rule has a comment that starts with [Mark]. The name
//     of the chain is the proof: what neither is such a chain nor jumps to one
//     belongs to others and is not touched.
//   - Of several instances on a host each has chains with its number in the prefix
//     (FLANNELD-GO1-...), its own table, policies and sets. Where our jump stands is
//     counted without the jumps of any instance: each lets through no more than its
//     own network, so their order means nothing, and nobody moves another's.
//   - All changes to a table are one transaction, by which a chain is replaced
//     whole; chains that are as they should be are not written.
//   - Failures are joined; what could be done is done. Missing tools are
//     [ErrNoTools].
//
// # Drift
//
// The kernel tells every change in nf_tables, of which those in tables of iptables'
// names and in ours wake. Legacy tables tell nothing: four times a second their
// sizes are looked at, once a second their rules, without running a program, and
// only those of tables in use, since to ask for another makes the kernel create
// it. Both together cost a tenth of a millisecond a second on a Docker host and 10
// ms with 10,000 rules. A wake is never lost, and at most five come in a second.
//
// # Without a change
//
// To read the rules takes a program for each variant and family. Before, Apply asks
// the kernel itself whether they can differ from those that it read last: the
// generation of nf_tables, which every transaction counts up, and the content of
// legacy tables. A transaction of ours, after which the generation is the next one, has
// changed what it says and nothing else: one that only fills chains is not read back. If
// rules cannot differ, Apply goes on from
// those. This does not hang on events: with all of them lost, a flush is mended by the
// next Apply. Should the kernel be wrong, or a program read the same rules in another
// way after an upgrade, every [native.ReadAnyway] the programs are run all the same.
//
// # Two variants
//
// A packet meets the tables of both variants, and a drop in either is final. All
// rules go into the variant in use: the one that holds Docker's chains, else any
// rules of others, else the one that the name iptables means. Tables of the other
// variant get theirs too while somebody else's rules or policies are in them, and
// lose them afterwards.
//
// # Peers
//
// The accepts for the tunnel's port are as many as it takes to list the peers'
// addresses as prefixes without loss. ipset would make that one rule, but needs
// a tool that Docker hosts do not have. Since every encapsulated packet passes
// here, more than 64 prefixes become a tree of chains, cut by four bits of the
// address at a time: with 10,000 scattered addresses a packet costs 38 comparisons
// on average and 86 at most, where a list would cost 5,000. Only chains that
// differ are rewritten. Reading all of that back and comparing it takes 0.1 s
// (legacy) to 0.3 s (nf_tables); peers of one segment are a handful of prefixes
// and cost nothing to speak of.
//
// # After flannel
//
// The chains FLANNEL-FWD and FLANNEL-POSTRTG that a stopped flannel leaves behind
// would defeat ours: the first accepts everything from or to the network, the
// second masquerades whether we were told to or not. Apply removes them, and says
// so, if each of their rules has flannel's comment and the network they name is
// ours; those of a flannel with another network are left alone. On the way back
// flannel makes its own again.
//
// # What stays after Cleanup
//
// A table of the legacy variant, once used, is listed as empty until the module is
// unloaded or the namespace ends; the kernel knows no other way. A table that
// Apply had to create in nf_tables is marked by an empty chain of ours, and
// removed with it if nobody else uses it.
package firewall
