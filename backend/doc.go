// Package backend is the contract between the daemon's loop and the ways of
// joining hosts.
//
//	leases, uplink, config                 one Backend per daemon
//	       |                                       |
//	  [ Desired ] --- Apply (idempotent) ---> device, addresses, FDB,
//	       ^                                  neighbours, routes
//	       |                                       |
//	  wake: leases, config, uplink, timer, <--- kernel drift
//
// A backend is a projection: it says which kernel entries one lease means. How
// entries are compared, ordered, batched, owned and retried is written once, in
// backend/reconcile and backend/kernel; which routes and links are ours, and
// which are flannel's to take over, in [Router] and [Params.SweepLinks]. No
// backend imports another.
//
// # Contract
//
//   - New functions allocate and check their options; they do not act.
//   - Attrs, MTU and Tunnel touch nothing and may be called before the first Apply.
//   - The uplink is a part of [Desired], for it changes: an address by DHCP, an MTU,
//     another interface. What peers must know and what containers may send follow
//     from it (Attrs, MTU), and Apply takes the data path there. While several addresses
//     of ours are in use, packets arrive at each (Also), and what a peer sends from
//     an address that it had a moment ago is still its own (Former).
//   - Apply takes the whole desired state, may be called again with the same
//     one, keeps going past single failures and returns them joined. What
//     concerns one peer is a [PeerError].
//   - Ours is what this [kernel.Instance] made; what another on the same host made is as
//     foreign as anybody's, but for one thing: its tunnels are no uplinks.
//   - Exit leaves the kernel's state in place; Cleanup removes all of it.
package backend
