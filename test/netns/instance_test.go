package netns_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// secondPrefix is where the second network has its keys.
const secondPrefix = "/second/network"

// pairOf is one host with both of its instances.
type pairOf struct{ first, second *lab.Host }

// Two instances on each of two hosts, in two networks. Whatever becomes of the first, the
// second loses no packet and nothing of what it has in the kernel, and when both have
// been cleaned up the host is as it was.
func TestInstancesShareAHost(t *testing.T) {
	for _, c := range []struct {
		name, first, second string
		// undo takes what the first has in the kernel.
		undo string
		// learns: the second notes the MACs of its peers, once it has them.
		learns bool
	}{
		{
			name: "udp and udp", first: configs["udp"],
			second: `{"Network":"10.6.0.0/16","Backend":{"Type":"udp","Port":8286}}`, undo: "ip link delete flannel0",
		},
		{
			name: "udp and vxlan", first: configs["udp"],
			second: `{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`, undo: "ip link delete flannel0",
		},
		{
			name: "vxlan and udp, both by the same gateways", first: `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`,
			second: `{"Network":"10.6.0.0/16","Backend":{"Type":"udp","DirectRouting":true}}`, undo: "ip link delete flannel.1", learns: true,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, lab.Options{Hosts: 2})
			hosts := []pairOf{{l.Hosts[0], l.Hosts[0].Beside(1)}, {l.Hosts[1], l.Hosts[1].Beside(1)}}
			run(t, hosts[0].first, settled)
			bare := look(t, hosts[0].first)
			putConfig(t, l, c.first)
			putSecond(t, l, c.second)

			// The first turns forwarding on, and the second needs it as well.
			for _, h := range hosts {
				startInstance(t, h.first)
				startInstance(t, h.second, "--etcd-prefix="+secondPrefix)
			}
			for _, h := range hosts {
				wantReady(t, h.first)
				wantReady(t, h.second)
				containerOf(t, h.first)
				containerOf(t, h.second)
			}
			reaches(t, hosts[0].first, hosts[1].first)
			reaches(t, hosts[0].second, hosts[1].second)

			a := hosts[0]
			if c.learns {
				run(t, a.first, "until nft list table ip flanneld-go1 | grep -q 'set macs'; do read -t 0.1 _ <>/dev/fd/2 || true; done")
			}
			had := ofSecond(t, a.first)
			unharmed := func(what string, deed func()) {
				t.Helper()
				ping, err := a.second.Container.StartPing(t.Context(), lab.PingOptions{To: hosts[1].second.Container.Addr(), Interval: 5 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				deed()
				if r := ping.Stop(); r.Lost() > 0 || r.Sent == 0 {
					t.Errorf("%s of the first: the second lost packets: %s", what, r)
				}
				if diff := cmp.Diff(had, ofSecond(t, a.first)); diff != "" {
					t.Errorf("%s of the first changed what the second has (-want +got):\n%s", what, diff)
				}
			}
			unharmed("a restart", func() {
				stopInstance(t, a.first)
				if err := a.first.RelaunchDaemon(); err != nil {
					t.Fatal(err)
				}
				wantReady(t, a.first)
				reaches(t, a.first, hosts[1].first)
			})
			unharmed("a flush", func() {
				run(t, a.first, "nft delete table ip flanneld-go\niptables -F FLANNELD-GO-FWD\nfor d in $(ip route show proto 158 | cut -d' ' -f1); do ip route del $d; done\n"+c.undo)
				reaches(t, a.first, hosts[1].first)
			})
			unharmed("the cleanup", func() {
				stopInstance(t, a.first)
				cleanUp(t, a.first, 0)
			})

			stopInstance(t, a.second)
			for _, h := range []*lab.Host{a.first, a.second} {
				if err := h.StopContainer(); err != nil {
					t.Fatal(err)
				}
			}
			out := cleanUp(t, a.second, 1)
			if diff := cmp.Diff(bare, look(t, a.first)); diff != "" {
				t.Errorf("the host after both cleanups (-before +after):\n%s\nflannelctl printed:\n%s", diff, out)
			}
		})
	}
}

// What two instances cannot share is refused by the one that comes second, in words that
// name the other, and mended without a restart.
func TestInstancesNeedTheirOwn(t *testing.T) {
	l := newNetwork(t, 1, configs["udp"])
	h := l.Hosts[0]
	second := h.Beside(1)
	startInstance(t, second)
	wantProblem(t, second, "config", "network 10.5.0.0/16 overlaps 10.5.0.0/16 of instance 0 on this host (state in "+h.StateDir()+")")
	stopInstance(t, second)

	putSecond(t, l, `{"Network":"10.6.0.0/16"}`)
	startInstance(t, second, "--etcd-prefix="+secondPrefix)
	wantProblem(t, second, "kernel", fmt.Sprintf(":8285 is held by flanneld-go (process %d)", h.Daemon.PID()))
	stopInstance(t, second)

	putSecond(t, l, `{"Network":"10.6.0.0/16","Backend":{"Type":"udp","Port":8286}}`)
	startInstance(t, second, "--etcd-prefix="+secondPrefix)
	if _, err := second.WaitReady(within(t, 30*time.Second), 0); err != nil {
		t.Fatal(err)
	}
}

func putSecond(t *testing.T, l *lab.Lab, config string) {
	t.Helper()
	if _, err := l.Client().Put(within(t, 10*time.Second), secondPrefix+"/config", config); err != nil {
		t.Fatal(err)
	}
}

func startInstance(t *testing.T, h *lab.Host, args ...string) {
	t.Helper()
	if err := h.StartDaemon(args...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of %s:\n%s", h.Daemon.Spec.Log, h.Daemon.Tail(40))
		}
	})
}

func stopInstance(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := h.Daemon.Stop(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
}

func wantReady(t *testing.T, h *lab.Host) {
	t.Helper()
	if _, err := h.WaitReady(within(t, 60*time.Second), 1); err != nil {
		t.Fatal(err)
	}
}

func wantProblem(t *testing.T, h *lab.Host, component, text string) {
	t.Helper()
	if _, err := h.WaitProblem(within(t, 30*time.Second), component, text); err != nil {
		t.Fatal(err)
	}
}

func containerOf(t *testing.T, h *lab.Host) {
	t.Helper()
	env, err := h.WaitSubnet(within(t, 30*time.Second))
	if err == nil {
		err = h.StartContainer(env)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// reaches waits until a container answers another.
func reaches(t *testing.T, from, to *lab.Host) {
	t.Helper()
	if err := from.Container.WaitPing(within(t, 30*time.Second), to.Container.Addr()); err != nil {
		t.Fatal(err)
	}
}

// ofSecond is what instance 1 has in the kernel.
func ofSecond(t *testing.T, h *lab.Host) string {
	t.Helper()
	return volatile.ReplaceAllString(run(t, h, `
iptables-save | grep FLANNELD-GO1-
nft list table ip flanneld-go1
ip route show proto 159
ip -d -o link show | grep 'alias flanneld-go1'
`), "")
}

func cleanUp(t *testing.T, h *lab.Host, instance int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := h.Run(ctx, command(t, "flannelctl"), "cleanup", "--yes", fmt.Sprintf("--instance=%d", instance),
		"--socket="+h.Socket(), "--state-dir="+h.StateDir())
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}
