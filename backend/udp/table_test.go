package udp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
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
	return peers[best].endpoint.to, true
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
			to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(i % 30)}), 8285)
			peers = append(peers, peer{p, endpoint{to: to}})
		}
		table := newTable(peers)
		probe := func(a netip.Addr) {
			want, found := slowLookup(peers, a)
			got := table.lookup(subnet.FamilyOf(a), addressOf(a))
			if (got != nil) != found || found && got.to != want {
				t.Fatalf("lookup %s among %v = %v; want %v, %v", a, peers, got, want, found)
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

func TestTableKeepsFamiliesApart(t *testing.T) {
	table := newTable([]peer{peerAt("0.0.0.0/0", "198.18.0.2:1")})
	if e := table.lookup(subnet.IPv6, addressOf(netip.MustParseAddr("fd05::1"))); e != nil {
		t.Errorf("an IPv6 address was found at %v", e.to)
	}
}

// TestTableSharesEndpoints: what goes to one receiver can share a message,
// whichever of its subnets it is for.
func TestTableSharesEndpoints(t *testing.T) {
	w := testWorld()
	one := w.table.lookup(subnet.IPv4, v4("10.5.2.9"))
	same := w.table.lookup(subnet.IPv6, addressOf(netip.MustParseAddr("fd05:0:0:2::9")))
	other := w.table.lookup(subnet.IPv4, v4("10.5.3.9"))
	if one == nil || one != same || one == other {
		t.Errorf("endpoints %p, %p of one receiver, %p of another", one, same, other)
	}
}

// manyPeers are n subnets as a network of 10.0.0.0/8 and fd05::/32 has them.
func manyPeers(n int) (peers []peer) {
	for i := range n {
		to := endpoint{to: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 8285)}
		peers = append(peers,
			peer{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), to},
			peer{netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 5, 6: byte(i >> 8), 7: byte(i)}), 64), to})
	}
	return peers
}

// TestTableProbesLittle: the subnets of a network do not fall into one heap, at
// any length.
func TestTableProbesLittle(t *testing.T) {
	check := func(cells []uint32, what string) {
		longest, run := 0, 0
		for _, peer := range cells {
			if run++; peer == 0 {
				run = 0
			}
			longest = max(longest, run)
		}
		if longest > 64 {
			t.Errorf("%s: %d cells in a row are taken", what, longest)
		}
	}
	const n = 10_000
	for length := 20; length <= 30; length += 2 {
		prefixes := make(map[address]uint32)
		for i := range uint64(min(n, 1<<(length-8))) {
			prefixes[address{lo: 10<<24 | i<<(32-length)}] = 1
		}
		var taken []uint32
		for _, c := range newLevel(length, 0, prefixes, address.ipv4, hash4).cells {
			taken = append(taken, c.peer)
		}
		check(taken, fmt.Sprintf("IPv4 /%d", length))
	}
	for length := 48; length <= 124; length += 4 {
		prefixes := make(map[address]uint32)
		for i := range uint64(n) {
			a := address{hi: 0xfd05 << 48}
			if length <= 64 {
				a.hi |= i << (64 - length)
			} else {
				a.hi, a.lo = a.hi|i>>(length-64), i<<(128-length)
			}
			prefixes[a] = 1
		}
		var taken []uint32
		for _, c := range newLevel(length, address{}, prefixes, address.ipv6, hash6).cells {
			taken = append(taken, c.peer)
		}
		check(taken, fmt.Sprintf("IPv6 /%d", length))
	}
}

// BenchmarkLookup asks for the subnets in no order, as packets do.
func BenchmarkLookup(b *testing.B) {
	for _, f := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
		for _, n := range []int{10, 10_000} {
			b.Run(fmt.Sprintf("%v/%d", f, n), func(b *testing.B) {
				peers := manyPeers(n)
				t := newTable(peers)
				var ask [1 << 14]address
				for i := range ask {
					ask[i] = addressOf(peers[2*rand.IntN(n)+int(f)].prefix.Addr())
				}
				for i := 0; b.Loop(); i++ {
					if t.lookup(f, ask[i%len(ask)]) == nil {
						b.Fatal("nobody has it")
					}
				}
			})
		}
	}
}

func BenchmarkOutbound(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := &world{table: newTable(manyPeers(n))}
			packet := flow{src: "10.5.1.2", dst: "10.0.2.9", hops: 255}.packet()
			for b.Loop() {
				packet[8] = 255
				if _, _, v := w.outbound(packet, len(packet), 1472); v != Forwarded {
					b.Fatal(v)
				}
			}
		})
	}
}
