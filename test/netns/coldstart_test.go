package netns_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
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
				if err := h.Daemon.Stop(within(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Cluster().Stop(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			t.Run("daemons", func(t *testing.T) {
				startAgain(t, l, before)
				if b.name == "udp" {
					goneOnAtOnce(t, l)
				}
			})
			for _, h := range l.Hosts {
				if err := h.Daemon.Kill(); err != nil {
					t.Fatal(err)
				}
				forget(t, h)
			}
			t.Run("hosts", func(t *testing.T) { startAgain(t, l, before) })
			if err := l.StartEtcd(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			waitWell(t, l, time.Minute)
		})
	}
}

func startAgain(t *testing.T, l *lab.Lab, before map[string]standing) {
	t.Helper()
	began := time.Now()
	err := l.Each(within(t, time.Minute), func(ctx context.Context, h *lab.Host) error {
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
	if err := l.WaitMesh(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	t.Logf("containers talk %s after the start", time.Since(began))
	for _, h := range l.Hosts {
		if got := standingOf(t, h).subnet; got != before[h.Name].subnet {
			t.Errorf("%s has %v, before %v", h.Name, got, before[h.Name].subnet)
		}
		s, err := h.WaitReady(within(t, time.Minute), len(l.Hosts)-1)
		if err != nil {
			t.Fatal(err)
		}
		problems := strings.Join(names(s.Problems), " ")
		if s.State != "degraded" || s.Lease.State != "unproven" || s.Lease.Since.IsZero() || s.Lease.Reason == "" || problems != "etcd lease" {
			t.Errorf("%s does not say how it stands: state %s, lease %+v, problems %q", h.Name, s.State, s.Lease, problems)
		}
	}
}

// goneOnAtOnce: daemons that carry packets themselves have done so before they gave up
// waiting for etcd.
func goneOnAtOnce(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, h := range l.Hosts {
		log, err := h.Daemon.Log()
		if err != nil {
			t.Fatal(err)
		}
		on := strings.LastIndex(log, "forwarding goes on from the former process")
		if cached := strings.LastIndex(log, "starting from the cache"); on < 0 || cached < on {
			t.Errorf("%s did not forward before it started from the cache:\n%s", h.Name, h.Daemon.Tail(20))
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
		nft flush ruleset
		echo 0 >/proc/sys/net/ipv4/ip_forward`)
	if err != nil {
		t.Fatal(err)
	}
	for what, state := range look(t, h) {
		// The lab marks its own links.
		if left := strings.ReplaceAll(strings.Join(state, "\n"), "flannel-lab", ""); strings.Contains(left, "flannel") || strings.Contains(left, "10.5.") {
			t.Fatalf("not all of it is gone, %s:\n%s", what, left)
		}
	}
}

// Etcd has lost everything, and nobody has put the config again yet. A daemon
// that is restarted goes on under the traffic, and a host that boots has nothing
// but its cache.
func TestStartWithoutConfig(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			l := newNetwork(t, 3, configs[b.name])
			startContainers(t, l)
			s := startSteady(t, l)
			if err := l.Cluster().Wipe(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			t.Run("restart", func(t *testing.T) { restartSteady(t, s, l.Hosts[0], b.name) })
			t.Run("boot", func(t *testing.T) { bootFromCache(t, l, l.Hosts[1], configs[b.name]) })
		})
	}
}

// restartSteady restarts the daemon of h, in a network without a config that comes
// through this as it is.
func restartSteady(t *testing.T, s *steady, h *lab.Host, backend string) {
	before := standingOf(t, h)
	if backend == "udp" { // its data path ends with the process
		s.disregard(h)
	}
	if err := h.Daemon.Stop(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	goesOn(t, h, before)
	if st, watched := s.hosts[h]; watched {
		st.pid = h.Daemon.PID()
		s.hosts[h] = st
	}
	s.unharmed(t)
	if err := s.lab.WaitMesh(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
}

// bootFromCache boots h while etcd holds no config, and then puts one: the others
// come through both as they are.
func bootFromCache(t *testing.T, l *lab.Lab, h *lab.Host, config string) {
	s, before := startSteady(t, l), standingOf(t, h)
	s.disregard(h)
	if err := h.Daemon.Stop(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	forget(t, h)
	goesOn(t, h, before)
	env, err := h.WaitSubnet(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.StartContainer(env); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitMesh(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	putConfig(t, l, config)
	waitWell(t, l, regained)
	s.unharmed(t)
	if got := standingOf(t, h).subnet; got != before.subnet {
		t.Errorf("%s has %v with a config, before %v", h.Name, got, before.subnet)
	}
}

// goesOn starts a daemon that has ended, while etcd holds no config: it says so,
// and has the subnet and the paths that it had.
func goesOn(t *testing.T, h *lab.Host, before standing) {
	t.Helper()
	began := time.Now()
	if err := h.RelaunchDaemon(); err != nil {
		t.Fatal(err)
	}
	st, err := h.WaitStatus(within(t, time.Minute), "the data path from the cache", func(s lab.Status) bool {
		// Until the loss is weighed by a round the host counts as ready, and half way
		// through that round not all of it is said.
		return s.Backend.DataPath == "applied" && s.Lease.State == "lost" && !s.Ready && len(s.Files) > 0 && len(s.Problems) > 1
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s goes on %s after the start", h.Name, time.Since(began))
	if st.Lease.Subnet != before.subnet.String() || st.State != "degraded" || st.Ready || len(st.Peers) != 2 || !st.Etcd.Connected {
		t.Errorf("%s: %s, ready %t, connected %t, %d peers; want %s, degraded, not ready, connected, 2 peers",
			h.Name, st.Line(), st.Ready, st.Etcd.Connected, len(st.Peers), before.subnet)
	}
	if got := names(st.Problems); !slices.Equal(got, []string{"config", "lease"}) {
		t.Errorf("%s has problems with %v, want config and lease", h.Name, got)
	}
	p, err := h.WaitProblem(within(t, time.Minute), "config", "the network config is gone from "+lab.Prefix+"/config")
	if err != nil || !strings.Contains(p.Hint, " put "+lab.Prefix+"/config '{") {
		t.Errorf("%s: %v, try: %s; want what to put", h.Name, err, p.Hint)
	}
}

// A boot must not hang on a config that nobody has put: after 30 s the service
// counts as started, with a status that says for what it waits. It does so once.
func TestReadyWhileWaiting(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 1})
	h := l.Hosts[0]
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	h.Env = append(h.Env, "NOTIFY_SOCKET="+path)
	began := time.Now()
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	waiting := "STATUS=waiting; config: no network config yet: waiting for key " + lab.Prefix + "/config at " + l.EtcdURL()
	said := hear(t, manager, waiting)
	if slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, "READY") }) {
		t.Errorf("ready at once, with nothing to work with: %q", said)
	}
	hear(t, manager, "READY=1\n"+waiting)
	if waited := time.Since(began); waited < 29*time.Second {
		t.Errorf("ready after %s, want 30 s", waited)
	}
	putConfig(t, l, configs["vxlan"])
	running := hear(t, manager, "STATUS=running 10.5.")
	if slices.ContainsFunc(running, func(s string) bool { return strings.Contains(s, "READY") }) {
		t.Errorf("ready a second time: %q", running)
	}
}

// hear reads what a service manager is told until something begins with text, and
// returns all of it.
func hear(t *testing.T, manager *net.UnixConn, text string) []string {
	t.Helper()
	if err := manager.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var said []string
	buffer := make([]byte, 4096)
	for {
		n, err := manager.Read(buffer)
		if err != nil {
			t.Fatalf("nobody says %q: %v; heard %q", text, err, said)
		}
		said = append(said, string(buffer[:n]))
		if strings.HasPrefix(said[len(said)-1], text) {
			return said
		}
	}
}
