// Package cli is what the commands' flags have in common: flannel's spelling
// of them, its environment, and the etcd access they describe.
//
//	flag on the command line  >  FLANNELD_<FLAG>  >  FLANNEL_<FLAG>  >  systemd's credential  >  default
//
// # Contract
//
//   - Both -etcd-prefix and --etcd-prefix parse: flannel's Go flags and the
//     documentation in the field use either.
//   - Every problem is a [UsageError], says the flag or variable, the value and
//     what would be right, and is found before anything is touched.
package cli
