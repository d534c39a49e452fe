// Package storm starts many hosts at once against one etcd, and counts at the
// server what each of them costs it: when all of a site's machines boot together,
// while nothing happens, while hosts come and go, and after etcd itself was away.
//
//	crowd:    host ... host           in this process, thousands: subnet's Acquire,
//	            |        |            View and Keeper over etcdstore, a connection
//	            |        |            each, and no kernel
//	            v        v
//	          [   one etcd   ] -----> Counts, from its own metrics
//	            ^        ^
//	            |        |
//	daemons:  h1 ... h200             real daemons, a namespace each (package lab)
//
// # Contract
//
//   - A phase counts what the server saw between its begin and its end, of all
//     hosts together; a table shows it per host.
//   - Everybody leased and knows everybody: who does not within minutes fails the run.
//     Different subnets, a path from each to each, and at most [MostRequests] of each at
//     the boot are claims of the [Report], which the command judges once all is written.
//   - A start's requests are a load, a grant, a transaction, a watch and the proof that it
//     is of the same store: 5. What a host asks for as time goes by, while it waits for
//     those that were slower, is in the counts of the phase and not among them.
//   - Times are those of one machine that runs etcd and every host, so they are
//     what the whole site would have spent on one such machine: compare counts with
//     those of other runs, and times with nothing.
package storm
