// Package vxlan joins hosts with the kernel's VXLAN tunnels, one device per
// family, in flannel's layout: a host of either daemon is a peer of the other.
//
//	container 10.5.54.2 -> 10.5.3.7
//	   |
//	route      10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink
//	   |
//	neighbour  10.5.3.0 lladdr 5e:ca:ce:aa:6f:af     (the peer's VtepMAC)
//	   |
//	FDB        5e:ca:ce:aa:6f:af dst 198.18.0.2      (the peer's PublicIP)
//	   |
//	flannel.1 ==== UDP 8472, VNI 1 ====> 198.18.0.2
//
// The projection of a peer is these three entries, or, with DirectRouting and a
// peer on the uplink's own segment, one plain route via its PublicIP. Nothing
// is learned and nothing is asked for: every entry is permanent.
//
// # Contract
//
//   - A host's MAC derives from its node id, the VNI and the family, so that a
//     device that was deleted comes back with the MAC that peers know. A VXLAN
//     device that is there already, flannel's too, keeps its own.
//   - A device whose fixed attributes differ is made anew, which loses packets
//     until its entries are back, some milliseconds; a device of another type
//     with our name is never touched.
//   - The entries of our device are ours. Routes: see [backend.Router].
package vxlan
