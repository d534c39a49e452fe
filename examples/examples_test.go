package examples_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
)

// ours are the addresses of a host with both families.
var ours = []string{"198.51.100.1", "2001:db8::1"}

func TestReferenceConfigs(t *testing.T) {
	files, err := filepath.Glob("config/*.json")
	if err != nil || len(files) < len(backends) {
		t.Fatalf("found %v, %v", files, err)
	}
	seen := map[string]bool{}
	for _, path := range files {
		t.Run(path, func(t *testing.T) {
			text := read(t, "examples/"+path)
			got, err := check(text, uplinkOf(1500, ours...))
			if err != nil {
				t.Fatal(err)
			}
			if len(got.unknown) > 0 {
				t.Errorf("unknown keys %v", got.unknown)
			}
			seen[got.config.BackendType] = true

			// All at their defaults: as with nothing but what is required.
			least := map[string]any{"Backend": map[string]any{"Type": got.config.BackendType}, "Network": got.config.Ranges[subnet.IPv4].Network}
			if v6 := got.config.Ranges[subnet.IPv6].Network; v6.IsValid() {
				least["EnableIPv6"], least["IPv6Network"] = true, v6
			}
			small, err := json.Marshal(least)
			if err != nil {
				t.Fatal(err)
			}
			want, err := check(string(small), uplinkOf(1500, ours...))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(facts(want), facts(got), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("not the defaults (-want +got)\n%s", diff)
			}

			// And all keys of the backend and of the families that are on.
			var doc map[string]any
			if err := json.Unmarshal([]byte(text), &doc); err != nil {
				t.Fatal(err)
			}
			for _, key := range knownKeys(t, "") {
				v6 := strings.Contains(key, "IPv6")
				if !has(doc, key) && (!v6 || got.config.Ranges[subnet.IPv6].Network.IsValid()) {
					t.Errorf("has not %s", key)
				}
			}
			for _, key := range knownKeys(t, got.config.BackendType) {
				if options, _ := doc["Backend"].(map[string]any); !has(options, key) {
					t.Errorf("has not Backend.%s", key)
				}
			}
		})
	}
	for name := range backends {
		if !seen[name] {
			t.Errorf("no reference config for %s", name)
		}
	}
}

func has(object map[string]any, key string) bool {
	_, ok := object[key]
	return ok
}

// fact is what can be seen of a config in force.
type fact struct {
	Config  subnet.Config
	Options any
	MTU     int
}

func facts(c checked) fact {
	f := fact{Config: *c.config, Options: optionsOf(c.config), MTU: c.mtu}
	f.Config.Backend = "" // the text; its meaning is in Options
	return f
}

func TestWalkthroughConfigs(t *testing.T) {
	readme := read(t, "examples/walkthrough/README.md")
	for name, mtu := range map[string]int{"udp": 1472, "vxlan": 1450, "host-gw": 1500} {
		text := read(t, "examples/walkthrough/network-"+name+".json")
		got, err := check(text, uplinkOf(1500, "192.168.100.11"))
		if err != nil {
			t.Fatal(err)
		}
		if got.config.BackendType != name || got.mtu != mtu || len(got.unknown) > 0 {
			t.Errorf("%s: backend %s, mtu %d, unknown %v", name, got.config.BackendType, got.mtu, got.unknown)
		}
	}
	if want := "1472 with udp, 1450 with vxlan and 1500 with host-gw"; !strings.Contains(readme, want) {
		t.Errorf("README does not say %q", want)
	}
	if settings := read(t, "examples/walkthrough/flanneld-go.default"); !strings.Contains(readme, "```\n"+settings+"```") {
		t.Error("README does not show flanneld-go.default as it is")
	}
	env := daemonconfig.Env{MTU: 1472}
	env.Networks[0], env.Subnets[0] = netip.MustParsePrefix("172.20.0.0/16"), netip.MustParsePrefix("172.20.24.0/24")
	if want := string(env.Format()); !strings.Contains(readme, "subnet.env\n"+want) {
		t.Errorf("README does not show subnet.env as it would be:\n%s", want)
	}
}

// The settings file is read by the daemon's own parser: --check on an etcd that
// is not there tells what it looked for.
func TestWalkthroughSettings(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: flanneld-go --check reads the kernel's tables")
	}
	port := freePorts(t, 1)[0]
	settings := strings.ReplaceAll(read(t, "examples/walkthrough/flanneld-go.default"), "192.168.100.12:2379", "127.0.0.1:"+port)
	cmd := command(t, "flanneld-go", "--check", "--node-id=example", "--state-dir="+t.TempDir(), "--docker-config=none")
	cmd.Env = append(cmd.Env, variables(t, settings)...)
	out, err := cmd.CombinedOutput()
	want := "etcd http://127.0.0.1:" + port + ": connection refused"
	if err == nil || !strings.Contains(strings.ReplaceAll(string(out), "connect: ", ""), want) {
		t.Errorf("%v, no %q in:\n%s", err, want, out)
	}
}

// variables reads an environment file of systemd as far as the examples need it.
func variables(t *testing.T, text string) []string {
	t.Helper()
	var vars []string
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			t.Fatalf("no variable: %q", line)
		}
		vars = append(vars, name+"="+strings.Trim(value, `"`))
	}
	return vars
}

func TestWalkthroughCommands(t *testing.T) {
	endpoint := plainEtcd(t)
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("walkthrough")); err != nil {
		t.Fatal(err)
	}
	runBlocks(t, "examples/walkthrough/README.md", dir, "192.168.100.12:2379", endpoint)

	get := command(t, "flannelctl", "config", "get")
	settings := strings.ReplaceAll(read(t, "examples/walkthrough/flanneld-go.default"), "192.168.100.12:2379", endpoint)
	get.Env = append(get.Env, variables(t, settings)...)
	out, err := get.CombinedOutput()
	if want := read(t, "examples/walkthrough/network-vxlan.json"); err != nil || string(out) != want {
		t.Errorf("%v, config in etcd: %s, want %s", err, out, want)
	}
}

func TestCNI(t *testing.T) {
	var list struct {
		CNIVersion, Name string
		Plugins          []struct {
			Type, SubnetFile string
			Delegate         map[string]any
		}
	}
	if err := json.Unmarshal([]byte(read(t, "examples/cni/10-flannel.conflist")), &list); err != nil {
		t.Fatal(err)
	}
	if list.CNIVersion == "" || list.Name == "" || len(list.Plugins) == 0 || list.Plugins[0].Type != "flannel" {
		t.Fatalf("the flannel plugin must come first in a named list: %+v", list)
	}
	help, err := command(t, "flanneld-go", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	if p := list.Plugins[0]; !strings.Contains(strings.Join(strings.Fields(string(help)), " "), `(default "`+p.SubnetFile+`")`) {
		t.Errorf("subnetFile %q is no default of flanneld-go", p.SubnetFile)
	}
	want := map[string]any{"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true}
	// The plugin sets mtu, ipMasq and ipam from subnet.env, and refuses a name.
	if diff := cmp.Diff(want, list.Plugins[0].Delegate); diff != "" {
		t.Errorf("delegate (-want +got)\n%s", diff)
	}
}

func TestEtcdTLS(t *testing.T) {
	needs(t, "/usr/bin/etcd", "etcdctl", "openssl")
	for _, tt := range []struct{ clientCerts, settings string }{{"no", "ca-only"}, {"yes", "client-cert"}} {
		t.Run(tt.settings, func(t *testing.T) {
			dir, ports := t.TempDir(), freePorts(t, 6)
			script := exec.Command("etcd-tls/run")
			script.Env = []string{
				"PATH=" + os.Getenv("PATH"), "ETCD=/usr/bin/etcd", "DIR=" + dir, "CLIENT_CERTS=" + tt.clientCerts,
				"CLIENT_PORTS=" + strings.Join(ports[:3], " "), "PEER_PORTS=" + strings.Join(ports[3:], " "),
			}
			background(t, script, "ready: ")
			settings := load(t, filepath.Join(dir, tt.settings+".default"))
			leaseThrough(t, settings)
			sameAsReadme(t, dir, settings)

			t.Run("wrong", func(t *testing.T) { wrongSettings(t, dir, settings) })
		})
	}
}

// wrongSettings tries what people get wrong, all at once: each load ends only
// with its time.
func wrongSettings(t *testing.T, dir string, right etcdstore.Options) {
	try := func(o etcdstore.Options, want string) {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			wantTLSError(t, o, want)
		})
	}
	foreign := right
	foreign.CAFile, foreign.CertFile, foreign.KeyFile = filepath.Join(dir, "foreign.pem"), "", ""
	makeCA(t, foreign.CAFile)
	try(foreign, "certificate not trusted (see --etcd-cafile)")
	plain := right
	plain.Endpoints, plain.CAFile, plain.CertFile, plain.KeyFile = nil, "", "", ""
	for _, e := range right.Endpoints {
		plain.Endpoints = append(plain.Endpoints, strings.Replace(e, "https:", "http:", 1))
	}
	try(plain, "speaks TLS: use https:// in --etcd-endpoints")
	if right.CertFile != "" {
		nobody := right
		nobody.CertFile, nobody.KeyFile = "", ""
		try(nobody, "refuses our certificate: see --etcd-certfile and --etcd-keyfile")
	}
}

// load reads settings that the script wrote.
func load(t *testing.T, path string) etcdstore.Options {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o := etcdstore.Options{Prefix: "/coreos.com/network"}
	for _, v := range variables(t, string(text)) {
		name, value, _ := strings.Cut(v, "=")
		switch name {
		case "FLANNELD_ETCD_ENDPOINTS":
			o.Endpoints = strings.Split(value, ",")
		case "FLANNELD_ETCD_CAFILE":
			o.CAFile = value
		case "FLANNELD_ETCD_CERTFILE":
			o.CertFile = value
		case "FLANNELD_ETCD_KEYFILE":
			o.KeyFile = value
		default:
			t.Fatalf("unexpected setting %s", name)
		}
	}
	return o
}

// leaseThrough leases a subnet in the etcd of o.
func leaseThrough(t *testing.T, o etcdstore.Options) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if len(o.Endpoints) != 3 {
		t.Errorf("endpoints %v, want three", o.Endpoints)
	}
	store, err := etcdstore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	world, err := store.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutConfig(ctx, `{"Network":"10.5.0.0/16"}`, world); err != nil {
		t.Fatal(err)
	}
	if world, err = store.Load(ctx); err != nil {
		t.Fatal(err)
	}
	claim := subnet.Claim{Node: "node", Instance: "instance", Attrs: subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{netip.MustParseAddr("192.0.2.1")}}}
	made, err := subnet.Acquire(ctx, store, world, claim)
	if err != nil {
		t.Fatal(err)
	}
	if world, err = store.Load(ctx); err != nil || len(world.Leases) != 1 || world.Leases[0].Subnet != made.Subnet {
		t.Errorf("leases %v, %v, want %s alone", world.Leases, err, made.Subnet)
	}
}

// sameAsReadme compares the script's settings with those that are shown.
func sameAsReadme(t *testing.T, dir string, o etcdstore.Options) {
	t.Helper()
	shown := "FLANNELD_ETCD_ENDPOINTS=" + strings.Join(o.Endpoints, ",") + "\nFLANNELD_ETCD_CAFILE=" + o.CAFile + "\n"
	if o.CertFile != "" {
		shown += "FLANNELD_ETCD_CERTFILE=" + o.CertFile + "\nFLANNELD_ETCD_KEYFILE=" + o.KeyFile + "\n"
	}
	shown = strings.ReplaceAll(shown, dir, "/etc/flanneld-go")
	for i, port := range []string{"12379", "22379", "32379"} {
		shown = strings.Replace(shown, o.Endpoints[i], "https://127.0.0.1:"+port, 1)
	}
	if !strings.Contains(read(t, "examples/etcd-tls/README.md"), "```\n"+shown+"```") {
		t.Errorf("README does not show\n%s", shown)
	}
}

func makeCA(t *testing.T, path string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-subj", "/CN=somebody else's CA", "-keyout", path+".key", "-out", path).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
}

// wantTLSError loads, and wants an error that names the remedy, which the
// README lists. On a busy machine a load may end before it has come to that.
func wantTLSError(t *testing.T, o etcdstore.Options, want string) {
	t.Helper()
	store, err := etcdstore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for end := time.Now().Add(time.Minute); ; {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err = store.Load(ctx)
		cancel()
		if errors.Is(err, etcdstore.ErrTLS) || err == nil || time.Now().After(end) {
			break
		}
	}
	if !errors.Is(err, etcdstore.ErrTLS) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want a TLS error with %q", err, want)
	}
	if !strings.Contains(read(t, "examples/etcd-tls/README.md"), "`"+want+"`") {
		t.Errorf("README does not list %q", want)
	}
}
