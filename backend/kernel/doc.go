// Package kernel is the only door to the Linux network stack: links, addresses,
// routes, neighbours, FDB entries and sysctls, as values of package net/netip
// and this package. It is the only importer of x/sys/unix, the sockets of
// backend/udp aside, and speaks rtnetlink itself: what is worth having here,
// batches, is what libraries do not do.
//
//	backends --> Host (interface) --> Netlink: rtnetlink, batched
//	                 |                  |
//	                 |                  +-- Events: what changed in the kernel
//	                 +--> kerneltest.Fake: the same contract in memory
//
// # Contract
//
//   - Dumps are complete or fail; an interrupted dump is read again.
//   - Puts and deletes of many entries go out in few large messages, with an
//     acknowledgement matched to each entry.
//   - Routes through a gateway are written with nexthop objects where the
//     kernel has them (5.3) and in the classic form elsewhere; callers see
//     [Route] either way. Reason: the classic form costs the kernel quadratic
//     time in the number of routes of one device.
//   - Several daemons may share a host, each an [Instance] with a number: it gives their
//     links an alias, their routes a protocol, and their nexthop objects a range. What
//     is one's is by that no other's, and nobody has to know who else is there.
//   - Fake and Netlink pass one suite, kerneltest.Suite, and answer alike on
//     random walks.
//
// # What the kernel does not do
//
// These hold for every user of the kernel, and a caller should know them:
//
//   - A link that goes down loses its routes and neighbours without an event of
//     their own; one that loses its last IPv4 address loses its classic IPv4
//     routes and its neighbours likewise.
//   - A VXLAN link is deleted together with the link that carries it.
//   - To delete an IPv4 route through a gateway, or a blackhole, the kernel
//     does not compare OnLink, nor Src unless given, and takes a metric of 0
//     for any.
//   - IPv6 refuses an OnLink gateway that a route of another link covers.
//   - Without a single address in the namespace IPv4 refuses every gateway.
//   - That a list was interrupted it says of all addresses, but not of one link's
//     IPv4 addresses, neighbours or FDB entries.
package kernel
