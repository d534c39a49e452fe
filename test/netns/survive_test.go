package netns_test

import (
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// udpOutage is how long traffic through a user-space data path may stop while
// its process is replaced.
const udpOutage = 20 * time.Second

// The daemon is replaced under a 5 ms ping between two containers, both ways.
// Kernel data paths go on without it.
func TestReplacedDaemonLosesNothing(t *testing.T) {
	ends := map[string]func(*testing.T, *lab.Host){
		"restart": func(t *testing.T, h *lab.Host) {
			if err := h.Daemon.Stop(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			if code, err := h.Daemon.ExitCode(t.Context()); err != nil || code != 0 {
				t.Errorf("exit status %d after SIGTERM (%v)", code, err)
			}
		},
		"kill": func(t *testing.T, h *lab.Host) {
			if err := h.Daemon.Kill(); err != nil {
				t.Fatal(err)
			}
		},
	}
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			l := newNetwork(t, 2, configs[b.name])
			startContainers(t, l)
			for name, end := range ends {
				t.Run(name, func(t *testing.T) { replaceUnderPing(t, l, b.name, end) })
			}
		})
	}
}

func replaceUnderPing(t *testing.T, l *lab.Lab, backend string, end func(*testing.T, *lab.Host)) {
	h, peer := l.Hosts[0], l.Hosts[1]
	before, err := h.ReadSubnet()
	if err != nil {
		t.Fatal(err)
	}
	out := startPing(t, h.Container, peer.Container)
	in := startPing(t, peer.Container, h.Container)
	pause(t, 200*time.Millisecond)
	end(t, h)
	pause(t, 200*time.Millisecond)
	if err := h.RelaunchDaemon(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.WaitReady(within(t, time.Minute), 1); err != nil {
		t.Fatal(err)
	}
	pause(t, 500*time.Millisecond)
	for way, r := range map[string]lab.PingResult{"out": out.Stop(), "in": in.Stop()} {
		t.Logf("%s: %s", way, r)
		switch {
		case r.Received == 0:
			t.Errorf("%s: nothing was ever answered", way)
		case backend != "udp" && r.Lost() > 0:
			t.Errorf("%s: lost %d of %d, longest gap %s", way, r.Lost(), r.Sent, r.Gap)
		case r.Gap > udpOutage:
			t.Errorf("%s: traffic stopped for %s", way, r.Gap)
		}
	}
	after, err := h.ReadSubnet()
	if err != nil || after != before {
		t.Errorf("subnet.env says %v (%v), it was %v", after, err, before)
	}
}

func startPing(t *testing.T, from, to *lab.Container) *lab.Pinging {
	t.Helper()
	p, err := from.StartPing(t.Context(), lab.PingOptions{To: to.Addr(), Interval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pause lets traffic flow for a while.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}
