package native

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/hostgw"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// theirs is a mark of somebody else's on every packet, which stays.
const theirs = 0x20000

// probe counts the datagrams to port 7000 by their mark where filters of others
// look at it.
func (s *scene) probe(t *testing.T) {
	t.Helper()
	s.Run(t, "nft", fmt.Sprintf(`table inet probe {
		counter marked { }
		counter plain { }
		counter odd { }
		chain before {
			type filter hook prerouting priority -200
			udp dport 7000 meta mark set %#x
		}
		chain after {
			type filter hook prerouting priority filter
			udp dport 7000 meta mark %#x counter name marked return
			udp dport 7000 meta mark %#x counter name plain return
			udp dport 7000 counter name odd
		}
	}`, theirs, theirs|AcceptMark, theirs))
}

// marks are how many datagrams were counted, by mark.
func (s *scene) marks(t *testing.T) map[string]int { return s.namedCounters(t, "inet", "probe") }

// namedCounters are those of a table, in packets.
func (s *scene) namedCounters(t *testing.T, family, table string) map[string]int {
	t.Helper()
	out := map[string]int{}
	name := ""
	for line := range strings.Lines(s.Run(t, "nft", "list", "counters", "table", family, table)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) > 1 && fields[0] == "counter":
			name = fields[1]
		case len(fields) > 1 && fields[0] == "packets":
			var n int
			if _, err := fmt.Sscan(fields[1], &n); err != nil {
				t.Fatal(err)
			}
			out[name] = n
		}
	}
	return out
}

// counted expects a packet to be counted once, as name says.
func (s *scene) counted(t *testing.T, what, name string, packet []byte, w way) {
	t.Helper()
	before := s.marks(t)
	w(t, packet)
	want := map[string]int{"marked": before["marked"], "plain": before["plain"], "odd": before["odd"]}
	want[name]++
	got := s.marks(t)
	for end := time.Now().Add(patience); cmp.Equal(got, before) && time.Now().Before(end); got = s.marks(t) {
		<-time.After(2 * time.Millisecond)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// call is a datagram from an address to another.
func call(from, to netip.Addr) []byte {
	return udpPacket(netip.AddrPortFrom(from, 7001), netip.AddrPortFrom(to, 7000), []byte("call"))
}

// Exactly what the overlay brings to our own subnet gets the mark.
func TestAcceptMark(t *testing.T) {
	for name, b := range map[string]struct {
		constructor backend.Constructor
		config      string
	}{"vxlan": {vxlan.New, configVXLAN}, "host-gw": {hostgw.New, configHostGW}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, b.constructor, b.config)
			s.probe(t)
			second := s.lab.Hosts[1]
			lan := s.plain(second, mac(t, second.Namespace, "eth0"))
			for _, f := range subnet.Families() {
				t.Run(f.String(), func(t *testing.T) {
					overlay := lan
					if name == "vxlan" {
						overlay = s.enveloped(second, public(f, 2), 1, nil)
					}
					peer, own := inside(f, 2, 2), inside(f, 1, 2)
					s.d.AcceptMark = false
					s.apply(t, s.d)
					s.counted(t, "from a peer, not asked for", "plain", call(peer, own), overlay)
					s.d.AcceptMark = true
					s.apply(t, s.d)
					s.counted(t, "from a peer", "marked", call(peer, own), overlay)
					s.counted(t, "from a peer to the host in our subnet", "marked", call(peer, inside(f, 1, 1)), overlay)
					s.counted(t, "from a peer to nobody's subnet", "plain", call(peer, inside(f, 77, 2)), overlay)
					s.counted(t, "from a peer to the host", "plain", call(peer, public(f, 1)), overlay)
					s.counted(t, "from the LAN", "plain", call(public(f, 2), own), lan)
					s.counted(t, "from afar", "plain", call(foreign(f), own), lan)
					s.counted(t, "from our container", "plain", call(own, peer), s.ownContainer())
					s.counted(t, "from our container to another of ours", "plain", call(own, inside(f, 1, 9)), s.ownContainer())
				})
			}
		})
	}
}

// A Docker that keeps its rules in nf_tables: what it has for docker0, once
// nothing stands in raw, and with our mark for its bridge-accept-fwmark.
func (s *scene) dockerInTables(t *testing.T) {
	t.Helper()
	for family, own := range map[string]string{"ip": "10.5.1.0/24", "ip6": "fd05:0:0:1::/64"} {
		s.Run(t, "nft", fmt.Sprintf(`table %s docker-bridges {
			counter unpublished { }
			chain in_docker0 {
				meta mark & %#x == %#x counter accept
				counter name unpublished drop
			}
			chain forward {
				type filter hook forward priority filter
				oifname "docker0" jump in_docker0
			}
			chain postrouting {
				type nat hook postrouting priority srcnat
				oifname != "docker0" %s saddr %s counter masquerade
			}
		}`, family, AcceptMask, AcceptMark, family, own))
	}
}

// The mark gets the overlay past such a Docker, and nothing else.
func TestDockerInTables(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan.New, configVXLAN)
	second, third := s.lab.Hosts[1], s.lab.Hosts[2]
	s.dockerInTables(t)
	callee := listen(t, second.Container(), 7000)
	lost := func(t *testing.T, what string, from netip.Addr, w way) {
		t.Helper()
		family := [...]string{"ip", "ip6"}[subnet.FamilyOf(from)]
		drops := func() int { return s.namedCounters(t, family, "docker-bridges")["unpublished"] }
		before := drops()
		text, packet := s.message(from)
		w(t, packet)
		for end := time.Now().Add(patience); drops() == before && time.Now().Before(end); {
			<-time.After(2 * time.Millisecond)
		}
		if got := s.ear.from(text, 20*time.Millisecond); got.IsValid() || drops() != before+1 {
			t.Errorf("%s: heard from %v, dropped %d", what, got, drops()-before)
		}
	}
	for _, f := range subnet.Families() {
		t.Run(f.String(), func(t *testing.T) {
			s.d.AcceptMark = false
			s.apply(t, s.d)
			lost(t, "from a peer, without the mark", inside(f, 2, 2), s.routed(second.Namespace))
			s.d.AcceptMark, s.d.NAT = true, true
			s.apply(t, s.d)
			s.arrives(t, "from a peer", inside(f, 2, 2), s.routed(second.Namespace))
			lost(t, "from the LAN", public(f, 3), s.plain(third, mac(t, third.Namespace, "eth0")))
			mine := s.lab.Hosts[0].Container()
			s.wantSeen(t, "to a peer", s.seen(t, mine, inside(f, 1, 2), inside(f, 2, 2), callee), inside(f, 1, 2))
		})
	}
}
