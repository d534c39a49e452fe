package netns_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// What a daemon may cost while etcd cannot be reached.
const (
	maxLogLines = 20   // a minute
	maxCPU      = 0.01 // of a core; over a short time a start or two weigh more
)

// Three hosts lose etcd in the three ways there are, for long: connections are
// refused, packets vanish, connections stand and are silent.
func TestDaemonIsQuietWithoutEtcd(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	putConfig(t, l, configs["vxlan"])
	proxies := map[*lab.Host]*lab.Proxy{}
	for _, h := range l.Hosts {
		proxies[h] = newProxy(t, l, h)
		if err := h.StartDaemon("--etcd-endpoints=" + strings.Join(proxies[h].Endpoints(), ",")); err != nil {
			t.Fatal(err)
		}
	}
	waitWell(t, l, time.Minute)
	refused, dropped, silent := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	ways := map[*lab.Host]string{refused: "refused", dropped: "dropped", silent: "silent"}
	before := map[*lab.Host]expense{}
	for h := range ways {
		before[h] = expenseOf(t, h)
	}
	began := time.Now()
	proxies[refused].Cut()
	if err := dropped.Partition(lab.Both); err != nil {
		t.Fatal(err)
	}
	proxies[silent].Block(lab.Both)
	// Not asked for its status meanwhile, which would cost it more than etcd.
	pause(t, lasting(30*time.Second, 10*time.Minute))
	took := time.Since(began)
	for h, way := range ways {
		spent := expenseOf(t, h).since(before[h])
		lines, cpu := float64(spent.lines)/max(1, took.Minutes()), spent.cpu.Seconds()/took.Seconds()
		t.Logf("%s: %d lines of log in %s, %.2f %% of a core, %d requests to etcd", way, spent.lines, took.Round(time.Second), 100*cpu, spent.requests)
		if lines >= maxLogLines {
			t.Errorf("%s: %.0f lines of log a minute, want less than %d", way, lines, maxLogLines)
		}
		if cpu >= maxCPU && took > time.Minute {
			t.Errorf("%s: %.2f %% of a core, want less than %.0f %%", way, 100*cpu, 100*maxCPU)
		}
		if _, err := h.WaitProblem(within(t, time.Minute), "etcd", ""); err != nil {
			t.Error(err)
		}
	}
	for h, p := range proxies {
		if err := p.Heal(); err != nil {
			t.Fatal(err)
		}
		if err := h.Rejoin(); err != nil {
			t.Fatal(err)
		}
	}
	waitWell(t, l, time.Minute)
}

func newProxy(t *testing.T, l *lab.Lab, h *lab.Host) *lab.Proxy {
	t.Helper()
	p, err := l.NewProxy(h, l.Cluster())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// expense is what a daemon has cost since its start.
type expense struct {
	cpu      time.Duration
	lines    int
	requests uint64
}

func (e expense) since(before expense) expense {
	return expense{e.cpu - before.cpu, e.lines - before.lines, e.requests - before.requests}
}

func expenseOf(t *testing.T, h *lab.Host) expense {
	t.Helper()
	s, err := h.Status(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	text, err := h.Daemon.Log()
	if err != nil {
		t.Fatal(err)
	}
	cpu, err := cpuTime(h.Daemon.PID())
	if err != nil {
		t.Fatal(err)
	}
	return expense{cpu: cpu, lines: strings.Count(text, "\n"), requests: s.Etcd.Traffic.Requests}
}

// cpuTime is what a process has used of the CPU: fields 14 and 15 of
// proc_pid_stat(5), in ticks of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may have spaces in it.
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	const user, system, tick = 14 - 3, 15 - 3, 10 * time.Millisecond
	var ticks uint64
	for _, i := range []int{user, system} {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// A watch whose connection died without a word is noticed, and what happened
// meanwhile is learned as soon as there is a way to etcd again.
func TestSilentlyDeadWatch(t *testing.T) {
	for _, d := range []lab.Direction{lab.In, lab.Both} {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, lab.Options{Hosts: 1})
			putConfig(t, l, besideGhosts("vxlan"))
			h := l.Hosts[0]
			proxy := newProxy(t, l, h)
			if err := h.StartDaemon("--etcd-endpoints=" + strings.Join(proxy.Endpoints(), ",")); err != nil {
				t.Fatal(err)
			}
			waitWell(t, l, time.Minute)
			proxy.Block(d)
			began := time.Now()
			g := newGhost(203)
			if _, err := l.Client().Put(within(t, time.Minute), ghostKey(), g.value(t, "vxlan")); err != nil {
				t.Fatal(err)
			}
			s, err := h.WaitStatus(within(t, noticed), "etcd to be missed", func(s lab.Status) bool {
				return !s.Etcd.Connected && slices.ContainsFunc(s.Problems, func(p lab.Problem) bool { return p.Component == "etcd" })
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("noticed after %s: %s", time.Since(began), s.Problems[0].Message)
			healed := time.Now()
			if err := proxy.Heal(); err != nil {
				t.Fatal(err)
			}
			waitNextHost(t, h, ghostSubnet.Addr().Next(), g.public, follow)
			t.Logf("learned %s after the connection was whole again", time.Since(healed))
		})
	}
}

// The members of etcd are killed one after the other, and at last the leader is
// stopped in its tracks: a change is learned all the same.
func TestWatchOutlivesMembers(t *testing.T) {
	t.Parallel()
	l := newClusterLab(t, lab.Options{Hosts: 1})
	putConfig(t, l, besideGhosts("vxlan"))
	startDaemons(t, l)
	h, c := l.Hosts[0], l.Cluster()
	waitWell(t, l, time.Minute)
	ghosts := byte(204)
	learns := func(t *testing.T, client *clientv3.Client, d time.Duration) {
		t.Helper()
		ghosts++
		g := newGhost(ghosts)
		began := time.Now()
		if _, err := client.Put(within(t, time.Minute), ghostKey(), g.value(t, "vxlan")); err != nil {
			t.Fatal(err)
		}
		waitNextHost(t, h, ghostSubnet.Addr().Next(), g.public, d)
		t.Logf("a change is learned after %s", time.Since(began))
	}
	for i, m := range c.Members {
		t.Run(fmt.Sprintf("member %d killed", m.Number), func(t *testing.T) {
			if err := m.Kill(); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Leader(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			learns(t, c.Members[(i+1)%len(c.Members)].Client(), noticed)
			if err := c.Start(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("leader paused", func(t *testing.T) {
		m, err := c.Leader(within(t, time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Pause(); err != nil {
			t.Fatal(err)
		}
		next, err := c.Leader(within(t, time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		learns(t, next.Client(), noticed)
		if err := m.Resume(); err != nil {
			t.Fatal(err)
		}
	})
	_, err := h.WaitStatus(within(t, time.Minute), "all to be well", func(s lab.Status) bool { return s.Ready && s.Etcd.Connected && len(s.Problems) == 0 })
	if err != nil {
		t.Error(err)
	}
}
