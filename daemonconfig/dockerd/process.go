package dockerd

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// PIDFile is where dockerd leaves its process id unless it is told otherwise.
const PIDFile = "/run/docker.pid"

// RootlessPIDFiles is where rootless dockerds do, as a pattern of filepath.Glob:
// each in its user's $XDG_RUNTIME_DIR.
const RootlessPIDFiles = "/run/user/*/docker.pid"

// Process is a dockerd that runs.
type Process struct {
	PID int
	// Given are its flags.
	Given []Given
	// Started is when it was; zero: not known.
	Started time.Time
}

// Running returns the dockerd whose process id is in pidFile, and [ErrDown] if
// there is none. proc is where procfs is mounted.
func Running(pidFile, proc string) (Process, error) {
	text, err := os.ReadFile(pidFile)
	if errors.Is(err, os.ErrNotExist) {
		return Process{}, ErrDown
	}
	if err != nil {
		return Process{}, fmt.Errorf("look for dockerd: %w", err)
	}
	pid, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 31)
	if err != nil {
		return Process{}, fmt.Errorf("look for dockerd: %s holds no process id", pidFile)
	}
	dir := filepath.Join(proc, strconv.FormatUint(pid, 10))
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if errors.Is(err, os.ErrNotExist) {
		return Process{}, ErrDown
	}
	if err != nil {
		return Process{}, fmt.Errorf("look for dockerd: %w", err)
	}
	argv := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	if filepath.Base(argv[0]) != "dockerd" {
		return Process{}, ErrDown // the number is another process's by now
	}
	p := Process{PID: int(pid), Started: started(proc, dir)}
	for _, f := range ParseFlags(argv) {
		p.Given = append(p.Given, Given{f, fmt.Sprintf("the command line of dockerd (pid %d)", pid)})
	}
	return p, nil
}

// userHZ is the unit of times in proc(5), on every architecture of Go's.
const userHZ = 100

// started is the time of a process's start, which is counted from the boot, suspended
// time included. Zero: procfs does not say.
func started(proc, dir string) time.Time {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return time.Time{}
	}
	// The second field is the name in parentheses, which may hold anything.
	const starttime = 22 - 3
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) <= starttime {
		return time.Time{}
	}
	ticks, err := strconv.ParseUint(fields[starttime], 10, 63)
	if err != nil {
		return time.Time{}
	}
	boot, err := booted(proc)
	if err != nil {
		return time.Time{}
	}
	return boot.Add(time.Duration(ticks) * (time.Second / userHZ))
}

// booted is the time of the boot. Two clocks tell it, and a machine that gives us no time
// between them would move it: of some looks that counts which took least.
func booted(proc string) (boot time.Time, err error) {
	const looks = 5
	best := time.Duration(math.MaxInt64)
	for range looks {
		before := time.Now()
		uptime, err := os.ReadFile(filepath.Join(proc, "uptime"))
		took := time.Since(before)
		if err != nil {
			return time.Time{}, err
		}
		if took >= best {
			continue
		}
		seconds, _, _ := strings.Cut(string(uptime), " ")
		up, err := strconv.ParseFloat(seconds, 64)
		if err != nil {
			return time.Time{}, err
		}
		best, boot = took, before.Add(-time.Duration(up*float64(time.Second)))
		if took < time.Second/userHZ {
			break
		}
	}
	return boot, nil
}
