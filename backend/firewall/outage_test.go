package firewall

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
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

// outage pings for a while, during which disturb acts, and returns the longest
// time without an answer.
func (s *space) outage(t *testing.T, to string, pings int, disturb func()) time.Duration {
	t.Helper()
	var out bytes.Buffer
	var cmd *exec.Cmd
	s.do(t, func() error {
		cmd = exec.Command("ping", "-n", "-i", fmt.Sprint(pingEvery.Seconds()), "-c", strconv.Itoa(pings), "-W", "1", to)
		cmd.Stdout = &out
		return cmd.Start()
	})
	disturb()
	_ = cmd.Wait() // that some are lost is what we look for
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
	if last == 0 {
		t.Fatalf("no answer at all:\n%s", out.String())
	}
	return time.Duration(max(longest, pings-last)) * pingEvery
}

// What people type when nothing works takes our accepts away, and the policies
// drop everything then: traffic is back, on a machine with nothing else to do within
// half a second, and on any before the next flush. One that is missed lasts as long.
func TestOutageAfterFlush(t *testing.T) {
	const flushEvery, most = 4 * time.Second, 3 * time.Second
	onPaths(t, paths("28.5"), func(t *testing.T, p path) {
		a, b, _ := pair(t, p)
		for _, m := range []*machine{a, b} {
			m.apply(t)
			m.keep(t)
		}
		if got := a.container.outage(t, b.contained(), 100, func() {}); got > time.Second/2 {
			t.Fatalf("undisturbed the longest outage is %v: the test proves nothing", got)
		}
		flush := func() {
			for range 3 {
				for _, m := range []*machine{a, b} {
					m.host.do(t, func() error {
						out, err := exec.Command("sh", "-c", p.variant+" -P FORWARD DROP; "+p.variant+" -F").CombinedOutput()
						if err != nil {
							return fmt.Errorf("%w: %s", err, out)
						}
						return nil
					})
				}
				time.Sleep(flushEvery) //nolint:forbidigo // between two disturbances
			}
		}
		longest := a.container.outage(t, b.contained(), int(3*flushEvery/pingEvery), flush)
		t.Logf("longest outage %v", longest)
		if longest > most {
			t.Errorf("the longest outage is %v, want under %v", longest, most)
		}
	})
}
