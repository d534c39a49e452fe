package dockerd_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd/dockerdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAsk(t *testing.T) {
	const pools = `{"LiveRestoreEnabled": true, "ContainersRunning": 3, "SecurityOptions": ["name=seccomp,profile=builtin"],
		"DefaultAddressPools": [{"Base": "10.0.0.0/8", "Size": 24}]}`
	tests := []struct {
		name              string
		version, api, min string
		info              string
		wantAPI           string
		want              dockerd.Capabilities
	}{
		{
			"bookworm", "20.10.24+dfsg1", "1.41", "1.12", pools, "1.41",
			dockerd.Capabilities{Version: dockerd.Version{Major: 20, Minor: 10, Patch: 24}, LiveRestore: true},
		},
		{
			"trixie", "26.1.5+dfsg1", "1.45", "1.24", `{}`, "1.45",
			dockerd.Capabilities{Version: dockerd.Version{Major: 26, Minor: 1, Patch: 5}, Validate: true, NetworkOpts: true},
		},
		{
			"28.0", "28.0.1", "1.48", "1.24", `{}`, "1.48",
			dockerd.Capabilities{Version: dockerd.Version{Major: 28, Patch: 1}, Validate: true, NetworkOpts: true, Drops: true},
		},
		{
			"forky", "28.5.2", "1.51", "1.24", `{"FirewallBackend": {"Driver": "iptables+firewalld", "Info": [["ReloadedAt", "x"]]}}`, "1.50",
			dockerd.Capabilities{
				Version: dockerd.Version{Major: 28, Minor: 5, Patch: 2}, Validate: true, NetworkOpts: true, Drops: true,
				TrustedInterfaces: true, Firewall: dockerd.Firewalld,
			},
		},
		{
			"29 with nftables", "29.1.3", "1.52", "1.44", `{"FirewallBackend": {"Driver": "nftables"}, "SecurityOptions": ["name=rootless"]}`, "1.50",
			dockerd.Capabilities{
				Version: dockerd.Version{Major: 29, Minor: 1, Patch: 3}, Validate: true, NetworkOpts: true, Drops: true,
				TrustedInterfaces: true, AcceptMark: true, NeedsMark: true, Firewall: dockerd.NFTables, Rootless: true,
			},
		},
		{
			"29 with iptables, and a later API than ours alone", "29.9.0-rc.1", "1.60", "1.55", `{"FirewallBackend": {"Driver": "iptables"}}`, "1.55",
			dockerd.Capabilities{
				Version: dockerd.Version{Major: 29, Minor: 9}, Validate: true, NetworkOpts: true, Drops: true,
				TrustedInterfaces: true, AcceptMark: true,
			},
		},
		{"a build without a version", "dev", "1.51", "1.24", `{}`, "1.50", dockerd.Capabilities{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			engine := dockerdtest.New(t)
			engine.Version, engine.API, engine.MinAPI, engine.Info = tt.version, tt.api, tt.min, tt.info
			got, err := dockerd.NewClient(engine.Socket()).Ask(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got.API != tt.wantAPI || got.Name != tt.version {
				t.Errorf("spoke %s with %s, want %s with %s", got.API, got.Name, tt.wantAPI, tt.version)
			}
			if diff := cmp.Diff(tt.want, dockerd.CapabilitiesOf(got.Version, got.Info)); diff != "" {
				t.Errorf("capabilities (-want +got):\n%s", diff)
			}
			if tt.info == pools && (got.Info.ContainersRunning != 3 || len(got.Info.AddressPools) != 1 || got.Info.AddressPools[0].Base != netip.MustParsePrefix("10.0.0.0/8")) {
				t.Errorf("info %+v", got.Info)
			}
		})
	}
}

func TestDown(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for name, socket := range map[string]string{"no socket": filepath.Join(dir, "none.sock"), "nobody listens": dead} {
		t.Run(name, func(t *testing.T) {
			_, err := dockerd.NewClient(socket).Ask(t.Context())
			if !errors.Is(err, dockerd.ErrDown) || err.Error() != "ask docker for its version: docker is not running: nobody answers on "+socket {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestBrokenEngine(t *testing.T) {
	engine := dockerdtest.New(t)
	engine.API = "2.0"
	client := dockerd.NewClient(engine.Socket())
	if _, err := client.Ask(t.Context()); err == nil || !strings.Contains(err.Error(), `no API version but "2.0"`) {
		t.Errorf("error %v", err)
	}
	engine = dockerdtest.New(t)
	engine.Info = `{"LiveRestoreEnabled": "yes"}`
	if _, err := dockerd.NewClient(engine.Socket()).Ask(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "ask docker for its info: read docker's answer: json:") {
		t.Errorf("error %v", err)
	}
}

// flannel is the network of this host.
func flannel() dockerd.Spec {
	return dockerd.Spec{
		Name: "flannel", Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.72.1/24")}, MTU: 1450,
		Trusted: []string{"flannel.1", "eth0"},
	}
}

func TestKeep(t *testing.T) {
	ctx := t.Context()
	engine := dockerdtest.New(t)
	client := dockerd.NewClient(engine.Socket())
	keep := func(s dockerd.Spec) dockerd.Kept {
		t.Helper()
		kept, err := client.Keep(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		return kept
	}
	if got := keep(flannel()); got != dockerd.Created {
		t.Errorf("kept %d, want created", got)
	}
	n := engine.Get("flannel")
	want := map[string]string{
		"com.docker.network.bridge.name": "br-flannel", "com.docker.network.driver.mtu": "1450",
		"com.docker.network.bridge.trusted_host_interfaces": "flannel.1:eth0",
	}
	if diff := cmp.Diff(want, n.Options); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
	if n.Driver != "bridge" || n.EnableIPv6 || len(n.IPAM.Config) != 1 || n.IPAM.Config[0] != (dockerdtest.IPAM{Subnet: "10.5.72.0/24", Gateway: "10.5.72.1"}) {
		t.Errorf("network %+v", n)
	}
	if got := keep(flannel()); got != dockerd.Unchanged || engine.Get("flannel").ID != n.ID {
		t.Errorf("kept %d, want unchanged", got)
	}

	moved := flannel()
	moved.Addrs = []netip.Prefix{netip.MustParsePrefix("10.5.9.1/24"), netip.MustParsePrefix("fd05:9::1/64")}
	moved.MTU, moved.NoMasquerade, moved.Trusted = 1400, true, nil
	engine.Attach("flannel", "web", "db")
	_, err := client.Keep(ctx, moved)
	var busy *dockerd.InUseError
	if !errors.As(err, &busy) || engine.Get("flannel").ID != n.ID {
		t.Fatalf("error %v: want that it is in use, and stays", err)
	}
	const says = "docker network flannel must be made anew (subnet: [10.5.72.1/24], want [10.5.9.1/24 fd05:9::1/64]; enable_ip_masquerade: absent, want false; " +
		"mtu: 1450, want 1400; trusted_host_interfaces: flannel.1:eth0, want absent), but containers belong to it: db, web"
	if diff := cmp.Diff(says, err.Error()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	engine.Attach("flannel")
	if got := keep(moved); got != dockerd.Recreated || !engine.Get("flannel").EnableIPv6 {
		t.Errorf("kept %d, want recreated for both families", got)
	}
	if got := keep(moved); got != dockerd.Unchanged {
		t.Errorf("kept %d, want unchanged", got)
	}
	wantRequests := []string{"POST /networks/create", "DELETE /networks/" + n.ID, "POST /networks/create"}
	if diff := cmp.Diff(wantRequests, engine.Requests()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	engine.Attach("flannel", "web")
	if gone, err := client.Drop(ctx, "flannel"); gone || !errors.As(err, &busy) {
		t.Errorf("dropped while in use: %t, %v", gone, err)
	}
	engine.Attach("flannel")
	for range 2 {
		if gone, err := client.Drop(ctx, "flannel"); !gone || err != nil || engine.Get("flannel").ID != "" {
			t.Errorf("dropped: %t, %v", gone, err)
		}
	}
}

func TestKeepForeign(t *testing.T) {
	ctx := t.Context()
	engine := dockerdtest.New(t)
	client := dockerd.NewClient(engine.Socket())
	theirs := dockerdtest.Network{Name: "flannel", Driver: "macvlan"}
	engine.Put(theirs)
	_, err := client.Keep(ctx, flannel())
	var foreign *dockerd.ForeignError
	if !errors.As(err, &foreign) {
		t.Fatalf("error %v: want that it is somebody else's", err)
	}
	if gone, err := client.Drop(ctx, "flannel"); !gone || err != nil || engine.Get("flannel").ID == "" {
		t.Errorf("dropped %t, %v: it is somebody else's, and must stay", gone, err)
	}
	// Made by hand as the page says it, it will do.
	theirs.Driver = "bridge"
	theirs.IPAM.Config = []dockerdtest.IPAM{{Subnet: "10.5.72.0/24", Gateway: "10.5.72.1"}}
	theirs.Options = map[string]string{"com.docker.network.bridge.name": "br-flannel", "com.docker.network.driver.mtu": "1450"}
	engine.Put(theirs)
	s := flannel()
	s.Trusted = nil
	if kept, err := client.Keep(ctx, s); kept != dockerd.Unchanged || err != nil {
		t.Errorf("kept %d, %v", kept, err)
	}
}

func TestKeepRefused(t *testing.T) {
	ctx := t.Context()
	engine := dockerdtest.New(t)
	engine.SetBridge("10.5.72.1/24", 1450, true)
	client := dockerd.NewClient(engine.Socket())
	_, err := client.Keep(ctx, flannel())
	var refusal *dockerd.APIError
	if !errors.As(err, &refusal) || err.Error() != "create docker network flannel: docker says: Pool overlaps with other one on this address space" {
		t.Errorf("error %v", err)
	}
	for _, name := range []string{"", "bridge", "-x", "a b", "a/b", "é"} {
		s := flannel()
		s.Name = name
		if _, err := client.Keep(ctx, s); err == nil || !strings.HasPrefix(err.Error(), "docker network ") {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

// The engine finds a network by its id as well, which is not its name.
func TestKeepByName(t *testing.T) {
	engine := dockerdtest.New(t)
	client := dockerd.NewClient(engine.Socket())
	if _, err := client.Keep(t.Context(), flannel()); err != nil {
		t.Fatal(err)
	}
	id := engine.Get("flannel").ID
	if gone, err := client.Drop(t.Context(), id); !gone || err != nil || engine.Get("flannel").ID != id {
		t.Errorf("dropped %t, %v: no network is called %s", gone, err, id)
	}
}

func TestNetworks(t *testing.T) {
	engine := dockerdtest.New(t)
	engine.SetBridge("10.5.72.1/24", 1450, false)
	client := dockerd.NewClient(engine.Socket())
	list, err := client.Networks(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	n := list[0]
	on, known := n.Masquerade()
	if n.MTU() != 1450 || on || !known || len(n.Subnets) != 1 || n.Subnets[0] != netip.MustParsePrefix("10.5.72.1/24") || n.Ours() {
		t.Errorf("network %+v", n)
	}
}

func TestBridgeNames(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"flannel", "twelve-chars", "thirteen-char", "thirteen-chat"} {
		got := dockerd.Spec{Name: name}.Bridge()
		if len(got) > 15 || len(name) <= 12 && got != "br-"+name {
			t.Errorf("%s: %s", name, got)
		}
		if other := seen[got]; other != "" {
			t.Errorf("%s and %s are both %s", name, other, got)
		}
		seen[got] = name
	}
}

// FuzzNetwork: whatever an engine says is read or refused, and nothing of it
// ends in a panic.
func FuzzNetwork(f *testing.F) {
	for _, seed := range []string{
		`{"Name":"bridge","IPAM":{"Config":[{"Subnet":"172.17.0.0/16","Gateway":"172.17.0.1/16"}]},"Options":{"com.docker.network.driver.mtu":"1500"}}`,
		`{"IPAM":{"Config":[{"Subnet":"fd00::/64"},{"Subnet":""}]}}`, `{"IPAM":null,"Options":null}`, `[]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var n dockerd.Network
		if json.Unmarshal(text, &n) != nil {
			return
		}
		for _, p := range n.Subnets {
			if !p.IsValid() {
				t.Errorf("%q has no valid subnet", text)
			}
		}
		_ = n.MTU()
		_ = flannel().Differences(n)
	})
}
