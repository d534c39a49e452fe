package firewall

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"
)

// keep applies as the daemon's loop does, at every drift and again where that failed, until
// unkeep or the test's end: a firewalld that goes does not answer, and another program may
// not be through with its own changes. What still fails then is told.
func (m *machine) keep(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	watching := make(chan struct{})
	ended := m.host.inside(func() (err error) {
		drift := m.b.f.Drift(ctx)
		close(watching)
		for {
			var again <-chan time.Time
			if err != nil {
				again = time.After(retry)
			}
			select {
			case <-again:
			case _, ok := <-drift:
				if !ok && err != nil {
					err = m.b.f.Apply(context.Background(), m.d)
				}
				if !ok {
					return err
				}
			}
			err = m.b.f.Apply(ctx, m.d)
		}
	})
	<-watching
	m.unkeep = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Apply: %v", err)
		}
	})
	t.Cleanup(m.unkeep)
}

// retry is how soon the daemon tries again what failed.
const retry = 250 * time.Millisecond

const pingEvery = 5 * time.Millisecond

// most is how long an outage may be, however busy the machine: who does not notice by
// himself that he must act has one without an end, for here nobody looks now and then.
const most = 15 * time.Second

// outage pings until disturb is through and a call is seen as wanted again, and returns the
// longest time without an answer before that.
func (c call) outage(t *testing.T, what, want string, disturb func()) time.Duration {
	t.Helper()
	var out bytes.Buffer
	var cmd *exec.Cmd
	c.by.do(t, func() error {
		cmd = exec.Command("ping", "-n", "-i", fmt.Sprint(pingEvery.Seconds()), c.to)
		cmd.Stdout = &out
		return cmd.Start()
	})
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		_ = cmd.Wait()                       // that some are lost is what we look for
	})
	defer end()
	disturb()
	wantCall(t, what, c, want)
	end()
	longest, last := 0, 0
	seq := regexp.MustCompile(`icmp_seq=(\d+)`)
	for lines := bufio.NewScanner(&out); lines.Scan(); {
		m := seq.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		longest, last = max(longest, n-last-1), n
	}
	return time.Duration(longest) * pingEvery
}

// What people type when nothing works takes our accepts away, and the policies
// drop everything then: traffic is back by itself, on a machine with nothing else to do
// within half a second.
func TestOutageAfterFlush(t *testing.T) {
	onPaths(t, paths("28.5"), func(t *testing.T, p path) {
		a, b, _ := pair(t, p)
		for _, m := range []*machine{a, b} {
			m.apply(t)
			m.keep(t)
		}
		c := a.container.calling("", b.contained())
		wantCall(t, "undisturbed", c, a.contained())
		for n := range 3 {
			longest := c.outage(t, fmt.Sprintf("after flush %d", n+1), a.contained(), func() {
				for _, m := range []*machine{a, b} {
					m.host.do(t, func() error {
						out, err := exec.Command("sh", "-c", p.variant+" -P FORWARD DROP; "+p.variant+" -F").CombinedOutput()
						if err != nil {
							return fmt.Errorf("%w: %s", err, out)
						}
						return nil
					})
				}
			})
			t.Logf("longest outage %v", longest)
			if longest > most {
				t.Errorf("the longest outage is %v, want under %v", longest, most)
			}
		}
	})
}
