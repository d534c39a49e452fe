package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func testConfig(t interface{ Fatal(...any) }, text string) *subnet.Config {
	cfg, err := subnet.ParseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func testLease(prefix, public string, created subnet.Revision) subnet.Lease {
	var l subnet.Lease
	l.Subnet[subnet.IPv4] = netip.MustParsePrefix(prefix)
	l.Attrs.PublicIP[subnet.IPv4] = netip.MustParseAddr(public)
	l.Attrs.Owner = subnet.NodeID("node " + public)
	l.ID, l.Created = 1, created
	return l
}

func TestSelectPeers(t *testing.T) {
	cfg := testConfig(t, `{"Network":"10.5.0.0/16"}`)
	me := self{
		node:   "me",
		public: subnet.ByFamily[netip.Addr]{netip.MustParseAddr("198.18.0.1")},
		subnet: subnet.Subnet{netip.MustParsePrefix("10.5.1.0/24")},
	}
	mine := testLease("10.5.9.0/24", "198.18.0.1", 1)
	mine.Attrs.Owner = "me"
	tests := []struct {
		name    string
		leases  []subnet.Lease
		peers   []string
		refused map[string]string
	}{
		{name: "none"},
		{
			name:   "sorted by address",
			leases: []subnet.Lease{testLease("10.5.30.0/24", "198.18.0.3", 1), testLease("10.5.4.0/24", "198.18.0.2", 2)},
			peers:  []string{"10.5.4.0/24", "10.5.30.0/24"},
		},
		{
			name:   "our own leases",
			leases: []subnet.Lease{testLease("10.5.1.0/24", "198.18.0.1", 1), mine},
		},
		{
			name:    "an overlap with ours",
			leases:  []subnet.Lease{testLease("10.5.0.0/22", "198.18.0.2", 1)},
			refused: map[string]string{"10.5.0.0/22": "overlaps our own subnet 10.5.1.0/24"},
		},
		{
			name:    "outside the network",
			leases:  []subnet.Lease{testLease("10.6.1.0/24", "198.18.0.2", 1), testLease("10.0.0.0/8", "198.18.0.3", 1)},
			refused: map[string]string{"10.6.1.0/24": "lies outside the network 10.5.0.0/16", "10.0.0.0/8": "overlaps our own subnet 10.5.1.0/24"},
		},
		{
			name:    "our address under another subnet",
			leases:  []subnet.Lease{testLease("10.5.7.0/24", "198.18.0.1", 1)},
			refused: map[string]string{"10.5.7.0/24": "publishes this host's own address: a stale key, or two hosts with one --public-ip"},
		},
		{
			name:    "two peers overlap: the first to lease stays",
			leases:  []subnet.Lease{testLease("10.5.8.0/22", "198.18.0.2", 5), testLease("10.5.9.0/24", "198.18.0.3", 4)},
			peers:   []string{"10.5.9.0/24"},
			refused: map[string]string{"10.5.8.0/22": "overlaps 10.5.9.0/24, which 198.18.0.3 leased earlier"},
		},
		{
			name: "a wide lease between narrow ones",
			leases: []subnet.Lease{
				testLease("10.5.8.0/22", "198.18.0.2", 1), testLease("10.5.8.0/24", "198.18.0.3", 2), testLease("10.5.11.0/24", "198.18.0.4", 3),
			},
			peers: []string{"10.5.8.0/22"},
			refused: map[string]string{
				"10.5.8.0/24":  "overlaps 10.5.8.0/22, which 198.18.0.2 leased earlier",
				"10.5.11.0/24": "overlaps 10.5.8.0/22, which 198.18.0.2 leased earlier",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			peers, refused := selectPeers(cfg, me, subnet.Each(tt.leases))
			var got []string
			for _, p := range peers {
				got = append(got, p.Subnet.String())
			}
			why := map[string]string{}
			for _, r := range refused {
				why[r.lease.Subnet.String()] = r.why
			}
			if diff := cmp.Diff(tt.peers, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("peers (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.refused, why, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}

// A reservation that waits for its host is no peer that lacks a path. One that
// some host of udp uses reads the same as one that waits.
func TestSelectPeersLeavesOutWhoIsAwaited(t *testing.T) {
	me := self{node: "me", public: subnet.ByFamily[netip.Addr]{netip.MustParseAddr("198.18.0.1")}, subnet: subnet.Subnet{netip.MustParsePrefix("10.5.1.0/24")}}
	reserved := func(prefix string, a subnet.Attrs) subnet.Lease {
		return subnet.Lease{Subnet: subnet.Subnet{netip.MustParsePrefix(prefix)}, Attrs: a}
	}
	at := func(addr string) subnet.Attrs {
		return subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{netip.MustParseAddr(addr)}}
	}
	taken := at("198.18.0.4")
	taken.BackendType, taken.Owner, taken.Instance = "vxlan", "b", "x"
	leased := reserved("10.5.6.0/24", at("198.18.0.5"))
	leased.ID = 1
	leases := []subnet.Lease{
		reserved("10.5.2.0/24", subnet.Attrs{Owner: "a"}),
		reserved("10.5.3.0/24", at("198.18.0.3")),
		reserved("10.5.4.0/24", taken),
		reserved("10.5.5.0/24", at("198.18.0.1")), // ours, from the next start on
		leased,
	}
	for backend, want := range map[string][]string{
		"vxlan": {"10.5.4.0/24", "10.5.6.0/24"},
		"udp":   {"10.5.3.0/24", "10.5.4.0/24", "10.5.6.0/24"},
	} {
		peers, refused := selectPeers(testConfig(t, `{"Network":"10.5.0.0/16","Backend":{"Type":"`+backend+`"}}`), me, subnet.Each(leases))
		var got []string
		for _, p := range peers {
			got = append(got, p.Subnet.String())
		}
		if diff := cmp.Diff(want, got); diff != "" || len(refused) > 0 {
			t.Errorf("%s: peers (-want +got):\n%s; refused: %v", backend, diff, refused)
		}
	}
}

// Whatever is in etcd, no two paths overlap, none overlaps ours, and each lease
// is either a path, refused, or ours.
func TestSelectPeersNeverOverlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := testConfig(t, `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48"}`)
		draw := func(label string) subnet.Subnet {
			bits := rapid.IntRange(20, 28).Draw(t, label+" length")
			a := netip.AddrFrom4([4]byte{10, 5, byte(rapid.IntRange(0, 15).Draw(t, label)), byte(rapid.IntRange(0, 255).Draw(t, label))})
			s := subnet.Subnet{netip.PrefixFrom(a, bits).Masked()}
			if rapid.Bool().Draw(t, label+" dual") {
				v6 := netip.AddrFrom16([16]byte{0xfd, 5, 7: byte(rapid.IntRange(0, 15).Draw(t, label+" v6"))})
				s[subnet.IPv6] = netip.PrefixFrom(v6, rapid.IntRange(60, 64).Draw(t, label+" v6 length")).Masked()
			}
			return s
		}
		me := self{node: "me", subnet: draw("own")}
		var leases []subnet.Lease
		for range rapid.IntRange(0, 12).Draw(t, "leases") {
			leases = append(leases, subnet.Lease{Subnet: draw("peer"), ID: 1, Created: subnet.Revision(rapid.IntRange(1, 9).Draw(t, "created"))})
		}
		peers, refused := selectPeers(cfg, me, subnet.Each(leases))
		ours := 0
		for _, l := range leases {
			if l.Subnet == me.subnet {
				ours++
			}
		}
		if len(peers)+len(refused)+ours != len(leases) {
			t.Fatalf("%d peers, %d refused, %d ours of %d leases", len(peers), len(refused), ours, len(leases))
		}
		for i, p := range peers {
			if p.Subnet.Overlaps(me.subnet) {
				t.Fatalf("%s overlaps ours, %s", p.Subnet, me.subnet)
			}
			for _, q := range peers[i+1:] {
				if p.Subnet.Overlaps(q.Subnet) {
					t.Fatalf("%s overlaps %s", p.Subnet, q.Subnet)
				}
			}
		}
	})
}
