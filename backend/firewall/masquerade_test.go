package firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// everyTranslation are paths by which iptables translates, and by which our own table
// does.
func everyTranslation(paths []path) []path {
	out := paths
	for _, p := range paths {
		if p.native != nativeNAT {
			p.native = nativeNAT
			out = append(out, p)
		}
	}
	return out
}

// testMulticast: while we masquerade, what our subnet says to a group keeps its
// source. The host itself says it, since nobody here routes multicast.
func testMulticast(t *testing.T, m *machine, lan *space) {
	t.Helper()
	group := net.UDPAddr{IP: net.ParseIP([...]string{"239.77.0.1", "ff02::4d"}[m.family]), Port: 7001}
	// A source without a route would be taken for a forged one.
	lan.ip(t, "route add "+m.subnet()+" via "+m.public())
	var heard *net.UDPConn
	var said net.PacketConn
	lan.do(t, func() error {
		device, err := net.InterfaceByName("switch")
		if err != nil {
			return err
		}
		heard, err = net.ListenMulticastUDP([...]string{"udp4", "udp6"}[m.family], device, &group)
		return err
	})
	defer heard.Close()
	m.host.do(t, func() (err error) {
		// Otherwise it would leave by the interface that has the source.
		by := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var bound error
			err := c.Control(func(fd uintptr) { bound = syscall.BindToDevice(int(fd), "eth0") })
			return errors.Join(err, bound)
		}}
		said, err = by.ListenPacket(t.Context(), "udp", net.JoinHostPort(m.gateway(), "0"))
		if err != nil {
			return err
		}
		_, err = said.WriteTo([]byte("hello"), &group)
		return err
	})
	defer said.Close()
	if err := heard.SetReadDeadline(time.Now().Add(patiently)); err != nil {
		t.Fatal(err)
	}
	_, from, err := heard.ReadFromUDPAddrPort(make([]byte, 16))
	if err != nil {
		t.Fatalf("multicast: %v", err)
	}
	if got := from.Addr().Unmap().WithZone("").String(); got != m.gateway() {
		t.Errorf("multicast: heard from %s, want %s", got, m.gateway())
	}
}

// testHairpin: where Docker has no proxy, a container that calls its own host's
// published port meets itself, with the gateway's address, and another one on the
// same bridge meets it too.
func testHairpin(t *testing.T, m *machine) {
	t.Helper()
	port := "-p tcp -m tcp --dport 7000"
	m.others(t, fmt.Sprintf("*nat\n-D DOCKER -i docker0 -j RETURN\n-A DOCKER -i docker0 %s -j DNAT --to-destination %s\n"+
		"-A POSTROUTING -s %s -d %s %s -j MASQUERADE\nCOMMIT\n",
		port, net.JoinHostPort(m.contained(), "7000"), m.contained(), m.contained(), port))
	m.host.sysctl(t, [...]string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"}[m.family], "1")
	m.host.do(t, func() error {
		if out, err := exec.Command("bridge", "link", "set", "dev", "c1", "hairpin", "on").CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	wantCall(t, "by hairpin", m.container.calling("", m.public()), m.gateway())

	neighbour := newSpace(t)
	neighbour.plug(t, m.host, "c9")
	m.host.ip(t, "link set c9 master docker0")
	neighbour.ip(t, fmt.Sprintf("addr add %s dev eth0\nroute add default via %s", onLink(m.address("9")), m.gateway()))
	m.host.find(t, m.address("9"))
	wantCall(t, "from a container beside it", neighbour.calling("", m.public()), m.address("9"))
}

// --ip-masq-fully-random-disable, as the kernel has it: read back by the tools that
// the rules were not written with.
func TestRandomFully(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, flag string
		native     bool
		list       []string
	}{
		{"iptables-nft", "--random-fully", false, []string{"iptables-nft-save", "ip6tables-nft-save"}},
		{"iptables-legacy", "--random-fully", false, []string{"iptables-legacy-save", "ip6tables-legacy-save"}},
		{"native", "fully-random", true, []string{"nft list table ip " + native.TableName, "nft list table ip6 " + native.TableName}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			enterNamespace(t)
			tools := &Exec{LookPath: func(name string) (string, error) {
				// What the plain name means decides which variant is used.
				if plain := strings.TrimPrefix(name, "ip6"); !c.native && (name == "iptables" || plain == "tables") {
					name += strings.TrimPrefix(c.name, "iptables")
				}
				return exec.LookPath(name)
			}}
			b := &bench{tools: tools, f: New(Options{Log: quiet(), Tools: tools, Firewalld: noFirewalld{}})}
			d := vxlanDesired()
			d.Networks[subnet.IPv6], d.Own[subnet.IPv6] = netip.MustParsePrefix("fd05::/48"), netip.MustParsePrefix("fd05:0:0:3::/64")
			d.Native = c.native
			for _, d.RandomFully = range []bool{true, false, true} {
				b.apply(t, d)
				for _, list := range c.list {
					args := strings.Fields(list)
					out, err := exec.Command(args[0], args[1:]...).Output()
					if err != nil {
						t.Fatalf("%s: %v", list, err)
					}
					testRandomRules(t, list, string(out), c.flag, d.RandomFully)
				}
			}
		})
	}
}

// testRandomRules: both rules that translate have the flag, or neither.
func testRandomRules(t *testing.T, list, out, flag string, want bool) {
	t.Helper()
	for _, comment := range []string{"enter the network as this host", "masquerade to the outside"} {
		found := 0
		for line := range strings.Lines(out) {
			if !strings.Contains(line, comment) {
				continue
			}
			found++
			if strings.Contains(line, flag) != want {
				t.Errorf("%s: want %s %v in %s", list, flag, want, line)
			}
		}
		if found != 1 {
			t.Errorf("%s: %d rules that %s, want 1:\n%s", list, found, comment, out)
		}
	}
}
