package main

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestClashes(t *testing.T) {
	lease := func(prefix, v4, v6, owner string) subnet.Lease {
		l := testLease(prefix, v4, 1)
		if v6 != "" {
			l.Attrs.PublicIP[subnet.IPv6] = netip.MustParseAddr(v6)
		}
		l.Attrs.Owner = subnet.NodeID(owner)
		return l
	}
	a := lease("10.5.1.0/24", "198.18.0.1", "", "a")
	tests := []struct {
		name   string
		leases []subnet.Lease
		want   []string
	}{
		{name: "none", leases: []subnet.Lease{a, lease("10.5.2.0/24", "198.18.0.2", "", "b")}},
		{name: "one owner with two subnets", leases: []subnet.Lease{a, lease("10.5.2.0/24", "198.18.0.1", "", "a")}},
		{name: "flannel's key of the same host", leases: []subnet.Lease{a, lease("10.5.2.0/24", "198.18.0.1", "", "")}},
		{
			name:   "two owners",
			leases: []subnet.Lease{a, lease("10.5.2.0/24", "198.18.0.1", "", "b"), lease("10.5.3.0/24", "198.18.0.3", "", "c")},
			want:   []string{"198.18.0.1: 10.5.1.0/24 of node a and 10.5.2.0/24 of node b"},
		},
		{
			name:   "in IPv6 alone",
			leases: []subnet.Lease{lease("10.5.1.0/24", "198.18.0.1", "fd00::1", "a"), lease("10.5.2.0/24", "198.18.0.2", "fd00::1", "b")},
			want:   []string{"fd00::1: 10.5.1.0/24 of node a and 10.5.2.0/24 of node b"},
		},
		{
			name:   "in both families",
			leases: []subnet.Lease{lease("10.5.1.0/24", "198.18.0.1", "fd00::1", "a"), lease("10.5.2.0/24", "198.18.0.1", "fd00::1", "b")},
			want: []string{
				"198.18.0.1: 10.5.1.0/24 of node a and 10.5.2.0/24 of node b",
				"fd00::1: 10.5.1.0/24 of node a and 10.5.2.0/24 of node b",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, c := range clashes(subnet.Each(tt.leases)) {
				got = append(got, c.addr.String()+": "+listHolders(c.leases))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A machine that was installed anew has another node id and its old address: it
// starts and works, and names what its former self left.
func TestReinstalledHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.owned("10.5.33.0-24", "198.18.0.1", "former")
		h.owned("10.5.44.0-24", "198.18.0.2", "other")
		h.start()
		defer h.stop()
		h.ready()
		own, _ := h.subnet()
		want := "this host's address 198.18.0.1 is published by another owner too: ours is " + own + " of node me, the other 10.5.33.0/24 of node former: " +
			"a lease that this machine had before it was installed anew, or two hosts with one --public-ip"
		h.eventually(soon, "the shared address is named", func() bool {
			p := h.problem(status.ComponentLease)
			return p.Message == want && !p.Blocking && p.Hint == "flannelctl release 10.5.33.0/24 --yes, if no other host has it; else give one of them another --public-ip"
		})
		s := h.board.Snapshot()
		if !s.Ready || h.problem(status.ComponentPeers) != (status.Problem{}) {
			t.Errorf("%s, ready %t; want ready, and the address said once", s.Line(), s.Ready)
		}
		shared := []status.SharedAddress{{PublicIP: "198.18.0.1", Holders: []status.Holder{{Subnet: "10.5.33.0/24", Node: "former"}, {Subnet: own, Node: "me"}}}}
		if diff := cmp.Diff(shared, s.SharedAddresses); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
		if n := scrape(t, h.board)["flanneld_shared_addresses"]; n != 1 {
			t.Errorf("metric %v, want 1", n)
		}
		if diff := cmp.Diff([]string{"10.5.44.0/24 via 198.18.0.2"}, h.routes()); diff != "" {
			t.Errorf("routes (-want +got):\n%s", diff)
		}
		h.data.DeleteKey("10.5.33.0-24")
		h.eventually(3*soon, "no problem any more", func() bool {
			return h.problem(status.ComponentLease) == status.Problem{} && h.board.Snapshot().SharedAddresses == nil
		})
	})
}

// Peers that publish one address are named with both, beside other peers'
// problems.
func TestPeersShareAnAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.owned("10.5.44.0-24", "198.18.0.2", "a")
		h.owned("10.5.45.0-24", "198.18.0.2", "b")
		h.owned("10.6.1.0-24", "198.18.0.3", "c")
		h.start()
		defer h.stop()
		h.ready()
		want := "1 of 3 peers have no path: 10.6.1.0/24 at 198.18.0.3 lies outside the network 10.5.0.0/16; " +
			"several owners publish 198.18.0.2: 10.5.44.0/24 of node a and 10.5.45.0/24 of node b"
		h.eventually(soon, "the shared address is named", func() bool {
			p := h.problem(status.ComponentPeers)
			return p.Message == want && !p.Blocking && p.Hint == "flannelctl release 10.6.1.0/24 --yes, if its host is gone; flannelctl release 10.5.44.0/24 --yes or flannelctl release 10.5.45.0/24 --yes, whichever is of a host that is gone; if none is, give one of them another --public-ip"
		})
		if h.problem(status.ComponentLease) != (status.Problem{}) {
			t.Errorf("our own lease has a problem: %+v", h.problem(status.ComponentLease))
		}
		h.data.DeleteKey("10.5.45.0-24")
		h.data.DeleteKey("10.6.1.0-24")
		h.eventually(3*soon, "no problem any more", func() bool { return h.problem(status.ComponentPeers) == status.Problem{} })
	})
}

// A lease of another owner that overlaps ours, and keys that are none, are named
// and counted, and never routed.
func TestStrangeLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.opts.onConflict = subnet.Keep
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		own, _ := h.subnet()
		wide := strings.Replace(own, "/24", "-23", 1)
		if strings.HasPrefix(own, "10.5.125.") {
			wide = "10.5.124.0-23"
		}
		h.owned(wide, "198.18.0.4", "wide")
		if _, err := h.data.Put("10.5.99.0-24", "garbage", 0); err != nil {
			t.Fatal(err)
		}
		if _, err := h.data.Put("notes", "buy milk", 0); err != nil {
			t.Fatal(err)
		}
		h.eventually(soon, "all three are named", func() bool {
			p := h.problem(status.ComponentPeers).Message
			return strings.HasPrefix(p, "1 of 1 peers have no path: "+strings.Replace(wide, "-", "/", 1)+" at 198.18.0.4 overlaps our own subnet "+own+"; 2 keys in etcd are no leases, the first: ")
		})
		var keys []string
		for _, b := range h.board.Snapshot().BadKeys {
			keys = append(keys, b.Key)
			if b.Error == "" {
				t.Errorf("%s: no reason", b.Key)
			}
		}
		if diff := cmp.Diff([]string{"10.5.99.0-24", "notes"}, keys); diff != "" {
			t.Errorf("bad keys (-want +got):\n%s", diff)
		}
		samples := scrape(t, h.board)
		if samples["flanneld_bad_keys"] != 2 || samples["flanneld_peers_failed"] != 1 {
			t.Errorf("metrics: %v bad keys, %v peers failed; want 2, 1", samples["flanneld_bad_keys"], samples["flanneld_peers_failed"])
		}
		if len(h.routes()) != 0 {
			t.Errorf("routes %v", h.routes())
		}
	})
}
