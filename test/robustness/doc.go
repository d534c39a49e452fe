// Package robustness breaks a network of real daemons on purpose, records all
// that etcd and the hosts did, and judges the record. It is to leases what
// etcd's own robustness suite is to etcd.
//
//	seed -> schedule -> faults --------.
//	                                   v
//	   [ 3 etcd members ]---proxies---[ 8 to 16 hosts: daemon, container, pings ]
//	          |                                   |
//	     every revision                    kernel state, files, status, logs
//	          |                                   |
//	          '------> Record (one clock) <-------'
//	                        |
//	                   validators -> violations, each with a name
//
// # Contract
//
//   - A schedule is a pure function of its seed and options. The machine is not:
//     the same seed plans the same faults for the same times. It does not repeat
//     an interleaving: which request was under way when a fault began, who led
//     etcd, when etcd was whole again. A violation that a seed found once may need
//     several runs of it to be found again; the record of the first one is kept.
//   - Collecting and judging are apart. A validator reads a [Record] and nothing
//     else, so that it can be tested with records made by hand, and a record kept
//     on disk can be judged again.
//   - The daemons are the product's own binary but for one thing: their clock can
//     be told to jump. The broken ones differ from it by one mutation of the
//     source each, made while they are built, and each must be caught by the
//     validator meant for it.
//   - All times of a record are on the machine's boot-time clock, counted from the
//     start of the run.
package robustness
