package examples

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// composeFile is what the tests look at in a compose file.
type composeFile struct {
	Networks map[string]struct {
		Name     string `json:"name"`
		External bool   `json:"external"`
	} `json:"networks"`
	Services map[string]composeService `json:"services"`
}

type composeService struct {
	Image       string   `json:"image"`
	NetworkMode string   `json:"network_mode"`
	Command     []string `json:"command"`
	Restart     string   `json:"restart"`
	StopSignal  string   `json:"stop_signal"`
	Ports       []string `json:"ports"`
	ExtraHosts  []string `json:"extra_hosts"`
}

func readCompose(t *testing.T, path string) composeFile {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file composeFile
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		t.Fatal(err)
	}
	return file
}

// The file with names must take the network that the README has made. What it does
// on hosts is shown in test/hosts.
func TestComposeNetwork(t *testing.T) {
	file := readCompose(t, "compose/network/compose.yaml")
	readme, err := os.ReadFile("compose/README.md")
	if err != nil {
		t.Fatal(err)
	}
	network, ok := file.Networks["default"]
	if !ok || !network.External {
		t.Errorf("network default is %+v: Compose would make one of its own", network)
	}
	for _, says := range []string{"--docker-network=" + network.Name + "`", "flannelctl docker network create " + network.Name + "\n"} {
		if !strings.Contains(string(readme), says) {
			t.Errorf("the README does not say %q", says)
		}
	}
	for name, s := range file.Services {
		if s.NetworkMode != "" {
			t.Errorf("service %s has network_mode %q: it is not in the network", name, s.NetworkMode)
		}
	}
}

// The compose file must keep its containers on docker0, or other hosts do not
// reach them.
func TestCompose(t *testing.T) {
	file := readCompose(t, "compose/compose.yaml")
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
