package statedir

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

func TestNeighbours(t *testing.T) {
	root := t.TempDir()
	at := func(name string) Dir { return Dir(filepath.Join(root, name)) }
	for dir, h := range map[Dir]Host{
		at("state"):   {BackendType: "udp"},
		at("state1"):  {BackendType: "vxlan"},
		at("state3"):  {Sysctls: []firewall.SysctlChange{{Name: "net/ipv4/ip_forward", From: "0", To: "1"}}},
		at("state4"):  {Ranges: []string{"10.7.0.0/16 by /24"}}, // it starts
		at("state12"): {BackendType: "udp"},                     // nobody's
		at("other"):   {BackendType: "udp"},
	} {
		if err := dir.SaveHost(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "state5"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("state5").HostFile(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	type seen struct {
		Instance uint8
		Dir      Dir
		Lives    bool
	}
	look := func(d Dir, own uint8) []seen {
		var out []seen
		for _, n := range d.Neighbours(kernel.Instance(own)) {
			out = append(out, seen{uint8(n.Instance), n.Dir, n.Lives()})
		}
		return out
	}
	zero, one := seen{0, at("state"), true}, seen{1, at("state1"), true}
	left, starts, broken := seen{3, at("state3"), false}, seen{4, at("state4"), true}, seen{5, at("state5"), true}
	for _, tt := range []struct {
		name string
		dir  Dir
		own  uint8
		want []seen
	}{
		{"of the first", at("state"), 0, []seen{one, left, starts, broken}},
		{"of the second", at("state1") + "/", 1, []seen{zero, left, starts, broken}},
		{"of one that was not here yet", at("state2"), 2, []seen{zero, one, left, starts, broken}},
		{"of a directory of another kind", at("other"), 2, nil},
		{"of a directory alone", at("other"), 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, look(tt.dir, tt.own)); diff != "" {
				t.Errorf("neighbours (-want +got):\n%s", diff)
			}
		})
	}
}
