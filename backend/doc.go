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
//   - Attrs and Tunnel touch nothing and may be called before the first Apply.
//   - Apply takes the whole desired state, may be called again with the same
//     one, keeps going past single failures and returns them joined. What
//     concerns one peer is a [PeerError].
//   - Exit leaves the kernel's state in place; Cleanup removes all of it.
package backend
