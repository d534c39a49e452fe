// Package hosts has real machines on one machine: Debian with systemd and
// dockerd, in a network of the lab's own. Its tests install the product on them
// as its users do, and look at what they would see.
//
//	cache (--suite)      overlay          systemd-nspawn -b
//	 debootstrap  ---->  root of h1  --->  h1: systemd, dockerd, flanneld-go
//	 docker.io    \                         |  network namespace <lab>-h1
//	               '-->  root of h2  --->  h2 ...
//	                                        |
//	                     <lab>-sw: switch, etcd
//
// # Contract
//
//   - A root is prepared once per recipe and kept outside of the repository, in
//     $FLANNEL_TEST_CACHE or /var/cache/flanneld-go-test; a machine writes to an
//     overlay of its own. A root that is there is used, one that is missing is
//     made: a fresh machine and a warm one both pass.
//   - Machines end with their test: processes by id, mounts and folders by the
//     names that the test made.
package hosts
