// Package etcdtest runs an etcd server for tests and for the lab: embedded in
// the process, or as a child from another binary, on any address; alone, or as a
// member of a cluster.
//
//	Start --> [ Server ] --Stop--> down, data kept --Restart--> the same again
//	              |
//	              +--Wipe--> the same address and flags, all data lost
//	              +--Rewind> the same with the data of an earlier moment
//	              +--Close-> gone, and its folder if it was a temporary one
//
// Ports that were left open to it are its own from Start to Close, also while it is
// down: see [Reserve].
//
// It never syncs its files to the disk, and is no place for data that matters.
// The package does not depend on testing, and the daemon does not depend on it.
package etcdtest
