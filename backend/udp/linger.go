package udp

import "golang.org/x/sys/unix"

// linger says whether a loop that found nothing looks again before it goes to sleep.
// While packets come one after the other the next is a few microseconds away, and
// to be woken for it costs more than to look: on a virtual machine, whose idle core
// the hypervisor has to wake, 20 times as much.
//
//	found nothing --> look, and again ... --> found: lingers next time, too
//	    ^                   \
//	    |                    nothing: sleep, and so the next 1, 3, 7 ... 63 times
//	    +---------------------------------------------+
//
// So what comes seldom costs a fruitless look or two for every packet, and what comes
// often no sleep. Between two looks it lets other threads run.
type linger struct {
	looks int // that are left of the present lingering; 0: it does not
	skip  int // sleeps before it lingers again
	after int // what skip was last
}

// lingerLooks are what lingering lasts at most, some 20 us; lingerSkips how often it
// is skipped at most.
const lingerLooks, lingerSkips = 24, 63

// again is asked when there was nothing. False: sleep.
func (l *linger) again() bool {
	switch {
	case l.looks > 1:
		l.looks--
	case l.looks == 1:
		l.looks = 0
		l.after = min(2*l.after+1, lingerSkips)
		l.skip = l.after
		return false
	case l.skip > 0:
		l.skip--
		return false
	default:
		l.looks = lingerLooks
	}
	return true
}

// found is told when there was something.
func (l *linger) found() {
	if l.looks > 0 {
		l.looks, l.after = 0, 0
	}
}

// seldom: it has looked in vain for long.
func (l *linger) seldom() bool { return l.after == lingerSkips }

// yield lets other threads of this core run. It is sched_yield(2), for Go's scheduler
// knows nothing of those that wait for a core.
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
