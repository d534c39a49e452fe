// Package subnet is the domain: a network is cut into subnets, every host
// leases one, and every host knows all leases.
//
//	            config                    leases
//	              |                          |
//	operator -> [ Store: one replicated log with revisions ] <- other hosts
//	              |  Load: both, at one revision
//	              |  Watch: both, in one ordered stream
//	              v
//	Acquire ---> Lease ---> Keeper (renews, proves, re-creates)
//	              |
//	             View (load + watch -> the latest Snapshot) ---> desired peers
//
// # Contract
//
//   - Every write to the store is a compare-and-swap. A write that does not
//     hold its assumptions returns a sentinel and has changed nothing.
//   - A subnet belongs to the host that the store names, and to no other. Two
//     of our own hosts can never hold overlapping subnets: both decided on a
//     config and a list of leases read at one revision, and the store compared
//     that config again in the transaction that created the key, and that the
//     lease written last is still there: a store restored in between may hold
//     leases that were none any more. This misses a snapshot with all that was
//     written and not all that was deleted, from before a host gave up a subnet
//     of another config's length, whose revision has grown past ours again before
//     the transaction. Then, as everywhere, the older of two leases holds.
//   - A store that was restored from an older snapshot keeps its identity. Who
//     follows it learns that from its revision, or from a key that the store does
//     not know any more; who was away, from what a full load says of revisions
//     that it had seen: see [View]. Nobody tells the others, by writing another
//     identity say: one host that is mistaken would disturb all, while what each
//     has seen itself costs no request, and does not mislead.
//   - A host is its node id. A lease with our node id and another's address is
//     challenged before it is taken: see [Acquire] and [Keeper].
//   - Nothing here knows a kernel or etcd. The package imports the standard
//     library only; time comes from a [Clock].
//
// The words: network is the range of the whole overlay, subnet one host's
// slice of it, lease a subnet with its owner, attributes and expiry,
// reservation a lease without an expiry, pool the subnets that may be leased,
// peer another host's lease.
package subnet
