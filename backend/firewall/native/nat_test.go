package native

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/hostgw"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// seen sends a datagram, each on a connection of its own, and returns who the
// callee says it came from.
func (s *scene) seen(t *testing.T, ns *kerneltest.Namespace, from, to netip.Addr, e *ear) netip.Addr {
	t.Helper()
	s.ids++
	text := fmt.Sprintf("call %d", s.ids)
	port := uint16(10000 + s.ids)
	sendPacket(t, ns, to, udpPacket(netip.AddrPortFrom(from, port), netip.AddrPortFrom(to, 7000), []byte(text)))
	return e.from(text, patience)
}

func (s *scene) wantSeen(t *testing.T, what string, got, want netip.Addr) {
	t.Helper()
	if got != want {
		t.Errorf("%s: the callee saw %v, want %v", what, got, want)
	}
}

// docker puts Docker's masquerade into variants of iptables.
func (s *scene) docker(t *testing.T, op string, variants ...string) {
	t.Helper()
	for _, v := range variants {
		for command, own := range map[string]string{"iptables": "10.5.1.0/24", "ip6tables": "fd05:0:0:1::/64"} {
			s.Run(t, strings.Replace(v, "iptables", command, 1), "-w", "-t", "nat", op, "POSTROUTING",
				"-s", own, "!", "-o", "docker0", "-j", "MASQUERADE")
		}
	}
}

// Nobody's masquerade rewrites what stays inside the network.
func TestSources(t *testing.T) {
	for _, variants := range [][]string{nil, {"iptables-nft"}, {"iptables-legacy"}, {"iptables-nft", "iptables-legacy"}} {
		for name, b := range map[string]struct {
			constructor backend.Constructor
			config      string
		}{"vxlan": {vxlan.New, configVXLAN}, "host-gw": {hostgw.New, configHostGW}} {
			t.Run(name+"/"+strings.Join(variants, "+"), func(t *testing.T) {
				t.Parallel()
				s := newScene(t, b.constructor, b.config)
				s.docker(t, "-A", variants...)
				for _, f := range subnet.Families() {
					t.Run(f.String(), func(t *testing.T) { testSources(t, s, f, variants) })
				}
			})
		}
	}
}

func testSources(t *testing.T, s *scene, f subnet.Family, variants []string) {
	mine, second, third := s.lab.Hosts[0].Container(), s.lab.Hosts[1], s.lab.Hosts[2]
	callee, outside := listen(t, second.Container(), 7000), listen(t, third.Namespace, 7000)
	own, peer, lan := inside(f, 1, 2), inside(f, 2, 2), public(f, 3)

	s.apply(t, Desired{})
	got := s.seen(t, mine, own, peer, callee)
	if rewritten := got != own; rewritten != (len(variants) > 0) || !got.IsValid() {
		t.Errorf("without our rules the callee saw %v: the test proves nothing", got)
	}

	s.d.NAT, s.d.Masquerade = false, false
	s.apply(t, s.d)
	s.wantSeen(t, "container to container, without the other rules", s.seen(t, mine, own, peer, callee), own)
	s.wantSeen(t, "host to container, without the other rules", s.seen(t, s.Namespace, public(f, 1), peer, callee), public(f, 1))

	s.d.NAT = true
	s.apply(t, s.d)
	s.wantSeen(t, "container to container", s.seen(t, mine, own, peer, callee), own)
	s.wantSeen(t, "host to container", s.seen(t, s.Namespace, public(f, 1), peer, callee), inside(f, 1, 1))
	s.wantSeen(t, "LAN to container, not masquerading", s.seen(t, s.Namespace, public(f, 1), own, s.ear), public(f, 1))
	toLAN := own
	if len(variants) > 0 {
		toLAN = public(f, 1)
	}
	s.wantSeen(t, "container to the LAN by Docker's rules", s.seen(t, mine, own, lan, outside), toLAN)

	s.d.Masquerade, s.d.RandomFully = true, f == subnet.IPv4
	s.apply(t, s.d)
	s.wantSeen(t, "container to container, masquerading", s.seen(t, mine, own, peer, callee), own)
	s.wantSeen(t, "container to the LAN by ours", s.seen(t, mine, own, lan, outside), public(f, 1))
	s.arrives(t, "LAN to container", lan, s.plain(third, mac(t, third.Namespace, "eth0")))
}
