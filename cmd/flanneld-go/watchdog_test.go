package main

import (
	"context"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// A service manager that watches gets a sign of life as long as rounds end, and none of a
// loop that hangs, in a kernel that does not answer say. The log says so, once.
func TestWatchdog(t *testing.T) {
	const line = "the service manager is told nothing any more"
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	l, log := heirLoop(t)
	for _, tt := range []struct {
		name  string
		ago   time.Duration
		pings bool
		lines int
	}{
		{"a loop at rest", time.Second, true, 0},
		{"a loop that hangs", aliveFor + time.Minute, false, 1},
	} {
		l.beat.set(l.clock.Uptime() - tt.ago)
		var said []string
		got := false
		for range 20 { // a busy machine may let half a second pass without a look
			said = m.during(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
				defer cancel()
				if err := l.announce(ctx, l.beat); err != nil {
					t.Error(err)
				}
			})
			if got = slices.Contains(said, "WATCHDOG=1"); got == tt.pings && log.count(line) == tt.lines {
				break
			}
		}
		if got != tt.pings {
			t.Errorf("%s: told %q, signs of life wanted: %t", tt.name, said, tt.pings)
		}
		if n := log.count(line); n != tt.lines {
			t.Errorf("%s: said %d times that nothing is told, want %d", tt.name, n, tt.lines)
		}
	}
}
