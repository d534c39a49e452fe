package netns_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// Every host starts again while etcd is down: the cache is all that they have,
// and what is left in the kernel, if anything is.
func TestStartWithoutEtcd(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			l := newNetwork(t, 3, configs[b.name])
			startContainers(t, l)
			before := map[string]standing{}
			for _, h := range l.Hosts {
				before[h.Name] = standingOf(t, h)
				if err := h.Daemon.Stop(within(t, 10*time.Second)); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Cluster().Stop(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			t.Run("daemons", func(t *testing.T) { startAgain(t, l, before) })
			for _, h := range l.Hosts {
				if err := h.Daemon.Kill(); err != nil {
					t.Fatal(err)
				}
				forget(t, h)
			}
			t.Run("hosts", func(t *testing.T) { startAgain(t, l, before) })
			if err := l.StartEtcd(within(t, 30*time.Second)); err != nil {
				t.Fatal(err)
			}
			waitWell(t, l, 30*time.Second)
		})
	}
}

func startAgain(t *testing.T, l *lab.Lab, before map[string]standing) {
	t.Helper()
	began := time.Now()
	err := l.Each(within(t, 30*time.Second), func(ctx context.Context, h *lab.Host) error {
		if err := h.RelaunchDaemon(); err != nil {
			return err
		}
		if h.Container != nil {
			return nil
		}
		env, err := h.WaitSubnet(ctx)
		if err != nil {
			return err
		}
		return h.StartContainer(env)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.WaitMesh(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Logf("containers talk %s after the start", time.Since(began))
	for _, h := range l.Hosts {
		if got := standingOf(t, h).subnet; got != before[h.Name].subnet {
			t.Errorf("%s has %v, before %v", h.Name, got, before[h.Name].subnet)
		}
		s, err := h.WaitReady(within(t, 30*time.Second), len(l.Hosts)-1)
		if err != nil {
			t.Fatal(err)
		}
		problems := strings.Join(names(s.Problems), " ")
		if s.State != "degraded" || s.Lease.State != "unproven" || s.Lease.Since.IsZero() || s.Lease.Reason == "" || problems != "etcd lease" {
			t.Errorf("%s does not say how it stands: state %s, lease %+v, problems %q", h.Name, s.State, s.Lease, problems)
		}
	}
}

// names are the components that have a problem, sorted.
func names(problems []lab.Problem) []string {
	var list []string
	for _, p := range problems {
		list = append(list, p.Component)
	}
	slices.Sort(list)
	return list
}

// forget takes everything from a host that a reboot does: what is in the kernel
// and in /run, and the container with it.
func forget(t *testing.T, h *lab.Host) {
	t.Helper()
	if h.Container != nil {
		if err := h.StopContainer(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(h.SubnetFile()); err != nil {
		t.Fatal(err)
	}
	_, err := h.Run(t.Context(), "/bin/sh", "-ec", `
		for link in flannel0 flannel.1; do
			if ip link show $link >/dev/null 2>&1; then ip link del $link; fi
		done
		ip nexthop flush
		ip route flush proto 158
		iptables-save | grep '^[*]' | tr -d '*' | while read -r table; do iptables -t $table -F; iptables -t $table -X; done
		echo 0 >/proc/sys/net/ipv4/ip_forward`)
	if err != nil {
		t.Fatal(err)
	}
	if left := look(t, h); strings.Contains(left, "flannel") || strings.Contains(left, "10.5.") {
		t.Fatalf("not all of it is gone:\n%s", left)
	}
}
