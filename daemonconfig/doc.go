// Package daemonconfig makes the files that a container daemon reads.
//
//	lease, MTU ---> Env -------- Format ---> subnet.env --------\
//	                 |                                           \
//	                 +--------- Options ---> options file --------> Write
//	                                                             /  (compare, temporary
//	Docker + daemon.json ------- Merge ----> daemon.json -------/    file, fsync, rename)
//	           ^                   |
//	           +---- Memory <------+
//
// # Contract
//
//   - What a file should hold is computed by pure functions from bytes to
//     bytes; [Write] and [Remove] are the only functions that change a file, and
//     Write changes nothing when the content is right already.
//   - A reader sees the old file or the new one, whatever kills us and when:
//     the new content is complete and synced under a temporary name in the
//     same directory before one rename puts it in place. A temporary file that
//     a kill left behind is removed by a later Write.
//   - Docker's daemon.json belongs to the administrator. [Merge] touches the
//     keys of [Docker] and not one byte of the rest, and refuses a file that it
//     does not understand whole. [Memory] is the proof of what is ours: a value
//     is taken away or put back only while it is still the one that we wrote.
//     Inside of an object of the administrator's that holds for our value alone.
//   - An [Undo] is the way back from a change with which dockerd would not start,
//     and is kept before the change is made: the process that finds out may be
//     another one. Which dockerd knows which key, package dockerd says.
//   - Memory is saved before daemon.json is, so that a crash in between leaves
//     a memory of something not done, which proves nothing and does no harm.
//   - The package imports the standard library and renameio only, and knows
//     neither leases nor processes. Prefixes come in an array indexed by family,
//     IPv4 first; types of package subnet can be assigned to it as they are.
package daemonconfig
