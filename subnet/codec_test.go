package subnet

import (
	"encoding/json"
	"net/netip"
	"testing"
)

func TestAttrsJSONIsFlannels(t *testing.T) {
	for _, tt := range []struct{ name, text string }{
		{"vxlan", `{"PublicIP":"198.18.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"}}`},
		{"host-gw", `{"PublicIP":"198.18.0.2","PublicIPv6":null,"BackendType":"host-gw"}`},
		{"udp", `{"PublicIP":"198.18.0.1","PublicIPv6":null}`},
		{"dual", `{"PublicIP":"198.18.0.2","PublicIPv6":"fd00:198:18::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ee:27:87:43:1f:09"},"BackendV6Data":{"VNI":1,"VtepMAC":"e2:fb:49:af:e6:a9"}}`},
		{"IPv6 alone", `{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:198:18::1","BackendType":"vxlan","BackendV6Data":{"VNI":1}}`},
		{"ours", `{"PublicIP":"198.18.0.1","PublicIPv6":null,"Owner":"n1","Instance":"i1"}`},
		{"reserved for a node", `{"PublicIP":"0.0.0.0","PublicIPv6":null,"Owner":"n1"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var a Attrs
			if err := json.Unmarshal([]byte(tt.text), &a); err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(a)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.text {
				t.Errorf("-want +got\n-%s\n+%s", tt.text, got)
			}
		})
	}
}

func TestSubnetKey(t *testing.T) {
	for key, want := range map[string]Subnet{
		"10.5.52.0-24":                   {IPv4: netip.MustParsePrefix("10.5.52.0/24")},
		"10.5.1.0-24&fd05:0:0:52::-64":   {netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd05:0:0:52::/64")},
		"0.0.0.0-0&fd05:0:0:52::-64":     {IPv6: netip.MustParsePrefix("fd05:0:0:52::/64")},
		"10.5.20.128-26&fd05:0:0:1::-64": {netip.MustParsePrefix("10.5.20.128/26"), netip.MustParsePrefix("fd05:0:0:1::/64")},
	} {
		got, err := ParseSubnet(key)
		if err != nil || got != want || got.Key() != key {
			t.Errorf("ParseSubnet(%q) = %v, %v; Key %q", key, got, err, got.Key())
		}
	}
}
