package firewall

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestPeersOf(t *testing.T) {
	cases := []struct {
		name   string
		addrs  []netip.Addr
		family subnet.Family
		want   []string
	}{
		{name: "none"},
		{name: "one, twice, and mapped", addrs: addrs("10.0.0.1", "10.0.0.1", "::ffff:10.0.0.1"), want: []string{"10.0.0.1/32"}},
		{name: "two halves", addrs: addrs("10.0.0.3", "10.0.0.2"), want: []string{"10.0.0.2/31"}},
		{name: "neighbours that are no halves", addrs: addrs("10.0.0.1", "10.0.0.2"), want: []string{"10.0.0.1/32", "10.0.0.2/32"}},
		{name: "five", addrs: addrs("10.0.0.4", "10.0.0.0", "10.0.0.1", "10.0.0.3", "10.0.0.2"), want: []string{"10.0.0.0/30", "10.0.0.4/32"}},
		{name: "invalid", addrs: []netip.Addr{{}}},
		{name: "the other family", addrs: addrs("fd00::1", "10.0.0.1"), family: subnet.IPv6, want: []string{"fd00::1/128"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, p := range peersOf(c.addrs, c.family) {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// walk sends a packet through chains as the kernel does, and counts comparisons.
func walk(chains map[string][]rule, name string, a netip.Addr) (accepted bool, compared int) {
	for _, r := range chains[name] {
		compared++
		if !r.src.Contains(a) {
			continue
		}
		if r.isGoto {
			// A goto does not come back here.
			ok, n := walk(chains, r.target, a)
			return ok, compared + n
		}
		return r.target == "ACCEPT", compared
	}
	return false, compared
}

func byName(t interface{ Fatalf(string, ...any) }, specs []chainSpec) map[string][]rule {
	out := map[string][]rule{}
	for _, c := range specs {
		if _, twice := out[c.name]; twice {
			t.Fatalf("chain %s is made twice", c.name)
		}
		if len(c.name) > 28 {
			t.Fatalf("chain %s has more than 28 characters", c.name)
		}
		out[c.name] = c.rules
	}
	return out
}

// randomAddr makes an address of either family out of the bits of mask.
func randomAddr(random *rand.Rand, mask uint32) netip.Addr {
	v4 := [4]byte{}
	binary.BigEndian.PutUint32(v4[:], random.Uint32()&mask)
	if random.IntN(2) == 0 {
		return netip.AddrFrom4(v4)
	}
	v6 := [16]byte{0xfd}
	copy(v6[6:], v4[:2])
	copy(v6[14:], v4[2:])
	return netip.AddrFrom16(v6)
}

// Exactly the peers are accepted, however they lie.
func TestPeerChainsAcceptPeersOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		// Dense and scattered: few high bits, many low ones, or all.
		mask := rapid.SampledFrom([]uint32{0xff, 0x0fff, 0xff00ff, 0xf00000ff, 0xffffffff}).Draw(t, "mask")
		some := func(n int) []netip.Addr {
			var out []netip.Addr
			for range n {
				out = append(out, randomAddr(random, mask))
			}
			return out
		}
		in, strangers := some(rapid.IntRange(1, 700).Draw(t, "peers")), some(50)
		for _, f := range subnet.Families() {
			prefixes := peersOf(in, f)
			if len(prefixes) == 0 {
				continue
			}
			for i := 1; i < len(prefixes); i++ {
				if _, ok := join(prefixes[i-1], prefixes[i]); ok || prefixes[i-1].Overlaps(prefixes[i]) {
					t.Fatalf("%v and %v are not as few as can be", prefixes[i-1], prefixes[i])
				}
			}
			chains := byName(t, owner(0).peerChains(chainInput, prefixes))
			for _, a := range append(slices.Clone(in), strangers...) {
				want := slices.Contains(in, a) && subnet.FamilyOf(a) == f
				if got, _ := walk(chains, chainInput, a); got != want {
					t.Fatalf("%v accepted: %v, want %v", a, got, want)
				}
			}
		}
	})
}

// scattered makes n addresses that no prefix can sum up, always the same.
func scattered(n int) []netip.Addr {
	random := rand.New(rand.NewPCG(1, 2))
	seen := map[netip.Addr]bool{}
	var all []netip.Addr
	for len(all) < n {
		v4 := [4]byte{10}
		v := random.Uint32()
		v4[1], v4[2], v4[3] = byte(v>>16), byte(v>>8), byte(v)
		if a := netip.AddrFrom4(v4); !seen[a] {
			seen[a] = true
			all = append(all, a)
		}
	}
	return all
}

// The figures of doc.go: 10,000 peers that no prefix can sum up.
func TestTenThousandPeers(t *testing.T) {
	all := scattered(10000)
	specs := owner(0).peerChains(chainInput, peersOf(all, subnet.IPv4))
	chains := byName(t, specs)
	worst, sum := 0, 0
	for _, a := range all {
		ok, n := walk(chains, chainInput, a)
		if !ok {
			t.Fatalf("peer %v is not accepted", a)
		}
		worst, sum = max(worst, n), sum+n
	}
	t.Logf("%d chains; comparisons per packet: mean %.1f, worst %d", len(specs), float64(sum)/float64(len(all)), worst)
	if worst > 100 {
		t.Errorf("a packet may cost %d comparisons, want at most 100", worst)
	}

	// One more peer rewrites few chains.
	have := &table{name: "filter"}
	for _, c := range specs {
		kept := &chain{name: c.name}
		for _, r := range c.rules {
			kept.rules = append(kept.rules, line{r.String(), r})
		}
		have.chains = append(have.chains, kept)
	}
	more := append(all, netip.MustParseAddr("10.77.88.99"))
	lines := plan(have, tableSpec{name: "filter", chains: owner(0).peerChains(chainInput, peersOf(more, subnet.IPv4))})
	if len(lines) == 0 || len(lines) > 2*(leafSize+16+3) {
		t.Errorf("one more peer costs %d lines, want a few dozen", len(lines))
	}
}

// The real programs take as many, and read them back as they were written.
func TestManyPeersForReal(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		b.others(t, docker20)
		before := b.save(t)
		d := vxlanDesired()
		d.Peers = peers(scattered(10000)...)
		steps := []struct {
			name string
			do   func()
		}{
			{"10,000 peers", func() { b.apply(t, d) }},
			{"nothing to do", func() { b.apply(t, d) }},
			{"still nothing to do", func() { b.apply(t, d) }},
			{"one peer more", func() {
				d.Peers = append(d.Peers, peers(netip.MustParseAddr("10.77.88.99"))...)
				b.apply(t, d)
			}},
			{"cleanup", func() { b.cleanup(t) }},
		}
		for _, s := range steps {
			start := time.Now()
			s.do()
			t.Logf("%s: %v", s.name, time.Since(start).Round(time.Millisecond))
		}
		if diff := cmp.Diff(before, b.save(t)); diff != "" {
			t.Errorf("after Cleanup (-before +after):\n%s", diff)
		}
	})
}
