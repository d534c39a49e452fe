package daemonconfig_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// What the administrator writes beside our value is kept, and ours still goes.
func TestNestedEdits(t *testing.T) {
	const opts = `"default-network-opts": `
	tests := []struct{ name, old, edit, want string }{
		{
			"another option beside ours", `{}`,
			`{` + opts + `{"bridge": {"com.docker.network.driver.mtu": "1450", "a": "b"}}}`, `{` + opts + `{"bridge": {"a": "b"}}}`,
		},
		{
			"another driver beside ours", `{}`,
			`{` + opts + `{"ipvlan": {}, "bridge": {"com.docker.network.driver.mtu": "1450"}}}`, `{` + opts + `{"ipvlan": {}}}`,
		},
		{
			"his empty object stays, ours goes", `{` + opts + `{"ipvlan": {}}}`,
			`{` + opts + `{"bridge": {"com.docker.network.driver.mtu": "1450"}}}`, `{` + opts + `{}}`,
		},
		{
			"his former value comes back into what he changed", `{` + opts + `{"bridge": {"com.docker.network.driver.mtu": "9000"}}}`,
			`{` + opts + `{"bridge": {"a": "b", "com.docker.network.driver.mtu": "1450"}}}`,
			`{` + opts + `{"bridge": {"a": "b", "com.docker.network.driver.mtu": "9000"}}}`,
		},
		{
			"his other value is his", `{}`,
			`{` + opts + `{"bridge": {"com.docker.network.driver.mtu": "1300"}}}`, `{` + opts + `{"bridge": {"com.docker.network.driver.mtu": "1300"}}}`,
		},
		{"all of it gone", `{}`, `{"debug": true}`, `{"debug": true}`},
		{"no object any more", `{}`, `{` + opts + `7}`, `{` + opts + `7}`},
	}
	want := daemonconfig.Docker{NetworkMTU: 1450}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := daemonconfig.Merge([]byte(tt.old), want, daemonconfig.Memory{})
			if err != nil {
				t.Fatal(err)
			}
			back, err := daemonconfig.Merge([]byte(tt.edit), daemonconfig.Docker{}, m.Memory)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(back.Text)); diff != "" {
				t.Errorf("withdrawn at once (-want +got):\n%s", diff)
			}
			next, err := daemonconfig.Merge([]byte(tt.edit), daemonconfig.Docker{NetworkMTU: 1300}, m.Memory)
			if err != nil {
				if tt.name != "no object any more" {
					t.Fatal(err)
				}
				return
			}
			back, err = daemonconfig.Merge(next.Text, daemonconfig.Docker{}, next.Memory)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(back.Text)); diff != "" {
				t.Errorf("withdrawn after another value (-want +got):\n%s", diff)
			}
		})
	}
}
