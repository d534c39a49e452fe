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
//   - All hosts leased, their subnets distinct, everybody knows everybody: that is
//     checked, and a run in which it does not hold fails. So does one with more
//     requests per host at the boot than [MostRequests].
//   - Times are those of one machine that runs etcd and every host, so they are
//     what the whole site would have spent on one such machine: compare counts with
//     those of other runs, and times with nothing.
package storm
