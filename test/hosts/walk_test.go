package hosts

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// prefix is that of the walk-through in the field: docs/compatibility.md.
const prefix = "/atomic.io/network"

// walk is the walk-through with one backend.
type walk struct {
	name, config string
	device       string
	mtu          int
}

func walks() []walk {
	return []walk{
		{"udp", `{"Network":"172.20.0.0/16"}`, "flannel0", 1472},
		{"vxlan", `{"Network":"172.20.0.0/16","Backend":{"Type":"vxlan"}}`, "flannel.1", 1450},
		{"host-gw", `{"Network":"172.20.0.0/16","Backend":{"Type":"host-gw"}}`, "eth0", 1500},
	}
}

// TestWalkThrough does what a user does, and nothing else: two machines, etcd,
// the service, the config, a restart of Docker. No hand touches the firewall,
// whose policies are DROP.
func TestWalkThrough(t *testing.T) {
	for i, r := range []recipe{bookworm(), trixie()} {
		for j, w := range walks() {
			t.Run(r.suite+"/"+w.name, func(t *testing.T) {
				if i+j > 0 && !whole() {
					t.Skip("long matrix: run make hosts")
				}
				t.Parallel() // half of it is waiting
				walkThrough(t, r, w)
			})
		}
	}
}

func walkThrough(t *testing.T, r recipe, w walk) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	s := newSite(ctx, t, r, variants()[0], 2)
	version, err := s.machines[0].Run(ctx, "docker", "version", "--format={{.Server.Version}}")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("docker %s", strings.TrimSpace(version))
	s.closeFirewall(ctx, t)
	s.startService(ctx, t)
	s.checkWaiting(ctx, t)
	s.putConfig(ctx, t, w)
	s.checkFiles(ctx, t, w)
	s.each(t, func(m *Machine) error {
		return m.Service(ctx, dockerService, "restart")
	})
	s.checkTraffic(ctx, t, w)
	s.checkPublishedPort(ctx, t)
	s.checkReboot(ctx, t, w)
}

// closeFirewall makes the machines as strict as a careful admin's: everything
// is dropped but answers and the machine's own.
func (s *site) closeFirewall(ctx context.Context, t *testing.T) {
	t.Helper()
	s.each(t, func(m *Machine) error {
		for _, rule := range []string{
			"-A INPUT -i lo -j ACCEPT", "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
			"-P INPUT DROP", "-P FORWARD DROP",
		} {
			if _, err := m.Run(ctx, append([]string{"iptables", "-w"}, strings.Fields(rule)...)...); err != nil {
				return err
			}
		}
		return nil
	})
}

// startService starts the service, with flags if there are any, while there is no
// config: that must neither fail nor hang.
func (s *site) startService(ctx context.Context, t *testing.T, flags ...string) {
	t.Helper()
	settings := fmt.Sprintf("FLANNEL_ETCD_ENDPOINTS=%q\nFLANNEL_ETCD_PREFIX=%q\nFLANNEL_OPTIONS=%q\n", s.EtcdURL(), prefix, strings.Join(flags, " "))
	s.each(t, func(m *Machine) error {
		if _, err := m.Pipe(ctx, strings.NewReader(settings), "tee", "/etc/default/flanneld-go"); err != nil {
			return err
		}
		_, err := m.script(ctx, m.services.enable)
		return err
	})
	began := time.Now()
	s.each(t, func(m *Machine) error {
		startCtx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		return m.Service(startCtx, ourService, "start")
	})
	t.Logf("the start of the service returned after %s", time.Since(began).Round(time.Millisecond))
}

// checkWaiting looks at what systemd says of a service without a config.
func (s *site) checkWaiting(ctx context.Context, t *testing.T) {
	t.Helper()
	s.each(t, func(m *Machine) error {
		out, err := m.Run(ctx, "systemctl", "show", "flanneld-go", "--property=StatusText,NRestarts,ActiveState")
		if err != nil {
			return err
		}
		want := fmt.Sprintf(`no network config yet: waiting for key %s/config at %s; put one with: etcdctl --endpoints=%s put %s/config '{"Network":"10.5.0.0/16"}'`,
			prefix, s.EtcdURL(), s.EtcdURL(), prefix)
		for _, part := range []string{want, "NRestarts=0", "ActiveState=active"} {
			if !strings.Contains(out, part) {
				return fmt.Errorf("%s: systemctl show has no %q:\n%s", m.Name, part, out)
			}
		}
		return nil
	})
}

// putConfig does it as the status line says, from a machine.
func (s *site) putConfig(ctx context.Context, t *testing.T, w walk) {
	t.Helper()
	_, err := s.machines[0].Run(ctx, "env", "ETCDCTL_API=3", "etcdctl", "--endpoints="+s.EtcdURL(), "put", prefix+"/config", w.config)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.waitReady(ctx, t)
	t.Logf("ready %s after the config was put", time.Since(began).Round(time.Millisecond))
}

// waitReady waits until every machine says that it is ready and knows the
// others.
func (s *site) waitReady(ctx context.Context, t *testing.T) {
	t.Helper()
	s.each(t, func(m *Machine) error { return m.waitPeers(ctx, len(s.machines)-1) })
}

// waitPeers waits until the machine says that it is ready and has so many peers. Flags
// are flannelctl's.
func (m *Machine) waitPeers(ctx context.Context, peers int, flags ...string) error {
	var last string
	err := m.poll(ctx, "readiness", func() (bool, error) {
		last, _ = m.Run(ctx, append([]string{"flannelctl", "status", "--json"}, flags...)...)
		var status struct {
			Ready bool
			Peers []struct{ Error string }
		}
		if err := json.Unmarshal([]byte(last), &status); err != nil {
			return false, nil // not up yet
		}
		return status.Ready && len(status.Peers) == peers, nil
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, last)
	}
	return nil
}

// subnetOf returns a machine's FLANNEL_SUBNET.
func subnetOf(ctx context.Context, m *Machine) (string, error) {
	return subnetIn(ctx, m, "/run/flannel/subnet.env")
}

// subnetIn returns the FLANNEL_SUBNET of a file.
func subnetIn(ctx context.Context, m *Machine, path string) (string, error) {
	text, err := m.Read(ctx, path)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "FLANNEL_SUBNET="); ok {
			return value, nil
		}
	}
	return "", fmt.Errorf("%s: no FLANNEL_SUBNET in %q", m.Name, text)
}

// checkFiles looks at what was handed over.
func (s *site) checkFiles(ctx context.Context, t *testing.T, w walk) {
	t.Helper()
	seen := map[string]bool{}
	for _, m := range s.machines {
		subnet, err := subnetOf(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		if seen[subnet] || !strings.HasPrefix(subnet, "172.20.") || !strings.HasSuffix(subnet, ".1/24") {
			t.Errorf("%s: FLANNEL_SUBNET=%s is not a /24 of its own in 172.20.0.0/16", m.Name, subnet)
		}
		seen[subnet] = true
		got, err := m.Read(ctx, "/run/flannel/subnet.env")
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("FLANNEL_NETWORK=172.20.0.0/16\nFLANNEL_SUBNET=%s\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=false\n", subnet, w.mtu)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: subnet.env (-want +got):\n%s", m.Name, diff)
		}
		text, err := m.Read(ctx, "/etc/docker/daemon.json")
		if err != nil {
			t.Fatal(err)
		}
		var docker map[string]any
		if err := json.Unmarshal([]byte(text), &docker); err != nil {
			t.Fatalf("%s: daemon.json: %v: %s", m.Name, err, text)
		}
		keys := map[string]any{"bip": subnet, "mtu": float64(w.mtu)}
		if knowsNetworkOpts(ctx, t, m) {
			keys["default-network-opts"] = map[string]any{"bridge": map[string]any{"com.docker.network.driver.mtu": strconv.Itoa(w.mtu)}}
		}
		if diff := cmp.Diff(keys, docker); diff != "" {
			t.Errorf("%s: daemon.json (-want +got):\n%s", m.Name, diff)
		}
	}
}

// knowsNetworkOpts reports whether the machine's dockerd takes the key
// default-network-opts: since 24.0.
func knowsNetworkOpts(ctx context.Context, t *testing.T, m *Machine) bool {
	t.Helper()
	version, err := m.Run(ctx, "docker", "version", "--format={{.Server.Version}}")
	if err != nil {
		t.Fatal(err)
	}
	major, err := strconv.Atoi(strings.SplitN(version, ".", 2)[0])
	if err != nil {
		t.Fatalf("%s: docker's version is %q: %v", m.Name, version, err)
	}
	return major >= 24
}

// startContainers starts one on each machine and returns their addresses.
func (s *site) startContainers(ctx context.Context, t *testing.T) []string {
	t.Helper()
	addrs := make([]string, len(s.machines))
	for i, m := range s.machines {
		subnet, err := subnetOf(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		out, err := m.Run(ctx, "ip", "-o", "-4", "addr", "show", "docker0")
		if err != nil || !strings.Contains(out, " "+subnet+" ") {
			t.Fatalf("%s: docker0 has not %s: %s (%v)", m.Name, subnet, out, err)
		}
		if _, err := m.Run(ctx, "docker", "run", "-d", "--restart=always", "--name=app", "busybox", "sleep", "86400"); err != nil {
			t.Fatal(err)
		}
		addr, err := m.Run(ctx, "docker", "inspect", "--format={{.NetworkSettings.IPAddress}}", "app")
		if err != nil {
			t.Fatal(err)
		}
		addrs[i] = strings.TrimSpace(addr)
	}
	return addrs
}

// checkTraffic pings both ways, looks at the source, and sends 100 MB.
func (s *site) checkTraffic(ctx context.Context, t *testing.T, w walk) {
	t.Helper()
	addrs := s.startContainers(ctx, t)
	s.ping(ctx, t, addrs)
	link, err := s.machines[0].Run(ctx, "docker", "exec", "app", "ip", "link", "show", "eth0")
	if err != nil || !strings.Contains(link, fmt.Sprintf("mtu %d ", w.mtu)) {
		t.Errorf("the container's eth0 has not mtu %d: %s (%v)", w.mtu, link, err)
	}

	// The callee says who called and what it got.
	a, b := s.machines[0], s.machines[1]
	if _, err := b.Run(ctx, "docker", "exec", "-d", "app", "sh", "-c", "nc -l -p 5000 -e sh -c 'netstat -nt >/tmp/caller; sha256sum >/tmp/sum'"); err != nil {
		t.Fatal(err)
	}
	send := fmt.Sprintf("dd if=/dev/urandom of=/tmp/data bs=1000000 count=100 2>/dev/null; for i in 1 2 3 4 5 6 7 8 9 10; do nc -w 30 %s 5000 </tmp/data 2>/dev/null && break; sleep 1; done; sha256sum </tmp/data", addrs[1])
	sent, err := a.Run(ctx, "docker", "exec", "app", "sh", "-c", send)
	if err != nil {
		t.Fatal(err)
	}
	var got string
	err = b.poll(ctx, "the checksum", func() (bool, error) {
		got, err = b.Run(ctx, "docker", "exec", "app", "cat", "/tmp/sum")
		return err == nil && strings.TrimSpace(got) != "", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(sent) != strings.TrimSpace(got) {
		t.Errorf("100 MB over TCP: sha256 sent %q, received %q", sent, got)
	}
	caller, err := b.Run(ctx, "docker", "exec", "app", "cat", "/tmp/caller")
	if err != nil || !strings.Contains(caller, addrs[0]) {
		t.Errorf("the callee sees %q (%v), want the container's own address %s", caller, err, addrs[0])
	}
}

// ping pings between the containers, each way, until one answer comes, and then
// wants all of them.
func (s *site) ping(ctx context.Context, t *testing.T, addrs []string) {
	t.Helper()
	for i, m := range s.machines {
		to := addrs[(i+1)%len(addrs)]
		err := m.poll(ctx, "a ping to "+to, func() (bool, error) {
			_, err := m.Run(ctx, "docker", "exec", "app", "ping", "-c", "1", "-W", "1", to)
			return err == nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		out, err := m.Run(ctx, "docker", "exec", "app", "ping", "-c", "20", "-i", "0.1", "-W", "2", to)
		if err != nil || !strings.Contains(out, " 0% packet loss") {
			t.Errorf("%s: ping %s: %s (%v)", m.Name, to, tail(out, 3), err)
		}
	}
}

// checkPublishedPort asks for a port published on one machine from the other:
// from the machine itself, and from a container of its.
func (s *site) checkPublishedPort(ctx context.Context, t *testing.T) {
	t.Helper()
	a, b := s.machines[0], s.machines[1]
	if _, err := b.Run(ctx, "docker", "run", "-d", "--name=web", "-p", "8080:80", "busybox",
		"sh", "-c", "while true; do echo published | nc -l -p 80; done"); err != nil {
		t.Fatal(err)
	}
	addr := b.Host.Addrs[0].Addr()
	for who, ask := range map[string][]string{
		"the machine":   {"timeout", "5", "bash", "-c", fmt.Sprintf("cat </dev/tcp/%s/8080", addr)},
		"its container": {"docker", "exec", "app", "sh", "-c", fmt.Sprintf("nc -w 5 %s 8080 </dev/null", addr)},
	} {
		var got string
		err := a.poll(ctx, "the published port", func() (bool, error) {
			var err error
			got, err = a.Run(ctx, ask...)
			return err == nil && got == "published\n", nil
		})
		if err != nil {
			t.Errorf("published port, asked by %s: %v: %q", who, err, got)
		}
	}
}

// checkFirstStart looks at a boot, at which /run was empty: docker0 has the leased
// address, and systemd started Docker once.
func (s *site) checkFirstStart(ctx context.Context, t *testing.T, m *Machine, subnet string) {
	t.Helper()
	link, err := m.Run(ctx, "ip", "-o", "-4", "addr", "show", "docker0")
	if err != nil || !strings.Contains(link, " "+subnet+" ") {
		t.Errorf("%s: docker0 after the boot: %q (%v), want %s", m.Name, link, err, subnet)
	}
	journal, err := m.Run(ctx, "journalctl", "-b", "-u", "docker", "-t", "systemd", "-o", "cat", "--no-pager")
	if starts := strings.Count(journal, "Starting docker.service"); err != nil || starts != 1 {
		t.Errorf("%s: Docker was started %d times at the boot (%v), want 1:\n%s", m.Name, starts, err, journal)
	}
}

// checkReboot reboots the second machine: same subnet, and traffic without a
// hand.
func (s *site) checkReboot(ctx context.Context, t *testing.T, w walk) {
	t.Helper()
	m := s.machines[1]
	before, err := subnetOf(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	s.waitReady(ctx, t)
	after, err := subnetOf(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("subnet %s before the reboot, %s after it", before, after)
	}
	s.checkFirstStart(ctx, t, m, after)
	addrs := make([]string, len(s.machines))
	for i, m := range s.machines {
		err := m.poll(ctx, "container app", func() (bool, error) {
			addr, err := m.Run(ctx, "docker", "inspect", "--format={{.NetworkSettings.IPAddress}}", "app")
			addrs[i] = strings.TrimSpace(addr)
			return err == nil && addrs[i] != "", nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	s.ping(ctx, t, addrs)
}
