package netns_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// People start the service before they put the config.
func TestNoConfigYet(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	h := l.Hosts[0]
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	key := lab.Prefix + "/config"
	advice := fmt.Sprintf(`etcdctl --endpoints=%s put %s '{"Network":"10.5.0.0/16"}'`, l.EtcdURL(), key)
	problem, err := h.WaitProblem(within(t, time.Minute), "config", "no network config yet")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("no network config yet: waiting for key %s at %s; put one with: %s", key, l.EtcdURL(), advice)
	if problem.Message != want {
		t.Errorf("the problem reads\n  %s\nwant\n  %s", problem.Message, want)
	}
	// Said once, however long it lasts.
	said := func() int {
		log, err := h.Daemon.Log()
		if err != nil {
			t.Fatal(err)
		}
		lines := 0
		for line := range strings.Lines(log) {
			if strings.Contains(line, key) && strings.Contains(line, l.EtcdURL()) && strings.Contains(line, "etcdctl --endpoints") {
				lines++
			}
		}
		return lines
	}
	for ctx := within(t, time.Minute); said() == 0 && ctx.Err() == nil; {
		pause(t, 10*time.Millisecond)
	}
	pause(t, time.Second)
	if n := said(); n != 1 {
		t.Errorf("%d lines of the log say endpoint, key and command, want 1:\n%s", n, h.Daemon.Tail(40))
	}
	began := time.Now()
	if out, err := l.Switch.Run(t.Context(), "/bin/sh", "-c", advice); err != nil {
		t.Fatalf("the command that the daemon names: %v\n%s", err, out)
	}
	waitSubnetSince(t, h, began)
}

func waitSubnetSince(t *testing.T, h *lab.Host, began time.Time) {
	t.Helper()
	if _, err := h.WaitSubnet(within(t, follow)); err != nil {
		t.Fatal(err)
	}
	t.Logf("subnet.env %s after the config", time.Since(began))
}

// A daemon that waits says of each bad config what is wrong with it, and takes
// the first good one.
func TestBadConfigWaitsForAGoodOne(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	h := l.Hosts[0]
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range badConfigs {
		t.Run(tc.name, func(t *testing.T) {
			putConfig(t, l, tc.config)
			problem, err := h.WaitProblem(within(t, time.Minute), "config", tc.says[0])
			if err != nil {
				t.Fatal(err)
			}
			for _, says := range tc.says {
				if !strings.Contains(problem.Message, says) {
					t.Errorf("%q is missing in: %s", says, problem.Message)
				}
			}
			if !problem.Blocking {
				t.Error("the problem does not count as one that keeps the host from being ready")
			}
		})
	}
	began := time.Now()
	putConfig(t, l, `{"Network":"10.5.0.0/16","Colour":"red","Backend":{"Type":"host-gw"}}`)
	waitSubnetSince(t, h, began)
	log, err := h.Daemon.Log()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log, "Colour") {
		t.Errorf("no warning names the unknown key:\n%s", log)
	}
}

// A bad change is refused, and traffic goes on by the config in force.
func TestBadChangeIsRefused(t *testing.T) {
	l := newNetwork(t, 2, configs["host-gw"])
	startContainers(t, l)
	ping := startPing(t, l.Hosts[0].Container, l.Hosts[1].Container)
	for _, config := range []string{`{"Network":`, `{"Network":"10.9.0.0/16","Backend":{"Type":"host-gw"}}`} {
		putConfig(t, l, config)
		for _, h := range l.Hosts {
			if _, err := h.WaitProblem(within(t, time.Minute), "config", "keep"); err != nil {
				t.Fatal(err)
			}
		}
	}
	putConfig(t, l, configs["host-gw"])
	waitReady(t, l)
	if r := ping.Stop(); r.Lost() > 0 || r.Received == 0 {
		t.Errorf("under the bad configs: %s", r)
	}
}

var badConfigs = []struct {
	name, config string
	says         []string
}{
	{"not JSON", "{\n  \"Network\": \"10.5.0.0/16\",\n  \"Backend\": {\"Type\" \"vxlan\"}\n}", []string{"line 3, column 22"}},
	{"SubnetLen too long", `{"Network":"10.5.0.0/16","SubnetLen":31}`, []string{"SubnetLen: 31: must be"}},
	{"SubnetMin outside", `{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}`, []string{"SubnetMin: 10.6.0.0: must be"}},
	{"network too small", `{"Network":"10.5.0.0/29"}`, []string{"Network: 10.5.0.0/29: is too small: must be a /28 or larger"}},
	{"VNI too large", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":17000000}}`, []string{"Backend.VNI: 17000000: must be"}},
	{"unknown backend", `{"Network":"10.5.0.0/16","Backend":{"Type":"pigeon"}}`, []string{`Backend.Type: "pigeon": must be one of alloc, host-gw, udp, vxlan`}},
	{
		"several at once", `{"Network":"10.5.0.0/16","SubnetLen":31,"SubnetMin":"10.6.0.0"}`,
		[]string{"SubnetLen: 31: must be", "SubnetMin: 10.6.0.0: must be"},
	},
}
