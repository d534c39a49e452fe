package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

func TestConfigValidate(t *testing.T) {
	s := newShell(t)
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte("{\n  \"Network\": \"10.5.0.0/16\"\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.want("valid\n", "config", "validate", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`)
	s.want("valid\n", "config", "validate", path)
	s.in = ` {"Network":"10.5.0.0/16"}`
	s.want("valid\n", "config", "validate", "-")
	s.refused(true, "invalid network config:\nNetwork: 10.5.0.0/33: must be an IPv4 network such as \"10.5.0.0/16\"\nEnableNFTables: 1: must be true or false\nBackend.Type: missing: is required in Backend",
		"config", "validate", `{"Network":"10.5.0.0/33","EnableNFTables":1,"Backend":{}}`)
	s.refused(true, "invalid network config:\nBackend.VNI: 17000000: must be between 1 and 16777215\nBackend.Port: -1: must be between 0 and 65535",
		"config", "validate", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":17000000,"Port":-1}}`)
	s.refused(true, "invalid network config: unknown keys: Backend.Vnii, Colour",
		"config", "validate", `{"Network":"10.5.0.0/16","Colour":1,"Backend":{"Type":"vxlan","Vnii":7}}`)
	s.refused(true, "invalid network config:\nline 1, column 2: unexpected end of JSON input", "config", "validate", "{")
	s.refused(false, "read config: open /no/such/file: no such file or directory", "config", "validate", "/no/such/file")
}

func TestConfigGetAndSet(t *testing.T) {
	endpoint, client := startEtcd(t)
	s := newShell(t, "FLANNELD_ETCD_ENDPOINTS="+endpoint)
	const first, second = `{"Network":"10.5.0.0/16"}`, `{"Network":"10.6.0.0/16"}`
	s.refused(false, `there is no network config yet: flannelctl config set '{"Network":"10.5.0.0/16"}'`, "config", "get")
	s.refused(true, "invalid network config: unknown keys: Netwrk", "config", "set", `{"Network":"10.5.0.0/16","Netwrk":"10.6.0.0/16"}`)
	if resp, err := client.Get(t.Context(), "/coreos.com/network", clientv3.WithPrefix()); err != nil || resp.Count != 0 {
		t.Fatalf("%d keys, %v: something was put by what was refused", resp.Count, err)
	}
	if r := s.run("config", "set", first); r.err != "" || !regexp.MustCompile(`^put at revision \d+\n$`).MatchString(r.out) {
		t.Errorf("set: %q, error %q", r.out, r.err)
	}
	s.want(first+"\n", "config", "get")
	s.want("unchanged\n", "config", "set", first)
	put(t, client, "/coreos.com/network/subnets/10.5.7.0-24", `{"PublicIP":"198.18.0.7"}`, 0)
	if r := s.run("config", "set", second); r.err != "" || !strings.HasSuffix(r.out, "\nhosts with leases: 1; a change of Network, SubnetLen or Backend takes effect on each at its restart\n") {
		t.Errorf("set with leases: %q, error %q", r.out, r.err)
	}
	s.in = "{\n  \"Network\": \"10.7.0.0/16\"\n}\n"
	if r := s.run("config", "set", "-"); r.err != "" {
		t.Errorf("set from standard input: %s", r.err)
	}
	s.want(s.in, "config", "get")
	s.want(s.in, "config", "get", "-etcd-prefix", "/coreos.com/network/")
}

// Another config comes while ours is on its way.
func TestConfigSetOvertaken(t *testing.T) {
	endpoint, client := startEtcd(t)
	put(t, client, "/coreos.com/network/config", `{"Network":"10.5.0.0/16"}`, 0)
	s := newShell(t, "FLANNELD_ETCD_ENDPOINTS="+overtaking(t, endpoint, func() {
		put(t, client, "/coreos.com/network/config", `{"Network":"10.9.0.0/16"}`, 0)
	}, "10.6.0.0"))
	r := s.run("config", "set", `{"Network":"10.6.0.0/16"}`)
	const want = "somebody else changed the config meanwhile, nothing was put: look at it (flannelctl config get) and set yours again: "
	if !strings.HasPrefix(r.err, want) || r.usage {
		t.Errorf("output %q, error %q; want %q...", r.out, r.err, want)
	}
	newShell(t).want(`{"Network":"10.9.0.0/16"}`+"\n", "config", "get", "--etcd-endpoints="+endpoint)
}

// overtaking is a relay to etcd, which calls f when a client first sends something with
// word in it, before etcd gets that.
func overtaking(t *testing.T, endpoint string, f func(), word string) string {
	t.Helper()
	var once sync.Once
	r, err := etcdtest.StartRelay(endpoint, func(b []byte) {
		if bytes.Contains(b, []byte(word)) {
			once.Do(f)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r.URL
}

func put(t *testing.T, client *clientv3.Client, key, value string, lease clientv3.LeaseID) {
	t.Helper()
	if _, err := client.Put(context.WithoutCancel(t.Context()), key, value, clientv3.WithLease(lease)); err != nil {
		t.Error(err)
	}
}

func TestLeases(t *testing.T) {
	endpoint, client := startEtcd(t)
	s := newShell(t, "FLANNELD_ETCD_ENDPOINTS="+endpoint, "FLANNELD_ETCD_PREFIX=/n")
	s.want("SUBNET  PUBLIC IP  BACKEND  REMAINING  OWNER\n", "leases")
	s.want("[]\n", "leases", "--json")
	grant, err := client.Grant(t.Context(), 86400)
	if err != nil {
		t.Fatal(err)
	}
	put(t, client, "/n/subnets/10.5.1.0-24", `{"PublicIP":"198.18.0.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"},"Owner":"web-1"}`, grant.ID)
	put(t, client, "/n/subnets/10.5.2.0-24", `{"PublicIP":"198.18.0.2"}`, 0)
	put(t, client, "/n/subnets/10.5.3.0-24", `not json`, 0)
	put(t, client, "/n/subnets/10.5.4.0-24", `{"PublicIP":"198.18.0.4","Owner":"web-4","Instance":"i4"}`, 0)
	put(t, client, "/n/subnets/10.5.5.0-24", `{"PublicIP":"198.18.0.5"}`, grant.ID)

	r := s.run("leases")
	remaining := regexp.MustCompile(`(24h0m0s|23h59m\d+s) +`)
	want := "SUBNET PUBLIC IP BACKEND REMAINING OWNER\n" +
		"10.5.1.0/24 198.18.0.1 vxlan TIME web-1\n" +
		"10.5.2.0/24 198.18.0.2 - reserved -\n" +
		"10.5.4.0/24 198.18.0.4 udp reserved web-4\n" +
		"10.5.5.0/24 198.18.0.5 udp TIME -\n"
	got := regexp.MustCompile(` +`).ReplaceAllString(remaining.ReplaceAllString(r.out, "TIME "), " ")
	if r.err != "" || !strings.HasPrefix(got, want) {
		t.Errorf("error %q (-want +got):\n%s", r.err, cmp.Diff(want, got))
	}
	if rest := strings.TrimPrefix(got, want); !strings.HasPrefix(rest, "10.5.3.0-24 - - ") || strings.Count(rest, "\n") != 1 {
		t.Errorf("the key that cannot be read: %q", rest)
	}

	var rows []leaseRow
	if r := s.run("leases", "--json"); r.err != "" || json.Unmarshal([]byte(r.out), &rows) != nil || len(rows) != 5 {
		t.Fatalf("%s, error %q", r.out, r.err)
	}
	if left := rows[0].RemainingSeconds; left == nil || *left > 86400 || *left < 86000 {
		t.Errorf("remaining %v", left)
	}
	if rows[4].Error == "" {
		t.Error("the key that cannot be read has no error")
	}
	rows[0].RemainingSeconds, rows[3].RemainingSeconds, rows[4].Error = nil, nil, ""
	wantRows := []leaseRow{
		{Subnet: "10.5.1.0/24", PublicIP: "198.18.0.1", Backend: "vxlan", Owner: "web-1"},
		{Subnet: "10.5.2.0/24", PublicIP: "198.18.0.2", Reservation: true},
		{Subnet: "10.5.4.0/24", PublicIP: "198.18.0.4", Backend: "udp", Owner: "web-4", Reservation: true},
		{Subnet: "10.5.5.0/24", PublicIP: "198.18.0.5", Backend: "udp"},
		{Subnet: "10.5.3.0-24"},
	}
	if diff := cmp.Diff(wantRows, rows); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Flags, then the environment, then the daemon.
func TestWhereEtcdIs(t *testing.T) {
	endpoint, client := startEtcd(t)
	for prefix, network := range map[string]string{"/flag": "10.1.0.0/16", "/env": "10.2.0.0/16", "/daemon": "10.3.0.0/16"} {
		put(t, client, prefix+"/config", `{"Network":"`+network+`"}`, 0)
	}
	known := status.Status{Etcd: status.Etcd{Endpoints: []string{endpoint}, Prefix: "/daemon"}}
	const flag, env, daemon = `{"Network":"10.1.0.0/16"}` + "\n", `{"Network":"10.2.0.0/16"}` + "\n", `{"Network":"10.3.0.0/16"}` + "\n"

	s := newShell(t)
	s.daemon(known)
	s.want(daemon, "config", "get")
	s.env = []string{"FLANNELD_ETCD_PREFIX=/env", "FLANNELD_ETCD_ENDPOINTS=" + endpoint}
	s.want(env, "config", "get")
	s.want(flag, "config", "get", "--etcd-prefix=/flag")
	s.env = nil
	s.want(flag, "config", "get", "--etcd-prefix=/flag", "--etcd-endpoints="+endpoint)
	// Another network on the daemon's etcd.
	s.want(flag, "config", "get", "--etcd-prefix=/flag")
	// Another etcd: nothing of the daemon's is said of that.
	s.refused(false, `there is no network config yet: flannelctl config set '{"Network":"10.5.0.0/16"}'`, "config", "get", "--etcd-endpoints="+endpoint)

	secured := newShell(t)
	known.Etcd.Username = "flannel"
	secured.daemon(known)
	secured.refused(true, "etcd wants user flannel: give --etcd-username and --etcd-password-file", "config", "get")
}

// Where etcd is asked that nobody named, that is said; where a daemon runs that
// does not tell, its etcd can be anywhere.
func TestEtcdOfNobody(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path("dead"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := os.Symlink("loop", path("loop")); err != nil {
		t.Fatal(err)
	}
	const asking = "; asking etcd at http://127.0.0.1:4001,http://127.0.0.1:2379, prefix /env (--etcd-endpoints and --etcd-prefix say otherwise)\n"
	for _, tt := range []struct{ name, socket, flag, said, err string }{
		{name: "no daemon", socket: "none", said: "flannelctl: no daemon here: " + path("none") + " does not exist: systemctl status flanneld-go, or give --socket" + asking},
		{name: "daemon stopped", socket: "dead", said: "flannelctl: the daemon is gone: nobody answers on " + path("dead") + ": systemctl status flanneld-go" + asking},
		{name: "endpoints given", socket: "none", flag: "--etcd-endpoints=http://192.0.2.1:2379"},
		{name: "daemon does not tell", socket: "loop", err: "where is etcd? " + path("loop") + ": ask daemon: Get \"http://flanneld-go/v1/status\": dial unix " + path("loop") +
			": connect: too many levels of symbolic links; or give --etcd-endpoints"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var said bytes.Buffer
			inv := &invocation{streams: streams{err: &said}, socket: path(tt.socket)}
			fs := cli.NewFlagSet("test", "usage", io.Discard)
			inv.etcd.Register(fs)
			args := []string{}
			if tt.flag != "" {
				args = append(args, tt.flag)
			}
			if err := cli.Parse(fs, args, cli.EnvOf([]string{"FLANNELD_ETCD_PREFIX=/env"})); err != nil {
				t.Fatal(err)
			}
			store, err := inv.openStore(t.Context(), readOnly)
			if store != nil {
				store.Close()
			}
			got := ""
			if err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff([]string{tt.said, tt.err}, []string{said.String(), got}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
