// Package kernel is the only door to the Linux network stack: links, addresses,
// routes, neighbours, FDB entries and sysctls, as values of package net/netip
// and this package. It is the only importer of netlink and x/sys/unix, the
// sockets of backend/udp aside.
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
//   - Fake and Netlink pass one suite, kerneltest.Suite.
package kernel
