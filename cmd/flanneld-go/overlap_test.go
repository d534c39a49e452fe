package main

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// drawSubnet draws one of few, of either family or both, mostly of one length.
func drawSubnet(t *rapid.T) subnet.Subnet {
	var s subnet.Subnet
	families := rapid.SampledFrom([]string{"both", "both", "both", "4", "6"}).Draw(t, "families")
	if families != "6" {
		a := netip.AddrFrom4([4]byte{10, 5, rapid.Byte().Draw(t, "third"), 0})
		s[subnet.IPv4] = netip.PrefixFrom(a, rapid.SampledFrom([]int{24, 24, 24, 23, 25}).Draw(t, "bits")).Masked()
	}
	if families != "4" {
		a := netip.AddrFrom16([16]byte{0xfd, 5, 7: rapid.ByteMax(31).Draw(t, "eighth")})
		s[subnet.IPv6] = netip.PrefixFrom(a, rapid.SampledFrom([]int{64, 64, 64, 62, 66}).Draw(t, "bits6")).Masked()
	}
	return s
}

// Whether a peer that comes overlaps another is found among neighbours and by looking up,
// as if all were compared, however many came and went before.
func TestOverlapsAreFound(t *testing.T) {
	overlapping, apart := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		l := &loop{}
		l.path.follow.ranges6 = rangesOf(nil)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			if len(l.path.peers) > 0 && rapid.IntRange(0, 3).Draw(t, "leave") == 0 {
				gone := *rapid.SampledFrom(l.path.peers).Draw(t, "gone")
				c := backend.Change{Old: []subnet.Lease{gone}}
				l.replacePeers(c)
				continue
			}
			c := backend.Change{New: []subnet.Lease{{Subnet: drawSubnet(t)}}}
			if _, found := findPeer(l.path.peers, c.New[0].Subnet); found {
				continue
			}
			want := slices.ContainsFunc(l.path.peers, func(p *subnet.Lease) bool { return p.Subnet.Overlaps(c.New[0].Subnet) })
			if got := l.overlaps(c); got != want {
				t.Fatalf("%s overlaps: %t, want %t", c.New[0].Subnet, got, want)
			}
			if want {
				overlapping++
				continue
			}
			apart++
			l.replacePeers(c)
		}
		if fresh := rangesOf(l.path.peers); len(fresh.count) != len(l.path.follow.ranges6.count) || len(fresh.bits) != len(l.path.follow.ranges6.bits) {
			t.Fatalf("%d subnets of %d lengths, want %d of %d", len(l.path.follow.ranges6.count), len(l.path.follow.ranges6.bits), len(fresh.count), len(fresh.bits))
		}
	})
	if overlapping == 0 || apart == 0 {
		t.Errorf("%d overlapped and %d did not, want both", overlapping, apart)
	}
}

// A peer whose IPv6 subnet alone is in another's gets no path by following either.
func TestOverlapOfTheSecondFamily(t *testing.T) {
	l := &loop{daemon: &daemon{clock: bubbleClock{}}, snap: &subnet.Snapshot{}}
	l.config.current = &subnet.Config{Ranges: subnet.ByFamily[subnet.Range]{
		{Network: netip.MustParsePrefix("10.5.0.0/16")}, {Network: netip.MustParsePrefix("fd05::/48")},
	}}
	peer := func(s4, s6 string) *subnet.Lease {
		return &subnet.Lease{Subnet: subnet.Subnet{netip.MustParsePrefix(s4), netip.MustParsePrefix(s6)}}
	}
	l.path.peers = []*subnet.Lease{peer("10.5.1.0/24", "fd05:0:0:9::/64"), peer("10.5.2.0/24", "fd05:0:0:2::/64"), peer("10.5.3.0/24", "fd05:0:0:3::/64")}
	l.beginToFollow()
	for s6, want := range map[string]bool{"fd05:0:0:9::/64": true, "fd05:0:0:8::/63": true, "fd05:0:0:9:8000::/65": true, "fd05:0:0:a::/64": false} {
		if got := l.overlaps(backend.Change{New: []subnet.Lease{*peer("10.5.200.0/24", s6)}}); got != want {
			t.Errorf("%s overlaps: %t, want %t", s6, got, want)
		}
	}
}
