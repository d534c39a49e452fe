package firewalld

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestCompile(t *testing.T) {
	all := desired()
	onlyV4 := all
	onlyV4.Networks = subnet.ByFamily[netip.Prefix]{all.Networks[subnet.IPv4]}
	onlyV4.Peers = all.Peers[:1]
	noForward := onlyV4
	noForward.Forward = false
	direct := onlyV4
	direct.Port = 0
	forwardV4 := []string{
		`rule family="ipv4" source address="10.5.0.0/16" destination address="10.5.3.0/24" accept`,
		`rule family="ipv4" source address="10.5.3.0/24" destination address="10.5.0.0/16" accept`,
	}
	inputV4 := []string{`rule family="ipv4" source address="198.18.0.2/31" port port="8472" protocol="udp" accept`}
	for _, tt := range []struct {
		name           string
		d              Desired
		forward, input []string
	}{
		{"nothing", Desired{}, nil, nil},
		{"one family", onlyV4, forwardV4, inputV4},
		{"without forwards", noForward, nil, inputV4},
		{"without a tunnel", direct, forwardV4, nil},
		{"both families", all, append(forwardV4[:2:2],
			`rule family="ipv6" source address="fd05::/48" destination address="fd05:0:0:3::/64" accept`,
			`rule family="ipv6" source address="fd05:0:0:3::/64" destination address="fd05::/48" accept`,
		), append(inputV4[:1:1],
			`rule family="ipv4" source address="198.18.0.9/32" port port="8472" protocol="udp" accept`,
			`rule family="ipv6" source address="2001:db8::9/128" port port="8472" protocol="udp" accept`,
		)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := content{
				forward: policy{name: policyForward, egress: "ANY", rules: tt.forward},
				input:   policy{name: policyInput, egress: "HOST", rules: tt.input},
			}
			if diff := cmp.Diff(want, *listed(tt.d), cmp.AllowUnexported(content{}, policy{}, peerSet{})); diff != "" {
				t.Errorf("compile (-want +got):\n%s", diff)
			}
		})
	}
}
