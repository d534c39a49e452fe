package subnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func numbered(i, bits int) Subnet {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 10<<24|uint32(i)<<8)
	return Subnet{IPv4: netip.PrefixFrom(netip.AddrFrom4(b), bits).Masked()}
}

// A list is a sorted map, and older lists do not notice what younger ones do.
func TestLeaseListIsPersistent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l leaseList
		model := map[Subnet]*entry{}
		var oldList leaseList
		var oldContent []*entry
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				content := slices.Collect(l.all())
				if l.len != len(model) || len(content) != len(model) {
					t.Fatalf("len %d, %d entries, want %d", l.len, len(content), len(model))
				}
				if !slices.IsSortedFunc(content, func(a, b *entry) int { return a.lease.Subnet.Compare(b.lease.Subnet) }) {
					t.Fatal("not sorted")
				}
				for s, e := range model {
					if l.get(s) != e {
						t.Fatalf("%s is %v, want %v", s, l.get(s), e)
					}
				}
				if now := slices.Collect(oldList.all()); !slices.Equal(now, oldContent) {
					t.Fatal("an older list changed")
				}
			},
			"put": func(t *rapid.T) {
				for range rapid.IntRange(1, 200).Draw(t, "times") {
					e := &entry{lease: Lease{Subnet: numbered(rapid.IntRange(0, 2000).Draw(t, "subnet"), 24)}}
					l, model[e.lease.Subnet] = l.put(e), e
				}
			},
			"remove": func(t *rapid.T) {
				for range rapid.IntRange(1, 200).Draw(t, "times") {
					s := numbered(rapid.IntRange(0, 2000).Draw(t, "subnet"), 24)
					l = l.remove(s)
					delete(model, s)
				}
			},
			"remember": func(*rapid.T) { oldList, oldContent = l, slices.Collect(l.all()) },
			"rebuild":  func(*rapid.T) { l = listOf(slices.Collect(l.all())) },
		})
	})
}

// The index finds what a search through everything finds.
func TestOverlapIndex(t *testing.T) {
	gen := rapid.Custom(func(t *rapid.T) Subnet {
		s := numbered(rapid.IntRange(0, 15).Draw(t, "subnet"), rapid.SampledFrom([]int{22, 24, 24, 24, 25}).Draw(t, "bits"))
		if rapid.Bool().Draw(t, "dual") {
			a := numberOf(netip.MustParseAddr("fd05::")).add(number{lo: rapid.Uint64Range(0, 7).Draw(t, "v6")}.shl(64))
			s[IPv6] = netip.PrefixFrom(a.addr(netip.IPv6Unspecified()), rapid.SampledFrom([]int{62, 64}).Draw(t, "bits6")).Masked()
		}
		return s
	})
	rapid.Check(t, func(t *rapid.T) {
		x := newOverlapIndex()
		set := map[Subnet]bool{}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			if s := gen.Draw(t, "subnet"); rapid.IntRange(0, 2).Draw(t, "remove") == 0 {
				x.remove(s)
				delete(set, s)
			} else {
				x.add(s)
				set[s] = true
			}
		}
		s := gen.Draw(t, "query")
		var want []Subnet
		for o := range set {
			if o != s && o.Overlaps(s) {
				want = append(want, o)
			}
		}
		got := x.overlapping(s)
		slices.SortFunc(got, Subnet.Compare)
		slices.SortFunc(want, Subnet.Compare)
		if !slices.Equal(got, want) {
			t.Fatalf("%s in %v: %v, want %v", s, set, got, want)
		}
		for o := range set {
			x.remove(o)
		}
		for f := range x {
			if len(x[f].owners)+len(x[f].lengths) != 0 {
				t.Fatalf("emptied, but %v", x[f])
			}
		}
	})
}

// One change among 10,000 leases, with the snapshot that readers get.
func BenchmarkProjectionPut(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := newProjection("", defaultHold, newHearing(DefaultTTL, 0))
			w := World{Identity: "x", Revision: 1, Config: Document{Text: "{}"}}
			for i := range n {
				w.Leases = append(w.Leases, Lease{Subnet: numbered(i, 24)})
			}
			p.load(w, 0)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				p.apply(Batch{Revision: Revision(i), Put: []Lease{{Subnet: numbered(i*7%n, 24), Modified: Revision(i)}}}, 0)
				p.snapshot()
			}
		})
	}
}
