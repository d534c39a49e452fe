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
// The uplink is looked at in every round and followed. Name, MTU and ranges of the
// interface are taken over at once; so is the interface made anew with its address.
// Another address, or another interface, must be what the options choose for a second
// without a break, for much is taken away and put back, and ever longer if it keeps
// changing. If the present one is broken we go there at once then, and say so in etcd.
// If it works, peers come first: the new address is put into our key, and when etcd
// has had it for a second we send from it. Both hosts know both addresses meanwhile,
// and for some seconds after: also where one move follows another by then, and where the
// process is another by then, if it has got the sockets of the one before.
//
// A host in several networks runs a daemon for each: --instance. Everything that has a
// name or a number has the instance's, see [kernel.Instance], so that none has to know
// of the others. Two things are asked of their state directories, which differ in the
// number at the end: whether our network is one's already, before we lease anything, and,
// by flannelctl cleanup, whether a sysctl is needed on.
//
// One goroutine, the loop, owns what is done to the host; every other task only
// wakes it. Whatever fails there is a problem on the status board, and is tried
// again; see the page docs/operations.md for what each problem means.
package main
