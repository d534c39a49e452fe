package main

import (
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// uplinkAt is an interface with one address.
func uplinkAt(link kernel.Link, addr string) backend.Uplink {
	a := subnet.ByFamily[netip.Addr]{netip.MustParseAddr(addr)}
	return backend.Uplink{Link: link, Addr: a, Public: a}
}

// Where the process before received counts from when etcd has where this one does, for
// as long as with any move: peers cannot know before.
func TestHeirHoldsFormer(t *testing.T) {
	for name, silent := range map[string]time.Duration{"etcd answers": 0, "etcd is silent": time.Minute} {
		t.Run(name, func(t *testing.T) {
			table, deaf := &toldTable{}, atomic.Bool{}
			adjust := func(h *testHost) {
				h.table = table
				h.store = h.data.Open(memstore.Options{Before: func(string) error {
					if deaf.Load() {
						return errors.New("nobody answers")
					}
					return nil
				}})
			}
			following(t, vxlanConfig, adjust, func(t *testing.T, h *testHost) {
				also := func() []string {
					table.mu.Lock()
					defer table.mu.Unlock()
					return table.last.AlsoUplinks
				}
				h.eventually(soon, "the cache", func() bool { return h.file("state/cache.json") != "" })
				h.stop()
				eth1 := h.kernel.Plug(kernel.Link{Name: "eth1", MTU: 1500}, netip.MustParsePrefix("198.18.1.1/24"))
				h.defaultRoute(h.eth0.Index, false, "198.18.0.254", 0)
				h.defaultRoute(eth1.Index, true, "198.18.1.254", 0)
				h.also = []backend.Uplink{uplinkAt(h.eth0, "198.18.0.1")}
				deaf.Store(silent > 0)
				h.start()
				h.eventually(2*cacheAfter, "the data path by eth1", func() bool { return h.local() == "198.18.1.1" })
				time.Sleep(silent)
				if got := also(); !slices.Equal(got, []string{"eth0"}) {
					t.Errorf("beside eth1 %v is let in before peers can know, want eth0", got)
				}
				deaf.Store(false)
				h.eventually(time.Minute, "publication", func() bool {
					addr, _ := h.published()
					return addr == netip.MustParseAddr("198.18.1.1")
				})
				time.Sleep(moveLinger / 2)
				if got := also(); !slices.Equal(got, []string{"eth0"}) {
					t.Errorf("beside eth1 %v is let in a moment later, want eth0", got)
				}
				h.eventually(moveLinger+soon, "the end of the former", func() bool { return len(also()) == 0 })
			})
		})
	}
}

// All of this host's addresses may be where the process before received, but for those of
// the uplink.
func TestOtherUplinks(t *testing.T) {
	l, _ := heirLoop(t)
	h := &testHost{t: t}
	k, eth0 := h.newKernel("198.18.0.1/24")
	l.host = k
	eth1 := k.Plug(kernel.Link{Name: "eth1", MTU: 1400}, netip.MustParsePrefix("198.18.1.1/24"), netip.MustParsePrefix("fd00::1/64"))
	h.kernel = k
	h.addr(eth0.Index, true, "198.18.0.77/32")
	ups, err := l.otherUplinks(t.Context(), uplinkAt(eth0, "198.18.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[netip.Addr]string{}
	for _, up := range ups {
		got[ownAddrs([]backend.Uplink{up})[0]] = up.Link.Name
	}
	want := map[string]string{"198.18.0.77": eth0.Name, "198.18.1.1": eth1.Name, "fd00::1": eth1.Name}
	for addr, link := range want {
		if got[netip.MustParseAddr(addr)] != link {
			t.Errorf("%s is of %q, want %s", addr, got[netip.MustParseAddr(addr)], link)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
