package subnet

import "time"

// Clock is where time comes from. Durations are measured on Uptime and never on
// the wall clock, which jumps, nor on Go's monotonic one, which stands still
// while the machine sleeps: a lease expires then all the same.
type Clock interface {
	// Now is the wall clock: for people to read, never to calculate with.
	Now() time.Time
	// Uptime is the time since a fixed moment in the past. It never jumps nor
	// goes back, and it goes on while the machine is suspended
	// (CLOCK_BOOTTIME).
	Uptime() time.Duration
	// Timer fires once when about d has passed. It may fire early, since a
	// sleeping machine's timers sleep with it and somebody has to look: the
	// receiver compares Uptime with what it waits for, and starts another.
	Timer(d time.Duration) Timer
}

// Timer is a running timer. Stop releases it; it may be called at any time and
// more than once, and leaves C as it is.
type Timer struct {
	C    <-chan time.Time
	Stop func()
}
