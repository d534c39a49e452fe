package subnet

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// slowly is what differences finds, by looking at everything.
func slowly(old, now leaseList) []Difference {
	var d []Difference
	for e := range old.all() {
		if n := now.get(e.lease.Subnet); n == nil {
			d = append(d, Difference{Old: e.lease})
		} else if n.lease != e.lease {
			d = append(d, Difference{Old: e.lease, New: n.lease})
		}
	}
	for e := range now.all() {
		if old.get(e.lease.Subnet) == nil {
			d = append(d, Difference{New: e.lease})
		}
	}
	key := func(x Difference) Subnet {
		if x.Old.Subnet.IsZero() {
			return x.New.Subnet
		}
		return x.Old.Subnet
	}
	slices.SortFunc(d, func(x, y Difference) int { return key(x).Compare(key(y)) })
	return d
}

func TestDifferences(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		change := func(l leaseList, label string) leaseList {
			for range rapid.IntRange(0, 300).Draw(t, label) {
				s := numbered(rapid.IntRange(0, 600).Draw(t, "subnet"), 24)
				switch rapid.IntRange(0, 3).Draw(t, "what") {
				case 0:
					l = l.remove(s)
				case 1: // held: it is in effect all the same
					if e := l.get(s); e != nil {
						l = l.put(&entry{lease: e.lease, gone: true})
					}
				default:
					l = l.put(&entry{lease: Lease{Subnet: s, Modified: Revision(rapid.IntRange(0, 3).Draw(t, "revision"))}})
				}
			}
			return l
		}
		old := change(leaseList{}, "before")
		now := change(old, "after")
		if rapid.Bool().Draw(t, "rebuilt") {
			now = listOf(slices.Collect(now.all()))
		}
		got, _ := differences(old, now)
		if diff := cmp.Diff(slowly(old, now), got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

// What one change costs does not depend on how many leases there are.
func TestDifferencesLookAtLittle(t *testing.T) {
	for _, count := range []int{1000, 60_000} {
		var all []*entry
		for i := range count {
			all = append(all, &entry{lease: Lease{Subnet: numbered(i, 24)}})
		}
		old := listOf(all)
		now := old.put(&entry{lease: Lease{Subnet: numbered(count/2, 24), Modified: 7}}).remove(numbered(3, 24)).put(&entry{lease: Lease{Subnet: numbered(count+5, 24)}})
		d, looked := differences(old, now)
		if len(d) != 3 || looked > 4*chunkLen {
			t.Errorf("%d leases: %d differences, %d looked at", count, len(d), looked)
		}
	}
}
