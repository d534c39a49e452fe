package udp

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// slowLookup is the obvious longest-prefix match.
func slowLookup(peers []peer, a netip.Addr) (netip.AddrPort, bool) {
	best := -1
	for i, p := range peers {
		if p.prefix.Contains(a) && (best < 0 || p.prefix.Bits() >= peers[best].prefix.Bits()) {
			best = i
		}
	}
	if best < 0 {
		return netip.AddrPort{}, false
	}
	return peers[best].endpoint, true
}

// drawAddr draws from few address bits, so that prefixes overlap often.
func drawAddr(t *rapid.T, label string) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], rapid.SampledFrom([]uint64{0, 1, 1 << 63, 0xfd05 << 48, 0xfd05<<48 | 1}).Draw(t, label+" high"))
	binary.BigEndian.PutUint64(b[8:], rapid.Uint64().Draw(t, label+" low"))
	if rapid.Bool().Draw(t, label+" is IPv4") {
		return netip.AddrFrom4([4]byte{10, b[13] & 3, b[14], b[15]})
	}
	return netip.AddrFrom16(b)
}

func TestTableIsLongestPrefixMatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var peers []peer
		for i := range rapid.IntRange(0, 40).Draw(t, "peers") {
			a := drawAddr(t, "prefix")
			if a.Is4In6() {
				continue
			}
			p := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
			peers = append(peers, peer{p, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}), 8285)})
		}
		table := newTable(peers)
		probe := func(a netip.Addr) {
			want, found := slowLookup(peers, a)
			got, ok := table.lookup(subnet.FamilyOf(a), addressOf(a))
			if got != want || ok != found {
				t.Fatalf("lookup %s among %v = %v, %v; want %v, %v", a, peers, got, ok, want, found)
			}
		}
		for range 20 {
			if a := drawAddr(t, "probe"); !a.Is4In6() {
				probe(a)
			}
		}
		for _, p := range peers { // the first and the last address of each
			first := p.prefix.Addr()
			probe(first)
			last := first.AsSlice()
			for bit := p.prefix.Bits(); bit < first.BitLen(); bit++ {
				last[bit/8] |= 0x80 >> (bit % 8)
			}
			if a, _ := netip.AddrFromSlice(last); !a.Is4In6() {
				probe(a)
			}
		}
	})
}

func testWorld() *world {
	return &world{
		table: newTable([]peer{
			{netip.MustParsePrefix("10.5.2.0/24"), netip.MustParseAddrPort("198.18.0.2:8285")},
			{netip.MustParsePrefix("10.5.3.0/24"), netip.MustParseAddrPort("198.18.0.3:8290")},
			{netip.MustParsePrefix("fd05:0:0:2::/64"), netip.MustParseAddrPort("198.18.0.2:8285")},
		}),
		own: subnet.ByFamily[netip.Addr]{netip.MustParseAddr("10.5.1.0"), netip.MustParseAddr("fd05:0:0:1::")},
	}
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
			to, _, got := testWorld().outbound(tc.in.packet(), len(tc.in.packet()), 1472)
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
		"from a peer":             {flow{src: "10.5.2.9", dst: "10.5.1.2", hops: 64}, "198.18.0.2", Forwarded},
		"from a peer's tunnel":    {flow{src: "10.5.2.0", dst: "10.5.1.2", hops: 64}, "198.18.0.2", Forwarded},
		"ipv6 from a peer":        {flow{src: "fd05:0:0:2::9", dst: "fd05:0:0:1::2", hops: 64}, "198.18.0.2", Forwarded},
		"from a peer for another": {flow{src: "10.5.3.9", dst: "10.5.1.2", hops: 64}, "198.18.0.2", WrongSender},
		"from a stranger":         {flow{src: "10.5.2.9", dst: "10.5.1.2", hops: 64}, "198.18.0.9", WrongSender},
		"inner source of nobody":  {flow{src: "192.0.2.1", dst: "10.5.1.2", hops: 64}, "198.18.0.2", UnknownSource},
		"inner source is ours":    {flow{src: "10.5.1.9", dst: "10.5.1.2", hops: 64}, "198.18.0.2", UnknownSource},
		"last hop":                {flow{src: "10.5.2.9", dst: "10.5.1.2", hops: 1}, "198.18.0.2", Expired},
	} {
		t.Run(name, func(t *testing.T) {
			if _, got := testWorld().inbound(tc.in.packet(), netip.MustParseAddr(tc.from)); got != tc.want {
				t.Errorf("inbound(%+v) = %v, want %v", tc.in, got, tc.want)
			}
		})
	}
}

func BenchmarkOutbound10000Peers(b *testing.B) {
	var peers []peer
	for i := range 10_000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		peers = append(peers, peer{netip.PrefixFrom(a, 24), netip.MustParseAddrPort("198.18.0.2:8285")})
	}
	w := &world{table: newTable(peers)}
	packet := flow{src: "10.5.1.2", dst: "10.5.2.9", hops: 255}.packet()
	for b.Loop() {
		packet[8] = 255
		if _, _, v := w.outbound(packet, len(packet), 1472); v != Forwarded {
			b.Fatal(v)
		}
	}
}
