package machine

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// ticks is the unit of CPU times in /proc, USER_HZ: 100 on every architecture
// that Go knows (proc(5)).
const ticks = time.Second / 100

var errProc = errors.New("not in the form of proc(5)")

// machineTime is how long the machine's cores have been busy: user, nice, system,
// irq and softirq in the first line of /proc/stat.
func machineTime(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("read /proc/stat: %q: %w", line, errProc)
	}
	return sumTicks(fields[1], fields[2], fields[3], fields[6], fields[7])
}

// processTime is how long a process and its threads have been busy, with the programs
// that it ran and that have ended, from /proc/PID/stat. The program's name, in parentheses, may contain anything.
func processTime(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 15 {
		return 0, fmt.Errorf("read /proc/PID/stat: %q: %w", stat, errProc)
	}
	return sumTicks(fields[11], fields[12], fields[13], fields[14])
}

func sumTicks(fields ...string) (time.Duration, error) {
	var sum time.Duration
	for _, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		sum += time.Duration(n) * ticks
	}
	return sum, nil
}

// peakMemory is the most that a process was resident, in bytes, from
// /proc/PID/status.
func peakMemory(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read VmHWM: %w", err)
			}
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("read /proc/PID/status: no VmHWM: %w", errProc)
}

// Spent is how long the machine's cores have been busy.
func Spent() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return machineTime(string(stat))
}

// ProcessSpent is how long a process and its threads have been busy, with the programs
// that it ran and that have ended.
func ProcessSpent(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return processTime(string(stat))
}

// PeakMemory is the most that a process was resident, in bytes.
func PeakMemory(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return peakMemory(string(status))
}
