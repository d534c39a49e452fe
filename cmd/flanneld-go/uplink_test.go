package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// published is what etcd says of this host: address and lease.
func (h *testHost) published() (addr netip.Addr, id subnet.LeaseID) {
	h.t.Helper()
	w, err := h.data.Open(memstore.Options{}).Load(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	i := slices.IndexFunc(w.Leases, func(l subnet.Lease) bool { return l.Attrs.Owner == h.node })
	if i < 0 {
		return netip.Addr{}, 0
	}
	return w.Leases[i].Attrs.PublicIP[subnet.IPv4], w.Leases[i].ID
}

// addr adds or removes an address of a link.
func (h *testHost) addr(link int, add bool, prefix string) {
	h.t.Helper()
	list := []kernel.Addr{{Link: link, Prefix: netip.MustParsePrefix(prefix)}}
	change := h.kernel.Addrs(link).Delete
	if add {
		change = h.kernel.Addrs(link).Put
	}
	if err := change(h.t.Context(), list); err != nil {
		h.t.Fatal(err)
	}
}

// defaultRoute sets or removes one.
func (h *testHost) defaultRoute(link int, add bool, gateway string, metric int) {
	h.t.Helper()
	list := []kernel.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr(gateway), Link: link, Protocol: 16, Metric: metric}}
	change := h.kernel.Routes().Delete
	if add {
		change = h.kernel.Routes().Put
	}
	if err := change(h.t.Context(), list); err != nil {
		h.t.Fatal(err)
	}
}

// readdress gives the uplink another address, as DHCP does.
func (h *testHost) readdress(from, to string) {
	h.t.Helper()
	h.addr(h.eth0.Index, false, from)
	h.addr(h.eth0.Index, true, to)
	h.defaultRoute(h.eth0.Index, true, "198.18.0.254", 0)
}

// local is what the tunnel sends from.
func (h *testHost) local() string {
	h.t.Helper()
	l, err := h.kernel.LinkByName(h.t.Context(), "flannel.1")
	if err != nil {
		h.t.Fatal(err)
	}
	return l.VXLAN.Local.String()
}

// following runs f on a host with one peer.
func following(t *testing.T, config string, adjust func(*testHost), f func(t *testing.T, h *testHost)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		if adjust != nil {
			adjust(h)
		}
		h.data.OverwriteConfig(config)
		h.put("10.5.9.0-24", `{"PublicIP":"198.18.0.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:09"}}`)
		h.start()
		defer h.stop()
		h.ready()
		f(t, h)
	})
}

// The uplink's address changes, as with DHCP: the tunnel sends from the new one with
// all its entries, and etcd has it under the same lease.
func TestAddressIsFollowed(t *testing.T) {
	following(t, vxlanConfig, nil, func(t *testing.T, h *testHost) {
		own, _ := h.subnet()
		_, id := h.published()
		before, err := h.kernel.LinkByName(t.Context(), "flannel.1")
		if err != nil {
			t.Fatal(err)
		}
		h.readdress("198.18.0.1/24", "198.18.0.77/24")
		time.Sleep(replaceAfter / 2)
		synctest.Wait()
		if addr, _ := h.published(); addr != netip.MustParseAddr("198.18.0.1") {
			t.Errorf("%s is published at once", addr)
		}
		h.eventually(3*time.Second, "the new address", func() bool {
			addr, now := h.published()
			return addr == netip.MustParseAddr("198.18.0.77") && now == id && h.local() == "198.18.0.77" && h.board.Snapshot().Ready
		})
		if now, _ := h.subnet(); now != own {
			t.Errorf("subnet %s, was %s", now, own)
		}
		if after, err := h.kernel.LinkByName(t.Context(), "flannel.1"); err != nil || after.Index != before.Index {
			t.Errorf("device %+v, was %+v, %v", after, before, err)
		}
		if got := h.board.Snapshot().Uplink; !slices.Equal(got.Public, []string{"198.18.0.77"}) || h.problem(status.ComponentUplink) != (status.Problem{}) {
			t.Errorf("status %+v, problem %+v", got, h.problem(status.ComponentUplink))
		}
		if line := h.line("msg=\"uplink changed\""); !strings.Contains(line, "addresses=[198.18.0.77]") || !strings.Contains(line, "former_addresses=[198.18.0.1]") {
			t.Error(line)
		}
		if got, want := h.gone.list(), []netip.Addr{netip.MustParseAddr("198.18.0.1")}; !slices.Equal(got, want) {
			t.Errorf("connections from %s are ended, want %s", got, want)
		}
		if h.log.count("repaired what somebody else") != 0 {
			t.Error("what follows from it is called a repair")
		}
	})
}

// What has come of late replaces what goes: at once if it was there beside it for a
// while, and by that alone it is no reason to move. What was always there is waited for.
func TestReplacedAddress(t *testing.T) {
	const before, after = "198.18.0.1/24", "198.18.0.77/24"
	prompt := replaceAfter / 2
	for _, tc := range []struct {
		name string
		// beside is for how long both are there.
		beside time.Duration
		// most is when the new one is followed, and not before least.
		least, most time.Duration
	}{
		{"both for a while", 2 * time.Second, 0, prompt},
		{"both for half a minute", 30 * time.Second, 0, prompt},
		{"both for a moment", replaceAfter / 4, prompt, replaceAfter + prompt},
		{"both for minutes", 3 * replaceMemory, moveAfter - prompt, moveAfter + prompt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			following(t, vxlanConfig, nil, func(t *testing.T, h *testHost) {
				h.addr(h.eth0.Index, true, after)
				time.Sleep(tc.beside)
				synctest.Wait()
				if addr, _ := h.published(); addr != netip.MustParseAddr("198.18.0.1") {
					t.Fatalf("%s is published while the former is there", addr)
				}
				h.addr(h.eth0.Index, false, before)
				h.defaultRoute(h.eth0.Index, true, "198.18.0.254", 0)
				time.Sleep(tc.least)
				synctest.Wait()
				if addr, _ := h.published(); tc.least > 0 && addr != netip.MustParseAddr("198.18.0.1") {
					t.Errorf("%s is published within %s", addr, tc.least)
				}
				h.eventually(tc.most-tc.least, "the new address", func() bool {
					addr, _ := h.published()
					return addr == netip.MustParseAddr("198.18.0.77") && h.local() == "198.18.0.77"
				})
			})
		})
	}
}

// What replaces nothing waits as everything else does.
func TestReplacement(t *testing.T) {
	up := func(index int, addrs ...string) (u backend.Uplink) {
		u.Link.Index = index
		for f, a := range addrs {
			u.Addr[f] = netip.MustParseAddr(a)
		}
		return u
	}
	const now = time.Hour
	was := up(1, "198.18.0.1", "fd00::1")
	for _, tc := range []struct {
		name  string
		next  backend.Uplink
		seen  map[string]time.Duration
		moves int
		since time.Duration
		ok    bool
	}{
		{"one came", up(1, "198.18.0.2", "fd00::1"), map[string]time.Duration{"198.18.0.2/24": now - 5, "fd00::1/64": 0}, 0, now - 5, true},
		{"both came", up(1, "198.18.0.2", "fd00::2"), map[string]time.Duration{"198.18.0.2/24": now - 5, "fd00::2/64": now - 3}, 0, now - 3, true},
		{"one of them was there", up(1, "198.18.0.2", "fd00::2"), map[string]time.Duration{"198.18.0.2/24": now - 5, "fd00::2/64": 0}, 0, 0, false},
		{"alone in its prefix", up(1, "198.18.0.2", "fd00::1"), map[string]time.Duration{"198.18.0.2/32": now - 5}, 0, 0, false},
		{"not seen yet", up(1, "198.18.0.2", "fd00::1"), nil, 0, 0, false},
		{"another interface's", up(2, "198.18.0.2", "fd00::1"), map[string]time.Duration{"198.18.0.2/24": now - 5}, 0, 0, false},
		{"a change too many", up(1, "198.18.0.2", "fd00::1"), map[string]time.Duration{"198.18.0.2/24": now - 5}, movesFree, 0, false},
	} {
		m := moveState{next: tc.next, moves: tc.moves, seen: map[netip.Prefix]time.Duration{}}
		for p, at := range tc.seen {
			m.seen[netip.MustParsePrefix(p)] = at
		}
		if since, ok := m.replacement(was, now); since != tc.since || ok != tc.ok {
			t.Errorf("%s: since %s, %t; want %s, %t", tc.name, since, ok, tc.since, tc.ok)
		}
	}
}

// An interface whose addresses are put back in another order goes on by the one that it
// had: the other was always there.
func TestAddressesThatReturnInAnotherOrder(t *testing.T) {
	following(t, vxlanConfig, func(h *testHost) { h.addr(h.eth0.Index, true, "198.18.0.77/24") }, func(t *testing.T, h *testHost) {
		h.addr(h.eth0.Index, false, "198.18.0.1/24")
		h.addr(h.eth0.Index, false, "198.18.0.77/24")
		time.Sleep(moveAfter / 2)
		h.addr(h.eth0.Index, true, "198.18.0.77/24")
		h.defaultRoute(h.eth0.Index, true, "198.18.0.254", 0)
		time.Sleep(moveAfter / 2)
		h.addr(h.eth0.Index, true, "198.18.0.1/24")
		time.Sleep(time.Minute)
		if addr, _ := h.published(); addr != netip.MustParseAddr("198.18.0.1") || h.local() != "198.18.0.1" || h.log.count("msg=\"uplink changed\"") != 0 {
			t.Errorf("published %s, sends from %s", addr, h.local())
		}
	})
}

// What is taken away and put back is nobody's news.
func TestAddressThatReturns(t *testing.T) {
	following(t, vxlanConfig, nil, func(t *testing.T, h *testHost) {
		h.addr(h.eth0.Index, true, "198.18.0.200/32")
		h.addr(h.eth0.Index, false, "198.18.0.1/24")
		time.Sleep(500 * time.Millisecond)
		h.addr(h.eth0.Index, true, "198.18.0.1/24")
		h.defaultRoute(h.eth0.Index, true, "198.18.0.254", 0)
		h.eventually(soon, "no problem", func() bool { return h.problem(status.ComponentUplink) == status.Problem{} })
		time.Sleep(time.Minute)
		if addr, _ := h.published(); addr != netip.MustParseAddr("198.18.0.1") || h.local() != "198.18.0.1" || h.log.count("about to change") != 0 {
			t.Errorf("published %s, sends from %s", addr, h.local())
		}
	})
}

// Another interface is chosen while this one works: peers know before we send by it.
func TestInterfaceIsFollowed(t *testing.T) {
	var full atomic.Bool
	noWrites := func(h *testHost) {
		h.store = h.data.Open(memstore.Options{Before: func(method string) error {
			if full.Load() && method == "Update" {
				return errors.New("no space")
			}
			return nil
		}})
	}
	following(t, vxlanConfig, noWrites, func(t *testing.T, h *testHost) {
		eth1 := h.kernel.Plug(kernel.Link{Name: "eth1", MTU: 1400}, netip.MustParsePrefix("198.18.1.1/24"))
		h.defaultRoute(eth1.Index, true, "198.18.1.254", 0)
		moved := netip.MustParseAddr("198.18.1.1")
		h.eventually(3*time.Second, "publication", func() bool { addr, _ := h.published(); return addr == moved })
		if h.local() != "198.18.0.1" {
			t.Errorf("sends from %s before peers can know", h.local())
		}
		h.eventually(2*moveSpread, "the move", func() bool { return h.local() == "198.18.1.1" })
		h.eventually(soon, "files that follow", func() bool {
			return strings.Contains(h.file("run/subnet.env"), "FLANNEL_MTU=1350\n") && strings.Contains(h.file("docker/daemon.json"), `"mtu": 1350`)
		})
		if got := h.board.Snapshot(); got.Uplink.Name != "eth1" || got.Backend.MTU != 1350 || h.log.count("msg=\"uplink changed\"") != 1 {
			t.Errorf("status %+v %+v", got.Uplink, got.Backend)
		}
		// And back, while etcd takes no writes: nobody would know.
		full.Store(true)
		h.defaultRoute(h.eth0.Index, true, "198.18.0.254", 0)
		time.Sleep(time.Minute)
		synctest.Wait()
		if h.local() != "198.18.1.1" || h.log.count("msg=\"uplink is about to change\"") != 2 {
			t.Errorf("sends from %s, of which nobody knows", h.local())
		}
		full.Store(false)
		h.eventually(time.Minute, "the way back", func() bool { return h.local() == "198.18.0.1" })
	})
}

// The former address counts for moveLinger and no longer, whatever else happens then.
func TestFormerAddressIsLeft(t *testing.T) {
	following(t, vxlanConfig, nil, func(t *testing.T, h *testHost) {
		eth1 := h.kernel.Plug(kernel.Link{Name: "eth1", MTU: 1500}, netip.MustParsePrefix("198.18.1.1/24"))
		h.defaultRoute(eth1.Index, true, "198.18.1.254", 0)
		h.eventually(5*time.Second, "the move", func() bool { return h.local() == "198.18.1.1" })
		time.Sleep(moveLinger / 2)
		h.addr(eth1.Index, true, "198.18.7.1/24") // any event
		time.Sleep(moveLinger/2 - 100*time.Millisecond)
		synctest.Wait()
		if got := h.gone.list(); len(got) != 0 {
			t.Errorf("connections from %s are ended before it is time", got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got, want := h.gone.list(), []netip.Addr{netip.MustParseAddr("198.18.0.1")}; !slices.Equal(got, want) {
			t.Errorf("connections from %s are ended, want %s", got, want)
		}
	})
}

// Moves in a row: each address counts for moveLinger after it was left, also while the
// next move is under way, and one that is in use again for longer.
func TestMovesInARow(t *testing.T) {
	table := &toldTable{}
	following(t, vxlanConfig, func(h *testHost) { h.table = table }, func(t *testing.T, h *testHost) {
		links := []kernel.Link{h.eth0}
		for i := 1; i < 3; i++ {
			links = append(links, h.kernel.Plug(kernel.Link{Name: fmt.Sprintf("eth%d", i), MTU: 1500}, netip.MustParsePrefix(fmt.Sprintf("198.18.%d.1/24", i))))
		}
		var left [3]time.Time
		at := 0
		open := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			table.mu.Lock()
			defer table.mu.Unlock()
			if got := slices.Sorted(slices.Values(table.last.AlsoUplinks)); !slices.Equal(got, want) {
				t.Errorf("%s: %v are open beside %s, want %v", what, got, links[at].Name, want)
			}
		}
		moveTo := func(i int, meanwhile ...string) {
			t.Helper()
			about := h.log.count("msg=\"uplink is about to change\"")
			h.defaultRoute(links[at].Index, false, fmt.Sprintf("198.18.%d.254", at), 0)
			h.defaultRoute(links[i].Index, true, fmt.Sprintf("198.18.%d.254", i), 0)
			h.eventually(5*time.Second, "the announcement", func() bool { return h.log.count("msg=\"uplink is about to change\"") > about })
			time.Sleep(moveSpread / 2)
			open("meanwhile", meanwhile...)
			h.eventually(5*time.Second, "the move", func() bool { return h.local() == fmt.Sprintf("198.18.%d.1", i) })
			left[at], at = time.Now(), i
		}
		moveTo(1, "eth1")
		open("once", "eth0")
		moveTo(0, "eth0")
		open("back", "eth1")
		moveTo(2, "eth1", "eth2")
		open("three times", "eth0", "eth1")
		if gone := h.gone.list(); len(gone) != 0 {
			t.Errorf("connections from %v are ended", gone)
		}
		for _, next := range []struct {
			link         int
			before, then []string
		}{{1, []string{"eth0", "eth1"}, []string{"eth0"}}, {0, []string{"eth0"}, nil}} {
			time.Sleep(time.Until(left[next.link].Add(moveLinger - 200*time.Millisecond)))
			open("before the time", next.before...)
			time.Sleep(400 * time.Millisecond)
			open("after the time", next.then...)
		}
		want := []netip.Addr{netip.MustParseAddr("198.18.1.1"), netip.MustParseAddr("198.18.0.1")}
		if got := h.gone.list(); !slices.Equal(got, want) {
			t.Errorf("connections from %v are ended, want %v", got, want)
		}
	})
}

// What is gone to again before it would be left for good is kept.
func TestMoveBackInTime(t *testing.T) {
	following(t, vxlanConfig, nil, func(t *testing.T, h *testHost) {
		eth1 := h.kernel.Plug(kernel.Link{Name: "eth1", MTU: 1500}, netip.MustParsePrefix("198.18.1.1/24"))
		h.defaultRoute(eth1.Index, true, "198.18.1.254", 0)
		h.eventually(5*time.Second, "the move", func() bool { return h.local() == "198.18.1.1" })
		time.Sleep(moveLinger - moveAfter - moveSpread/2)
		h.defaultRoute(eth1.Index, false, "198.18.1.254", 0)
		h.defaultRoute(h.eth0.Index, true, "198.18.0.254", 0)
		h.eventually(5*time.Second, "the way back", func() bool { return h.local() == "198.18.0.1" })
		time.Sleep(time.Minute)
		synctest.Wait()
		if got, want := h.gone.list(), []netip.Addr{netip.MustParseAddr("198.18.1.1")}; !slices.Equal(got, want) {
			t.Errorf("connections from %v are ended, want %v", got, want)
		}
	})
}

// An uplink that breaks is left at once, and what counted before still does.
func TestMoveFromABrokenUplink(t *testing.T) {
	table := &toldTable{}
	const config = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`
	following(t, config, func(h *testHost) { h.table = table }, func(t *testing.T, h *testHost) {
		eth1 := h.kernel.Plug(kernel.Link{Name: "eth1", MTU: 1500}, netip.MustParsePrefix("198.18.1.1/24"))
		eth2 := h.kernel.Plug(kernel.Link{Name: "eth2", MTU: 1500}, netip.MustParsePrefix("198.18.2.1/24"))
		h.defaultRoute(eth1.Index, true, "198.18.1.254", 0)
		h.eventually(5*time.Second, "the move", func() bool { return h.local() == "198.18.1.1" })
		if err := h.kernel.DeleteLink(t.Context(), eth1.Index); err != nil {
			t.Fatal(err)
		}
		h.defaultRoute(eth2.Index, true, "198.18.2.254", 0)
		h.eventually(5*time.Second, "the next move", func() bool { return h.board.Snapshot().Uplink.Name == "eth2" && h.board.Snapshot().Ready })
		synctest.Wait()
		table.mu.Lock()
		got, gone := table.last.AlsoUplinks, h.gone.list()
		table.mu.Unlock()
		if !slices.Equal(got, []string{"eth0"}) || !slices.Equal(gone, []netip.Addr{netip.MustParseAddr("198.18.1.1")}) {
			t.Errorf("open are %v, ended %v; want eth0 and the connections from eth1", got, gone)
		}
		const name = "net/ipv4/conf/eth0/forwarding"
		h.setSysctl(name, "0")
		h.eventually(200*time.Millisecond, "forwarding of what comes by eth0", func() bool { return h.sysctl(name) == "1" })
	})
}

// As many as there may be are remembered, and none that is in use again.
func TestFormerUplinks(t *testing.T) {
	up := func(n byte) backend.Uplink {
		return backend.Uplink{Link: kernel.Link{Index: int(n)}, Addr: subnet.ByFamily[netip.Addr]{netip.AddrFrom4([4]byte{198, 18, n, 1})}}
	}
	names := func(ups []backend.Uplink) (list []int) {
		for _, u := range ups {
			list = append(list, u.Link.Index)
		}
		return list
	}
	var m moveState
	for n := range byte(backend.MostFormer + 2) {
		gone := names(m.former.add(up(n), time.Duration(10+n)))
		if dropped := n >= backend.MostFormer; dropped != slices.Equal(gone, []int{int(n) - backend.MostFormer}) || !dropped && gone != nil {
			t.Errorf("number %d has %v dropped", n, gone)
		}
	}
	for _, step := range []struct {
		name string
		do   func()
		now  time.Duration
		want []int
	}{
		{"all", func() {}, 10, []int{2, 3, 4, 5}},
		{"one is over", func() {}, 12, []int{3, 4, 5}},
		{"one is next", func() { m.next, m.opened = up(4), true }, 12, []int{4, 3, 5}},
		{"another is next", func() { m.next = up(9) }, 12, []int{9, 3, 4, 5}},
		{"nothing is opened", func() { m.opened = false }, 12, []int{3, 4, 5}},
		{"one is in use again", func() { m.former.forget(up(3)) }, 12, []int{4, 5}},
		{"over", func() {}, 15, nil},
	} {
		step.do()
		if got := names(m.also(step.now)); !slices.Equal(got, step.want) {
			t.Errorf("%s: %v, want %v", step.name, got, step.want)
		}
	}
	if got := names(expire(&m.former, 14)); !slices.Equal(got, []int{2, 4}) || len(m.former) != 1 {
		t.Errorf("expired are %v, left %v", got, m.former)
	}
}

// Name, MTU and ranges of the interface are followed at once, and said once.
func TestInterfaceChanges(t *testing.T) {
	following(t, vxlanConfig, nil, func(t *testing.T, h *testHost) {
		if err := h.kernel.SetLink(t.Context(), h.eth0.Index, kernel.LinkChange{MTU: 1400}); err != nil {
			t.Fatal(err)
		}
		h.eventually(soon, "the MTU", func() bool {
			l, err := h.kernel.LinkByName(t.Context(), "flannel.1")
			return err == nil && l.MTU == 1350 && strings.Contains(h.file("run/subnet.env"), "FLANNEL_MTU=1350\n") && strings.Contains(h.file("docker/daemon.json"), `"mtu": 1350`)
		})
		if line := h.line("msg=\"uplink changed\""); !strings.Contains(line, " mtu=1400 ") || !strings.Contains(line, "overlay_mtu=1350") {
			t.Error(line)
		}
		h.addr(h.eth0.Index, true, "198.18.7.1/24")
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := h.log.count("msg=\"uplink changed\""); n != 1 {
			t.Errorf("said %d times", n)
		}
		if err := h.kernel.DeleteLink(t.Context(), h.eth0.Index); err != nil {
			t.Fatal(err)
		}
		eth0 := h.kernel.Plug(kernel.Link{Name: "eth0", MTU: 1500}, netip.MustParsePrefix("198.18.0.1/24"))
		h.eventually(soon, "the interface that was made anew", func() bool {
			l, err := h.kernel.LinkByName(t.Context(), "flannel.1")
			return err == nil && l.VXLAN.Uplink == eth0.Index && l.MTU == 1450
		})
		h.defaultRoute(eth0.Index, true, "198.18.0.254", 0)
		h.eventually(resync, "no problem", func() bool { return h.problem(status.ComponentUplink) == status.Problem{} })
	})
}

// What the operator said to tell peers is told, whatever the interface has.
func TestPublicAddressIsNotFollowed(t *testing.T) {
	public := netip.MustParseAddr("203.0.113.7")
	following(t, vxlanConfig, func(h *testHost) { h.opts.uplink.Public[subnet.IPv4] = public }, func(t *testing.T, h *testHost) {
		before := h.data.Revision()
		h.readdress("198.18.0.1/24", "198.18.0.77/24")
		h.eventually(3*time.Second, "the new address", func() bool { return h.local() == "198.18.0.77" })
		time.Sleep(time.Minute)
		if addr, _ := h.published(); addr != public || h.data.Revision() != before {
			t.Errorf("published %s, revision %d was %d", addr, h.data.Revision(), before)
		}
	})
}

// An address that changes all the time is followed ever more slowly.
func TestFlappingAddress(t *testing.T) {
	following(t, vxlanConfig, nil, func(t *testing.T, h *testHost) {
		both := []string{"198.18.0.1/24", "198.18.0.77/24"}
		for i := range 60 {
			h.readdress(both[i%2], both[(i+1)%2])
			time.Sleep(3 * time.Second)
		}
		if n := h.log.count("msg=\"uplink changed\""); n < movesFree || n > movesFree+2 {
			t.Errorf("followed %d times", n)
		}
		h.eventually(moveAfterMost+soon, "the last one", func() bool { return h.local() == "198.18.0.1" })
		time.Sleep(moveMemory + time.Second)
		h.readdress(both[0], both[1])
		h.eventually(3*time.Second, "the next one", func() bool { return h.local() == "198.18.0.77" })
	})
}

// The next uplink is gone before we have moved there, and a third one is chosen: peers
// hear at once that the present one still counts.
func TestAnnouncementIsTakenBack(t *testing.T) {
	following(t, vxlanConfig, nil, func(t *testing.T, h *testHost) {
		var told []string
		until := func(what string, cond func() bool) {
			t.Helper()
			h.eventually(10*time.Second, what, func() bool {
				if addr, _ := h.published(); len(told) == 0 || told[len(told)-1] != addr.String() {
					told = append(told, addr.String())
				}
				return cond()
			})
		}
		eth1 := h.kernel.Plug(kernel.Link{Name: "eth1", MTU: 1500}, netip.MustParsePrefix("198.18.1.1/24"))
		h.defaultRoute(eth1.Index, true, "198.18.1.254", 0)
		until("publication", func() bool { return told[len(told)-1] == "198.18.1.1" })
		if err := h.kernel.DeleteLink(t.Context(), eth1.Index); err != nil {
			t.Fatal(err)
		}
		eth2 := h.kernel.Plug(kernel.Link{Name: "eth2", MTU: 1500}, netip.MustParsePrefix("198.18.2.1/24"))
		h.defaultRoute(eth2.Index, true, "198.18.2.254", 0)
		until("the move", func() bool { return h.local() == "198.18.2.1" })
		if diff := cmp.Diff([]string{"198.18.0.1", "198.18.1.1", "198.18.0.1", "198.18.2.1"}, told); diff != "" {
			t.Errorf("published (-want +got):\n%s", diff)
		}
	})
}

// Addresses of a family that the network does not have come and go unheeded, as those
// for privacy do.
func TestOtherFamilyIsNotFollowed(t *testing.T) {
	const only6 = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"vxlan"}}`
	for name, tc := range map[string]struct {
		config, own, others string
		first, second       string
	}{
		"IPv4 alone": {vxlanConfig, "198.18.0.1/24", "", "2001:db8::1/64", "2001:db8::2/64"},
		"IPv6 alone": {only6, "2001:db8::1/64", "198.18.0.1/24", "198.18.0.77/24", "198.18.0.78/24"},
	} {
		t.Run(name, func(t *testing.T) {
			prepare := func(h *testHost) {
				if tc.others != "" {
					h.addr(h.eth0.Index, false, tc.others)
					h.addr(h.eth0.Index, true, tc.own)
					gateway := kernel.Route{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("2001:db8::fe"), Link: h.eth0.Index, Protocol: 16}
					if err := h.kernel.Routes().Put(t.Context(), []kernel.Route{gateway}); err != nil {
						t.Fatal(err)
					}
				}
			}
			following(t, tc.config, prepare, func(t *testing.T, h *testHost) {
				for _, a := range []string{tc.first, tc.second} {
					h.addr(h.eth0.Index, true, a)
					time.Sleep(time.Minute)
					h.addr(h.eth0.Index, false, a)
					time.Sleep(time.Minute)
				}
				synctest.Wait()
				if n := h.log.count("uplink is about to change"); n != 0 {
					t.Errorf("about to change %d times", n)
				}
				if got, want := h.board.Snapshot().Uplink.Addrs, tc.own[:strings.Index(tc.own, "/")]; !slices.Equal(got, []string{want}) {
					t.Errorf("addresses %v, want %s", got, want)
				}
			})
		})
	}
}

// The former address of a peer counts for no longer than it should, whatever else
// happens on the host.
func TestFormerPeersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, table := newHost(t), &toldTable{}
		h.table, h.opts.iptablesResync = table, time.Hour
		h.data.OverwriteConfig(networkConfig)
		h.owned("10.5.200.0-24", "198.18.0.2", "x")
		h.start()
		defer h.stop()
		h.ready()
		time.Sleep(time.Second)
		senders := func() int {
			table.mu.Lock()
			defer table.mu.Unlock()
			return len(table.last.Peers)
		}
		h.owned("10.5.200.0-24", "198.18.0.3", "x")
		h.eventually(soon, "both addresses", func() bool { return senders() == 2 })
		time.Sleep(moveLinger - time.Second)
		synctest.Wait()
		if n := senders(); n != 2 {
			t.Errorf("%d senders before the time is over", n)
		}
		h.eventually(2*time.Second, "the new address alone", func() bool { return senders() == 1 })
	})
}

// Who has moved is heard from both addresses for a while.
func TestFormerPeers(t *testing.T) {
	at := func(key, public, owner string) subnet.Lease {
		s, err := subnet.ParseSubnet(key)
		if err != nil {
			t.Fatal(err)
		}
		l := subnet.Lease{Subnet: s, Attrs: subnet.Attrs{Owner: subnet.NodeID(owner)}}
		l.Attrs.PublicIP[subnet.IPv4] = netip.MustParseAddr(public)
		return l
	}
	was := []subnet.Lease{at("10.5.1.0-24", "198.18.0.1", "a"), at("10.5.2.0-24", "198.18.0.2", "b"), at("10.5.3.0-24", "198.18.0.3", "c"), at("10.5.4.0-24", "198.18.0.4", "d"), at("10.5.5.0-24", "198.18.0.5", "")}
	is := []subnet.Lease{was[0], at("10.5.2.0-24", "198.18.0.22", "b"), at("10.5.4.0-24", "198.18.0.44", "another"), at("10.5.5.0-24", "198.18.0.55", "")}
	var f formerPeers
	f.take(moved(slices.Collect(subnet.Each(was)), slices.Collect(subnet.Each(is))), time.Hour)
	for after, want := range map[time.Duration][]subnet.Lease{0: was[1:2], moveLinger - 1: was[1:2]} {
		if diff := cmp.Diff(want, f.leases(time.Hour+after), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", after, diff)
		}
	}
	if got := f.leases(time.Hour + moveLinger); len(got) != 0 || len(f) != 0 {
		t.Errorf("in the end %+v", got)
	}
}

// Of one peer the latest addresses count, and no others that it had.
func TestMostFormerPeers(t *testing.T) {
	at := func(s string, n byte) (l subnet.Lease) {
		l.Subnet[subnet.IPv4] = netip.MustParsePrefix(s)
		l.Attrs.PublicIP[subnet.IPv4] = netip.AddrFrom4([4]byte{198, 18, 0, n})
		return l
	}
	var f formerPeers
	for n := range byte(7) {
		f.take([]subnet.Lease{at("10.5.1.0/24", n)}, time.Duration(n))
		if n%3 == 0 {
			f.take([]subnet.Lease{at("10.5.2.0/24", n)}, time.Duration(n))
		}
	}
	if got := f.next(time.Hour); got != 4 {
		t.Errorf("the next to go is due at %d, want one that is due since 4", got)
	}
	got := map[string][]byte{}
	for _, l := range f.leases(7) {
		s := l.Subnet.String()
		got[s] = append(got[s], l.Attrs.PublicIP[subnet.IPv4].As4()[3])
	}
	if diff := cmp.Diff(map[string][]byte{"10.5.1.0/24": {3, 4, 5, 6}, "10.5.2.0/24": {0, 3, 6}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
