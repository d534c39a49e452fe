package udp

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestNew(t *testing.T) {
	both := testConfig("{}")
	both.Ranges[subnet.IPv6].Network = netip.MustParsePrefix("fd05::/48")
	small := testUplink("198.18.0.1")
	small.Link.MTU = 1300
	for name, tc := range map[string]struct {
		config *subnet.Config
		uplink backend.Uplink
		want   string
	}{
		"default":        {testConfig(""), testUplink("198.18.0.1"), "port 8285 mtu 1472 ip 198.18.0.1,invalid IP"},
		"port":           {testConfig(`{"Type":"udp","port":9000}`), testUplink("198.18.0.1"), "port 9000 mtu 1472 ip 198.18.0.1,invalid IP"},
		"over ipv6":      {both, testUplink("fd00::1"), "port 8285 mtu 1452 ip invalid IP,fd00::1"},
		"port 0":         {testConfig(`{"Port":0}`), testUplink("198.18.0.1"), "Backend.Port: 0: must be between 1 and 65535"},
		"port text":      {testConfig(`{"Port":"8285"}`), testUplink("198.18.0.1"), "Backend.Port: 8285: must be an integer without quotes"},
		"no address":     {testConfig(""), backend.Uplink{Link: kernel.Link{Name: "eth0"}}, "uplink eth0 has no address to bind the tunnel to"},
		"small MTU":      {testConfig(""), small, "port 8285 mtu 1272 ip 198.18.0.1,invalid IP"},
		"small for IPv6": {both, small, "uplink eth0 has MTU 1300: IPv6 over UDP needs at least 1308"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := New(backend.Params{Config: tc.config})
			var (
				got string
				a   subnet.Attrs
			)
			if err == nil {
				a, err = b.Attrs(tc.uplink)
			}
			if err != nil {
				got = err.Error()
			} else {
				got = fmt.Sprintf("port %d mtu %d ip %v,%v", b.Tunnel().Port, b.MTU(tc.uplink), a.PublicIP[0], a.PublicIP[1])
				var data subnet.ByFamily[subnet.RawJSON]
				for f, ip := range a.PublicIP {
					if ip.IsValid() {
						data[f] = subnet.RawJSON(fmt.Sprintf(`{"Port":%d}`, b.Tunnel().Port))
					}
				}
				if a.BackendType != "" || a.BackendData != data {
					t.Errorf("attributes %+v", a)
				}
			}
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestParseOptions(t *testing.T) {
	for text, want := range map[string]Options{
		"":                       {Port: defaultPort},
		`{"Type":"udp"}`:         {Port: defaultPort},
		`{"Offload":"off"}`:      {Port: defaultPort, Whole: true},
		`{"SourcePorts":"vary"}`: {Port: defaultPort},
		`{"Port":9000,"Queues":16,"Offload":"auto","SourcePorts":"fixed","DirectRouting":true}`: {Port: 9000, Queues: 16, FixedSource: true, DirectRouting: true},
	} {
		got, unknown, err := ParseOptions(testConfig(text))
		if got != want || len(unknown) != 0 || err != nil {
			t.Errorf("%s: got %+v, unknown %q, %v; want %+v", text, got, unknown, err, want)
		}
	}
	if _, unknown, err := ParseOptions(testConfig(`{"VNI":1}`)); len(unknown) != 1 || unknown[0] != "Backend.VNI" || err != nil {
		t.Errorf("unknown keys %q, %v", unknown, err)
	}
}

func TestDefaultQueues(t *testing.T) {
	for cores, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 9: 4, 32: 16, 256: queuesMost} {
		if got := defaultQueues(cores); got != want {
			t.Errorf("%d cores: got %d queues, want %d", cores, got, want)
		}
	}
}
