package statedir

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func lease(v4, v6, public string) subnet.Lease {
	l := subnet.Lease{
		Subnet: subnet.Subnet{netip.MustParsePrefix(v4), netip.MustParsePrefix(v6)},
		Attrs:  subnet.Attrs{BackendType: "vxlan", Owner: "node " + subnet.NodeID(public), Instance: "i1"},
		ID:     1<<62 + 7, TTL: 24 * time.Hour, Created: 3, Modified: 9,
	}
	l.Attrs.PublicIP[subnet.IPv4] = netip.MustParseAddr(public)
	l.Attrs.BackendData[subnet.IPv4] = `{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"}`
	return l
}

func full() Cache {
	return Cache{
		Identity: "8a6c", Revision: 1 << 60,
		Config: subnet.Document{Text: "{\n  \"Network\": \"10.5.0.0/16\" }\n", Modified: 7},
		Own:    lease("10.5.7.0/24", "fd05:0:0:7::/64", "198.18.0.7"),
		Heard:  time.Date(2026, 11, 21, 9, 30, 0, 17, time.UTC), Held: time.Date(2026, 11, 22, 9, 30, 0, 0, time.UTC),
		Peers: slices.Collect(subnet.Each([]subnet.Lease{lease("10.5.1.0/24", "fd05:0:0:1::/64", "198.18.0.1"), lease("10.5.30.0/24", "fd05:0:0:30::/64", "198.18.0.30")})),
	}
}

func netips() cmp.Option { return cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}) }

func TestCacheRoundTrip(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "new", "state"))
	if c, err := d.LoadCache(); err != nil || !c.Same(Cache{}) {
		t.Fatalf("no file: %+v, %v; want the zero value", c, err)
	}
	alone := full()
	alone.Peers = nil
	former := full()
	former.Former = "released"
	for _, want := range []Cache{full(), alone, former, full()} {
		if err := d.SaveCache(want); err != nil {
			t.Fatal(err)
		}
		got, err := d.LoadCache()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, netips()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if !got.Same(want) {
			t.Error("a cache is not the same after a round trip")
		}
	}
	for path, mode := range map[string]os.FileMode{string(d): 0o700, filepath.Join(string(d), "cache.json"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want mode %v", path, info.Mode(), err, mode)
		}
	}
	if list, err := os.ReadDir(string(d)); err != nil || len(list) != 1 {
		t.Errorf("left in the directory: %v, %v", list, err)
	}
}

func TestHostRoundTrip(t *testing.T) {
	d := Dir(t.TempDir())
	var want Host
	want.BackendType, want.Backend = "vxlan", `{"Type":"vxlan","VNI":7}`
	want.Ranges = []string{"10.5.0.0/16 by /24"}
	want.SubnetFile, want.DockerOptions = "/run/flannel/subnet.env", "/run/flannel/docker"
	want.Remember([]firewall.SysctlChange{{Name: "a", From: "0", To: "1"}, {Name: "b", From: "1", To: "2"}})
	want.Remember([]firewall.SysctlChange{{Name: "a", From: "1", To: "2"}, {Name: "c", From: "0", To: "1"}})
	wantSysctls := []firewall.SysctlChange{{Name: "a", From: "0", To: "1"}, {Name: "b", From: "1", To: "2"}, {Name: "c", From: "0", To: "1"}}
	if diff := cmp.Diff(wantSysctls, want.Sysctls); diff != "" {
		t.Errorf("each with its first value (-want +got):\n%s", diff)
	}
	if err := d.SaveHost(want); err != nil {
		t.Fatal(err)
	}
	got, err := d.LoadHost()
	if err != nil {
		t.Fatal(err)
	}
	// Backend is a value; its layout is the file's.
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(got.Backend)); err != nil {
		t.Fatal(err)
	}
	got.Backend = subnet.RawJSON(compact.String())
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDockerChangeRoundTrip(t *testing.T) {
	d := Dir(t.TempDir())
	if got, err := d.LoadDockerChange(); got != nil || err != nil {
		t.Errorf("without a file: %+v, %v", got, err)
	}
	want := DockerChange{
		Undo:    daemonconfig.Undo{Path: "/etc/docker/daemon.json", New: []byte{}, MemoryPath: "/m", After: daemonconfig.Memory{Path: "/etc/docker/daemon.json"}},
		Changes: `"mtu": absent -> 1450`, Start: "0aff", Asked: true, Failed: "failed",
	}
	if err := d.SaveDockerChange(want); err != nil {
		t.Fatal(err)
	}
	got, err := d.LoadDockerChange()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Errorf("no file and an empty one are two things (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := d.DropDockerChange(); err != nil {
			t.Error(err)
		}
	}
	if list, err := os.ReadDir(string(d)); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}

// What cannot be read is named, and nothing of it is believed.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	d := Dir(dir)
	for name, text := range map[string]string{"cut off": `{"identity": "x", "revis`, "empty": "", "another type": `{"identity": "x", "revision": "nine"}`, "no peer": `{"identity": "x", "peers": [null]}`} {
		path := filepath.Join(dir, "cache.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := d.LoadCache()
		if err == nil || !strings.HasPrefix(err.Error(), "read state "+path+": ") {
			t.Errorf("%s: error %v, want it to name %s", name, err, path)
		}
		if diff := cmp.Diff(Cache{}, c, netips()); diff != "" {
			t.Errorf("%s: half of it is believed (-want +got):\n%s", name, diff)
		}
	}
	path := filepath.Join(dir, "host.json")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.LoadHost(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a folder: error %v, want it to name %s", err, path)
	}
	if err := d.SaveHost(Host{}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("write onto a folder: error %v, want it to name %s", err, path)
	}
	blocked := Dir(filepath.Join(dir, "cache.json", "state"))
	if err := blocked.SaveCache(Cache{}); err == nil || !strings.Contains(err.Error(), "cache.json") {
		t.Errorf("a file in the way: error %v", err)
	}
}

func TestWorld(t *testing.T) {
	c := full()
	w := c.World()
	var keys []string
	for _, l := range w.Leases {
		keys = append(keys, l.Subnet.String())
	}
	want := []string{c.Peers[0].Subnet.String(), c.Peers[1].Subnet.String(), c.Own.Subnet.String()}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Errorf("leases, sorted by key (-want +got):\n%s", diff)
	}
	if w.Identity != c.Identity || w.Revision != c.Revision || w.Config != c.Config {
		t.Errorf("world %+v", w)
	}
	w.Leases[0].TTL = 1
	if c.Peers[0].TTL == 1 {
		t.Error("the world shares memory with the cache")
	}
	c.Former = "released"
	if got := c.World(); len(got.Leases) != 2 || slices.ContainsFunc(got.Leases, func(l subnet.Lease) bool { return l.Subnet == c.Own.Subnet }) {
		t.Errorf("leases %v; a former one is none of them", got.Leases)
	}
	if got := (Cache{Identity: "x"}).World(); len(got.Leases) != 0 {
		t.Errorf("leases %v out of nothing", got.Leases)
	}
}

func TestSame(t *testing.T) {
	later := full()
	later.Revision++
	if !later.Same(full()) {
		t.Error("another revision alone is no difference")
	}
	for name, change := range map[string]func(*Cache){
		"identity": func(c *Cache) { c.Identity = "y" },
		"config":   func(c *Cache) { c.Config.Modified++ },
		"own":      func(c *Cache) { c.Own.ID++ },
		"former":   func(c *Cache) { c.Former = "released" },
		"a peer":   func(c *Cache) { c.Peers[1].Attrs.Instance = "i2" },
		"peers":    func(c *Cache) { c.Peers = c.Peers[:1] },
	} {
		c := full()
		change(&c)
		if c.Same(full()) {
			t.Errorf("%s: the same", name)
		}
	}
}

// The file is encoded in parts, and must be what encoding/json makes of the whole.
func TestCacheIsEncodedAsJSON(t *testing.T) {
	one, none, empty := full(), full(), full()
	one.Peers, none.Peers, empty.Peers = one.Peers[:1], nil, []*subnet.Lease{}
	odd := full()
	odd.Former, odd.Peers[1].Attrs.Instance = `taken by "<]}>"`, "]}\n"
	for name, c := range map[string]Cache{"two": full(), "one": one, "none": none, "empty": empty, "odd": odd} {
		got, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		var tight bytes.Buffer
		if err := json.Compact(&tight, got); err != nil {
			t.Fatalf("%s: %v in\n%s", name, err, got)
		}
		want, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), tight.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if lines := bytes.Count(got, []byte("\n")); lines != len(c.Peers)+1 {
			t.Errorf("%s: %d lines for %d peers", name, lines, len(c.Peers))
		}
	}
	bad := full()
	bad.Peers[1].Attrs.BackendData[subnet.IPv4] = "{"
	if text, err := bad.encode(); err == nil {
		t.Errorf("what is no JSON: no error, %s", text)
	}
}
