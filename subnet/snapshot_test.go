package subnet

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A peer of two families that is known by its paths alone keeps both while its key
// cannot be read, and is what the key says as soon as it can.
func TestUnreadableKeyOfAPeerKnownByItsPaths(t *testing.T) {
	both := Subnet{IPv4: netip.MustParsePrefix("10.5.1.0/24"), IPv6: netip.MustParsePrefix("fd05:0:0:1::/64")}
	path := func(f Family, addr string) Lease {
		l := Lease{Attrs: Attrs{BackendType: "vxlan"}}
		l.Subnet[f], l.Attrs.PublicIP[f], l.Attrs.BackendData[f] = both[f], netip.MustParseAddr(addr), RawJSON(fmt.Sprintf(`{"of":%d}`, f))
		return l
	}
	v4, v6 := path(IPv4, "198.18.0.2"), path(IPv6, "fd00::2")
	whole := Lease{Subnet: both, Attrs: Attrs{BackendType: "vxlan"}}
	for f, l := range []Lease{v4, v6} {
		whole.Attrs.PublicIP[f], whole.Attrs.BackendData[f] = l.Attrs.PublicIP[f], l.Attrs.BackendData[f]
	}
	half := whole
	half.Attrs.PublicIP[IPv4], half.Attrs.BackendData[IPv4] = netip.Addr{}, ""
	for _, tt := range []struct {
		name  string
		known []Lease
		want  Lease
	}{
		{"both paths", []Lease{v4, v6}, whole},
		{"one path", []Lease{v6}, half},
		{"a lease", []Lease{whole}, whole},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := Document{Text: "{}", Modified: 1}
			p := newProjection("", defaultHold, newHearing(time.Hour, 0))
			p.load(World{Identity: "one", Revision: 10, Config: config, Leases: tt.known}, 0)
			p.partial = true
			p.load(World{Identity: "one", Revision: 20, Config: config, Bad: []BadKey{{Key: both.Key(), Occupies: both, Modified: 15}}}, 0)
			if n := p.snapshot().Len(); n != 1 {
				t.Errorf("%d leases of one peer", n)
			}
			p.release(time.Minute)
			sameAddr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
			samePrefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
			if d := cmp.Diff([]Lease{tt.want}, copied(p.snapshot()), sameAddr, samePrefix); d != "" {
				t.Errorf("while unreadable: -want +got\n%s", d)
			}
			read := whole
			read.Created, read.Modified, read.ID = 12, 21, 7
			p.apply(Batch{Revision: 21, Put: []Lease{read}}, time.Minute)
			if d := cmp.Diff([]Lease{read}, copied(p.snapshot()), sameAddr, samePrefix); d != "" {
				t.Errorf("when readable: -want +got\n%s", d)
			}
		})
	}
}

// A full load says again what is known as a rule, of thousands of leases.
func TestLoadSharesWhatItConfirms(t *testing.T) {
	lease := func(n byte, instance string) Lease {
		return Lease{Subnet: Subnet{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, n, 0}), 24)}, Attrs: Attrs{Instance: instance}, Created: 5, Modified: 5, ID: 1}
	}
	p := newProjection("", defaultHold, newHearing(time.Hour, 0))
	w := World{Identity: "one", Revision: 10, Config: Document{Text: "{}", Modified: 1}, Leases: []Lease{lease(1, "a"), lease(2, "a"), lease(3, "a"), lease(4, "a")}}
	p.load(w, 0)
	before := slices.Collect(p.snapshot().Leases())
	p.delete(w.Leases[2].Subnet.Key(), 0)
	w.Revision, w.Leases = 20, slices.Clone(w.Leases[:3])
	w.Leases[1].Attrs.Instance, w.Leases[1].Modified = "b", 15
	p.load(w, 0)
	after := p.snapshot()
	now := slices.Collect(after.Leases())
	if len(now) != 4 || now[0] != before[0] {
		t.Errorf("%d leases; what is the same is not shared", len(now))
	}
	if now[1].Attrs.Instance != "b" || before[1].Attrs.Instance != "a" {
		t.Errorf("%+v instead of %+v", now[1], before[1])
	}
	for i, stored := range []bool{true, true, true, false} {
		if _, ok := after.Stored(before[i].Subnet); ok != stored {
			t.Errorf("%s is in the store: %v", before[i].Subnet, ok)
		}
	}
}

func copied(s *Snapshot) []Lease {
	var all []Lease
	for l := range s.Leases() {
		all = append(all, *l)
	}
	return all
}

// So it does when its key came to be unreadable after the first load, which lacked it.
// What is half of it by another key of the store stays that key's.
func TestKeyBecomesUnreadable(t *testing.T) {
	both := Subnet{IPv4: netip.MustParsePrefix("10.5.1.0/24"), IPv6: netip.MustParsePrefix("fd05:0:0:1::/64")}
	path := func(f Family, addr string) Lease {
		l := Lease{Attrs: Attrs{BackendType: "vxlan"}}
		l.Subnet[f], l.Attrs.PublicIP[f] = both[f], netip.MustParseAddr(addr)
		return l
	}
	v4, v6 := path(IPv4, "198.18.0.2"), path(IPv6, "fd00::2")
	whole := Lease{Subnet: both, Attrs: Attrs{BackendType: "vxlan", PublicIP: ByFamily[netip.Addr]{v4.Attrs.PublicIP[IPv4], v6.Attrs.PublicIP[IPv6]}}}
	alone := v4
	alone.Created, alone.Modified = 12, 12
	half := whole
	half.Attrs.PublicIP[IPv4] = netip.Addr{}
	for _, tt := range []struct {
		name          string
		known, stored []Lease
		want          []Lease
	}{
		{"both paths", []Lease{v4, v6}, nil, []Lease{whole}},
		{"another's key", []Lease{v6}, []Lease{alone}, []Lease{alone, half}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := Document{Text: "{}", Modified: 1}
			p := newProjection("", defaultHold, newHearing(time.Hour, 0))
			p.load(World{Identity: "one", Revision: 10, Config: config, Leases: tt.known}, 0)
			p.partial = true
			p.load(World{Identity: "one", Revision: 20, Config: config, Leases: tt.stored}, 0)
			p.apply(Batch{Revision: 21, Bad: []BadKey{{Key: both.Key(), Occupies: both, Modified: 21}}}, time.Second)
			p.release(time.Minute)
			got := copied(p.snapshot())
			if !slices.Equal(got, tt.want) {
				t.Errorf("leases: %+v, want %+v", got, tt.want)
			}
			p.apply(Batch{Revision: 22, Deleted: []string{both.Key()}}, time.Minute)
			p.release(2 * time.Minute)
			if got := copied(p.snapshot()); !slices.Equal(got, tt.stored) {
				t.Errorf("when it was deleted: %+v, want %+v", got, tt.stored)
			}
		})
	}
}

// What is held for long after a disaster makes nothing longer that is deleted later.
func TestHeldLongAndBriefly(t *testing.T) {
	config := Document{Text: "{}", Modified: 1}
	lease := func(n byte) Lease {
		return Lease{Subnet: Subnet{IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, n}), 24)}, Created: 2, Modified: 2}
	}
	h := newHearing(time.Hour, 0)
	h.heard(0)
	p := newProjection("", defaultHold, h)
	p.load(World{Identity: "one", Revision: 10, Config: config, Leases: []Lease{lease(1), lease(2)}}, 0)
	p.distrust()
	p.load(World{Identity: "one", Revision: 11, Config: config, Leases: []Lease{lease(2)}}, time.Second)
	p.load(World{Identity: "one", Revision: 12, Config: config}, time.Minute)
	p.release(time.Minute + defaultHold)
	s := p.snapshot()
	if got := copied(s); len(got) != 1 || got[0] != lease(1) || s.Held != time.Second+time.Hour {
		t.Errorf("held until %s is %+v", s.Held, got)
	}
}

// One deleted lease ends when its time has come. Of many some end together, none too early
// and none more than releaseEvery late.
func TestReleaseTogether(t *testing.T) {
	config := Document{Text: "{}", Modified: 1}
	const count, apart = 100, 10 * time.Millisecond
	var leases []Lease
	for n := range byte(count) {
		leases = append(leases, Lease{Subnet: Subnet{IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, n}), 24)}, Created: 2, Modified: 2})
	}
	h := newHearing(time.Hour, 0)
	h.heard(0)
	p := newProjection("", defaultHold, h)
	p.load(World{Identity: "one", Revision: 10, Config: config, Leases: leases}, 0)
	for n, l := range leases {
		p.apply(Batch{Revision: Revision(11 + n), Deleted: []string{l.Subnet.Key()}}, time.Duration(n)*apart)
	}
	ends, ended := 0, map[int]bool{}
	for p.leases.len > 0 {
		now, ok := p.nextRelease()
		if !ok || ends == 0 && now != defaultHold {
			t.Fatalf("%d leases are held, the next until %s, %t", p.leases.len, now, ok)
		}
		if !p.release(now) {
			t.Fatalf("%d leases are held, and none ends at %s", p.leases.len, now)
		}
		ends++
		for n, l := range leases {
			if ended[n] || p.leases.get(l.Subnet) != nil {
				continue
			}
			ended[n] = true
			if late := now - defaultHold - time.Duration(n)*apart; late < 0 || late >= releaseEvery {
				t.Errorf("lease %d ended %s late", n, late)
			}
		}
	}
	if most := int(count*apart/releaseEvery) + 1; ends > most {
		t.Errorf("%d leases ended at %d times, want at most %d", count, ends, most)
	}
}
