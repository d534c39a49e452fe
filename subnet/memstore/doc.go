// Package memstore is a [subnet.Store] in memory, for tests: with revisions,
// watches, compaction, an identity, and leases that expire by the time package,
// so that testing/synctest runs days in a moment.
//
//	Load, Create, Renew ...                 PutConfig, Put, Wipe ...
//	     |                                        |
//	[ Options.Before ] -> [ state: keys, leases, log ] <- operators, flannel
//	[ Options.After  ] <-         |
//	                            Watch
//
// It passes the conformance suite of storetest, which etcdstore passes as well:
// what holds here holds there. Its further methods are what others do to a
// store: they are never refused, even while [Store.SetUnavailable] keeps a
// host out.
package memstore
