package machine

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Description is where a run took place, and when.
type Description struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Arch   string `json:"arch"`
	Go     string `json:"go"`
	Day    string `json:"day"`
	// Load is how many programs wanted to run in the minute before the run, which
	// all of them disturbed.
	Load float64 `json:"load"`
}

// Describe describes the machine that we run on.
func Describe() (Description, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Description{}, fmt.Errorf("describe machine: %w", err)
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return Description{}, fmt.Errorf("describe machine: %w", err)
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return Description{}, fmt.Errorf("describe machine: %w", err)
	}
	lastMinute, err := minuteLoad(string(load))
	if err != nil {
		return Description{}, fmt.Errorf("describe machine: %w", err)
	}
	return Description{
		Load:   lastMinute,
		CPU:    cpuModel(string(info)),
		Cores:  runtime.NumCPU(),
		Kernel: unix.ByteSliceToString(u.Release[:]),
		Arch:   runtime.GOARCH,
		Go:     runtime.Version(),
		Day:    time.Now().UTC().Format(time.DateOnly),
	}, nil
}

// cpuModel is the first processor's name in /proc/cpuinfo, which not every
// architecture tells.
func cpuModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		key, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "CPU of unknown model"
}

// Busy reports whether other programs wanted more than half of the cores.
func (m Description) Busy() bool { return m.Load > m.calmBelow() }

// calmBelow is the most load of a machine that is not busy.
func (m Description) calmBelow() float64 { return float64(m.Cores) / 2 }

// minuteLoad is the first number of /proc/loadavg.
func minuteLoad(loadavg string) (float64, error) {
	first, _, _ := strings.Cut(loadavg, " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, fmt.Errorf("read /proc/loadavg: %w", err)
	}
	return load, nil
}

// String reads as "AMD EPYC, 2 cores, amd64, kernel 6.18.44, go1.26.0, 2026-11-21,
// load before 0.3".
func (m Description) String() string {
	return fmt.Sprintf("%s, %d cores, %s, kernel %s, %s, %s, load before %.1f", m.CPU, m.Cores, m.Arch, m.Kernel, m.Go, m.Day, m.Load)
}
