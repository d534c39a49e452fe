// Package reconcile compares what should be with what is, and does the
// difference in a safe order. It knows no kernel: entries are values, and a
// [Table] reads and writes them.
//
//	desired entries ----\
//	                     >-- Diff --> put, delete --> Table.Put / Table.Delete
//	Table.List (actual) -/     ^
//	                           owned: what may be deleted
//
// # Contract
//
//   - Steps are given in the order in which entries depend on each other (FDB,
//     neighbour, route). All puts run in that order; then all deletes run in
//     the reverse order. So a route never points to a neighbour that is not
//     there, and a replaced peer is reachable before its past is removed.
//   - An entry that is not desired is deleted only when owned says that it is
//     ours.
//   - A failed entry does not stop the others. Its error is joined into the
//     result, and since nothing is remembered, the next Apply tries it again.
//   - A table that cannot be listed is not touched, nor is what depends on it.
package reconcile
