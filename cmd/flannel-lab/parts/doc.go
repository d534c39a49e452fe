// Package parts reads what `go test` prints of benchmarks and of tests with figures, and
// makes tables of it.
//
//	go test -bench . -benchmem ./... \
//	go test -v -run ... ./test/netns >- Read -> Report -> docs/benchmarks.md
//
// # Contract
//
//   - What 10,000 peers cost udp's packet path is a table of its own, and claims (#5): it is
//     compared with a sender that goes through a bare array of the same addresses, whose
//     cost is the kernel's.
//   - Of the other benchmarks those are shown that have words in [titles].
//   - Of tests what they log is shown, as it is.
//   - Whether a test failed is for `go test` to say.
package parts
