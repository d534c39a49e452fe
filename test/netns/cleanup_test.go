package netns_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// What the daemon did to a host, flannelctl takes back, and nothing else.
func TestCleanupLeavesTheHostAsItWas(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			l := newLab(t, lab.Options{Hosts: 2, DaemonArgs: []string{"--ip-masq"}})
			h := l.Hosts[0]
			// Somebody's own, which must stay. (A route inside the network
			// through a host of ours would count as flannel's.)
			for _, own := range []string{
				"ip route add 10.5.250.0/24 via 198.18.0.77",
				"ip route add blackhole 10.77.0.0/16",
				"iptables -A FORWARD -s 10.66.0.0/16 -j ACCEPT",
			} {
				if _, err := h.Run(t.Context(), "/bin/sh", "-c", own); err != nil {
					t.Fatal(err)
				}
			}
			before := look(t, h)
			putConfig(t, l, configs[b.name])
			startDaemons(t, l)
			waitReady(t, l)
			if during := look(t, h); during == before {
				t.Fatal("the daemon changed nothing that this test can see")
			}
			cleanup := []string{"cleanup", "--yes", "--socket=" + h.Socket(), "--state-dir=" + h.StateDir()}
			if out, err := h.Run(t.Context(), command(t, "flannelctl"), cleanup...); err == nil || !strings.Contains(out, "running") {
				t.Errorf("cleanup under a running daemon: %v\n%s", err, out)
			}
			if err := h.Daemon.Stop(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			out, err := h.Run(within(t, 30*time.Second), command(t, "flannelctl"), cleanup...)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if diff := cmp.Diff(lines(before), lines(look(t, h))); diff != "" {
				t.Errorf("the host after cleanup (-before +after):\n%s\nflannelctl printed:\n%s", diff, out)
			}
		})
	}
}

// look is a host's network state as text. Link-local addresses are the
// kernel's, and it takes its time with them.
func look(t *testing.T, h *lab.Host) string {
	t.Helper()
	out, err := h.Run(t.Context(), "/bin/sh", "-c", `
		ip -o link | sed "s/ state .*//"
		ip -o addr | sed "s/ valid_lft.*//" | grep -v fe80:
		ip route show table all | grep -v fe80:
		ip nexthop
		ip -o neigh show nud permanent
		bridge fdb | grep -v "^33:33:\|^01:00:5e:"
		cat /proc/sys/net/ipv4/ip_forward
		iptables-save | grep "^[*:-]" | sed "s/ \[.*//"`)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func lines(text string) []string { return strings.Split(text, "\n") }
