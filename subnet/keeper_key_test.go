package subnet_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// What is done to the key, noticed at the next renewal and undone.
func TestKeeperTakesItsKeyBack(t *testing.T) {
	for _, tt := range []struct {
		name   string
		policy subnet.OnConflict
		do     func(*host)
		want   subnet.State
		key    string
		why    string
		bare   bool
	}{
		{name: "nothing", do: func(*host) {}, want: subnet.StateValid, key: home},
		{name: "deleted", do: func(h *host) { h.data.DeleteKey(home) }, want: subnet.StateValid, key: home},
		{name: "revoked", do: func(h *host) { h.data.Revoke(h.keeper.Lease().ID) }, want: subnet.StateValid, key: home},
		{name: "flannel of this host overwrote it", do: func(h *host) { put(h.t, h.data, home, attrs("", "198.18.0.1"), ttl) }, want: subnet.StateValid, key: home},
		{name: "an operator made it a reservation", do: func(h *host) { put(h.t, h.data, home, h.keeper.Lease().Attrs, 0) }, want: subnet.StateValid, key: home, bare: true},
		{name: "moved to another lease", do: func(h *host) { put(h.t, h.data, home, h.keeper.Lease().Attrs, ttl) }, want: subnet.StateValid, key: home},
		{name: "overwritten by ourselves, beside something larger", policy: subnet.Keep, do: func(h *host) {
			put(h.t, h.data, "10.5.112.0-20", attrs("", "198.18.0.2"), ttl)
			put(h.t, h.data, home, attrs("", "198.18.0.1"), ttl)
		}, want: subnet.StateValid, key: home},
		{name: "challenged", do: func(h *host) {
			a := h.keeper.Lease().Attrs
			a.Challenge = subnet.Challenge{Instance: "theirs", PublicIP: addr4("198.18.0.2")}
			put(h.t, h.data, home, a, ttl)
		}, want: subnet.StateValid, key: home},
		{name: "a node's reservation in its place", do: func(h *host) { put(h.t, h.data, home, subnet.Attrs{Owner: "me"}, 0) }, want: subnet.StateValid, key: home, bare: true},
		{name: "wiped, with the config put again", do: func(h *host) { h.data.Wipe(); h.data.OverwriteConfig(config) }, want: subnet.StateValid, key: home},
		{name: "wiped", do: func(h *host) { h.data.Wipe() }, want: subnet.StateLost, key: home, why: "no network config"},
		{name: "deleted, and a bad config", do: func(h *host) { h.data.OverwriteConfig("{"); h.data.DeleteKey(home) }, want: subnet.StateLost, key: home, why: "read network config: line 1, column 2"},
		{name: "another owner: renumber", do: func(h *host) { put(h.t, h.data, home, attrs("b", "198.18.0.2"), ttl) }, want: subnet.StateValid, key: "10.5.126.0-24"},
		{
			name: "another owner: fence", policy: subnet.Fence, do: func(h *host) { put(h.t, h.data, home, attrs("b", "198.18.0.2"), ttl) },
			want: subnet.StateConflict, key: home, why: "node b at 198.18.0.2 (10.5.125.0/24) holds it",
		},
		{
			name: "flannel elsewhere: keep", policy: subnet.Keep, do: func(h *host) { put(h.t, h.data, home, attrs("", "198.18.0.2"), ttl) },
			want: subnet.StateConflict, key: home, why: "host at 198.18.0.2 (10.5.125.0/24) holds it",
		},
		{
			name: "an unreadable value", policy: subnet.Keep, do: func(h *host) { _, _ = h.data.Put(home, "{", 0) },
			want: subnet.StateConflict, key: home, why: "key 10.5.125.0-24 cannot be read",
		},
		{
			name: "deleted, and something larger in its place", policy: subnet.Keep,
			do: func(h *host) {
				h.data.DeleteKey(home)
				put(h.t, h.data, "10.5.112.0-20", attrs("b", "198.18.0.2"), ttl)
			},
			want: subnet.StateConflict, key: home, why: "node b at 198.18.0.2 (10.5.112.0/20) overlaps it",
		},
		{
			name: "deleted, and the config does not allow it any more: keep", policy: subnet.Keep,
			do:   func(h *host) { h.data.OverwriteConfig(`{"Network":"10.6.0.0/16"}`); h.data.DeleteKey(home) },
			want: subnet.StateConflict, key: home, why: "the network config does not allow this subnet any more",
		},
		{
			name: "deleted, and the config does not allow it any more: renumber",
			do:   func(h *host) { h.data.OverwriteConfig(`{"Network":"10.6.0.0/16"}`); h.data.DeleteKey(home) },
			want: subnet.StateValid, key: "10.6.125.0-24",
		},
		{
			name: "another owner and no room", do: func(h *host) {
				h.data.OverwriteConfig(`{"Network":"10.5.0.0/16","SubnetMin":"10.5.125.0","SubnetMax":"10.5.125.0"}`)
				put(h.t, h.data, home, attrs("b", "198.18.0.2"), ttl)
			},
			want: subnet.StateConflict, key: home, why: "no free subnet: 1 of the pool's 1 are occupied",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := start(t, newStore(config), func(o *subnet.KeeperOptions) { o.OnConflict = tt.policy })
				tt.do(h)
				after(ttl / 3)
				h.want(tt.want, tt.key, tt.why)
				s := h.keeper.Status()
				if s.Lease.Reservation() != tt.bare || (s.Expires == 0) != tt.bare {
					t.Errorf("%+v: reservation %v, want %v", s.Lease, s.Lease.Reservation(), tt.bare)
				}
				if s.Withdraw != (tt.want == subnet.StateConflict && tt.policy == subnet.Fence) {
					t.Errorf("withdraw %v", s.Withdraw)
				}
				h.end()
			})
		})
	}
}

// A host that gets another address says so in its key, and keeps key and lease,
// whatever the store and others do meanwhile.
func TestKeeperPublishes(t *testing.T) {
	moved := claim("me", "198.18.0.7").Attrs
	for _, tt := range []struct {
		name    string
		disturb func(*host)
		// updates are the writes that it takes at most.
		updates int64
	}{
		{"at once", func(h *host) { h.keeper.Publish(moved) }, 1},
		{"the last of many", func(h *host) {
			for _, a := range []string{"198.18.0.5", "198.18.0.6"} {
				h.keeper.Publish(claim("me", a).Attrs)
			}
			h.keeper.Publish(moved)
		}, 2},
		{"there and back", func(h *host) {
			h.keeper.Publish(claim("me", "198.18.0.5").Attrs)
			synctest.Wait()
			h.keeper.Publish(claim("me", "198.18.0.1").Attrs)
			synctest.Wait()
			h.keeper.Publish(moved)
		}, 3},
		{"after a while without writes", func(h *host) {
			err := errors.New("no space")
			h.fail.Store(&err)
			h.keeper.Publish(moved)
			after(time.Minute)
			h.want(subnet.StateDegraded, home, "no space")
			h.fail.Store(nil)
			after(time.Minute)
		}, 100},
		{"while the key is gone", func(h *host) {
			h.data.DeleteKey(home)
			h.keeper.Publish(moved)
			after(time.Minute)
		}, 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				h, w := viewed(t, data, claim("me", "198.18.0.1"))
				id, updates := h.keeper.Lease().ID, h.requests["Update"].Load()
				tt.disturb(h)
				synctest.Wait()
				h.want(subnet.StateValid, home, "")
				l, _ := stored(t, data.Open(memstore.Options{}), home)
				if l.Attrs.PublicIP != moved.PublicIP || h.keeper.Lease().Attrs.PublicIP != moved.PublicIP {
					t.Errorf("the store has %s, the keeper %s", l.Attrs.PublicIP, h.keeper.Lease().Attrs.PublicIP)
				}
				if tt.name != "while the key is gone" && l.ID != id {
					t.Errorf("hangs on lease %d, was %d", l.ID, id)
				}
				if n := h.requests["Update"].Load() - updates; n > tt.updates {
					t.Errorf("%d writes, want at most %d", n, tt.updates)
				}
				// It is the keeper's own from now on: it is defended.
				put(t, data, home, attrs("me", "198.18.0.1"), 0)
				after(time.Minute)
				if l, _ := stored(t, data.Open(memstore.Options{}), home); l.Attrs.PublicIP != moved.PublicIP {
					t.Errorf("after a disturbance the store has %s", l.Attrs.PublicIP)
				}
				h.end(w)
			})
		})
	}
}

// A host that has another key takes that in a conflict, and renews it at once:
// nobody knows how much time it has left.
func TestKeeperRenumbersToAnotherKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, newStore(config), nil)
		id := put(t, h.data, "10.5.7.0-24", attrs("", "198.18.0.1"), ttl)
		after(ttl - 4*time.Minute) // The third renewal comes a minute later.
		put(t, h.data, home, attrs("b", "198.18.0.2"), ttl)
		after(15 * time.Minute)
		h.want(subnet.StateValid, "10.5.7.0-24", "")
		if got := h.keeper.Lease().ID; got != id {
			t.Errorf("hangs on %d, want flannel's %d: it expired", got, id)
		}
		h.end()
	})
}

// A conflict ends when the subnet is free, and a wait for the config when it is
// there.
func TestKeeperRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, newStore(config), func(o *subnet.KeeperOptions) { o.OnConflict = subnet.Fence })
		if h.keeper.Status().Withdraw {
			t.Error("withdraws without a conflict")
		}
		put(t, h.data, home, attrs("b", "198.18.0.2"), ttl)
		after(ttl/3 + 10*time.Minute)
		h.want(subnet.StateConflict, home, "holds it")
		h.data.DeleteKey(home)
		after(31 * time.Second)
		h.want(subnet.StateValid, home, "")

		h.data.Wipe()
		after(ttl/3 + 10*time.Minute)
		h.want(subnet.StateLost, home, "no network config")
		h.data.OverwriteConfig(config)
		after(31 * time.Second)
		h.want(subnet.StateValid, home, "")
		if got := h.requests["Load"].Load(); got > 80 {
			t.Errorf("%d loads in 23 minutes", got)
		}
		h.end()
	})
}

func TestKeeperEnds(t *testing.T) {
	for _, tt := range []struct{ name, owner, ip, want string }{
		{"another daemon of this host", "me", "198.18.0.1", "another daemon of this host (instance theirs) has taken over 10.5.125.0/24"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := start(t, newStore(config), nil)
				put(t, h.data, home, attrs(tt.owner, tt.ip), ttl)
				revision := h.data.Revision()
				err := <-h.result
				if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
					t.Errorf("Run = %v, want %s", err, tt.want)
				}
				if s := h.keeper.Status(); s.State != subnet.StateEnded || s.Why != err.Error() {
					t.Errorf("%s: %s", s.State, s.Why)
				}
				if h.data.Revision() != revision {
					t.Error("it wrote something")
				}
				h.stop()
				h.data.Wipe()
			})
		})
	}
}

func TestKeeperKeepsReservations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		put(t, data, "10.5.7.0-24", attrs("", "198.18.0.1"), 0)
		h := start(t, data, nil)
		after(100 * time.Hour)
		h.want(subnet.StateValid, "10.5.7.0-24", "")
		put(t, data, "10.5.7.0-24", attrs("", "198.18.0.1"), 0)
		after(100 * time.Hour)
		if l, ok := stored(t, data, "10.5.7.0-24"); !ok || !l.Reservation() || l.Attrs.Instance != "me-1" {
			t.Errorf("%+v, %v", l, ok)
		}
		h.stop()
		<-h.result
		if err := h.keeper.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if _, ok := stored(t, data, "10.5.7.0-24"); !ok {
			t.Error("a reservation was released")
		}
	})
}

// What others made of our key stays: the other lease that it was moved to is
// kept alive, and a key that was detached is a reservation for ever.
func TestKeeperFollowsItsKey(t *testing.T) {
	for _, bare := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := start(t, newStore(config), nil)
			first, others := h.keeper.Lease(), ttl/2
			if bare {
				others = 0
			}
			id := put(t, h.data, home, first.Attrs, others)
			after(10 * ttl)
			h.want(subnet.StateValid, home, "")
			if l := h.keeper.Lease(); l.ID != id || l.TTL != others || l.Reservation() != bare {
				t.Errorf("hangs on %d for %s, want %d for %s", l.ID, l.TTL, id, others)
			}
			if _, _, err := h.data.TTL(t.Context(), first.ID); !errors.Is(err, subnet.ErrLeaseLost) {
				t.Errorf("the former lease is kept alive: %v", err)
			}
			h.end()
		})
	}
}

// To delete a reservation is to release it: its host has an ordinary lease then,
// of the same subnet.
func TestKeeperAfterItsReservation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		put(t, data, "10.5.7.0-24", subnet.Attrs{Owner: "me"}, 0)
		h := start(t, data, nil)
		if !h.keeper.Lease().Reservation() {
			t.Error("no reservation to begin with")
		}
		data.DeleteKey("10.5.7.0-24")
		after(10 * ttl)
		h.want(subnet.StateValid, "10.5.7.0-24", "")
		if l := h.keeper.Lease(); l.Reservation() || l.TTL != ttl {
			t.Errorf("%+v, want a lease of %s", l, ttl)
		}
		h.end()
	})
}

// The store counts a lease's time from when it was asked, or later: the keeper, which
// hears of it after the answer's way, from when it asked.
func TestTimeCountsFromTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, newStore(config), func(o *subnet.KeeperOptions) {
			o.Store = slowStore{o.Store, 2 * time.Second}
			after(time.Second)
		})
		after(5 * time.Second)
		s := h.keeper.Status()
		if want := time.Second + ttl; s.State != subnet.StateValid || s.Expires != want {
			t.Errorf("%s, the lease's time ends at %s, want %s", s.State, s.Expires, want)
		}
		after(19*time.Minute - 2*time.Second) // a third, jitter, and the way there
		if n := h.requests["Renew"].Load(); n != 2 {
			t.Errorf("%d renewals, want the second one 19 minutes after the first was sent", n)
		}
		h.end()
	})
}

// A store that needs more than a second for an answer is no dead one when the lease's
// time is over, either: it would never be heard again.
func TestSlowStoreAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, newStore(config), func(o *subnet.KeeperOptions) {
			o.Store = slowStore{o.Store, 750 * time.Millisecond}
		})
		after(2 * time.Second)
		h.want(subnet.StateValid, home, "")
		h.clock.suspend(2 * ttl)
		after(30 * time.Second)
		h.want(subnet.StateValid, home, "")
		h.end()
	})
}

// How much time a lease has left that was taken over is not known: it is renewed at
// once, whenever Acquire was called.
func TestTakenOverIsRenewedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		before := claim("me", "198.18.0.1")
		before.Instance, before.TTL = "me-0", ttl
		acquire(t, data, before)
		after(ttl - time.Minute)
		w := watch(t, data, nil)
		h := start(t, data, func(o *subnet.KeeperOptions) {
			o.View, o.Asked = w.view, o.Clock.Uptime()+time.Nanosecond
		})
		if n := h.requests["Renew"].Load(); n != 1 {
			t.Errorf("%d renewals, want 1", n)
		}
		after(2 * time.Minute)
		h.want(subnet.StateValid, home, "")
		h.end(w)
	})
}
