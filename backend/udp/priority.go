package udp

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// niceness is that of a process that moves packets, see nice(7), as Open vSwitch's has it:
// ovs-ctl(8), --ovs-vswitchd-priority. The kernel's tunnels do the same in softirqs, before
// any program. With the niceness of the programs whose packets these are, it waits for them
// on a busy host, and then they for their packets: see Cost.
const niceness = -10

// precede gives all threads of the process niceness, and with them those that they start,
// and programs, unless the caller has another one than 0: somebody has chosen that. It takes
// CAP_SYS_NICE, which our unit does not have: there systemd has done it.
//
// It orders programs of one session, or of one control group, and no others (sched(7),
// autogroup): in the unit it is CPUWeight= that puts the service before others.
func precede() error {
	const passes = 10 // threads may start others meanwhile, but not for ever

	nice, err := niceOf(0)
	if err != nil || nice != 0 {
		return err
	}
	for pass := range passes {
		switch changed, err := precedeOnce(); {
		case err != nil:
			return err
		case changed == 0 && pass == 0:
			return errors.New("set niceness: none of the threads in /proc/self/task is ours")
		case changed == 0:
			return nil
		}
	}
	return fmt.Errorf("set niceness: threads without it are left after %d passes", passes)
}

// precedeOnce changes all threads of niceness 0 that there are, and returns how many.
func precedeOnce() (changed int, err error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, fmt.Errorf("list threads: %w", err)
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			return changed, fmt.Errorf("list threads: %w", err)
		}
		nice, err := niceOf(id)
		if err == nil && nice == 0 {
			err = unix.Setpriority(unix.PRIO_PROCESS, id, niceness)
			changed++
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
			return changed, fmt.Errorf("set niceness of thread %d to %d: %w", id, niceness, err)
		}
	}
	return changed, nil
}

// niceOf is the niceness of a thread; 0 is the calling one.
func niceOf(id int) (int, error) {
	n, err := unix.Getpriority(unix.PRIO_PROCESS, id)
	if err != nil {
		return 0, fmt.Errorf("get niceness of thread %d: %w", id, err)
	}
	return 20 - n, nil // the call itself says it so: getpriority(2), C library differences
}
