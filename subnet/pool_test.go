package subnet

import (
	"math"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func mustConfig(t testing.TB, text string) *Config {
	t.Helper()
	cfg, err := ParseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestPool(t *testing.T) {
	for _, tt := range []struct {
		name, config, first, last string
		size                      uint64
	}{
		{"IPv4", `{"Network":"10.5.0.0/16"}`, "10.5.1.0/24", "10.5.255.0/24", 255},
		{"bounds", `{"Network":"10.5.0.0/16","SubnetLen":26,"SubnetMin":"10.5.1.64","SubnetMax":"10.5.2.0"}`, "10.5.1.64/26", "10.5.2.0/26", 4},
		{"one alone", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.9.0"}`, "10.5.9.0/24", "10.5.9.0/24", 1},
		{"IPv6", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/48"}`, "fd05:0:0:1::/64", "fd05:0:0:ffff::/64", 65535},
		{"both: as many as the smaller has", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48"}`, "10.5.1.0/24,fd05:0:0:1::/64", "10.5.255.0/24,fd05:0:0:ff::/64", 255},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := mustConfig(t, tt.config).Pool()
			if p.Len() != tt.size || p.At(0).String() != tt.first || p.At(tt.size-1).String() != tt.last {
				t.Errorf("%d subnets from %s to %s, want %d from %s to %s", p.Len(), p.At(0), p.At(tt.size-1), tt.size, tt.first, tt.last)
			}
		})
	}
	endless := mustConfig(t, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/16","IPv6SubnetLen":126}`).Pool()
	if endless.Len() != math.MaxUint64 || endless.At(math.MaxUint64-1).String() != "fd05::3:ffff:ffff:ffff:fffc/126" {
		t.Errorf("%d subnets, the last one that has a number is %s", endless.Len(), endless.At(math.MaxUint64-1))
	}
	if (&Config{}).Pool().Len() != 0 || (&Config{}).Pool().Contains(Subnet{}) {
		t.Error("no family, but subnets")
	}
}

func TestPoolContains(t *testing.T) {
	p := mustConfig(t, `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48"}`).Pool()
	for key, want := range map[string]struct{ fits, contains bool }{
		"10.5.1.0-24&fd05:0:0:1::-64":    {true, true},
		"10.5.1.0-24&fd05:0:0:2::-64":    {true, false}, // flannel's choice: to keep, not to create
		"10.5.0.0-24&fd05::-64":          {},            // below the minimum
		"10.5.1.0-24":                    {},
		"0.0.0.0-0&fd05:0:0:1::-64":      {},
		"10.5.1.0-25&fd05:0:0:1::-64":    {},
		"10.5.1.0-24&fd05:0:0:1::-65":    {},
		"10.6.1.0-24&fd05:0:0:1::-64":    {},
		"10.5.1.0-24&fd05:0:1:1::-64":    {},
		"10.5.9.0-24&fd05:0:0:ffff::-64": {true, false},
	} {
		s, err := ParseSubnet(key)
		if err != nil {
			t.Fatal(err)
		}
		if p.Fits(s) != want.fits || p.Contains(s) != want.contains {
			t.Errorf("%s: fits %v, contains %v, want %+v", s, p.Fits(s), p.Contains(s), want)
		}
	}
}

// The free subnets are exactly those that overlap nothing taken, each of them
// once, from the start on and around: compared with the plainest way to say so.
func TestPoolFree(t *testing.T) {
	pools := []Pool{
		mustConfig(t, `{"Network":"10.5.0.0/24","SubnetLen":28}`).Pool(),
		mustConfig(t, `{"Network":"10.5.0.0/24","SubnetLen":29,"SubnetMin":"10.5.0.32","SubnetMax":"10.5.0.232"}`).Pool(),
		mustConfig(t, `{"Network":"10.5.0.0/24","SubnetLen":28,"EnableIPv6":true,"IPv6Network":"fd05::/56"}`).Pool(),
	}
	around := [...][]string{IPv4: {"10.5.0.0", "10.4.255.240", "10.5.1.0"}, IPv6: {"fd05::", "fd05:0:0:80::", "fd06::"}}
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom(pools).Draw(t, "pool")
		taken := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netip.Prefix {
			f := rapid.SampledFrom([]Family{IPv4, IPv6}).Draw(t, "family")
			base := numberOf(netip.MustParseAddr(rapid.SampledFrom(around[f]).Draw(t, "base")))
			shift := uint(0)
			if f == IPv6 {
				shift = 64
			}
			like := netip.MustParseAddr(around[f][0])
			a := base.add(number{lo: rapid.Uint64Range(0, 255).Draw(t, "offset")}.shl(shift)).addr(like)
			return netip.PrefixFrom(a, rapid.IntRange(f.Bits()/4, f.Bits()).Draw(t, "bits"))
		}), 0, 12).Draw(t, "taken")
		start := rapid.Uint64Range(0, p.Len()-1).Draw(t, "start")

		var want []Subnet
		for i := range p.Len() {
			s := p.At((start + i) % p.Len())
			if !slices.ContainsFunc(taken, func(q netip.Prefix) bool { return q.Overlaps(s[IPv4]) || q.Overlaps(s[IPv6]) }) {
				want = append(want, s)
			}
		}
		occupied := p.Taken(slices.Values(taken))
		got := slices.Collect(p.Free(start, occupied))
		if !slices.Equal(got, want) {
			t.Fatalf("from %d with %v taken: %v, want %v", start, taken, got, want)
		}
		if occupied.Len()+uint64(len(got)) != p.Len() {
			t.Fatalf("%d taken and %d free of %d", occupied.Len(), len(got), p.Len())
		}
	})
}

// Of two subnets of a pool either both halves differ or none: the reason why an
// absent key proves that a subnet is free.
func TestPoolIsDisjoint(t *testing.T) {
	p := mustConfig(t, `{"Network":"10.5.0.0/22","EnableIPv6":true,"IPv6Network":"fd05::/60","SubnetLen":26}`).Pool()
	for i := range p.Len() {
		for j := range i {
			if p.At(i).Overlaps(p.At(j)) {
				t.Errorf("%s overlaps %s", p.At(i), p.At(j))
			}
		}
	}
}

func TestPoolStart(t *testing.T) {
	p := mustConfig(t, `{"Network":"10.5.0.0/16"}`).Pool()
	// A golden value: hosts that are upgraded must not move.
	if got := p.Start("3f2b5a0c"); got != 254 {
		t.Errorf("Start = %d, want 254: every host would change its subnet", got)
	}
	seen := map[uint64]int{}
	for i := range 255 {
		seen[p.Start(NodeID([]byte{byte('a' + i/16), byte('a' + i%16)}))]++
	}
	// 255 balls thrown into 255 bins fill 161 of them on average.
	if len(seen) < 130 {
		t.Errorf("255 nodes start at only %d places", len(seen))
	}
}

func BenchmarkPoolTaken(b *testing.B) {
	p := mustConfig(b, `{"Network":"10.0.0.0/8"}`).Pool()
	var prefixes []netip.Prefix
	for i := range uint64(10000) {
		prefixes = append(prefixes, p.At(i * 5 % p.Len())[IPv4])
	}
	for b.Loop() {
		taken := p.Taken(slices.Values(prefixes))
		for range p.Free(0, taken) {
			break
		}
	}
}
