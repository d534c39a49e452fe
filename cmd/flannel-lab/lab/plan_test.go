package lab

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlan(t *testing.T) {
	for _, tc := range []struct {
		name           string
		hosts, number  int
		want, gateways []string
	}{
		{"first of a few", 3, 1, []string{"198.18.0.1/24", "fd00:198:18::1/64"}, []string{"198.18.0.254/24", "fd00:198:18::fe/64"}},
		{"last of the small plan", 244, 244, []string{"198.18.0.244/24", "fd00:198:18::f4/64"}, []string{"198.18.0.254/24", "fd00:198:18::fe/64"}},
		{"first of many", 245, 1, []string{"198.18.0.1/16", "fd00:198:18::1/64"}, []string{"198.18.255.254/16", "fd00:198:18::fffe/64"}},
		{"across a byte", 1000, 1000, []string{"198.18.3.232/16", "fd00:198:18::3e8/64"}, []string{"198.18.255.254/16", "fd00:198:18::fffe/64"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := planFor(tc.hosts)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, texts(p.host(tc.number))); diff != "" {
				t.Errorf("host addresses (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.gateways, texts(p.gateways[:])); diff != "" {
				t.Errorf("gateways (-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever the number of hosts, no two hosts or members of a lab share an address,
// nor does one have the gateway's, and all lie in the ranges that nobody routes.
func TestPlanGivesEveryoneAnAddress(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fd00:198:18::/64")}
	for _, hosts := range []int{1, smallHosts, smallHosts + 1, MaxHosts} {
		p, err := planFor(hosts)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[netip.Addr]bool{p.gateways[0].Addr(): true, p.gateways[1].Addr(): true}
		check := func(who string, addrs []netip.Prefix) {
			for f, prefix := range addrs {
				if seen[prefix.Addr()] {
					t.Errorf("%d hosts: %s: address %s is taken", hosts, who, prefix)
				}
				seen[prefix.Addr()] = true
				if !ranges[f].Contains(prefix.Addr()) || !p.gateways[f].Masked().Contains(prefix.Addr()) {
					t.Errorf("%d hosts: %s: address %s is outside %s or the segment", hosts, who, prefix, ranges[f])
				}
			}
		}
		for number := 1; number <= hosts; number++ {
			check(fmt.Sprintf("host %d", number), p.host(number))
		}
		for number := 1; number <= MaxMembers; number++ {
			check(fmt.Sprintf("member %d", number), p.member(number))
		}
	}
}

func TestPlanRefusesNumbers(t *testing.T) {
	for _, hosts := range []int{-1, 0, MaxHosts + 1} {
		if _, err := planFor(hosts); err == nil {
			t.Errorf("planFor(%d) succeeds", hosts)
		}
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "demo": true, "t-1": true, "a23456789-123456789-123456789-": true,
		"": false, "1a": false, "-a": false, "Demo": false, "a/b": false, "a.b": false, "a b": false,
		"a23456789-123456789-123456789-1": false,
	} {
		if err := checkName(name); (err == nil) != ok {
			t.Errorf("checkName(%q) = %v", name, err)
		}
	}
	for namespace, owned := range map[string]bool{
		"a-sw": true, "a-h1": true, "a-c20": true, "a-e3": true,
		"a": false, "a-": false, "a-x": false, "a-h": false, "a-h0": false, "a-h01": false, "a-sw2": false, "a-e0": false,
		// Those of a lab called a-h1.
		"a-h1-sw": false, "a-h1-h2": false,
		"ba-sw": false, "": false,
	} {
		if ownsName("a", namespace) != owned {
			t.Errorf("ownsName(a, %q) = %v", namespace, !owned)
		}
	}
}

func texts(prefixes []netip.Prefix) []string {
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return out
}
