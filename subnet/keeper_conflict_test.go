package subnet_test

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// However long a conflict has lasted, and however rarely the keeper looks by then,
// it ends as soon as the view shows that what was in the way is gone.
func TestKeeperLeavesAConflictAtOnce(t *testing.T) {
	const wide = "10.5.112.0-20"
	full := (&subnet.ExhaustedError{Size: 2, Occupied: 2}).Error()
	other := func(t *testing.T, s *memstore.Store, key string) { put(t, s, key, attrs("b", "198.18.0.2"), 0) }
	spoil := func(t *testing.T, s *memstore.Store, key string) {
		if _, err := s.Put(key, "{", 0); err != nil {
			t.Fatal(err)
		}
	}
	fill := func(t *testing.T, s *memstore.Store) {
		s.OverwriteConfig(`{"Network":"10.5.0.0/16","SubnetMin":"10.5.125.0","SubnetMax":"10.5.126.0"}`)
		other(t, s, "10.5.126.0-24")
		other(t, s, home)
	}
	for _, tt := range []struct {
		name   string
		policy subnet.OnConflict
		// begin leaves the keeper no moment to create its key again.
		begin func(*testing.T, *memstore.Store)
		end   func(*watcher)
		key   string
	}{
		{
			name: "a younger lease in place of ours", policy: subnet.Keep,
			begin: func(t *testing.T, s *memstore.Store) {
				other(t, s, wide)
				s.DeleteKey(home)
			},
			end: func(w *watcher) { w.data.DeleteKey(wide) }, key: home,
		},
		{
			name: "two leases in place of ours, one after the other", policy: subnet.Fence,
			begin: func(t *testing.T, s *memstore.Store) {
				other(t, s, wide)
				other(t, s, "10.5.124.0-22")
				s.DeleteKey(home)
			},
			end: func(w *watcher) {
				w.data.DeleteKey("10.5.124.0-22")
				w.data.DeleteKey(wide)
			}, key: home,
		},
		{
			name: "a value that cannot be read", policy: subnet.Fence,
			begin: func(t *testing.T, s *memstore.Store) { spoil(t, s, home) },
			end:   func(w *watcher) { w.data.DeleteKey(home) }, key: home,
		},
		{
			name: "one in place of ours", policy: subnet.Fence,
			begin: func(t *testing.T, s *memstore.Store) {
				spoil(t, s, wide)
				s.DeleteKey(home)
			},
			end: func(w *watcher) { w.data.DeleteKey(wide) }, key: home,
		},
		{
			name: "no other subnet is free", policy: subnet.Renumber,
			begin: fill,
			end:   func(w *watcher) { w.data.DeleteKey("10.5.126.0-24") }, key: "10.5.126.0-24",
		},
		{
			name: "no other subnet is free, and the watch breaks when one is", policy: subnet.Renumber,
			begin: fill,
			end: func(w *watcher) {
				w.store.SetUnavailable(errDown)
				w.data.DeleteKey("10.5.126.0-24")
				w.data.Compact(w.data.Revision())
				w.store.SetUnavailable(nil)
			}, key: "10.5.126.0-24",
		},
		{
			name: "another store, in which nobody has it", policy: subnet.Keep,
			begin: func(t *testing.T, s *memstore.Store) { other(t, s, home) },
			end: func(w *watcher) {
				w.data.Wipe()
				w.data.OverwriteConfig(config)
			}, key: home,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := newStore(config)
				w := watch(t, data, func(o *subnet.ViewOptions) { o.Node = "me" })
				h := start(t, data, func(o *subnet.KeeperOptions) { o.View, o.OnConflict = w.view, tt.policy })
				tt.begin(t, data)
				after(10 * time.Minute)
				h.is(subnet.StateConflict)
				if why := h.keeper.Status().Why; tt.policy == subnet.Renumber && why != "node b at 198.18.0.2 (10.5.125.0/24) holds it; "+full {
					t.Errorf("the conflict is that %s", why)
				}
				// What stands elsewhere is none of its business, and what goes only
				// if it needs another subnet: that its view tells, and no request.
				loads := h.requests["Load"].Load()
				for range 50 {
					other(t, data, "10.5.9.0-24")
					synctest.Wait()
					data.DeleteKey("10.5.9.0-24")
					synctest.Wait()
				}
				if got := h.requests["Load"].Load() - loads; got > 0 {
					t.Errorf("%d loads for 50 changes that do not concern us", got)
				}
				tt.end(w)
				after(time.Second)
				h.want(subnet.StateValid, tt.key, "")
				h.end(w)
			})
		})
	}
}

// laggingStore is a Store whose watches say nothing of what is later than a revision.
type laggingStore struct {
	subnet.Store
	last atomic.Int64 // 0: they say all
}

func (s *laggingStore) Watch(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
	return func(yield func(subnet.Batch, error) bool) {
		for b, err := range s.Store.Watch(ctx, after) {
			if last := s.last.Load(); err == nil && last > 0 && int64(b.Revision) > last {
				continue
			}
			if !yield(b, err) {
				return
			}
		}
	}
}

// Another subnet may have been leased although the answer was lost, and the view may
// not know of it yet: the store is asked before a further one is leased.
func TestKeeperAsksWhatCameOfALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		var lagging laggingStore
		w := watch(t, data, func(o *subnet.ViewOptions) { lagging.Store = o.Store; o.Store = &lagging })
		var lost atomic.Bool
		h := start(t, data, func(o *subnet.KeeperOptions) {
			o.View = w.view
			o.Store = data.Open(memstore.Options{
				Before: func(method string) error {
					if method == "Create" && !lost.Load() { // newer than what the keeper looked at
						put(t, data, "10.5.9.0-24", attrs("c", "198.18.0.3"), 0)
						lagging.last.Store(int64(data.Revision()))
					}
					return nil
				},
				After: func(method string) error {
					if method == "Create" && lost.CompareAndSwap(false, true) {
						return errDown
					}
					return nil
				},
			})
		})
		put(t, data, home, attrs("b", "198.18.0.2"), 0)
		after(10 * time.Second)
		h.is(subnet.StateValid)
		var mine []string
		for _, l := range load(t, data).Leases {
			if l.Attrs.Owner == "me" {
				mine = append(mine, l.Subnet.Key())
			}
		}
		if want := []string{h.keeper.Lease().Subnet.Key()}; !lost.Load() || !slices.Equal(mine, want) {
			t.Errorf("leased are %s, want %s", mine, want)
		}
		h.end(w)
	})
}

// What a view knew that is not in sync any more is no answer.
func TestKeeperAsksForWhatTheViewCannotSee(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		w := watch(t, data, nil)
		h := start(t, data, func(o *subnet.KeeperOptions) { o.View, o.OnConflict = w.view, subnet.Keep })
		put(t, data, home, attrs("b", "198.18.0.2"), 0)
		after(10 * time.Minute)
		h.is(subnet.StateConflict)
		put(t, data, "10.5.9.0-24", attrs("c", "198.18.0.3"), 0)
		synctest.Wait()
		w.store.SetUnavailable(errDown)
		synctest.Wait()
		data.DeleteKey(home)
		after(30 * time.Second) // The longest pause.
		h.want(subnet.StateValid, home, "")
		h.end(w)
	})
}

// A store that is lost again while it has no config is one to look at again: the
// subnet is back as soon as the config is, however often that happened.
func TestKeeperInAStoreLostAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, w := viewed(t, newStore(config), claim("me", "198.18.0.1"))
		h.data.Wipe()
		after(10 * time.Minute)
		h.want(subnet.StateLost, home, "no network config")
		h.data.Wipe()
		after(2 * time.Second)
		h.data.OverwriteConfig(config)
		after(time.Second)
		h.want(subnet.StateValid, home, "")
		h.end(w)
	})
}

// Another subnet is leased by what the host has then, and none while that is not
// known.
func TestKeeperAvoidsWhatIsThereNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unread := errors.New("routes cannot be read")
		var broken atomic.Bool
		h := start(t, newStore(config), func(o *subnet.KeeperOptions) {
			o.Avoid = func(context.Context) ([]netip.Prefix, error) {
				if broken.Load() {
					return nil, unread
				}
				return []netip.Prefix{netip.MustParsePrefix("10.5.126.0/23")}, nil
			}
		})
		broken.Store(true)
		put(t, h.data, home, attrs("b", "198.18.0.2"), 0)
		after(ttl / 2)
		h.want(subnet.StateConflict, home, unread.Error())
		broken.Store(false)
		after(time.Minute)
		h.want(subnet.StateValid, "10.5.128.0-24", "")
		h.end()
	})
}

// One question that hangs, to etcd or to the kernel, costs a host that looks for
// another subnet some seconds, and not all the time that the whole search may take.
func TestKeeperRenumbersThoughARequestHangs(t *testing.T) {
	for _, tt := range []struct {
		name string
		// creates and reads are how many creations, and readings of the host's
		// routes, get no answer.
		creates, reads int64
	}{
		{"the creation", 1, 0},
		{"two creations", 2, 0},
		{"the host's routes", 0, 1},
		{"both", 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				creates := &hangingCreates{}
				var reads atomic.Int64
				data := newStore(config)
				w := watch(t, data, func(o *subnet.ViewOptions) { o.Node = "me" })
				h := start(t, data, func(o *subnet.KeeperOptions) {
					creates.Store, o.Store = o.Store, creates
					o.View, o.Claim.TTL = w.view, subnet.DefaultTTL
					o.Avoid = func(ctx context.Context) ([]netip.Prefix, error) {
						if reads.Add(-1) >= 0 {
							<-ctx.Done()
							return nil, ctx.Err()
						}
						return nil, nil
					}
				})
				after(time.Second)
				creates.hangs.Store(tt.creates)
				reads.Store(tt.reads)
				put(t, h.data, home, attrs("b", "198.18.0.2"), 0)
				after(10 * time.Second)
				h.is(subnet.StateValid)
				if l := h.keeper.Lease(); l.Subnet.Key() == home {
					t.Errorf("it still has %s", l.Subnet)
				}
				h.end(w)
			})
		})
	}
}

// hangingCreates does not answer so many creations.
type hangingCreates struct {
	subnet.Store
	hangs atomic.Int64
}

func (s *hangingCreates) Create(ctx context.Context, l subnet.Lease, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
	if s.hangs.Add(-1) >= 0 {
		<-ctx.Done()
		return l, ctx.Err()
	}
	return s.Store.Create(ctx, l, ttl, w)
}
