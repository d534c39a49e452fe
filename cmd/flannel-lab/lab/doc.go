// Package lab makes hosts out of network namespaces: a switch, hosts behind it,
// an etcd, the daemon's own binary on every host, and a container behind docker0
// in each. The demo shows them, tests break them, benchmarks measure them.
//
//	<lab>-e1   etcd :2379         <lab>-e2 ...      (StartCluster)
//	           eth0  198.18.0.245
//	                  |
//	<lab>-sw   bridge br0  198.18.0.254, fd00:198:18::fe
//	           etcd :2379 (StartEtcd)    proxies :20011... (NewProxy)
//	                  |______________________
//	                  |  <- partitions       |            veth pairs
//	<lab>-h1   eth0  198.18.0.1          eth0  198.18.0.2   <lab>-h2
//	           flanneld-go  - - tunnel - -  flanneld-go
//	           docker0  10.5.72.1/24     docker0  10.5.3.1/24
//	                    |                      |            veth pairs
//	<lab>-c1   eth0  10.5.72.2           eth0  10.5.3.2     <lab>-c2
//
// # What can go wrong
//
// etcd: a [Member] is killed, stopped or paused and comes back; a [Cluster] loses
// its data, or has those of a backup again. A [Proxy] between one host and etcd
// delays, holds back, or resets. A host's own link drops packets one way or both
// ([Host.Partition]), its disk is full ([Host.LimitState]), its container is made
// anew. Everything can be undone, and Close needs nothing to be.
//
// # Contract
//
//   - Nothing is sent outside these namespaces and nothing appears in the
//     caller's: links are made where they belong, processes are started and
//     sockets opened on threads that are in the right namespace.
//   - Everything carries the lab's name: namespaces, the folder of its files
//     (/run/flannel-lab/<lab>), and FLANNEL_LAB in the environment of every
//     process. Labs of different names run side by side; a name is held by a
//     lock for as long as the lab lives.
//   - Close removes what the lab made and nothing else. What a killed lab left
//     is listed in its folder, and removed on request by the next one of the
//     name: [Options].Replace. Nothing stays mounted in the folder.
//   - Waits are bounded by their context and end early, with the last lines of
//     the log, when the process that is waited for exits.
package lab
