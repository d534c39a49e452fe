// Package alloc leases a subnet and joins nobody: for hosts whose network has
// routes to the subnets by other means.
//
//	etcd <--- lease ---> subnet.env, daemon.json        (no data path)
//
// # Contract
//
//   - Peers mean no kernel entries. Routes and tunnels of ours that an earlier
//     backend left are removed; see [backend.Router].
//   - As in flannel, the lease names no backend.
package alloc
