package main

import (
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd/dockerdtest"
)

// filled is a host as a daemon with vxlan left it.
func filled(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	state := statedir.Dir(filepath.Join(dir, "state"))
	err := state.SaveHost(statedir.Host{
		BackendType: "vxlan", Backend: `{"Type":"vxlan","VNI":7}`,
		Sysctls:    []firewall.SysctlChange{{Name: "net/ipv4/ip_forward", From: "0", To: "1"}, {Name: "net/ipv6/conf/all/forwarding", From: "0", To: "1"}},
		SubnetFile: filepath.Join(dir, "subnet.env"),
	})
	if err != nil {
		t.Fatal(err)
	}
	cache := statedir.Cache{Identity: "x"}
	cache.Config.Text = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`
	cache.Own.Attrs.Owner = "me"
	if err := state.SaveCache(cache); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"subnet.env": "FLANNEL_MTU=1450\n", "daemon.json": "{\n  \"debug\": true\n}\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	docker := daemonconfig.DockerConfig{Path: filepath.Join(dir, "daemon.json"), MemoryPath: filepath.Join(string(state), "docker.json")}
	plan, err := docker.Plan(daemonconfig.Docker{MTU: 1450})
	if err == nil {
		err = docker.Commit(plan)
	}
	if err == nil {
		err = state.SaveDockerChange(statedir.DockerChange{Undo: docker.Undo(plan)})
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// steps is the plan for a filled host, in its order.
func steps(dir string) []string {
	return []string{
		"remove our firewall rules",
		"remove devices and routes of backend vxlan",
		"set sysctl net/ipv6/conf/all/forwarding to 0, as it was",
		"set sysctl net/ipv4/ip_forward to 0, as it was",
		"take our keys back from " + dir + "/daemon.json",
		"forget our last change of Docker's file, with which Docker has not started",
		"remove " + dir + "/subnet.env",
		"remove " + dir + "/state/cache.json",
		"remove " + dir + "/state/host.json",
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: cleanup refuses other users")
	}
}

func TestCleanupPlan(t *testing.T) {
	needRoot(t)
	dir := filled(t)
	s := newShell(t)
	s.want("flannelctl cleanup --yes would:\n  "+strings.Join(steps(dir), "\n  ")+"\n", "cleanup", "--state-dir="+dir+"/state")
	for _, name := range []string{"subnet.env", "state/cache.json", "state/host.json", "state/docker.json", "state/docker-change.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("the plan alone removed something: %v", err)
		}
	}
	empty := t.TempDir()
	s.want("flannelctl cleanup --yes would:\n  remove our firewall rules\n  remove "+empty+"/cache.json\n  remove "+empty+"/host.json\n", "cleanup", "--state-dir="+empty)
}

func TestCleanupRefusals(t *testing.T) {
	needRoot(t)
	dir := filled(t)
	s := newShell(t)
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "host.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.refused(false, "read state "+broken+"/host.json: unexpected end of JSON input: it says what to undo; without it (remove it) only firewall rules and files are cleaned up", "cleanup", "--yes", "--state-dir="+broken)
	s.daemon(status.Status{PID: 812})
	s.refused(false, "the daemon is running (pid 812) and would put everything back: systemctl stop flanneld-go", "cleanup", "--yes", "--state-dir="+dir+"/state")
	if _, err := os.Stat(filepath.Join(dir, "subnet.env")); err != nil {
		t.Errorf("the refused cleanup removed something: %v", err)
	}
}

// In a namespace of its own: everything of ours goes, nothing of others, and a
// second time there is nothing left to do.
func TestCleanup(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("needs iptables: rules of ours are to be removed")
	}
	dir := filled(t)
	ns.Run(t, "ip", "link", "set", "lo", "up")
	ns.Run(t, "ip", "link", "add", "flannel.7", "type", "vxlan", "id", "7", "dstport", "8472", "local", "127.0.0.1")
	ns.Run(t, "ip", "link", "set", "flannel.7", "alias", kernel.Alias)
	ns.Run(t, "ip", "link", "add", "br0", "type", "bridge")
	ns.Run(t, "ip", "route", "add", "10.5.9.0/24", "dev", "lo", "proto", "158")
	ns.Run(t, "ip", "route", "add", "10.5.10.0/24", "dev", "lo", "proto", "static")
	ns.Run(t, "iptables", "-N", "FLANNELD-GO-FWD")
	ns.Run(t, "iptables", "-A", "FORWARD", "-j", "FLANNELD-GO-FWD")
	ns.Run(t, "iptables", "-A", "FORWARD", "-j", "DROP")
	ns.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")

	s := newShell(t)
	for range 2 {
		var r result
		ns.Do(t, func() { r = s.run("cleanup", "--yes", "--state-dir="+dir+"/state") })
		if r.err != "" {
			t.Fatalf("%s\nerror %s", r.out, r.err)
		}
		if strings.Count(r.out, "done    ") != strings.Count(r.out, "\n") {
			t.Errorf("not all done:\n%s", r.out)
		}
	}
	links, err := ns.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	if diff := cmp.Diff([]string{"lo", "br0"}, names); diff != "" {
		t.Errorf("links (-want +got):\n%s", diff)
	}
	if got := ns.Run(t, "ip", "route"); !strings.Contains(got, "10.5.10.0/24") || strings.Contains(got, "10.5.9.0/24") {
		t.Errorf("routes:\n%s", got)
	}
	if got := ns.Run(t, "iptables", "-S"); strings.Contains(got, "FLANNELD-GO") || !strings.Contains(got, "-A FORWARD -j DROP") {
		t.Errorf("rules:\n%s", got)
	}
	if got := ns.Run(t, "sysctl", "-n", "net.ipv4.ip_forward"); got != "0\n" {
		t.Errorf("ip_forward is %s", got)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "daemon.json")); err != nil || string(got) != "{\n  \"debug\": true\n}\n" {
		t.Errorf("daemon.json is %q, %v", got, err)
	}
	for _, name := range []string{"subnet.env", "state/cache.json", "state/host.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s: %v, want it gone", name, err)
		}
	}
}

// A memory of Docker's keys that cannot be read, such as after a full disk,
// fails its own step and no other.
func TestCleanupUnreadableMemory(t *testing.T) {
	dir := filled(t)
	memory := filepath.Join(dir, "state", "docker.json")
	if err := os.WriteFile(memory, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	state := statedir.Dir(filepath.Join(dir, "state"))
	saved, err := state.LoadHost()
	if err != nil {
		t.Fatal(err)
	}
	plan, err := planner{0, state, saved, kerneltest.New(), slog.New(slog.DiscardHandler)}.plan("")
	if err != nil {
		t.Fatal(err)
	}
	var failed []string
	for _, step := range plan[1:] { // the firewall is the machine's
		if err := step.do(t.Context()); err != nil {
			failed = append(failed, step.what)
			if !strings.Contains(err.Error(), memory) {
				t.Errorf("%s: %v does not name %s", step.what, err, memory)
			}
		}
	}
	if diff := cmp.Diff([]string{"take our keys back from Docker's config file"}, failed); diff != "" {
		t.Errorf("failed steps (-want +got):\n%s", diff)
	}
}

// The network goes from the Docker that it was made in.
func TestCleanupOfNetwork(t *testing.T) {
	engine := dockerdtest.New(t)
	client := dockerd.NewClient(engine.Socket())
	if _, err := client.Keep(t.Context(), dockerd.Spec{Name: "flannel", Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.72.1/24")}, MTU: 1450}); err != nil {
		t.Fatal(err)
	}
	plan, err := planner{0, statedir.Dir(t.TempDir()), statedir.Host{DockerNetwork: "flannel"}, kerneltest.New(), slog.New(slog.DiscardHandler)}.plan(engine.Socket())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(plan, func(c cleanup) bool { return c.what == "remove docker network flannel" })
	if i < 0 {
		t.Fatal("no such step")
	}
	if err := plan[i].do(t.Context()); err != nil {
		t.Error(err)
	}
	if engine.Get("flannel").ID != "" {
		t.Error("network is there after cleanup")
	}
}
