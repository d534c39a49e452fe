package udp

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

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
	return peers[best].to, true
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

// drawPeers are any, of prefixes that overlap and may be there twice.
func drawPeers(t *rapid.T) (peers []peer) {
	for i := range rapid.IntRange(0, 40).Draw(t, "peers") {
		a := drawAddr(t, "prefix")
		if a.Is4In6() {
			continue
		}
		p := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(i % 30)}), 8285)
		peers = append(peers, peer{p, &endpoint{to: to}})
	}
	return peers
}

// checkLookups asks a table for some addresses, and for the first and the last of each
// peer's.
func checkLookups(t *rapid.T, table *table, peers []peer) {
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
	for _, p := range peers {
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
}

func TestTableIsLongestPrefixMatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		peers := drawPeers(t)
		checkLookups(t, newTable(peers), peers)
	})
}

// Tables that are made of one another: each is as one made of its peers, the former ones
// stay what they were, and who has the same peers knows it.
func TestTableExchange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		another := []peer{peerAt("10.0.0.0/16", "192.0.2.9:1"), peerAt("fd05::/24", "192.0.2.9:2")}
		type state struct {
			*table
			peers []peer
		}
		states := []state{{newTable(nil), nil}}
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			last := states[len(states)-1]
			var gone []netip.Prefix
			left := slices.DeleteFunc(slices.Clone(last.peers), func(p peer) bool {
				goes := rapid.IntRange(0, 2).Draw(t, "goes") == 0
				if goes {
					gone = append(gone, p.prefix)
				}
				return goes
			})
			fresh := drawPeers(t)
			if rapid.Bool().Draw(t, "another way") {
				last.exchange(gone, another) // leaves last and what is made of it alone
			}
			states = append(states, state{last.exchange(gone, fresh), onePerPrefix(slices.Concat(left, fresh))})
			if rapid.Bool().Draw(t, "another way, later") {
				last.exchange(nil, another)
			}
		}
		for i, s := range states {
			checkLookups(t, s.table, s.peers)
			if !s.holds(s.peers) {
				t.Fatalf("table %d does not hold %v", i, s.peers)
			}
			if n := len(s.peers); n > 0 {
				other := slices.Clone(s.peers)
				other[0].endpoint = &endpoint{to: netip.MustParseAddrPort("192.0.2.1:1")}
				if s.holds(s.peers[1:]) || s.holds(other) {
					t.Fatalf("table %d takes %v for others", i, s.peers)
				}
			}
		}
	})
}

// onePerPrefix leaves the last of those with one prefix.
func onePerPrefix(peers []peer) (left []peer) {
	for i, p := range peers {
		if !slices.ContainsFunc(peers[i+1:], func(o peer) bool { return o.prefix == p.prefix }) {
			left = append(left, p)
		}
	}
	return left
}

// A change places nobody anew: a level that it is about keeps its size, and all others
// are the former table's.
func TestTableShares(t *testing.T) {
	peers := manyPeers(10_000)
	old := newTable(peers)
	moved := peer{peers[0].prefix, &endpoint{to: netip.MustParseAddrPort("192.0.2.1:1")}}
	joined := peerAt("10.200.1.0/24", "192.0.2.2:1")
	next := old.exchange([]netip.Prefix{peers[2].prefix}, []peer{moved, joined})
	if was, is := old.ipv4[0].cells, next.ipv4[0].cells; &was[0] == &is[0] || len(was) != len(is) {
		t.Errorf("%d cells became %d, or are the same", len(was), len(is))
	}
	if &next.ipv6[0].cells[0] != &old.ipv6[0].cells[0] {
		t.Error("the cells of IPv6 were copied")
	}
	full := newTable(manyPeers(2048))
	if was, is := len(full.ipv4[0].cells), len(full.exchange(nil, []peer{joined}).ipv4[0].cells); was != 4096 || is != 8192 {
		t.Errorf("%d cells of 2048 peers became %d for one more", was, is)
	}
	if n := len(next.endpoints); n != 10_002 || &next.endpoints[0] != &old.endpoints[0] {
		t.Errorf("%d endpoints, or others", n)
	}
}

// However often peers come and go, a table is as large as one that is made of those who
// are there.
func TestTableStaysSmall(t *testing.T) {
	peers := manyPeers(2500)
	table := newTable(nil)
	for _, p := range peers {
		table = table.exchange(nil, []peer{p})
	}
	for i := range 10_000 {
		p := peers[i%len(peers)]
		table = table.exchange([]netip.Prefix{p.prefix}, []peer{{p.prefix, &endpoint{to: netip.AddrPortFrom(p.to.Addr(), uint16(i))}}})
	}
	if n := cap(table.endpoints); n > len(peers)*5/4+leastRoom {
		t.Errorf("room for %d endpoints", n)
	}
	if longest, cells := runs(table.ipv4); longest > 64 || cells != 8192 {
		t.Errorf("IPv4: %d cells in a row are taken, %d cells for 2500 peers", longest, cells)
	}
	for _, p := range table.peers() {
		table = table.exchange([]netip.Prefix{p.prefix}, nil)
	}
	if len(table.ipv4)+len(table.ipv6) != 0 {
		t.Error("a level of nobody is left")
	}
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
		to := &endpoint{to: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 8285)}
		peers = append(peers,
			peer{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), to},
			peer{netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 5, 6: byte(i >> 8), 7: byte(i)}), 64), to})
	}
	return peers
}

// runs are the most cells in a row that are taken, and what levels have in all.
func runs[K comparable](levels []level[K]) (longest, cells int) {
	for _, l := range levels {
		cells += len(l.cells)
		run := 0
		for _, c := range l.cells {
			if run++; c.peer == 0 {
				run = 0
			}
			longest = max(longest, run)
		}
	}
	return longest, cells
}

// TestTableProbesLittle: the subnets of a network do not fall into one heap, at
// any length.
func TestTableProbesLittle(t *testing.T) {
	const n = 10_000
	at := &endpoint{to: netip.MustParseAddrPort("198.18.0.2:8285")}
	for length := 20; length <= 30; length += 2 {
		var peers []peer
		for i := range min(n, 1<<(length-8)) {
			var a [4]byte
			binary.BigEndian.PutUint32(a[:], 10<<24|uint32(i)<<(32-length))
			peers = append(peers, peer{netip.PrefixFrom(netip.AddrFrom4(a), length), at})
		}
		if longest, cells := runs(newTable(peers).ipv4); longest > 64 || cells > 6*len(peers) {
			t.Errorf("IPv4 /%d: %d cells in a row are taken, %d cells for %d peers", length, longest, cells, len(peers))
		}
	}
	for length := 48; length <= 124; length += 4 {
		var peers []peer
		for i := range uint64(n) {
			a := address{hi: 0xfd05 << 48}
			if length <= 64 {
				a.hi |= i << (64 - length)
			} else {
				a.hi, a.lo = a.hi|i>>(length-64), i<<(128-length)
			}
			var b [16]byte
			binary.BigEndian.PutUint64(b[:], a.hi)
			binary.BigEndian.PutUint64(b[8:], a.lo)
			peers = append(peers, peer{netip.PrefixFrom(netip.AddrFrom16(b), length), at})
		}
		if longest, cells := runs(newTable(peers).ipv6); longest > 64 || cells > 6*n {
			t.Errorf("IPv6 /%d: %d cells in a row are taken, %d in all", length, longest, cells)
		}
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

// BenchmarkTable is what a table costs: made anew, and of another by one change.
func BenchmarkTable(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 50_000} {
		peers := manyPeers(n)
		b.Run(fmt.Sprintf("anew/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				newTable(peers)
			}
		})
		b.Run(fmt.Sprintf("change/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			t := newTable(peers)
			for i := 0; b.Loop(); i++ {
				p := peers[2*(i%n)]
				t = t.exchange([]netip.Prefix{p.prefix}, []peer{p})
			}
		})
		b.Run(fmt.Sprintf("same/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			t := newTable(peers)
			for b.Loop() {
				if !t.holds(peers) {
					b.Fatal("other peers")
				}
			}
		})
	}
}

func BenchmarkOutbound(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := &world{table: newTable(manyPeers(n))}
			packet := flow{src: "10.5.1.2", dst: "10.0.2.9", hops: 255}.packet()
			for b.Loop() {
				packet[8] = 255
				if v := w.about(packet, destination).outbound(packet, len(packet), 1472); v != Forwarded {
					b.Fatal(v)
				}
			}
		})
	}
}

// Where pointers have 64 bits an endpoint is a line of the cache, so that a lookup waits for
// one only.
func TestEndpointFillsALine(t *testing.T) {
	if size := unsafe.Sizeof(endpoint{}); bits.UintSize == 64 && size != 64 {
		t.Errorf("an endpoint has %d bytes, want 64", size)
	}
}
