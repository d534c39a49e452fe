// Package backendtest is for tests of backends on the running kernel: hosts in
// network namespaces that end with the test, each with a backend of its own and
// a container behind a bridge.
//
//	           switch (forwards between its two segments)
//	  br0 198.18.0.254/24              br1 198.18.1.254/24
//	    |            |                        |
//	  eth0         eth0                     eth0        198.18.x.n/24
//	 host 1       host 2                   host 3
//	 docker0      docker0                  docker0      10.5.n.1/24
//	    |            |                        |
//	container    container                container     10.5.n.2/24
//
// # Contract
//
//   - A Lab does not name its namespaces, so that any number can run side by side,
//     and touches nothing outside of them. It needs root; tests without are skipped.
//   - Hosts know each other only by the leases that Apply hands around.
package backendtest
