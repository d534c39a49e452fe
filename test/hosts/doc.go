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
// # Two kinds of machines
//
// Debian 12 and 13 boot with systemd. The one that has dockerd 28.5 has a systemd
// that needs a machine with cgroups of version 2 alone: there a shell is process 1,
// in namespaces and cgroups of its own, and scripts start the services. See
// [supervisor].
//
// # The matrix
//
// A setup is a version of Docker, a backend and a variant of the firewall: two
// machines, and a third host that runs nothing. All cells are asked of it in turn,
// from inside the containers' namespaces, with INPUT's and FORWARD's policies DROP.
// A table says what came of each; with $FLANNEL_TEST_MATRIX it is also written to
// that file.
//
// Measured: beside dockerd 28.5.2 what the overlay delivers is dropped in raw
// PREROUTING by "-d <container> ! -i docker0 -j DROP", with every packet counted
// there and none in filter's "DOCKER ! -i docker0 -o docker0 -j DROP" behind it;
// with an accept in front of the first, what comes by the overlay is accepted in
// DOCKER-USER and never meets the second.
//
// # Stacks
//
// The compose file of the examples, by Docker Compose itself, on a network with
// names that the daemon keeps or an operator made. It takes the hosts through
// restarts of Docker and of our daemon.
//
// # systemd-networkd
//
// It has the uplinks of two machines, and is reloaded and restarted below a ping,
// for each backend, with the settings that are installed and without. A second
// table says what was lost.
//
// # DHCP
//
// The networkd of one machine serves addresses to that of the other, and then others.
//
// # Instances
//
// Two daemons on each machine, the second by the template unit with a network of its own
// in Docker: restarted, killed, booted and cleaned up below the pings of both.
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
