package backendtest

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// patience is how long a flood's last answers may take on a busy machine.
const patience = time.Minute

// flood is a ping under way.
type flood struct {
	mu sync.Mutex
	// answered are the numbers of the answered requests, from 1 on; last is the
	// highest of them.
	answered map[int]bool
	last     int
}

var answer = regexp.MustCompile(`icmp_seq=(\d+) ttl=`)

// read takes ping's lines to their end.
func (f *flood) read(lines io.Reader) {
	for s := bufio.NewScanner(lines); s.Scan(); {
		m := answer.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			continue
		}
		f.mu.Lock()
		f.answered[n], f.last = true, max(f.last, n)
		f.mu.Unlock()
	}
}

// state is the highest number and how many up to it have no answer.
func (f *flood) state() (last, lost int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last, f.last - len(f.answered)
}

// Flood pings every 5 ms from one host's container to another's, and returns a
// function that stops it: of what was sent until then no packet may be lost.
func (l *Lab) Flood(from, to int) (stop func()) {
	l.t.Helper()
	cmd := exec.Command("ping", "-n", "-i", "0.005", fmt.Sprintf("10.5.%d.2", l.Hosts[to].n))
	lines, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	l.Hosts[from].inside.Do(l.t, func() {
		if err := cmd.Start(); err != nil {
			l.t.Fatal(err)
		}
	})
	f := &flood{answered: map[int]bool{}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.read(lines)
	}()
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = cmd.Wait() // killed
	})
	l.t.Cleanup(end)
	return func() {
		l.t.Helper()
		defer end()
		// Some are under way whenever that is: when a later one is answered, they must be.
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		before, _ := f.state()
		for deadline := time.Now().Add(patience); ; <-tick.C {
			last, lost := f.state()
			if last > before && lost == 0 {
				return
			}
			if time.Now().After(deadline) {
				l.t.Errorf("ping from container of host %d to that of host %d: %d of the %d up to the last answer are lost, %d answered when it was to stop",
					from+1, to+1, lost, last, before)
				return
			}
		}
	}
}
