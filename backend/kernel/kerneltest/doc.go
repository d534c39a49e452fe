// Package kerneltest is for tests of what uses package kernel: a kernel in
// memory, real kernels in fresh network namespaces, and the suite that proves
// that both behave alike.
//
//	Suite --+--> Fake    (any user; records, refuses on demand)
//	        +--> NetNS   (root; a namespace that ends with the test)
//
// # Contract
//
//   - Fake does to dependent entries what the kernel does: a link takes its
//     addresses, routes, neighbours and FDB entries with it, a link going down
//     its routes and neighbours; a gateway must be reachable.
//   - What Suite asserts holds for both, and in both forms of gateway routes.
//     A behaviour that a test relies on belongs into Suite.
package kerneltest
