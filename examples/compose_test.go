package examples

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// The compose file must keep its containers on docker0, or other hosts do not
// reach them.
func TestCompose(t *testing.T) {
	text, err := os.ReadFile("compose/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct {
			Image       string   `json:"image"`
			NetworkMode string   `json:"network_mode"`
			Command     []string `json:"command"`
			Restart     string   `json:"restart"`
			Ports       []string `json:"ports"`
			ExtraHosts  []string `json:"extra_hosts"`
		} `json:"services"`
	}
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"web", "client"} {
		s, ok := file.Services[name]
		if !ok || s.Image == "" || len(s.Command) == 0 {
			t.Errorf("service %s: %+v", name, s)
		}
		if s.NetworkMode != "bridge" {
			t.Errorf("service %s has network_mode %q: its containers are not in the host's subnet", name, s.NetworkMode)
		}
		for _, h := range s.ExtraHosts {
			_, addr, _ := strings.Cut(h, ":")
			if a, err := netip.ParseAddr(addr); err != nil || !netip.MustParsePrefix("172.20.0.0/16").Contains(a) {
				t.Errorf("service %s: extra host %q is not in the walk-through's network", name, h)
			}
		}
	}
	if ports := file.Services["web"].Ports; !slices.Equal(ports, []string{"8080:80"}) {
		t.Errorf("web publishes %v, and the README asks port 8080", ports)
	}
}
