package robustness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

const (
	// tailLines is how much is kept of the log of a daemon that ended unasked.
	tailLines = 20
	// meterEvery is between two looks at what a host has cost.
	meterEvery = time.Second
	// userHertz is the unit of /proc/<pid>/stat, the same on every Linux that
	// Go runs on.
	userHertz = 100
)

// watched is a host and what its daemon did.
type watched struct {
	Host
	host *lab.Host
	now  func() time.Duration
	// over is closed when the record ends.
	over    chan struct{}
	waiting sync.WaitGroup

	mu sync.Mutex
	// The fields below are guarded by mu.

	runs   []*process
	log    lineCounter
	course []Cost
}

// process is one run and what it has cost.
type process struct {
	Run
	daemon *lab.Process
	// requests and cpu are the most that was seen.
	requests uint64
	cpu      time.Duration
}

func (w *watched) began(p *lab.Process) {
	r := &process{Run: Run{Host: w.Name, From: w.now()}, daemon: p}
	w.mu.Lock()
	w.runs = append(w.runs, r)
	w.mu.Unlock()
	w.waiting.Go(func() { w.await(r) })
}

// await notes the end of a process, unless the record ends first.
func (w *watched) await(r *process) {
	select {
	case <-r.daemon.Done():
	case <-w.over:
		return
	}
	until := w.now()
	// It has ended: this does not wait.
	status, _ := r.daemon.ExitCode(context.Background())
	w.mu.Lock()
	defer w.mu.Unlock()
	r.Until, r.Status = until, status
	if !r.Killed {
		r.Tail = r.daemon.Tail(tailLines)
	}
}

// killed notes that the present process is about to be ended. One that has ended
// already did so by itself.
func (w *watched) killed(s syscall.Signal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.latest()
	if r == nil || !r.daemon.Running() {
		return
	}
	if r.Killed = true; s == syscall.SIGTERM {
		r.Asked = w.now()
	}
}

// latest is the process that began last; nil: none did.
func (w *watched) latest() *process {
	if len(w.runs) == 0 {
		return nil
	}
	return w.runs[len(w.runs)-1]
}

// look notes what the present process has cost, and reports whether there is
// one that can answer: a stopped one would only be waited for.
func (w *watched) look() (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.latest()
	if r == nil || !r.daemon.Running() {
		return false, nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.daemon.PID()))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return false, nil // It ended meanwhile.
	}
	if err != nil {
		return false, err
	}
	stat, err := parseStat(string(text))
	if err != nil {
		return false, err
	}
	r.cpu = max(r.cpu, stat.cpu)
	return !strings.Contains("TtZX", stat.state), nil
}

// hear notes what the present process says that it has cost.
func (w *watched) hear(s lab.Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.latest(); s.PID == r.daemon.PID() {
		r.requests = max(r.requests, s.Etcd.Traffic.Requests)
	}
}

// procStat is what is of interest of /proc/<pid>/stat (proc(5)).
type procStat struct {
	state string
	// cpu is what all threads used, in user and kernel mode.
	cpu time.Duration
}

// parseStat reads the fields behind the program's name, which may itself hold
// spaces and brackets.
func parseStat(text string) (procStat, error) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 13 {
		return procStat{}, fmt.Errorf("read process state: %q is not of the form of proc(5)", text)
	}
	user, err := strconv.ParseUint(fields[11], 10, 63)
	system, err2 := strconv.ParseUint(fields[12], 10, 63)
	if err := errors.Join(err, err2); err != nil {
		return procStat{}, fmt.Errorf("read process state: %w", err)
	}
	return procStat{state: fields[0], cpu: time.Duration(user+system) * time.Second / userHertz}, nil
}

// meter notes what all processes have cost until now, unless it did so just now.
func (w *watched) meter() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if n := len(w.course); n > 0 && now-w.course[n-1].At < meterEvery || w.latest() == nil {
		return nil
	}
	cost, err := w.cost()
	cost.At = now
	w.course = append(w.course, cost)
	return err
}

// cost is what all processes have cost, as far as they were looked at. mu is held.
func (w *watched) cost() (Cost, error) {
	var c Cost
	for _, r := range w.runs {
		c.CPU += r.cpu
		c.Requests += int(r.requests)
	}
	var err error
	if r := w.latest(); r != nil {
		c.LogLines, err = w.log.count(r.daemon.Spec.Log)
	}
	return c, err
}

// result ends the waiting and returns the runs and what they cost. Log lines are
// all of the lab's life.
func (w *watched) result() ([]Run, Load, error) {
	close(w.over)
	w.waiting.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	var runs []Run
	for _, r := range w.runs {
		runs = append(runs, r.Run)
	}
	total, err := w.cost()
	return runs, Load{Host: w.Name, Requests: total.Requests, CPU: total.CPU, LogLines: total.LogLines, Course: w.course}, err
}

// lineCounter counts the lines of a file that grows, and reads each only once.
type lineCounter struct {
	offset int64
	lines  int
}

// count returns how many lines the file has by now.
func (c *lineCounter) count(path string) (lines int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return c.lines, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, 64<<10)
	for {
		n, err := f.ReadAt(buf, c.offset)
		c.offset += int64(n)
		c.lines += bytes.Count(buf[:n], []byte("\n"))
		if errors.Is(err, io.EOF) {
			return c.lines, nil
		}
		if err != nil {
			return c.lines, err
		}
	}
}
