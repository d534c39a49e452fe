package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

const (
	// stackNetwork is the name in the compose file.
	stackNetwork = "flannel"
	// ipMasq is the daemon's flag that makes the masquerade ours.
	ipMasq = "--ip-masq"
)

// stackTest is one way to a network with names.
type stackTest struct {
	recipe recipe
	walk   walk
	// flags are the daemon's.
	flags []string
	// create: an operator makes the network, once.
	create bool
	// trusted is what Docker is told to accept from, if it knows how.
	trusted string
}

func (s stackTest) String() string {
	return s.recipe.suite + "/" + s.walk.name + "/" + map[bool]string{true: "created", false: "kept"}[s.create]
}

func stackTests() []stackTest {
	udp, vxlan, hostGW := walks()[0], walks()[1], walks()[2]
	kept, created := "--docker-network="+stackNetwork, "--docker-config=none"
	return []stackTest{
		{recipe: forky(), walk: vxlan, flags: []string{kept, ipMasq}, trusted: "flannel.1"},
		{recipe: trixie(), walk: udp, flags: []string{kept}},
		{recipe: forky(), walk: hostGW, flags: []string{created}, create: true, trusted: "eth0"},
		{recipe: trixie(), walk: vxlan, flags: []string{created, ipMasq}, create: true},
	}
}

// TestStacks runs the compose file of the examples on two hosts: names within a
// host, addresses between hosts, and docker0 as Docker makes it.
func TestStacks(t *testing.T) {
	for i, s := range stackTests() {
		t.Run(s.String(), func(t *testing.T) {
			if i > 0 && !whole() {
				t.Skip("long matrix: run make hosts")
			}
			t.Parallel()
			runStacks(t, s)
		})
	}
}

func runStacks(t *testing.T, test stackTest) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	s := &stacks{site: newSite(ctx, t, test.recipe, variants()[0], 2), stackTest: test}
	t.Cleanup(s.close)
	s.closeFirewall(ctx, t)
	if _, err := s.Client().Put(ctx, prefix+"/config", test.walk.config); err != nil {
		t.Fatal(err)
	}
	s.startService(ctx, t, test.flags...)
	s.waitReady(ctx, t)
	s.each(t, func(m *Machine) error { return s.up(ctx, m) })
	s.check(ctx, t, "compose up")

	ids := []string{"--type=network", "--format={{.Id}}", stackNetwork}
	networks := s.identities(ctx, t, ids...)
	s.each(t, func(m *Machine) error { return m.Service(ctx, dockerService, "restart") })
	s.check(ctx, t, "a restart of Docker")

	pids := []string{"--format={{.State.Pid}}", "stack-web-1", "stack-db-1"}
	processes := s.identities(ctx, t, pids...)
	s.each(t, func(m *Machine) error { return m.Service(ctx, ourService, "restart") })
	s.waitReady(ctx, t)
	s.check(ctx, t, "a restart of ours")
	if diff := cmp.Diff(processes, s.identities(ctx, t, pids...)); diff != "" {
		t.Errorf("the containers after a restart of ours (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(networks, s.identities(ctx, t, ids...)); diff != "" {
		t.Errorf("the networks after restarts (-before +after):\n%s", diff)
	}
}

// stacks is a site with the compose file's containers on each machine.
type stacks struct {
	*site
	stackTest
	// web and db are by machine.
	web, db []*app
}

// up makes the network, or waits until the daemon has, and starts the stack.
func (s *stacks) up(ctx context.Context, m *Machine) error {
	if s.create {
		if _, err := m.Run(ctx, "flannelctl", "docker", "network", "create", stackNetwork); err != nil {
			return err
		}
	}
	err := m.poll(ctx, "network "+stackNetwork, func() (bool, error) {
		_, err := m.Run(ctx, "docker", "network", "inspect", stackNetwork)
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	text, err := os.ReadFile("../../examples/compose/network/compose.yaml")
	if err != nil {
		return err
	}
	_, err = m.Pipe(ctx, strings.NewReader(string(text)), "docker", "compose", "--project-name=stack", "--file=-", "up", "--detach")
	return err
}

// identities are what restarts must not change: of the networks, Docker's ids; of
// the containers, process ids.
func (s *stacks) identities(ctx context.Context, t *testing.T, of ...string) string {
	t.Helper()
	var all strings.Builder
	for _, m := range s.machines {
		out, err := m.Run(ctx, append([]string{"docker", "inspect"}, of...)...)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s: %s\n", m.Name, strings.Join(strings.Fields(out), " "))
	}
	return all.String()
}

func (s *stacks) close() {
	for _, a := range append(s.web, s.db...) {
		_ = a.Close() // descriptors only
	}
	s.web, s.db = nil, nil
}

// open finds the containers, when they run.
func (s *stacks) open(ctx context.Context) error {
	s.close()
	for _, m := range s.machines {
		for name, list := range map[string]*[]*app{"stack-web-1": &s.web, "stack-db-1": &s.db} {
			a, err := m.openApp(ctx, name)
			if err != nil {
				return err
			}
			*list = append(*list, a)
		}
	}
	return nil
}

// check asks everything that the stacks are for.
func (s *stacks) check(ctx context.Context, t *testing.T, after string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.open(ctx); err != nil {
		t.Fatalf("after %s: %v", after, err)
	}
	for i, m := range s.machines {
		j := len(s.machines) - 1 - i
		err := errors.Join(
			s.checkNetwork(ctx, m),
			checkDefaultBridge(ctx, m),
			// Published, and of a page that came by a name.
			s.wantPage(ctx, m.Host.Node, netip.AddrPortFrom(s.machines[j].Host.Addrs[0].Addr(), 8080)),
			s.wantPage(ctx, s.web[i].Node, netip.AddrPortFrom(s.machines[j].Host.Addrs[0].Addr(), 8080)),
			s.wantPage(ctx, s.web[i].Node, netip.AddrPortFrom(s.db[j].addr, 5432)),
			wantPing(ctx, s.web[i], s.db[j]),
			wantPing(ctx, s.db[i], s.web[j]),
			s.checkContainer(ctx, s.web[i], s.db[j]),
		)
		if err != nil {
			t.Errorf("after %s: %s: %v", after, m.Name, err)
		}
	}
}

// wantPage waits until what db says is served at an address.
func (s *stacks) wantPage(ctx context.Context, from *lab.Node, at netip.AddrPort) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return from.Dial(ctx, at)
		},
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return s.machines[0].poll(ctx, "the page at "+at.String(), func() (bool, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+"/", nil)
		if err != nil {
			return false, err
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			return false, nil // it may still be starting
		}
		defer response.Body.Close()
		page, err := io.ReadAll(response.Body)
		return err == nil && response.StatusCode == http.StatusOK && string(page) == "data\n", nil
	})
}

// checkContainer looks at one container: its name, its MTU, and who it seems to
// be at the other host.
func (s *stacks) checkContainer(ctx context.Context, web, db *app) error {
	var errs []error
	page, err := web.machine.Run(ctx, "docker", "exec", "stack-web-1", "wget", "-qO-", "http://db:5432/")
	if err != nil || page != "data\n" {
		errs = append(errs, fmt.Errorf("db by its name: %q (%w)", page, err))
	}
	link, err := web.Links().LinkByName("eth0")
	switch {
	case err != nil:
		errs = append(errs, err)
	case link.Attrs().MTU != s.walk.mtu:
		errs = append(errs, fmt.Errorf("%s: eth0 has mtu %d, want %d", web.Name, link.Attrs().MTU, s.walk.mtu))
	}
	r, err := lab.Transfer(ctx, web.Node, db.Node, db.addr, 8<<20)
	if err == nil && r.Source != web.addr {
		err = fmt.Errorf("%s sees %s, want the container's own %s", db.Name, r.Source, web.addr)
	}
	return errors.Join(append(errs, err)...)
}

// checkNetwork looks at what Docker says of the network.
func (s *stacks) checkNetwork(ctx context.Context, m *Machine) error {
	out, err := m.Run(ctx, "docker", "network", "inspect", stackNetwork)
	if err != nil {
		return err
	}
	var list []struct {
		Driver  string
		Options map[string]string
		IPAM    struct{ Config []struct{ Gateway string } }
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return err
	}
	if len(list) != 1 || len(list[0].IPAM.Config) != 1 {
		return fmt.Errorf("network %s: %s", stackNetwork, out)
	}
	subnet, err := subnetOf(ctx, m)
	if err != nil {
		return err
	}
	want := map[string]string{
		"com.docker.network.bridge.name": "br-" + stackNetwork,
		"com.docker.network.driver.mtu":  strconv.Itoa(s.walk.mtu),
	}
	if s.trusted != "" {
		want["com.docker.network.bridge.trusted_host_interfaces"] = s.trusted
	}
	if slices.Contains(s.flags, ipMasq) {
		want["com.docker.network.bridge.enable_ip_masquerade"] = "false"
	}
	if diff := cmp.Diff(want, list[0].Options); diff != "" {
		err = fmt.Errorf("the network's options (-want +got):\n%s", diff)
	}
	if at := list[0].IPAM.Config[0].Gateway; at+"/24" != subnet {
		err = errors.Join(err, fmt.Errorf("the network's gateway is %s, and the host's subnet %s", at, subnet))
	}
	return err
}

// checkDefaultBridge wants docker0 as Docker makes it by itself.
func checkDefaultBridge(ctx context.Context, m *Machine) error {
	out, err := m.Run(ctx, "docker", "network", "inspect", "--format={{(index .IPAM.Config 0).Subnet}} {{index .Options \"com.docker.network.driver.mtu\"}}", "bridge")
	if got := strings.TrimSpace(out); err != nil || got != "172.17.0.0/16 1500" {
		return fmt.Errorf("docker0 has %q (%w), want Docker's own 172.17.0.0/16 1500", got, err)
	}
	return nil
}
