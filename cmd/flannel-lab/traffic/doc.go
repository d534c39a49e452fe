// Package traffic makes load inside a container and counts what arrives there.
// Two agents, each a process of its own in its container's namespace, measure the
// path between them; who drives them needs no packet on that path.
//
//	     bench: Client ----- unix socket -----. files, so reached from
//	          \------ unix socket --.         |  any network namespace
//	                                v         v
//	container A                  agent A   agent B              container B
//	  Streams, Datagrams, Connect   |  ~~~~~~~^ sinks (count), answerer
//	  Ping                          |  <----- the kernel's own echo
//
// # Contract
//
//   - One code measures every path: only addresses differ.
//   - A sender says what it sent, a sink what arrived since the agent's start, both
//     with the time on one clock.
//   - Nothing is batched that programs do not batch: a datagram costs its sender
//     one system call and its receiver one.
//   - What is asked for ends by itself after the duration given, and early when
//     who asked goes away.
package traffic
