// Package firewalld lets the overlay through a firewalld that uses nf_tables.
//
//	Desired --- compile ---> rich rules of two policies, sets of peers
//	                             |
//	    firewalld <--- D-Bus --- converge: read, add, remove
//	        |
//	        +--- Reloaded, a new owner of its name ---> Drift: Apply again
//
// # Why over D-Bus
//
// The table "inet firewalld" hooks behind iptables (priority filter + 10) and
// rejects what no zone or policy lets through; an accept in iptables or in a table
// of our own ends only the chains it stands in. So the accept must stand in
// firewalld's table. From version 2.1 on nobody else may write there, and before
// it every reload would remove what others wrote: that leaves D-Bus. A firewalld
// with FirewallBackend=iptables needs nothing of this: its rules stand in the same
// chains as ours, and behind them.
//
// # What is written
//
//	policy flanneld-go-fwd  ANY -> ANY   network to our subnet, our subnet to network
//	policy flanneld-go-in   ANY -> HOST  the tunnel's port, from peers
//	ipset  flanneld-go-ipv4, -ipv6       the peers, where they are many
//
// Another instance on the same host has its number behind flanneld-go: flanneld-go1-fwd.
// A reload for one drops the rules of all, and each writes its own again.
//
// Rules are runtime configuration. firewalld cannot make such objects at run time, so
// they are permanent objects, empty, which do nothing by themselves,
// and one reload brings them in, once in the life of a host. A reload drops what
// an administrator set at run time alone. So it is left to them if there is such a
// setting: [ErrUnsaved] says where. What interfaces are in which zone does not
// count, since Docker and NetworkManager tell firewalld again after each reload.
// A reload also empties iptables, whichever backend firewalld has (measured with
// 1.3.3): Docker writes its rules again when it hears of it, and so do we, but
// what others appended there is gone, as after every reload.
//
// Both policies have a late priority: they are asked after all rules of a zone,
// right before its target rejects the rest, so that what the administrator blocks
// stays blocked. A policy cannot name a device, only zones, and zones are the
// administrator's: that packets with such addresses come by the tunnel device or
// from a peer is for package native, which drops all others before firewalld
// sees them. That holds for the uplink as well.
//
// # Peers
//
// Up to 32 prefixes of peers are listed in the policy, one rule each. firewalld takes
// in each by itself (50 took 1 s, 1,000 four minutes), so more of them are in an
// ipset, hash:ip and one for each family: 1,000 addresses took 0.2 s, 10,000 between 1
// and 10 on a busy machine, and one that comes or goes among them 0.3. Few changes
// are made one by one. Many replace all of a set, which is empty for a moment
// then: what is known to connection tracking passes all the same.
//
// A set is a permanent object like the policies, empty, and takes one reload when it
// is first needed; after that it is used for few peers, too. There is none before,
// since it makes a firewalld without the ipset tool fail as a whole when somebody sets
// FirewallBackend=iptables (measured with 1.3.3).
//
// # Masquerade
//
// A zone with masquerade rewrites every source that leaves by its interfaces: an
// accept in iptables' nat is not final for firewalld's chain behind it, at priority
// 110, and a policy cannot say that a source is kept. The table of package native can,
// at 90, and does on every host, so that there is no moment at which a zone
// gets hold of the overlay. Only where the kernel cannot do that [ErrMasquerade] says
// which zone it is; a tunnel device can be put into another.
//
// # Beside Docker
//
// A Docker that starts makes a zone, docker, and (28.5, not yet 26.1) a policy,
// docker-forwarding, which accepts whatever goes into that zone and is asked before
// ours (priority -1), and reloads firewalld for them. After every reload it puts its
// bridges into the zone and writes iptables again. Neither changes what we compare in
// [ErrUnsaved], nor do our reloads change anything of Docker's. Measured with
// dockerd 28.5.2 and 1.3.3, both orders of starting, reloads, restarts of either: no
// rule was missing or there twice afterwards.
//
// # After a reload
//
// A reload takes firewalld two seconds, a complete one three, and it drops what is
// new meanwhile; pings every 5 ms between containers of two hosts missed 0.4 s of
// them at most, and 0.1 s at a restart. Drift comes with the signal Reloaded, and
// after a start when firewalld answers, for its table is not there before.
//
// # Contract
//
//   - New does not act. Apply converges and may be called again: with nothing to do
//     it costs a few questions over the bus. Cleanup removes the policies and sets,
//     the permanent ones too.
//   - Without the table "inet firewalld" in our own network namespace Apply and
//     Cleanup do nothing, and do not ask the bus: a firewalld that looks after
//     another namespace is none of ours, nor is one that is not running. Without a
//     bus, or with nobody of firewalld's name there, Apply does nothing either;
//     Cleanup removes the files of the permanent objects then.
//   - A policy or set is ours by its name and its description. One without the
//     description is left alone: [ErrForeign].
//   - Zones, other policies and firewalld.conf are never written.
//   - firewalld itself keeps the file of what was removed as flanneld-go-*.xml.old.
package firewalld
