// Flannel-lab makes hosts out of network namespaces and shows on them what
// flanneld-go does.
//
//	flannel-lab demo     every backend in turn: subnets, a mesh of pings, a transfer
//	flannel-lab bench    one way to join two hosts beside the other: rates, latency, CPU
//	flannel-lab scale    thousands of peers: the start, one change, many changes
//	flannel-lab faults   one thing after the other that breaks a host: what is lost
//	flannel-lab storm    many hosts at once on one etcd: requests, bytes, times
//	flannel-lab parts    tables of what go test prints
//	flannel-lab etcd     a member of what a lab runs as its etcd; not for people
//	flannel-lab traffic  what sends and receives in a container; likewise
//	flannel-lab calm     waits until nothing else keeps the machine busy; likewise
//	flannel-lab forward  the floor that the bench compares with; likewise
//
// The hosts themselves are package lab's; what is measured on them is package
// bench's, for many peers package scale's, of broken hosts package faults'. A
// command prints to standard output what it found, ends with status 0 when all of
// it is well, 1 when anything is not, and 2 for a mistake in its arguments.
package main
