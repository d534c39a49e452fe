package daemonconfig_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// step is one Merge in a story, or an edit by the administrator.
type step struct {
	want daemonconfig.Docker
	edit string
}

// TestMergeThenWithdraw tells what comes back after the steps and a Merge of
// the zero Docker.
func TestMergeThenWithdraw(t *testing.T) {
	const absent = "(absent)"
	tests := []struct {
		name, old string
		steps     []step
		want      string
	}{
		{"file was absent", absent, []step{{want: vxlan}}, absent},
		{"file was absent, and got a key of the administrator's", absent, []step{{want: vxlan}, {edit: `{"debug": true, "bip": "10.5.72.1/24", "mtu": 1450}`}}, `{"debug": true}`},
		{"file was absent, and is gone", absent, []step{{want: vxlan}, {edit: absent}}, absent},
		{"file was empty", "", []step{{want: vxlan}}, "{}\n"},
		{"keys were absent", "{\n  \"debug\": true\n}\n", []step{{want: withMasq(vxlan, false)}}, "{\n  \"debug\": true\n}\n"},
		{"keys were first", `{"bip": "10.5.72.1/24", "debug": true}`, []step{{want: vxlan}}, `{"bip": "10.5.72.1/24", "debug": true}`},
		{"values were others", `{"mtu" :9000, "bip": "172.17.0.1/16"}`, []step{{want: vxlan}}, `{"mtu" :9000, "bip": "172.17.0.1/16"}`},
		{"two leases", `{"bip": "172.17.0.1/16"}`, []step{{want: vxlan}, {want: udp}}, `{"bip": "172.17.0.1/16"}`},
		{"ip-masq no longer wanted", `{"ip-masq": true}`, []step{{want: withMasq(vxlan, false)}, {want: vxlan}, {edit: `{"ip-masq": false}`}}, `{"ip-masq": false}`},
		{"edited after us", `{"mtu": 9000}`, []step{{want: vxlan}, {edit: `{"mtu": 1400, "bip": "10.5.72.1/24"}`}}, `{"mtu": 1400}`},
		{"edited and overwritten", `{"mtu": 9000}`, []step{{want: vxlan}, {edit: `{"mtu": 1400, "bip": "10.5.72.1/24"}`}, {want: vxlan}}, `{"mtu": 1400}`},
		{"key removed after us", `{"debug": true}`, []step{{want: vxlan}, {edit: `{"debug": true, "mtu": 1450}`}}, `{"debug": true}`},
		{"a value that dockerd refuses", `{"mtu": "9000", "debug": true}`, []step{{want: vxlan}}, `{"debug": true}`},
		{"never merged", `{"bridge": "br0", "bip": "10.5.72.1/24"}`, nil, `{"bridge": "br0", "bip": "10.5.72.1/24"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := func(s string) []byte {
				if s == absent {
					return nil
				}
				return []byte(s)
			}
			now, memory := text(tt.old), daemonconfig.Memory{Path: "x"}
			merge := func(want daemonconfig.Docker) {
				t.Helper()
				m, err := daemonconfig.Merge(now, want, memory)
				if err != nil {
					t.Fatal(err)
				}
				now, memory = m.Text, m.Memory
			}
			for _, s := range tt.steps {
				if s.edit != "" {
					now = text(s.edit)
				} else {
					merge(s.want)
				}
			}
			merge(daemonconfig.Docker{})
			got := absent
			if now != nil {
				got = string(now)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("after withdrawal (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(daemonconfig.Memory{}, memory); diff != "" {
				t.Errorf("memory after withdrawal (-want +got):\n%s", diff)
			}
		})
	}
}
