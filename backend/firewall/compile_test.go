package firewall

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The golden files hold what is written into empty tables, table by table.
func TestCompile(t *testing.T) {
	dual := func(d *Desired) {
		d.Networks[subnet.IPv6], d.Own[subnet.IPv6] = netip.MustParsePrefix("fd05::/32"), netip.MustParsePrefix("fd05:0:0:3::/64")
		d.Peers = append(d.Peers, peers(addrs("fd00:198:18::2")...)...)
	}
	cases := []struct {
		name   string
		change func(*Desired)
		family subnet.Family
		drops  bool
	}{
		{name: "vxlan"},
		{name: "vxlan-no-masquerade", change: func(d *Desired) { d.Masquerade = false }},
		{name: "vxlan-not-random", change: func(d *Desired) { d.RandomFully = false }},
		{name: "vxlan-no-forward-rules", change: func(d *Desired) { d.ForwardRules = false }},
		{name: "vxlan-no-peers", change: func(d *Desired) { d.Peers = nil }},
		{name: "vxlan-direct-routing", change: func(d *Desired) { d.Tunnel.Direct = true }},
		{name: "vxlan-moving", change: func(d *Desired) { d.Tunnel.Direct, d.AlsoUplinks = true, []string{"eth1", "eth0", "eth2", "eth1"} }},
		{name: "udp", change: func(d *Desired) { d.Tunnel = backend.Tunnel{Devices: []string{"flannel0"}, Port: 8285} }},
		{name: "host-gw", change: func(d *Desired) { d.Tunnel = backend.Tunnel{Direct: true} }},
		{name: "alloc", change: func(d *Desired) { d.Tunnel = backend.Tunnel{} }},
		{name: "vxlan-dual-ipv6", change: dual, family: subnet.IPv6},
		{name: "vxlan-ipv4-over-ipv6", family: subnet.IPv6, change: func(d *Desired) { d.Peers = peers(addrs("fd00:198:18::2")...) }},
		{name: "vxlan-native", change: func(d *Desired) { d.Native = true }},
		{name: "vxlan-no-nftables", drops: true},
		{name: "off", family: subnet.IPv6},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := vxlanDesired()
			if c.change != nil {
				c.change(&d)
			}
			var got strings.Builder
			for _, spec := range owner(0).compile(d, c.family, share{nat: !d.Native, drops: c.drops, randomFully: true}) {
				if lines := plan(nil, spec); len(lines) > 0 {
					got.WriteString(change{table: spec.name, lines: lines}.script())
				}
				// DOCKER-USER is hooked only where it exists.
				have := &table{chains: []*chain{{name: dockerUser}}}
				for _, l := range plan(have, spec) {
					if strings.Contains(l, dockerUser) {
						got.WriteString(l + "\n")
					}
				}
			}
			golden(t, c.name, got.String())
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// Compiling does not write into what it was given: two families share Devices.
func TestCompileKeepsItsInput(t *testing.T) {
	devices := append(make([]string, 0, 4), "flannel.1")
	d := vxlanDesired()
	d.Tunnel.Devices, d.Tunnel.Direct = devices, true
	owner(0).compile(d, subnet.IPv4, share{nat: true})
	if got := devices[:2][1]; got != "" {
		t.Errorf("compile wrote %q behind the devices", got)
	}
}
