package lab

import (
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// envFor is a subnet.env with one IPv4 subnet.
func envFor(subnet string) daemonconfig.Env {
	return daemonconfig.Env{Subnets: [2]netip.Prefix{netip.MustParsePrefix(subnet)}, MTU: 1400}
}

func TestContainerIsMadeAnew(t *testing.T) {
	l := newTestLab(t, 1, "sleep 60")
	h := l.Hosts[0]
	if err := h.StopContainer(); err == nil {
		t.Error("a container that is not there stops")
	}
	// Who pings from inside keeps the old namespace alive.
	for _, subnet := range []string{"10.5.1.0/24", "10.5.1.0/24", "10.6.2.0/24"} {
		if err := h.StartContainer(envFor(subnet)); err != nil {
			t.Fatal(err)
		}
		if err := h.StartContainer(envFor(subnet)); err == nil {
			t.Error("a second container starts")
		}
		c := h.Container
		if err := c.WaitPing(within(t, patience), daemonconfig.HostAddr(netip.MustParsePrefix(subnet)).Addr()); err != nil {
			t.Error(err)
		}
		p, err := c.StartPing(t.Context(), PingOptions{To: h.Addrs[0].Addr(), Timeout: 20 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Stop()
		if err := h.StopContainer(); err != nil {
			t.Fatal(err)
		}
		if h.Container != nil {
			t.Error("a container that was stopped is listed")
		}
		links, err := h.Links().LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links {
			if name := link.Attrs().Name; name != "lo" && name != "eth0" {
				t.Errorf("%s is left of the container", name)
			}
		}
	}
}

// A start that fails leaves nothing that the next one would trip over.
func TestContainerStartIsUndone(t *testing.T) {
	l := newTestLab(t, 1, "sleep 60")
	h := l.Hosts[0]
	// As another's namespace would be in the way.
	blocker, err := l.addNode("c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.StartContainer(envFor("10.5.1.0/24")); err == nil || h.Container != nil {
		t.Error("a container starts in a namespace that was there")
	}
	if err := l.removeNode(blocker); err != nil {
		t.Fatal(err)
	}
	if err := h.StartContainer(envFor("10.5.1.0/24")); err != nil {
		t.Error(err)
	}
}
