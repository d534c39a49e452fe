// Flanneld-go leases a subnet for this host, joins it to its peers, and hands
// the subnet to Docker.
//
//	options -> node id -> status socket, health -> etcd (Load), or the cache
//	   -> config -> uplink -> backend -> Acquire -> first Apply -> firewall
//	   -> files -> READY=1 -> the loop, until a signal -> depart
//
//	            leases, config   kernel drift   timers   lease state
//	                   \              |           |         /
//	                    `------- wake (coalesced) --------'
//	                                  |
//	                     desired = f(config, lease, peers)
//	                                  |
//	                Apply: backend, firewall, forwarding, files
//
// One goroutine, the loop, owns what is done to the host; every other task only
// wakes it. Whatever fails there is a problem on the status board, and is tried
// again; see the page docs/operations.md for what each problem means.
package main
