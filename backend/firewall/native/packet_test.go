package native

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/backendtest"
	"github.com/flanneld-go/flanneld-go/backend/hostgw"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	configVXLAN  = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"vxlan"}}`
	configHostGW = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"host-gw"}}`
)

// scene is three hosts on a segment, of which the first has our table. Nothing
// else of it drops anything.
type scene struct {
	*host
	lab *backendtest.Lab
	d   Desired
	ear *ear
	ids int
}

func newScene(t *testing.T, constructor backend.Constructor, config string) *scene {
	t.Helper()
	lab := backendtest.NewLab(t, constructor, config, 0, 0, 0)
	lab.ApplyAll()
	for _, h := range lab.Hosts {
		for _, name := range []string{"all", "default", "eth0", "docker0", "flannel.1"} {
			// There is no flannel.1 by host-gw.
			_ = h.SetSysctl("net/ipv4/conf/"+name+"/rp_filter", "0")
		}
	}
	s := &scene{host: newHost(t, lab.Hosts[0].Namespace), lab: lab, ear: listen(t, lab.Hosts[0].Container(), 7000)}
	s.d = Desired{
		Networks: subnet.ByFamily[netip.Prefix]{prefix("10.5.0.0/16"), prefix("fd05::/48")},
		Own:      lab.Hosts[0].Lease.Subnet, Tunnel: lab.Hosts[0].Backend.Tunnel(), Uplink: "eth0",
		Segments: []netip.Prefix{prefix("198.18.0.0/24"), prefix("fd00:198:18::/64")},
	}
	for _, h := range lab.Hosts[1:] {
		s.d.Peers = append(s.d.Peers, Peer{
			Subnet: h.Lease.Subnet, PublicIP: h.Lease.Attrs.PublicIP, MAC: subnet.ByFamily[kernel.MAC]{mac(t, h.Namespace, "eth0"), mac(t, h.Namespace, "eth0")},
		})
	}
	s.apply(t, s.d)
	return s
}

// inside is an address of a host's subnet; 2 is its container.
func inside(f subnet.Family, host, n int) netip.Addr {
	if f == subnet.IPv6 {
		return address(fmt.Sprintf("fd05:0:0:%d::%d", host, n))
	}
	return address(fmt.Sprintf("10.5.%d.%d", host, n))
}

// public is a host's address on the segment.
func public(f subnet.Family, host int) netip.Addr {
	if f == subnet.IPv6 {
		return address(fmt.Sprintf("fd00:198:18::%d", host))
	}
	return address(fmt.Sprintf("198.18.0.%d", host))
}

func foreign(f subnet.Family) netip.Addr {
	return [...]netip.Addr{address("198.51.100.7"), address("2001:db8::7")}[f]
}

// message makes a packet to the first host's container, and its text.
func (s *scene) message(from netip.Addr) (text string, packet []byte) {
	s.ids++
	text = fmt.Sprintf("message %d", s.ids)
	to := inside(subnet.FamilyOf(from), 1, 2)
	return text, udpPacket(netip.AddrPortFrom(from, 7001), netip.AddrPortFrom(to, 7000), []byte(text))
}

// A way sends a packet to the first host's container.
type way func(t *testing.T, packet []byte)

// routed is how the host routes it: through its tunnel, or to its gateway.
func (s *scene) routed(ns *kerneltest.Namespace) way {
	return func(t *testing.T, packet []byte) {
		t.Helper()
		to := inside(subnet.IPv4, 1, 2)
		if packet[0]>>4 == 6 {
			to = inside(subnet.IPv6, 1, 2)
		}
		sendPacket(t, ns, to, packet)
	}
}

// plain puts it on the segment, from any MAC.
func (s *scene) plain(from *backendtest.Host, source kernel.MAC) way {
	return func(t *testing.T, packet []byte) {
		t.Helper()
		sendFrame(t, from.Namespace, "eth0", frame(mac(t, s.Namespace, "eth0"), source, nil, packet))
	}
}

// enveloped puts it into VXLAN and on the segment, from any outer address.
func (s *scene) enveloped(from *backendtest.Host, outer netip.Addr, vni byte, tag []byte) way {
	return func(t *testing.T, packet []byte) {
		t.Helper()
		device := "flannel.1"
		if outer.Is6() {
			device = "flannel-v6.1"
		}
		inner := frame(mac(t, s.Namespace, device), kernel.MAC{2, 9, 9, 9, 9, 9}, tag, packet)
		datagram := udpPacket(netip.AddrPortFrom(outer, 50000),
			netip.AddrPortFrom(public(subnet.FamilyOf(outer), 1), 8472), append(vxlanHeaderOf(vni), inner...))
		sendFrame(t, from.Namespace, "eth0", frame(mac(t, s.Namespace, "eth0"), mac(t, from.Namespace, "eth0"), nil, datagram))
	}
}

// patience is how long a packet, or its trace, may take on a busy machine.
const patience = time.Minute

// arrives expects a packet to be heard as from its source.
func (s *scene) arrives(t *testing.T, what string, from netip.Addr, w way) {
	t.Helper()
	text, packet := s.message(from)
	w(t, packet)
	if got := s.ear.from(text, patience); got != from {
		t.Errorf("%s: heard from %v, want %v; counters %v", what, got, from, s.counters(t))
	}
}

// dropped expects a packet to be counted and not heard, and to be heard without
// the rules that count so.
func (s *scene) dropped(t *testing.T, what, reason string, from netip.Addr, w way) {
	t.Helper()
	before := s.counters(t)
	text, packet := s.message(from)
	w(t, packet)
	want := maps.Clone(before)
	want[reason]++
	s.awaitCounted(t, reason, before)
	if got := s.counters(t); !maps.Equal(got, want) {
		t.Errorf("%s: counters %v, want %v", what, got, want)
	}
	if got := s.ear.from(text, 20*time.Millisecond); got.IsValid() {
		t.Errorf("%s: heard all the same", what)
	}
	s.without(t, reason)
	s.arrives(t, what+", without the rule "+reason, from, w)
	s.apply(t, s.d)
}

// awaitCounted waits for a packet to be counted.
func (s *scene) awaitCounted(t *testing.T, reason string, before map[string]uint64) {
	t.Helper()
	for deadline := time.Now().Add(patience); s.counters(t)[reason] == before[reason] && time.Now().Before(deadline); {
		<-time.After(2 * time.Millisecond)
	}
}

var handled = regexp.MustCompile(`# handle (\d+)$`)

// without removes, as somebody else, the rules that count so, and in each chain
// what is behind them: most of it drops what they let through.
func (s *scene) without(t *testing.T, reason string) {
	t.Helper()
	for _, family := range []string{"ip", "ip6"} {
		chain, behind := "", false
		for line := range strings.Lines(s.Run(t, "nft", "-a", "list", "table", family, TableName)) {
			fields := strings.Fields(line)
			if len(fields) > 1 && fields[0] == "chain" {
				chain, behind = fields[1], false
				continue
			}
			behind = behind || strings.Contains(line, `counter name "`+reason+`"`)
			if handle := handled.FindStringSubmatch(strings.TrimSpace(line)); behind && handle != nil {
				s.Run(t, "nft", "delete", "rule", family, TableName, chain, "handle", handle[1])
			}
		}
	}
}

func TestForgedByVXLAN(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan.New, configVXLAN)
	second, third := s.lab.Hosts[1], s.lab.Hosts[2]
	for _, f := range subnet.Families() {
		t.Run(f.String(), func(t *testing.T) {
			s.arrives(t, "container of a peer", inside(f, 2, 2), s.routed(second.Namespace))
			s.arrives(t, "container of another", inside(f, 3, 2), s.routed(third.Namespace))
			s.arrives(t, "by hand", inside(f, 2, 2), s.enveloped(third, public(f, 2), 1, nil))

			s.dropped(t, "foreign source", ForeignSource, foreign(f), s.routed(second.Namespace))
			s.dropped(t, "another peer's source", PeerSource, inside(f, 3, 2), s.routed(second.Namespace))
			s.dropped(t, "unallocated source", PeerSource, inside(f, 77, 2), s.routed(second.Namespace))
			s.dropped(t, "unknown host", PeerSource, inside(f, 2, 2), s.enveloped(third, public(f, 99), 1, nil))
			s.dropped(t, "our own source", OwnSource, inside(f, 1, 9), s.routed(second.Namespace))
			s.dropped(t, "plainly", OutsideSource, inside(f, 2, 2), s.plain(second, mac(t, second.Namespace, "eth0")))
			s.dropped(t, "from our own container", OutsideSource, inside(f, 2, 2), s.ownContainer())
			s.dropped(t, "empty VLAN tag", NotOverlay, inside(f, 3, 2),
				s.enveloped(second, public(f, 2), 1, []byte{0x81, 0, 0, 0}))
			other := subnet.Families()[1-f]
			s.dropped(t, "the other family", NotOverlay, inside(other, 2, 2), s.enveloped(second, public(f, 2), 1, nil))
		})
	}
	testFragments(t, s)
	testOtherVNI(t, s)
	s.lab.PingAll()
}

// ownContainer sends from the container, to the host: nobody forwards to where
// it came from.
func (s *scene) ownContainer() way {
	return func(t *testing.T, packet []byte) {
		t.Helper()
		c := s.lab.Hosts[0].Container()
		sendFrame(t, c, "eth0", frame(mac(t, s.Namespace, "docker0"), mac(t, c, "eth0"), nil, packet))
	}
}

// An outer packet in two pieces, of which the first ends before the inner source.
func testFragments(t *testing.T, s *scene) {
	second := s.lab.Hosts[1]
	pieces := func(t *testing.T, packet []byte) {
		inner := frame(mac(t, s.Namespace, "flannel.1"), kernel.MAC{2, 9, 9, 9, 9, 9}, nil, packet)
		whole := udpPacket(netip.AddrPortFrom(public(subnet.IPv4, 2), 50000),
			netip.AddrPortFrom(public(subnet.IPv4, 1), 8472), append(vxlanHeaderOf(1), inner...))[20:]
		const cut, more = 32, 0x2000
		for _, p := range [][]byte{
			ipPacket(public(subnet.IPv4, 2), public(subnet.IPv4, 1), 17, whole[:cut], more),
			ipPacket(public(subnet.IPv4, 2), public(subnet.IPv4, 1), 17, whole[cut:], cut/8),
		} {
			sendFrame(t, second.Namespace, "eth0", frame(mac(t, s.Namespace, "eth0"), mac(t, second.Namespace, "eth0"), nil, p))
		}
	}
	s.arrives(t, "in pieces", inside(subnet.IPv4, 2, 2), pieces)
	s.dropped(t, "another peer's source in pieces", PeerSource, inside(subnet.IPv4, 3, 2), pieces)
}

// A network of others on the same port is none of our business.
func testOtherVNI(t *testing.T, s *scene) {
	s.Run(t, "ip", "link", "add", "other", "type", "vxlan", "id", "9", "local", "198.18.0.1", "dev", "eth0", "dstport", "8472")
	s.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "other")
	s.Run(t, "ip", "link", "set", "other", "up")
	before := s.counters(t)
	e := listen(t, s.Namespace, 7002)
	to := mac(t, s.Namespace, "other")
	second := s.lab.Hosts[1]
	packet := udpPacket(netip.MustParseAddrPort("192.0.2.2:7001"), netip.MustParseAddrPort("192.0.2.1:7002"), []byte("hello"))
	datagram := udpPacket(netip.MustParseAddrPort("198.18.0.99:50000"), netip.MustParseAddrPort("198.18.0.1:8472"),
		append(vxlanHeaderOf(9), frame(to, kernel.MAC{2, 9, 9, 9, 9, 9}, []byte{0x81, 0, 0, 0}, packet)...))
	sendFrame(t, second.Namespace, "eth0", frame(mac(t, s.Namespace, "eth0"), mac(t, second.Namespace, "eth0"), nil, datagram))
	if got := e.from("hello", patience); !got.IsValid() || !maps.Equal(before, s.counters(t)) {
		t.Errorf("another VNI: heard from %v, counters %v before and %v after", got, before, s.counters(t))
	}
}

func TestForgedByHostGW(t *testing.T) {
	t.Parallel()
	s := newScene(t, hostgw.New, configHostGW)
	second, third := s.lab.Hosts[1], s.lab.Hosts[2]
	unknown := kernel.MAC{2, 8, 8, 8, 8, 8}
	for _, f := range subnet.Families() {
		t.Run(f.String(), func(t *testing.T) {
			s.arrives(t, "container of a peer", inside(f, 2, 2), s.routed(second.Namespace))
			s.arrives(t, "container of another", inside(f, 3, 2), s.routed(third.Namespace))
			s.arrives(t, "unknown MAC", inside(f, 2, 2), s.plain(second, unknown))
			s.arrives(t, "subnet of nobody", inside(f, 77, 2), s.plain(second, mac(t, second.Namespace, "eth0")))
			s.arrives(t, "the LAN", foreign(f), s.plain(second, mac(t, second.Namespace, "eth0")))

			s.dropped(t, "another peer's source", PeerSource, inside(f, 3, 2), s.routed(second.Namespace))
			s.dropped(t, "our own source", OwnSource, inside(f, 1, 9), s.routed(second.Namespace))
			s.dropped(t, "from our own container", OutsideSource, inside(f, 2, 2), s.ownContainer())

			// A router that serves both may send for both.
			router := mac(t, second.Namespace, "eth0")
			both := s.d
			both.Peers = slices.Clone(s.d.Peers)
			both.Peers[1].MAC[f] = router
			s.apply(t, both)
			s.arrives(t, "through a router", inside(f, 3, 2), s.routed(second.Namespace))
			s.arrives(t, "through a router, another", inside(f, 2, 2), s.routed(second.Namespace))
			s.apply(t, s.d)
			// Of a peer whose MAC is not known, anybody may be the gateway.
			both.Peers[1].MAC[f] = kernel.MAC{}
			s.apply(t, both)
			s.arrives(t, "a peer without a MAC", inside(f, 3, 2), s.routed(second.Namespace))
			s.apply(t, s.d)
		})
	}
	s.apply(t, s.d)
	s.follow(t, s.d.Peers[:1], nil)
	for _, f := range subnet.Families() {
		s.arrives(t, "a MAC that was a peer's", inside(f, 3, 2), s.routed(second.Namespace))
		s.arrives(t, "a subnet that was a peer's", inside(f, 2, 2), s.routed(third.Namespace))
	}
	s.follow(t, nil, s.d.Peers[:1])
	for _, f := range subnet.Families() {
		s.arrives(t, "a peer that came", inside(f, 2, 2), s.routed(second.Namespace))
		s.arrives(t, "one that stayed", inside(f, 3, 2), s.routed(third.Namespace))
		s.arrives(t, "from whom nothing is known yet", inside(f, 3, 2), s.routed(second.Namespace))
	}
	s.apply(t, s.d)
	for _, f := range subnet.Families() {
		s.dropped(t, "another peer's source again", PeerSource, inside(f, 3, 2), s.routed(second.Namespace))
	}
	s.lab.PingAll()
}

// follow is Follow, which must not be refused.
func (s *scene) follow(t *testing.T, gone, fresh []Peer) {
	t.Helper()
	var err error
	s.Do(t, func() { err = s.t.Follow(t.Context(), gone, fresh) })
	if err != nil {
		t.Fatal(err)
	}
}

// The udp backend's datagrams, to a socket that takes everything.
func TestForgedByUDP(t *testing.T) {
	t.Parallel()
	s := newScene(t, hostgw.New, configHostGW)
	s.d.Tunnel = backend.Tunnel{Devices: []string{"flannel0"}, Port: 8285, Encapsulation: backend.PlainPacket}
	s.apply(t, s.d)
	e := listen(t, s.Namespace, 8285)
	second := s.lab.Hosts[1]
	send := func(t *testing.T, outer netip.Addr, inner []byte) {
		datagram := udpPacket(netip.AddrPortFrom(outer, 8285), netip.AddrPortFrom(public(subnet.FamilyOf(outer), 1), 8285), inner)
		sendFrame(t, second.Namespace, "eth0", frame(mac(t, s.Namespace, "eth0"), mac(t, second.Namespace, "eth0"), nil, datagram))
	}
	for _, outer := range subnet.Families() {
		for _, inner := range subnet.Families() {
			t.Run(fmt.Sprintf("%s in %s", inner, outer), func(t *testing.T) {
				for _, c := range []struct {
					what, reason string
					from         netip.Addr
				}{
					{"honest", "", inside(inner, 2, 2)},
					{"foreign, for the device's rule", "", foreign(inner)},
					{"another peer's source", PeerSource, inside(inner, 3, 2)},
					{"our own source", OwnSource, inside(inner, 1, 2)},
				} {
					before := s.counters(t)
					_, packet := s.message(c.from)
					send(t, public(outer, 2), packet)
					// One processor of the kernel may be faster than another.
					if c.reason == "" {
						e.from(string(packet), patience)
					} else {
						s.awaitCounted(t, c.reason, before)
					}
					_, last := s.message(inside(inner, 2, 2))
					send(t, public(outer, 2), last)
					if !e.from(string(last), patience).IsValid() {
						t.Fatalf("%s: the honest datagram behind it is not heard", c.what)
					}
					heard := e.from(string(packet), 0).IsValid()
					counted := s.counters(t)[c.reason] - before[c.reason]
					if heard != (c.reason == "") || c.reason != "" && counted != 1 {
						t.Errorf("%s: heard %v, counted %d as %q", c.what, heard, counted, c.reason)
					}
				}
			})
		}
	}
}

// What is not there is not judged: no rule of ours is in the way of an ordinary
// host.
func TestAppliesWithoutPeersOrUplink(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan.New, configVXLAN)
	s.d.Uplink, s.d.Segments = "", nil
	s.apply(t, s.d)
	f := subnet.IPv4
	s.arrives(t, "container of a peer", inside(f, 2, 2), s.routed(s.lab.Hosts[1].Namespace))
	// The route to the peer's subnet does not leave by the uplink.
	s.dropped(t, "plainly", OutsideSource, inside(f, 2, 2), s.plain(s.lab.Hosts[1], mac(t, s.lab.Hosts[1].Namespace, "eth0")))

	s.d.Peers = nil
	s.apply(t, s.d)
	s.dropped(t, "a peer that nobody knows", PeerSource, inside(f, 2, 2), s.routed(s.lab.Hosts[1].Namespace))
}

// The uplink's own range lies in the network.
func TestUplinkInsideTheNetwork(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan.New, configVXLAN)
	s.Run(t, "ip", "addr", "add", "10.5.200.1/24", "dev", "eth0")
	second := s.lab.Hosts[1]
	neighbour := s.plain(second, mac(t, second.Namespace, "eth0"))
	f := subnet.IPv4
	s.dropped(t, "a neighbour, before we are told", OutsideSource, inside(f, 200, 2), neighbour)
	s.d.Segments = append(s.d.Segments, prefix("10.5.200.0/24"))
	s.apply(t, s.d)
	s.arrives(t, "a neighbour on the uplink", inside(f, 200, 2), neighbour)
	s.dropped(t, "an overlay source by the uplink", OutsideSource, inside(f, 2, 2), neighbour)
}

// An nft flush ruleset of others.
func TestFlushed(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan.New, configVXLAN)
	want := s.list(t)
	s.Run(t, "nft", "flush", "ruleset")
	if got := s.counters(t); got[PeerSource] != 0 || len(got) != len(reasons()) {
		t.Errorf("counters of no table: %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Do(t, func() {
		if err := s.t.Apply(ctx, s.d); err == nil {
			t.Error("Apply with an ended context succeeds")
		}
	})
	s.apply(t, s.d)
	if got := s.list(t); got != want {
		t.Errorf("after flush and Apply:\n%s\nwant\n%s", got, want)
	}
}
