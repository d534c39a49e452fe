package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

const (
	// secondUnit is instance 1's, secondFlag how flannelctl is told of it.
	secondUnit = ourService + "@1"
	secondFlag = "--instance=1"
	// secondPrefix is that of its network in etcd, secondNetwork that of its containers
	// in Docker.
	secondPrefix  = "/second/network"
	secondNetwork = "second"
)

// instancesTest is one pair of networks for hosts that are in both.
type instancesTest struct {
	setup
	// second is the config of instance 1's network.
	second string
	// interval is between pings of the series below which daemons end.
	interval time.Duration
}

func instancesTests() []instancesTest {
	dual := walk{
		name:   "vxlan, dual",
		config: `{"Network":"172.20.0.0/16","EnableIPv6":true,"IPv6Network":"fd20::/48","Backend":{"Type":"vxlan"}}`,
	}
	return []instancesTest{
		{
			setup:  setup{bookworm(), walks()[0], variants()[0]},
			second: `{"Network":"172.21.0.0/16","Backend":{"Type":"udp","Port":8286}}`, interval: time.Millisecond,
		},
		{
			setup:  setup{trixie(), dual, variants()[2]},
			second: `{"EnableNFTables":true,"Network":"172.21.0.0/16","EnableIPv6":true,"IPv6Network":"fd21::/48","Backend":{"Type":"vxlan","VNI":2}}`, interval: 5 * time.Millisecond,
		},
	}
}

// TestInstances has two daemons on each of two machines, the second by the template
// unit, as the page tells an operator to. Whatever becomes of one, the other loses no
// packet.
func TestInstances(t *testing.T) {
	for _, test := range instancesTests() {
		t.Run(test.String(), func(t *testing.T) {
			if !whole() {
				t.Skip("long matrix: run make hosts")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			s := &instances{overlay: newOverlay(ctx, t, test.setup), instancesTest: test}
			t.Cleanup(s.closeSecond)
			s.addSecond(ctx, t)
			s.checkDocker(ctx, t)
			for _, how := range endings() {
				for _, unit := range []string{ourService, secondUnit} {
					t.Run(how.name+" of "+unit, func(t *testing.T) {
						s.unharmed(ctx, t, both, func() {
							s.each(t, func(m *Machine) error { return m.restartBelow(ctx, unit, how.verb+unit, flagsOf(unit)...) })
						})
					})
				}
			}
			t.Run("boot", func(t *testing.T) { s.boot(ctx, t) })
			t.Run("stop and cleanup of the second", func(t *testing.T) { s.leave(ctx, t, s.machines[0], secondUnit) })
			t.Run("stop and cleanup of the first", func(t *testing.T) { s.leave(ctx, t, s.machines[0], ourService) })
		})
	}
}

// instances is an overlay of two networks, with a container of each on every machine.
type instances struct {
	*overlay
	instancesTest
	// seconds are the containers in the second network, by machine.
	seconds []*app
}

// whose are the containers that ping.
type whose uint8

const (
	ofFirst whose = 1 << iota
	ofSecond
	both = ofFirst | ofSecond
)

// flagsOf are flannelctl's for the daemon of a unit.
func flagsOf(unit string) []string {
	if unit == secondUnit {
		return []string{secondFlag}
	}
	return nil
}

// addSecond does what docs/operations.md says: settings, the config, the unit.
func (s *instances) addSecond(ctx context.Context, t *testing.T) {
	t.Helper()
	if _, err := s.Client().Put(ctx, secondPrefix+"/config", s.second); err != nil {
		t.Fatal(err)
	}
	settings := fmt.Sprintf("FLANNELD_ETCD_ENDPOINTS=%s\nFLANNELD_ETCD_PREFIX=%s\nFLANNELD_DOCKER_NETWORK=%s\n", s.EtcdURL(), secondPrefix, secondNetwork)
	s.each(t, func(m *Machine) error {
		if _, err := m.Pipe(ctx, strings.NewReader(settings), "tee", "/etc/default/flanneld-go1"); err != nil {
			return err
		}
		_, err := m.Run(ctx, "systemctl", "enable", "--now", secondUnit)
		return err
	})
	s.each(t, func(m *Machine) error { return m.waitPeers(ctx, 1, secondFlag) })
	s.each(t, func(m *Machine) error {
		err := m.poll(ctx, "network "+secondNetwork, func() (bool, error) {
			_, err := m.Run(ctx, "docker", "network", "inspect", secondNetwork)
			return err == nil, nil
		})
		if err != nil {
			return err
		}
		return m.runContainer(ctx, "app1", secondNetwork)
	})
	s.openSecond(ctx, t)
}

// runContainer starts a container in a network of Docker's.
func (m *Machine) runContainer(ctx context.Context, name, network string) error {
	_, err := m.Run(ctx, "docker", "run", "-d", "--restart=always", "--stop-signal=KILL", "--name="+name, "--network="+network, "busybox", "sleep", "86400")
	return err
}

// openSecond finds the containers of both networks, and waits until all talk.
func (s *instances) openSecond(ctx context.Context, t *testing.T) {
	t.Helper()
	s.closeSecond()
	if err := s.openApps(ctx); err != nil {
		t.Fatal(err)
	}
	for _, m := range s.machines {
		a, err := m.openApp(ctx, "app1")
		if err != nil {
			t.Fatal(err)
		}
		s.seconds = append(s.seconds, a)
	}
	for _, pair := range s.pairs(ctx, t, both) {
		if err := pair.from.WaitPing(ctx, pair.to); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *instances) closeSecond() {
	for _, a := range s.seconds {
		_ = a.Close() // descriptors only
	}
	s.seconds = nil
}

// pair is who pings whom.
type pair struct {
	from *app
	to   netip.Addr
}

// pairs are the first machine's containers with the second's, in every family that they
// have.
func (s *instances) pairs(ctx context.Context, t *testing.T, w whose) []pair {
	t.Helper()
	var list []pair
	for _, c := range []struct {
		of   whose
		name string
		apps []*app
	}{{ofFirst, "app", s.apps}, {ofSecond, "app1", s.seconds}} {
		if w&c.of == 0 {
			continue
		}
		list = append(list, pair{c.apps[0], c.apps[1].addr})
		out, err := s.machines[1].Run(ctx, "docker", "inspect", "--format={{range .NetworkSettings.Networks}}{{.GlobalIPv6Address}}{{end}}", c.name)
		if err != nil {
			t.Fatal(err)
		}
		if out = strings.TrimSpace(out); out != "" {
			list = append(list, pair{c.apps[0], netip.MustParseAddr(out)})
		}
		// docker0 has IPv6 only if an operator gives it to Docker.
		if dual := strings.Contains(s.second, "EnableIPv6"); c.of == ofSecond && dual != (out != "") {
			t.Fatalf("%s has the address %q, want one: %t", c.apps[1].Name, out, dual)
		}
	}
	return list
}

// unharmed wants every ping of some containers answered while something is done, and for
// longer than a second before and after.
func (s *instances) unharmed(ctx context.Context, t *testing.T, w whose, deed func()) {
	t.Helper()
	const around = 1200 * time.Millisecond
	pairs := s.pairs(ctx, t, w)
	pings := make([]*lab.Pinging, len(pairs))
	for i, p := range pairs {
		var err error
		if pings[i], err = p.from.StartPing(ctx, lab.PingOptions{To: p.to, Interval: s.interval, Timeout: 5 * time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	<-time.After(around)
	deed()
	<-time.After(around)
	for i, p := range pings {
		r := p.Stop()
		t.Logf("%s to %s: %s", pairs[i].from.Name, pairs[i].to, r)
		if r.Lost() > 0 || r.Sent < int(2*around/s.interval)/2 {
			t.Errorf("%s to %s: %d of %d packets are lost, want none of many", pairs[i].from.Name, pairs[i].to, r.Lost(), r.Sent)
		}
	}
}

// checkDocker wants docker0 to be instance 0's, and the network of its own instance 1's.
func (s *instances) checkDocker(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, m := range s.machines {
		first, err := subnetOf(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		second, err := subnetIn(ctx, m, "/run/flannel/subnet1.env")
		if err != nil {
			t.Fatal(err)
		}
		text, err := m.Read(ctx, "/etc/docker/daemon.json")
		if err != nil {
			t.Fatal(err)
		}
		var docker struct{ Bip string }
		if err := json.Unmarshal([]byte(text), &docker); err != nil {
			t.Fatal(err)
		}
		of := func(network string) string {
			out, err := m.Run(ctx, "docker", "network", "inspect", "--format={{(index .IPAM.Config 0).Gateway}}/24", network)
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(out)
		}
		want := map[string]string{"bip": first, "bridge": first, secondNetwork: second}
		got := map[string]string{"bip": docker.Bip, "bridge": of("bridge"), secondNetwork: of(secondNetwork)}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: who has what of Docker (-want +got):\n%s", m.Name, diff)
		}
	}
}

// boot starts a machine anew: both daemons at the same moment, Docker once and after
// them, and the same subnets.
func (s *instances) boot(ctx context.Context, t *testing.T) {
	m := s.machines[1]
	subnets := func() (list []string) {
		for _, path := range []string{"/run/flannel/subnet.env", "/run/flannel/subnet1.env"} {
			subnet, err := subnetIn(ctx, m, path)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, subnet)
		}
		return list
	}
	before := subnets()
	if err := errors.Join(m.PowerOff(ctx), m.Boot(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.waitPeers(ctx, 1), m.waitPeers(ctx, 1, secondFlag)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, subnets()); diff != "" {
		t.Errorf("subnets (-before +after the boot):\n%s", diff)
	}
	var begun, ready []int
	for _, unit := range []string{ourService, secondUnit} {
		out, err := m.Run(ctx, "systemctl", "show", "--value", "--property=ExecMainStartTimestampMonotonic", "--property=ActiveEnterTimestampMonotonic", "--property=NRestarts", unit)
		if err != nil {
			t.Fatal(err)
		}
		var numbers []int
		for _, word := range strings.Fields(out) {
			n, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			numbers = append(numbers, n)
		}
		if len(numbers) != 3 || slices.Min(numbers) != 0 {
			t.Fatalf("%s: started, active, restarts: %q; want no restart", unit, out)
		}
		slices.Sort(numbers) // it is started before it is active
		begun, ready = append(begun, numbers[1]), append(ready, numbers[2])
	}
	t.Logf("started %d us apart, ready after %d and %d us", max(begun[0], begun[1])-min(begun[0], begun[1]), ready[0]-begun[0], ready[1]-begun[1])
	if slices.Max(begun) > slices.Min(ready) {
		t.Errorf("one was ready at %v before the other was started at %v: not at the same moment", ready, begun)
	}
	for i := range ready {
		// As long as a question to Docker takes that nobody answers: its socket is
		// systemd's, and it is started after us.
		if took := time.Duration(ready[i]-begun[i]) * time.Microsecond; took >= 5*time.Second {
			t.Errorf("ready %s after the start: it waits for a Docker that waits for it", took)
		}
	}
	s.checkFirstStart(ctx, t, m, before[0])
	s.openSecond(ctx, t)
	s.checkDocker(ctx, t)
}

// trace is where a daemon is on its machine.
type trace struct {
	// alias is that of its devices and its tables, protocol that of its routes.
	alias, protocol string
	// app is its container, network that of Docker's which holds it.
	app, network string
	// subnetFile is its own.
	subnetFile string
}

// traceOf is where the daemon of a unit is.
func traceOf(unit string) trace {
	if unit == secondUnit {
		return trace{"flanneld-go1", "159", "app1", secondNetwork, "/run/flannel/subnet1.env"}
	}
	return trace{"flanneld-go", "158", "app", "bridge", "/run/flannel/subnet.env"}
}

// leave takes a daemon off a machine for good, below the other's pings, and puts it
// there again.
func (s *instances) leave(ctx context.Context, t *testing.T, m *Machine, unit string) {
	goes, stays, pinging := traceOf(unit), traceOf(secondUnit), ofSecond
	if unit == secondUnit {
		stays, pinging = traceOf(ourService), ofFirst
	}
	before, err := subnetIn(ctx, m, goes.subnetFile)
	if err != nil {
		t.Fatal(err)
	}
	had := m.owned(ctx, t, stays)
	if m.owned(ctx, t, goes) == "" || had == "" {
		t.Fatalf("%s: nothing of %s or of %s", m.Name, goes.alias, stays.alias)
	}
	s.unharmed(ctx, t, pinging, func() { s.cleanUp(ctx, t, m, unit) })
	if left := m.owned(ctx, t, goes); left != "" {
		t.Errorf("left of %s:\n%s", goes.alias, left)
	}
	if text, err := m.Read(ctx, goes.subnetFile); err == nil {
		t.Errorf("%s is left: %s", goes.subnetFile, text)
	}
	if diff := cmp.Diff(had, m.owned(ctx, t, stays)); diff != "" {
		t.Errorf("what %s has (-before +after):\n%s", stays.alias, diff)
	}
	s.unharmed(ctx, t, pinging, func() {
		if _, err := m.Run(ctx, "systemctl", "start", unit); err != nil {
			t.Fatal(err)
		}
		if err := m.waitPeers(ctx, 1, flagsOf(unit)...); err != nil {
			t.Fatal(err)
		}
	})
	if after, err := subnetIn(ctx, m, goes.subnetFile); err != nil || after != before {
		t.Errorf("subnet %s before the cleanup, %s after it (%v)", before, after, err)
	}
	if err := m.runContainer(ctx, goes.app, goes.network); err != nil {
		t.Fatal(err)
	}
	s.openSecond(ctx, t)
}

// cleanUp does what an operator does to remove a daemon from a machine.
func (s *instances) cleanUp(ctx context.Context, t *testing.T, m *Machine, unit string) {
	t.Helper()
	flannelctl := func(args ...string) (string, error) {
		return m.Run(ctx, append(append([]string{"flannelctl"}, args...), flagsOf(unit)...)...)
	}
	_, err := m.Run(ctx, "docker", "rm", "-f", traceOf(unit).app)
	if out, running := flannelctl("cleanup", "--yes"); running == nil || !strings.Contains(running.Error(), "systemctl stop "+unit) {
		t.Errorf("cleanup of a daemon that runs: %v: %s", running, out)
	}
	_, stopped := m.Run(ctx, "systemctl", "stop", unit)
	if out, err := flannelctl("status"); err == nil {
		t.Errorf("flannelctl status of a daemon that was stopped: %s", out)
	}
	_, cleaned := flannelctl("cleanup", "--yes")
	if err := errors.Join(err, stopped, cleaned); err != nil {
		t.Fatal(err)
	}
}

// passing is what differs from one look to the next in what a host has: counters, and
// the numbers of rules.
var passing = regexp.MustCompile(`\[\d+:\d+\]|counter packets \d+ bytes \d+|qlen \d+`)

// owned is what a daemon has in the kernel. The mark of a table that iptables made for
// one of them is of all, and goes with the last.
func (m *Machine) owned(ctx context.Context, t *testing.T, of trace) string {
	t.Helper()
	out, err := m.script(ctx, `
		{ iptables-save; ip6tables-save; } 2>/dev/null | grep -- "$(echo $0 | tr a-z A-Z)-" | grep -v MADE-TABLE
		for f in ip ip6 inet bridge; do nft list table $f $0 2>/dev/null; done
		ip route show proto $1; ip -6 route show proto $1
		ip -d -o link show | grep " alias $0 *\$" | cut -d' ' -f2; :`, of.alias, of.protocol)
	if err != nil {
		t.Fatal(err)
	}
	return passing.ReplaceAllString(out, "")
}
