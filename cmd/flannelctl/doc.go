// Flannelctl is what an operator types: it shows what a host's daemon knows,
// reads and writes the network config, lists, reserves and releases subnets, and
// removes what the daemon left.
//
//	flannelctl status                      <- unix socket of the daemon
//	flannelctl config get|set|validate     <- etcd
//	flannelctl leases|reserve|release      <- etcd
//	flannelctl docker network create       <- the daemon and Docker's socket
//	flannelctl cleanup                     <- this host's kernel and files
//
// Where etcd is, it learns from flags, else from the environment, else from the
// daemon on this host, else it takes flannel's defaults.
package main
