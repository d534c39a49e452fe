package udp

import (
	"net/netip"
	"testing"
	"unique"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func peerAt(prefix, at string) peer {
	return peer{netip.MustParsePrefix(prefix), &endpoint{to: netip.MustParseAddrPort(at)}}
}

// testWorld has a host of ours and one that may be flannel's.
func testWorld() *world {
	peers := []peer{
		peerAt("10.5.2.0/24", "198.18.0.2:8285"),
		peerAt("fd05:0:0:2::/64", "198.18.0.2:8285"),
		peerAt("10.5.3.0/24", "198.18.0.3:8290"),
	}
	peers[0].vary = true
	var left formers
	for _, a := range []string{"198.18.0.20", "198.18.0.21", "198.18.0.22", "198.18.0.23", "198.18.0.24"} {
		left.add(netip.MustParseAddr(a))
	}
	peers[0].former = unique.Make(left)
	peers[1].endpoint = peers[0].endpoint
	return &world{
		table: newTable(peers),
		own:   subnet.ByFamily[netip.Addr]{netip.MustParseAddr("10.5.1.0"), netip.MustParseAddr("fd05:0:0:1::")},
	}
}

// about is the answered query about one end of b.
func (w *world) about(b []byte, e end) *query {
	var q query
	q.read(b)
	w.table.answer(&q, e)
	return &q
}

func TestOutbound(t *testing.T) {
	p2, p3 := netip.MustParseAddrPort("198.18.0.2:8285"), netip.MustParseAddrPort("198.18.0.3:8290")
	for name, tc := range map[string]struct {
		in   flow
		to   netip.AddrPort
		want Verdict
	}{
		"to a peer":                     {flow{src: "10.5.1.2", dst: "10.5.2.9", hops: 64}, p2, Forwarded},
		"to a peer with its own port":   {flow{src: "10.5.1.2", dst: "10.5.3.9", hops: 2}, p3, Forwarded},
		"to nobody":                     {flow{src: "10.5.1.2", dst: "10.5.9.9", hops: 64}, netip.AddrPort{}, NoPeer},
		"to our own subnet":             {flow{src: "10.5.1.2", dst: "10.5.1.9", hops: 64}, netip.AddrPort{}, NoPeer},
		"to many":                       {flow{src: "10.5.1.2", dst: "224.0.0.251", hops: 64}, netip.AddrPort{}, Multicast},
		"last hop":                      {flow{src: "10.5.1.2", dst: "10.5.2.9", hops: 1}, netip.AddrPort{}, Expired},
		"no hop":                        {flow{src: "10.5.1.2", dst: "10.5.2.9"}, netip.AddrPort{}, Expired},
		"at the MTU":                    {flow{src: "10.5.1.2", dst: "10.5.2.9", hops: 64, whole: true, payload: make([]byte, 1452)}, p2, Forwarded},
		"above the MTU":                 {flow{src: "10.5.1.2", dst: "10.5.2.9", hops: 64, payload: make([]byte, 1453)}, p2, Forwarded},
		"above the MTU, don't fragment": {flow{src: "10.5.1.2", dst: "10.5.2.9", hops: 64, whole: true, payload: make([]byte, 1453)}, netip.AddrPort{}, TooBig},
		"above any datagram":            {flow{src: "10.5.1.2", dst: "10.5.2.9", hops: 64, payload: make([]byte, 65488)}, netip.AddrPort{}, TooBig},
		"ipv6":                          {flow{src: "fd05:0:0:1::2", dst: "fd05:0:0:2::9", hops: 64}, p2, Forwarded},
		"ipv6 above the MTU":            {flow{src: "fd05:0:0:1::2", dst: "fd05:0:0:2::9", hops: 64, payload: make([]byte, 1433)}, netip.AddrPort{}, TooBig},
		"router solicitation":           {flow{src: "fe80::1", dst: "ff02::2", hops: 255}, netip.AddrPort{}, Multicast},
	} {
		t.Run(name, func(t *testing.T) {
			var to netip.AddrPort
			b := tc.in.packet()
			q := testWorld().about(b, destination)
			got := q.outbound(b, len(b), 1472)
			if got == Forwarded {
				to = q.peer.to
			}
			if to != tc.to || got != tc.want {
				t.Errorf("outbound(%+v) = %v, %v; want %v, %v", tc.in, to, got, tc.to, tc.want)
			}
		})
	}
}

func TestInbound(t *testing.T) {
	for name, tc := range map[string]struct {
		in   flow
		from string
		want Verdict
	}{
		"from a peer":               {flow{src: "10.5.2.9", dst: "10.5.1.2", hops: 64}, "198.18.0.2", Forwarded},
		"from a peer's tunnel":      {flow{src: "10.5.2.0", dst: "10.5.1.2", hops: 64}, "198.18.0.2", Forwarded},
		"ipv6 from a peer":          {flow{src: "fd05:0:0:2::9", dst: "fd05:0:0:1::2", hops: 64}, "198.18.0.2", Forwarded},
		"from a peer for another":   {flow{src: "10.5.3.9", dst: "10.5.1.2", hops: 64}, "198.18.0.2", WrongSender},
		"from a stranger":           {flow{src: "10.5.2.9", dst: "10.5.1.2", hops: 64}, "198.18.0.9", WrongSender},
		"from where it was":         {flow{src: "10.5.2.9", dst: "10.5.1.2", hops: 64}, "198.18.0.24", Forwarded},
		"ipv6 from before that":     {flow{src: "fd05:0:0:2::9", dst: "fd05:0:0:1::2", hops: 64}, "198.18.0.21", Forwarded},
		"from long before":          {flow{src: "10.5.2.9", dst: "10.5.1.2", hops: 64}, "198.18.0.20", WrongSender},
		"another from where it was": {flow{src: "10.5.3.9", dst: "10.5.1.2", hops: 64}, "198.18.0.24", WrongSender},
		"inner source of nobody":    {flow{src: "192.0.2.1", dst: "10.5.1.2", hops: 64}, "198.18.0.2", UnknownSource},
		"inner source is ours":      {flow{src: "10.5.1.9", dst: "10.5.1.2", hops: 64}, "198.18.0.2", UnknownSource},
		"last hop":                  {flow{src: "10.5.2.9", dst: "10.5.1.2", hops: 1}, "198.18.0.2", Expired},
	} {
		t.Run(name, func(t *testing.T) {
			b := tc.in.packet()
			if got := testWorld().about(b, source).inbound(b, netip.MustParseAddr(tc.from)); got != tc.want {
				t.Errorf("inbound(%+v) = %v, want %v", tc.in, got, tc.want)
			}
		})
	}
}
