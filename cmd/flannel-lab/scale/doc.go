// Package scale measures what a network of many hosts costs one of them: how long
// after its start the last of N routes stands in the kernel, with how much CPU and
// memory, and how long after a key's commit one more does.
//
//	simulated peers --keys--> etcd ----watch----> flanneld-go, a real one
//	                            |                      |
//	                          commit                   v
//	                            |          namespace: FDB, neighbours, routes
//	                            |                      |
//	                            '--- latency --- netlink monitor
//
//	the same entries, by `bridge -batch` and `ip -batch`: the floor
//	the same entries, with a gateway in each route:        the fallback
//
// # Contract
//
//   - A simulated peer is a key in etcd, as a daemon would write it, and nothing
//     else: no packet is sent. All of it follows from its number.
//   - A start counts from before the process is made until each of the N routes
//     was seen in the kernel; then neighbours and FDB are counted, and one that
//     lacks fails the run.
//   - A change counts from the answer to its write, the commit, until the kernel
//     told of the entry that it means.
//   - All of that is with VXLAN. [Compare] starts daemons of other backends, too, and
//     measures nothing else: with udp the last route is the one for the whole network,
//     which is put when the daemon knows all peers.
//   - Every start has a namespace of its own, in which nothing was before.
//   - What cannot be measured fails the run, it is never zero.
package scale
