package kernel

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestNotation(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	mac := MAC{0x5e, 0xca, 0xce, 0xaa, 0x6f, 0xaf}
	for want, entry := range map[string]fmt.Stringer{
		"10.5.72.0/32 dev if4":                        Addr{4, p("10.5.72.0/32")},
		"10.5.3.0 dev if4 lladdr 5e:ca:ce:aa:6f:af":   Neighbour{4, a("10.5.3.0"), mac},
		"5e:ca:ce:aa:6f:af dev if4 dst 198.18.0.2":    FDB{4, mac, a("198.18.0.2")},
		"10.5.3.0/24 via 10.5.3.0 dev if4 onlink":     Route{Dst: p("10.5.3.0/24"), Gateway: a("10.5.3.0"), Link: 4, OnLink: true},
		"default via 198.18.0.254 dev if2 proto 16":   Route{Dst: p("0.0.0.0/0"), Gateway: a("198.18.0.254"), Link: 2, Protocol: 16},
		"10.0.0.0/8 dev if2 src 10.1.0.1 metric 4096": Route{Dst: p("10.0.0.0/8"), Link: 2, Src: a("10.1.0.1"), Metric: 4096, Protocol: Protocol},
		"blackhole fd05::/48":                         Route{Dst: p("fd05::/48"), Blackhole: true},
		"link+overrun":                                TopicLink | TopicOverrun,
		"neighbour":                                   TopicNeighbour,
	} {
		if got := entry.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestParseMAC(t *testing.T) {
	if got, err := ParseMAC("5e:CA:ce:aa:6f:af"); err != nil || got != (MAC{0x5e, 0xca, 0xce, 0xaa, 0x6f, 0xaf}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, s := range []string{"", "5e:ca:ce:aa:6f", "02:00:5e:10:00:00:00:01", "flannel"} {
		if got, err := ParseMAC(s); err == nil {
			t.Errorf("parse %q: got %v", s, got)
		}
	}
}
