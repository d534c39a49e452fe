package netns_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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
		{
			name: "udp and vxlan, both with IPv6", first: `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48"}`,
			second: `{"Network":"10.6.0.0/16","EnableIPv6":true,"IPv6Network":"fd06::/48","Backend":{"Type":"vxlan","VNI":2}}`, undo: "ip link delete flannel0",
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
				var pings []*lab.Pinging
				for _, to := range hosts[1].second.Container.Addrs {
					ping, err := a.second.Container.StartPing(t.Context(), lab.PingOptions{To: to.Addr(), Interval: 5 * time.Millisecond})
					if err != nil {
						t.Fatal(err)
					}
					pings = append(pings, ping)
				}
				deed()
				for _, ping := range pings {
					if r := ping.Stop(); r.Lost() > 0 || r.Sent == 0 {
						t.Errorf("%s of the first: the second lost packets: %s", what, r)
					}
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
				run(t, a.first, flushFirst+c.undo)
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

// flushFirst takes rules and routes of instance 0, but for a device of its own.
const flushFirst = `
nft delete table ip flanneld-go
for t in iptables ip6tables; do if $t -w -n -L FLANNELD-GO-FWD >/dev/null 2>&1; then $t -w -F FLANNELD-GO-FWD; fi; done
for f in -4 -6; do for d in $(ip $f route show proto 158 | cut -d' ' -f1); do ip $f route del $d; done; done
`

// Two instances that start at the same moment, and are cleaned up at the same moment,
// leave nothing behind and have both done what they do.
func TestInstancesStartTogether(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	first := l.Hosts[0]
	second := first.Beside(1)
	run(t, first, settled)
	bare := look(t, first)
	dual := `{"Network":"10.%d.0.0/16","EnableIPv6":true,"IPv6Network":"fd0%[1]d::/48","Backend":{"Type":"vxlan","VNI":%[1]d}}`
	putConfig(t, l, fmt.Sprintf(dual, 5))
	putSecond(t, l, fmt.Sprintf(dual, 6))
	for range 3 {
		atOnce(t, func() error { return first.StartDaemon() }, func() error { return second.StartDaemon("--etcd-prefix=" + secondPrefix) })
		for _, h := range []*lab.Host{first, second} {
			if _, err := h.WaitReady(within(t, time.Minute), 0); err != nil {
				t.Fatal(err)
			}
		}
		run(t, first, `test "$(cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding | tr -d '\n')" = 11
			for a in flanneld-go flanneld-go1; do nft list table ip $a >/dev/null; done
			for c in FLANNELD-GO-FWD FLANNELD-GO1-FWD; do iptables-save | grep -q -- "-j $c"; ip6tables-save | grep -q -- "-j $c"; done`)
		stop := func(h *lab.Host) func() error {
			return func() error { return h.Daemon.Stop(within(t, time.Minute)) }
		}
		atOnce(t, stop(first), stop(second))
		clean := func(h *lab.Host, instance int) func() error {
			return func() error {
				out, err := tryCleanUp(t, h, instance)
				if err != nil {
					err = fmt.Errorf("%w: %s", err, out)
				}
				return err
			}
		}
		atOnce(t, clean(first, 0), clean(second, 1))
		if diff := cmp.Diff(bare, look(t, first)); diff != "" {
			t.Fatalf("the host after both cleanups (-before +after):\n%s", diff)
		}
	}
}

// Of two instances with one network, started at the same moment, one has it, and the
// other says which.
func TestInstancesOfOneNetworkStartTogether(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	putConfig(t, l, configs["vxlan"])
	pair := []*lab.Host{l.Hosts[0], l.Hosts[0].Beside(1)}
	for range 3 {
		atOnce(t, func() error { return pair[0].StartDaemon() }, func() error { return pair[1].StartDaemon() })
		var ready []int
		for i, h := range pair {
			s, err := h.WaitStatus(within(t, time.Minute), "readiness or a refusal", func(s lab.Status) bool {
				return s.Ready || slices.ContainsFunc(s.Problems, func(p lab.Problem) bool {
					return p.Component == "config" && strings.Contains(p.Message, fmt.Sprintf("overlaps 10.5.0.0/16 of instance %d on this host", 1-i))
				})
			})
			if err != nil {
				t.Fatal(err)
			}
			if s.Ready {
				ready = append(ready, i)
			}
		}
		if len(ready) != 1 {
			t.Errorf("instances %v are ready in one network, want one of them", ready)
		}
		for _, h := range pair {
			stopInstance(t, h)
		}
		for i, h := range pair {
			cleanUp(t, h, i)
		}
	}
}

// atOnce runs functions at the same moment.
func atOnce(t *testing.T, fs ...func() error) {
	t.Helper()
	begin, errs := make(chan struct{}), make([]error, len(fs))
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() {
			<-begin
			errs[i] = f()
		})
	}
	close(begin)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
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
	if _, err := second.WaitReady(within(t, time.Minute), 0); err != nil {
		t.Fatal(err)
	}
}

func putSecond(t *testing.T, l *lab.Lab, config string) {
	t.Helper()
	if _, err := l.Client().Put(within(t, time.Minute), secondPrefix+"/config", config); err != nil {
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
	if err := h.Daemon.Stop(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
}

func wantReady(t *testing.T, h *lab.Host) {
	t.Helper()
	if _, err := h.WaitReady(within(t, time.Minute), 1); err != nil {
		t.Fatal(err)
	}
}

func wantProblem(t *testing.T, h *lab.Host, component, text string) {
	t.Helper()
	if _, err := h.WaitProblem(within(t, time.Minute), component, text); err != nil {
		t.Fatal(err)
	}
}

func containerOf(t *testing.T, h *lab.Host) {
	t.Helper()
	env, err := h.WaitSubnet(within(t, time.Minute))
	if err == nil {
		err = h.StartContainer(env)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// reaches waits until a container answers another, in each family that they have.
func reaches(t *testing.T, from, to *lab.Host) {
	t.Helper()
	for _, addr := range to.Container.Addrs {
		if err := from.Container.WaitPing(within(t, time.Minute), addr.Addr()); err != nil {
			t.Fatal(err)
		}
	}
}

// ofSecond is what instance 1 has in the kernel.
func ofSecond(t *testing.T, h *lab.Host) string {
	t.Helper()
	return lookAt(t, h, `
{ iptables-save; ip6tables-save; } | grep FLANNELD-GO1-
nft list table ip flanneld-go1
for f in -4 -6; do ip $f route show proto 159; done
ip -d -o link show | grep 'alias flanneld-go1'
`)
}

func cleanUp(t *testing.T, h *lab.Host, instance int) string {
	t.Helper()
	out, err := tryCleanUp(t, h, instance)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func tryCleanUp(t *testing.T, h *lab.Host, instance int) (string, error) {
	t.Helper()
	return h.Run(within(t, time.Minute), command(t, "flannelctl"), "cleanup", "--yes", fmt.Sprintf("--instance=%d", instance),
		"--socket="+h.Socket(), "--state-dir="+h.StateDir())
}
