package subnet_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

func TestReserve(t *testing.T) {
	const day = 24 * time.Hour
	node := subnet.Attrs{Owner: "b"}
	both := subnet.Attrs{Owner: "b", PublicIP: addr4("198.18.0.2")}
	ip := subnet.Attrs{PublicIP: addr4("198.18.0.2")}
	for _, tt := range []struct {
		name   string
		config string
		prior  []prior
		bad    string
		key    string
		holder subnet.Attrs
		// want is what the key holds then; zero: holder.
		want subnet.Attrs
		err  string
		is   error
	}{
		{name: "free, for a node", key: "10.5.7.0-24", holder: node},
		{name: "free, for an address", key: "10.5.7.0-24", holder: ip},
		{name: "free, for a node with an address", key: "10.5.7.0-24", holder: both},
		{name: "free, in both families", config: dual, key: "10.5.7.0-24&fd05:0:0:7::-64", holder: node},
		{name: "the node's lease keeps its value", prior: []prior{{"10.5.7.0-24", attrs("b", "198.18.0.2"), day}}, key: "10.5.7.0-24", holder: node, want: attrs("b", "198.18.0.2")},
		{name: "the node's lease, by address", prior: []prior{{"10.5.7.0-24", attrs("b", "198.18.0.2"), day}}, key: "10.5.7.0-24", holder: ip, want: attrs("b", "198.18.0.2")},
		{name: "the node's lease, under another address", prior: []prior{{"10.5.7.0-24", attrs("b", "198.18.0.3"), day}}, key: "10.5.7.0-24", holder: both, want: attrs("b", "198.18.0.3")},
		{name: "flannel's lease, by address", prior: []prior{{"10.5.7.0-24", attrs("", "198.18.0.2"), day}}, key: "10.5.7.0-24", holder: both, want: attrs("", "198.18.0.2")},
		{name: "the node's reservation", prior: []prior{{"10.5.7.0-24", attrs("b", "198.18.0.2"), 0}}, key: "10.5.7.0-24", holder: node, want: attrs("b", "198.18.0.2")},
		{
			name: "the node's lease of flannel's pair", config: dual, prior: []prior{{"10.5.7.0-24&fd05:0:0:52::-64", attrs("b", "198.18.0.2"), day}},
			key: "10.5.7.0-24&fd05:0:0:52::-64", holder: node, want: attrs("b", "198.18.0.2"),
		},
		{
			name: "beside the node's own, which is larger", prior: []prior{{"10.5.0.0-20", attrs("b", "198.18.0.2"), day}},
			key: "10.5.7.0-24", holder: node,
		},

		{name: "another node's", prior: []prior{{"10.5.7.0-24", attrs("c", "198.18.0.2"), day}}, key: "10.5.7.0-24", holder: both, err: "10.5.7.0/24 is held by node c at 198.18.0.2"},
		{name: "another node's reservation", prior: []prior{{"10.5.7.0-24", attrs("c", "198.18.0.3"), 0}}, key: "10.5.7.0-24", holder: ip, err: "10.5.7.0/24 is held by node c at 198.18.0.3"},
		{name: "flannel's, and no address is given", prior: []prior{{"10.5.7.0-24", attrs("", "198.18.0.2"), day}}, key: "10.5.7.0-24", holder: node, err: "10.5.7.0/24 is held by host at 198.18.0.2"},
		{name: "part of another's", prior: []prior{{"10.5.0.0-20", attrs("c", "198.18.0.3"), day}}, key: "10.5.7.0-24", holder: node, err: "10.5.7.0/24 is held by node c at 198.18.0.3 (10.5.0.0/20)"},
		{
			name: "its own, part of which is another's", prior: []prior{{"10.5.7.0-24", attrs("b", "198.18.0.2"), day}, {"10.5.7.128-25", attrs("c", "198.18.0.3"), day}},
			key: "10.5.7.0-24", holder: node, err: "10.5.7.0/24 is held by node c at 198.18.0.3 (10.5.7.128/25)",
		},
		{
			name: "one family is another's", config: dual, prior: []prior{{"10.5.9.0-24&fd05:0:0:7::-64", attrs("c", "198.18.0.3"), day}},
			key: "10.5.7.0-24&fd05:0:0:7::-64", holder: node, err: "10.5.7.0/24,fd05:0:0:7::/64 is held by node c at 198.18.0.3 (10.5.9.0/24,fd05:0:0:7::/64)",
		},
		{name: "unreadable", bad: "10.5.7.0-24", key: "10.5.7.0-24", holder: node, err: `10.5.7.0/24 is occupied by key 10.5.7.0-24, which cannot be read: read value of 10.5.7.0-24: invalid character 'o' in literal null (expecting 'u')`},
		{name: "another length", key: "10.5.7.0-25", holder: node, err: "10.5.7.0/25: not a subnet of the network config, which has /24s from 10.5.1.0 to 10.5.255.0", is: subnet.ErrNotInPool},
		{name: "outside of the network", key: "10.6.7.0-24", holder: node, err: "10.6.7.0/24: not a subnet of the network config, which has /24s from 10.5.1.0 to 10.5.255.0", is: subnet.ErrNotInPool},
		{name: "below SubnetMin", key: "10.5.0.0-24", holder: node, err: "10.5.0.0/24: not a subnet of the network config, which has /24s from 10.5.1.0 to 10.5.255.0", is: subnet.ErrNotInPool},
		{
			name: "a pair that is not in the pool", config: dual, key: "10.5.7.0-24&fd05:0:0:52::-64", holder: node,
			err: "10.5.7.0/24,fd05:0:0:52::/64: not a subnet of the network config, which has /24s from 10.5.1.0 to 10.5.255.0 with /64s from fd05:0:0:1:: to fd05:0:0:ffff::", is: subnet.ErrNotInPool,
		},
		{
			name: "its own of an old length", prior: []prior{{"10.5.7.0-25", attrs("b", "198.18.0.2"), day}}, key: "10.5.7.0-25", holder: node,
			err: "10.5.7.0/25: not a subnet of the network config, which has /24s from 10.5.1.0 to 10.5.255.0", is: subnet.ErrNotInPool,
		},
		{name: "for nobody", key: "10.5.7.0-24", err: "reserve 10.5.7.0/24: the holder has neither PublicIP nor Owner"},
		{name: "no config", config: "-", key: "10.5.7.0-24", holder: node, err: "no network config", is: subnet.ErrNoConfig},
		{name: "a bad config", config: "{", key: "10.5.7.0-24", holder: node, err: "read network config: line 1, column 2: unexpected end of JSON input"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(cmpOr(tt.config, config))
				if tt.config == "-" {
					s.DeleteConfig()
				}
				for _, p := range tt.prior {
					put(t, s, p.key, p.attrs, p.ttl)
				}
				if tt.bad != "" {
					if _, err := s.Put(tt.bad, "nonsense", 0); err != nil {
						t.Fatal(err)
					}
				}
				w := load(t, s)
				got, err := subnet.Reserve(t.Context(), s, w, sub(t, tt.key), tt.holder)
				text := ""
				if err != nil {
					text = err.Error()
				}
				if d := cmp.Diff(tt.err, text); d != "" || tt.is != nil && !errors.Is(err, tt.is) {
					t.Fatalf("error: -want +got\n%s", d)
				}
				var held *subnet.HeldError
				if errors.As(err, &held) && !held.Lease.Subnet.Overlaps(sub(t, tt.key)) {
					t.Errorf("held by %+v", held.Lease)
				}
				if err != nil {
					if s.Revision() != w.Revision {
						t.Error("something was written")
					}
					return
				}
				if tt.want == (subnet.Attrs{}) {
					tt.want = tt.holder
				}
				l, _ := stored(t, s, tt.key)
				if !l.Reservation() || l != got || l.Attrs != tt.want {
					t.Errorf("got %+v, the store holds %+v, want %+v", got, l, tt.want)
				}
				at := s.Revision()
				if again, err := subnet.Reserve(t.Context(), s, load(t, s), sub(t, tt.key), tt.holder); err != nil || again != got || s.Revision() != at {
					t.Errorf("again: %+v, %v at revision %d, want %d", again, err, s.Revision(), at)
				}
				after(2 * day)
				if _, ok := stored(t, s, tt.key); !ok {
					t.Error("it expired")
				}
				s.Wipe()
			})
		})
	}
}

// What changed since the world was read is noticed by the store.
func TestReserveInAnOldWorld(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*testing.T, *memstore.Store)
		held   error
		free   error
	}{
		{"config", func(_ *testing.T, s *memstore.Store) { s.OverwriteConfig(`{"Network":"10.6.0.0/16"}`) }, subnet.ErrConfigChanged, subnet.ErrConfigChanged},
		{"store", func(_ *testing.T, s *memstore.Store) { s.Wipe(); s.OverwriteConfig(config) }, subnet.ErrStoreChanged, subnet.ErrStoreChanged},
		{"key", func(t *testing.T, s *memstore.Store) { put(t, s, "10.5.7.0-24", attrs("c", "198.18.0.3"), time.Hour) }, subnet.ErrLeaseLost, subnet.ErrTaken},
	} {
		for _, held := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				s, want := newStore(config), tt.free
				if held {
					put(t, s, "10.5.7.0-24", attrs("b", "198.18.0.2"), time.Hour)
					want = tt.held
				}
				w := load(t, s)
				tt.change(t, s)
				if _, err := subnet.Reserve(t.Context(), s, w, sub(t, "10.5.7.0-24"), subnet.Attrs{Owner: "b"}); !errors.Is(err, want) {
					t.Errorf("%s, held %v: %v, want %v", tt.name, held, err, want)
				}
				s.Wipe()
			})
		}
	}
}

// The holder goes on as if nothing had happened, but that its lease no longer
// ends; and gets the subnet again whatever its address is then.
func TestReserveUnderAKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		h, w := viewed(t, data, claim("me", "198.18.0.1"))
		before := h.keeper.Lease()
		got, err := subnet.Reserve(t.Context(), data, load(t, data), before.Subnet, subnet.Attrs{Owner: "me"})
		if err != nil || got.Attrs != before.Attrs {
			t.Errorf("got %+v, %v", got, err)
		}
		synctest.Wait()
		h.want(subnet.StateValid, home, "")
		if s := h.keeper.Status(); !s.Lease.Reservation() || s.Expires != 0 {
			t.Errorf("%+v expires at %s", s.Lease, s.Expires)
		}
		if data.Revision() != got.Modified {
			t.Error("the keeper wrote something")
		}
		h.stop()
		<-h.result
		after(10 * ttl)
		moved := clone("new", "198.18.0.9")
		if l := seek(t, data, moved); l.err != nil || l.lease.Subnet != before.Subnet || !l.lease.Reservation() {
			t.Errorf("after a move: %+v, %v", l.lease, l.err)
		}
		w.finish()
	})
}

func TestSamePublicIP(t *testing.T) {
	lease := func(n int, owner string, addrs ...string) subnet.Lease {
		l := subnet.Lease{Subnet: subnet.Subnet{netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", n))}, Attrs: subnet.Attrs{Owner: subnet.NodeID(owner)}}
		for _, a := range addrs {
			addr := netip.MustParseAddr(a)
			l.Attrs.PublicIP[subnet.FamilyOf(addr)] = addr
		}
		return l
	}
	for _, tt := range []struct {
		name   string
		leases []subnet.Lease
		// want are the third bytes of the subnets of each group.
		want [][]int
	}{
		{"none", nil, nil},
		{"different addresses", []subnet.Lease{lease(1, "a", "198.18.0.1"), lease(2, "b", "198.18.0.2")}, nil},
		{"one owner", []subnet.Lease{lease(1, "a", "198.18.0.1"), lease(2, "a", "198.18.0.1")}, nil},
		{"flannel's belongs to whoever has the address", []subnet.Lease{lease(1, "a", "198.18.0.1"), lease(2, "", "198.18.0.1"), lease(3, "", "198.18.0.1")}, nil},
		{"no address", []subnet.Lease{lease(1, "a"), lease(2, "b")}, nil},
		{"two owners, three leases", []subnet.Lease{lease(3, "a", "198.18.0.1"), lease(2, "b", "198.18.0.2"), lease(1, "c", "198.18.0.1"), lease(4, "a", "198.18.0.1")}, [][]int{{1, 3, 4}}},
		{"two groups", []subnet.Lease{lease(4, "a", "198.18.0.1"), lease(3, "b", "198.18.0.1"), lease(2, "c", "198.18.0.2"), lease(5, "d", "198.18.0.2")}, [][]int{{2, 5}, {3, 4}}},
		{"both families, once", []subnet.Lease{lease(1, "a", "198.18.0.1", "fd00::1"), lease(2, "b", "198.18.0.1", "fd00::1")}, [][]int{{1, 2}}},
		{"one family each", []subnet.Lease{lease(1, "a", "198.18.0.1", "fd00::1"), lease(2, "b", "198.18.0.1", "fd00::2"), lease(3, "c", "198.18.0.3", "fd00::1")}, [][]int{{1, 2}, {1, 3}}},
	} {
		var got [][]int
		for _, group := range subnet.SamePublicIP(subnet.Each(tt.leases)) {
			var ids []int
			for _, l := range group {
				ids = append(ids, int(l.Subnet[subnet.IPv4].Addr().As4()[2]))
			}
			got = append(got, ids)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: -want +got\n%s", tt.name, d)
		}
	}
}
