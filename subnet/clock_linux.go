package subnet

import (
	"syscall"
	"time"
	"unsafe"
)

// SystemClock is the machine's own clock. The zero value is ready.
type SystemClock struct{}

// clockBoottime is CLOCK_BOOTTIME of time.h: CLOCK_MONOTONIC plus the time for
// which the machine was suspended (Linux 2.6.39).
const clockBoottime = 7

// timerSlice bounds how long a timer trusts CLOCK_MONOTONIC, on which Go's
// timers run. It is also how late a wake-up from suspension is noticed.
const timerSlice = 10 * time.Second

var _ Clock = SystemClock{}

// Now returns the wall clock.
func (SystemClock) Now() time.Time { return time.Now() }

// Uptime returns CLOCK_BOOTTIME.
func (SystemClock) Uptime() time.Duration {
	var ts syscall.Timespec
	// The call cannot fail: the clock is older than any kernel that Go runs on,
	// and ts is a valid address.
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&ts)), 0)
	return time.Duration(ts.Nano())
}

// Timer fires after d or 10 s, whichever comes first.
func (SystemClock) Timer(d time.Duration) Timer {
	t := time.NewTimer(min(d, timerSlice))
	return Timer{C: t.C, Stop: func() { t.Stop() }}
}
