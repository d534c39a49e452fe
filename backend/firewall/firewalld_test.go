package firewall

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall/firewalld"
	"github.com/flanneld-go/flanneld-go/backend/firewall/firewalld/firewalldtest"
)

// noFirewalld is a host without one.
type noFirewalld struct{}

func (noFirewalld) Apply(context.Context, firewalld.Desired) (bool, error) { return false, nil }
func (noFirewalld) Cleanup(context.Context) error                          { return nil }
func (noFirewalld) Drift(context.Context) <-chan struct{} {
	never := make(chan struct{})
	close(never)
	return never
}

// walled is a machine with a real firewalld.
type walled struct {
	*machine
	wall   *firewalldtest.Real
	before string
}

// wall gives a machine a firewalld as Docker leaves it, and a firewall of ours
// that knows where to find it.
func wall(t *testing.T, m *machine, p path, backend string) *walled {
	t.Helper()
	w := &walled{machine: m}
	bus := firewalldtest.NewBus(t)
	m.host.do(t, func() error {
		w.wall = firewalldtest.NewReal(t, bus, backend)
		return nil
	})
	w.before = w.wall.Listing(t)
	m.b.f = New(Options{Log: quiet(), Tools: m.b.tools, Firewalld: firewalld.New(firewalld.Options{Log: quiet(), Connect: bus.Connect})})
	return w
}

// Two hosts with real firewallds: with nf_tables firewalld's own table decides,
// with iptables its rules stand behind ours.
func TestFirewalld(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := exec.LookPath("firewalld"); err != nil {
		t.Skip("needs program: firewalld")
	}
	for _, backendName := range []string{"nftables", "iptables"} {
		for _, tunnel := range []backend.Tunnel{
			{Devices: []string{"flannel.1"}, Port: 8472, Encapsulation: backend.VXLANFrame, VNI: 1},
			{Direct: true},
		} {
			p := path{variant: "iptables-nft", docker: "20.10", tunnel: tunnel}
			t.Run(backendName+"/"+p.String(), func(t *testing.T) { testFirewalld(t, p, backendName) })
		}
	}
}

func testFirewalld(t *testing.T, p path, backendName string) {
	ma, mb, lan := pair(t, p)
	a, b := wall(t, ma, p, backendName), wall(t, mb, p, backendName)
	wantCall(t, "without us", a.container.call(t, "", b.contained()), "unreachable")
	for _, w := range []*walled{a, b} {
		w.apply(t)
		if backendName == "nftables" {
			// The policies took a reload, which empties iptables.
			w.others(t, dockerWrites(t, p.docker, w.n)+strict)
		}
		w.apply(t)
	}
	wantCall(t, "container to container", a.container.call(t, "", b.contained()), a.contained())
	wantCall(t, "container to container, back", b.container.call(t, "", a.contained()), b.contained())

	// Who is no peer does not get in, whatever source it says.
	lan.ip(t, "addr add 198.18.77.250/24 dev switch\naddr add 10.5.9.9/32 dev lo\nroute add "+a.subnet()+" via "+a.public())
	a.host.ip(t, "route add 10.5.9.9 via 198.18.77.250")
	wantCall(t, "foreign source by the uplink", lan.call(t, "198.18.77.250", a.contained()), "unreachable")
	if !p.tunnel.Direct {
		wantCall(t, "overlay source by the uplink", lan.call(t, "10.5.9.9", a.contained()), "unreachable")
	}

	for _, w := range []*walled{a, b} {
		w.host.do(t, func() error { return w.b.f.Cleanup(t.Context()) })
		if diff := cmp.Diff(strings.Split(w.before, "\n"), strings.Split(w.wall.Listing(t), "\n")); diff != "" {
			t.Errorf("firewalld after Cleanup (-want +got):\n%s", diff)
		}
	}
	wantCall(t, "after Cleanup", a.container.call(t, "", b.contained()), "unreachable")
}
