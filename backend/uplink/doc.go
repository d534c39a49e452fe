// Package uplink chooses the interface and the addresses that carry
// encapsulated traffic.
//
//	links, addresses, default routes --\
//	                                    >-- Select (pure) --> backend.Uplink
//	--iface, --iface-regex, ...      --/
//
// The order is flannel's: each --iface, each --iface-regex, --iface-can-reach;
// the default route's interface only if none of them was given, for a name that
// is not there must not lead to another interface silently.
//
// # Contract
//
//   - [Choose] reads the kernel and changes nothing. It may be called again at
//     any time: the same state gives the same uplink, so a changed result is a
//     changed uplink. Who follows it names the addresses that peers know in
//     [Options].Prefer, for the kernel's order changes when one is added.
//   - Loopback is never chosen, nor a tunnel of ours or of flannel's.
//   - A failure is one [Error], one line that says what was tried and what
//     there is to choose from.
package uplink
