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
// on a busy host, and then they for their packets: one TCP stream carried 5 to 15 % less.
const niceness = -10

// precede gives all threads of the process niceness, and with them those that they start,
// unless somebody has chosen another one already. It takes CAP_SYS_NICE, which our unit
// does not have: there systemd has done it.
func precede() error {
	nice, err := niceOf(0)
	if err != nil || nice != 0 {
		return err
	}
	for again := true; again; { // a thread may have started another one meanwhile
		again = false
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list threads: %w", err)
		}
		for _, task := range tasks {
			id, err := strconv.Atoi(task.Name())
			if err != nil {
				return fmt.Errorf("list threads: %w", err)
			}
			if nice, err = niceOf(id); err == nil && nice == 0 {
				again, err = true, unix.Setpriority(unix.PRIO_PROCESS, id, niceness)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
				return fmt.Errorf("set niceness of thread %d to %d: %w", id, niceness, err)
			}
		}
	}
	return nil
}

// niceOf is the niceness of a thread; 0 is the calling one.
func niceOf(id int) (int, error) {
	n, err := unix.Getpriority(unix.PRIO_PROCESS, id)
	if err != nil {
		return 0, fmt.Errorf("get niceness of thread %d: %w", id, err)
	}
	return 20 - n, nil // the call itself says it so: getpriority(2), C library differences
}
