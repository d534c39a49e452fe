package firewall

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// machine is a host with a container, in one family.
type machine struct {
	host, container *space
	family          subnet.Family
	// n makes its addresses: 198.18.77.n and 10.5.n.0/24, or fd00:198:18:77::n
	// and fd05:0:0:n::/64.
	n int
	b *bench
	d Desired
	// unkeep ends keep.
	unkeep func()
}

// overlays are the networks.
func overlays() subnet.ByFamily[string] {
	return subnet.ByFamily[string]{"10.5.0.0/16", "fd05::/48"}
}

// address is the one that ends in host, of the machine's subnet.
func (m *machine) address(host string) string {
	return fmt.Sprintf([...]string{"10.5.%d.%s", "fd05:0:0:%d::%s"}[m.family], m.n, host)
}

func (m *machine) subnet() string {
	return netip.PrefixFrom(netip.MustParseAddr(m.vtep()), [...]int{24, 64}[m.family]).String()
}

func (m *machine) public() string {
	return fmt.Sprintf([...]string{"198.18.77.%d", "fd00:198:18:77::%d"}[m.family], m.n)
}

func (m *machine) gateway() string   { return m.address("1") }
func (m *machine) contained() string { return m.address("2") }
func (m *machine) vtep() string      { return netip.MustParseAddr(m.address("0")).String() }
func (m *machine) mac() string       { return fmt.Sprintf("02:00:00:00:00:%02x", m.n) }

// onLink is how an address and the range around it are added.
func onLink(address string) string {
	if strings.Contains(address, ":") {
		return address + "/64 nodad" // see newSpace
	}
	return address + "/24"
}

// translate gives rules the addresses of the machine's family.
func (m *machine) translate(rules string) string {
	if m.family == subnet.IPv4 {
		return rules
	}
	own := fmt.Sprintf("10.5.%d.", m.n)
	return strings.NewReplacer(
		own+"0/24", m.subnet(), own+"2/32", m.address("2"), own+"3/32", m.address("3"),
		own+"2:80", "["+m.address("2")+"]:80", "127.0.0.0/8", "::1",
	).Replace(rules)
}

// outside puts somebody who answers on the segment, and returns the address.
func (m *machine) outside(t *testing.T, lan *space) string {
	t.Helper()
	at := [...]string{"198.18.77.250", "fd00:198:18:77::250"}[m.family]
	lan.ip(t, "addr add "+onLink(at)+" dev switch")
	lan.answer(t)
	m.host.find(t, at)
	return at
}

// find waits until an address of IPv6 is found: a busy machine may take its time to
// listen to those who look for it, and who finds nobody tries again after a second
// only.
func (s *space) find(t *testing.T, address string) {
	t.Helper()
	if !strings.Contains(address, ":") {
		return
	}
	s.do(t, func() error {
		if out, err := exec.Command("ping", "-n", "-c", "1", "-w", "60", address).CombinedOutput(); err != nil {
			return fmt.Errorf("find %s: %w: %s", address, err, out)
		}
		return nil
	})
}

// peer is the machine as others see it.
func (m *machine) peer() native.Peer {
	var p native.Peer
	p.Subnet[m.family] = netip.MustParsePrefix(m.subnet())
	p.PublicIP[m.family] = netip.MustParseAddr(m.public())
	return p
}

// paths6 are the paths of IPv6.
func paths6(dockers ...string) []path {
	out := paths(dockers...)
	for i := range out {
		out[i].family = subnet.IPv6
		if !out[i].tunnel.Direct {
			out[i].tunnel.Devices = []string{"flannel-v6.1"}
		}
	}
	return out
}

// command is the program of the variant for the family.
func (p path) command() string {
	if p.family == subnet.IPv6 {
		return strings.Replace(p.variant, "ip", "ip6", 1)
	}
	return p.variant
}
