// Package machine says where a measurement took place and what it cost there: the
// machine's description, and the CPU time and memory of processes, read from
// proc(5).
//
//	/proc/cpuinfo, loadavg, uname -> Describe
//	/proc/loadavg, again and again -> Calm
//	/proc/stat                    -> Spent
//	/proc/PID/stat, status        -> ProcessSpent, PeakMemory
//
// # Contract
//
//   - What is not in the form of proc(5) is an error, never zero.
//   - CPU times have the precision of the kernel's clock ticks, 10 ms.
package machine
