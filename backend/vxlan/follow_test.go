package vxlan_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// changeTo is what makes one set of peers of another.
func changeTo(old, fresh []subnet.Lease) backend.Change {
	had, has := map[subnet.Subnet]subnet.Lease{}, map[subnet.Subnet]subnet.Lease{}
	for _, p := range old {
		had[p.Subnet] = p
	}
	for _, p := range fresh {
		has[p.Subnet] = p
	}
	var c backend.Change
	for _, p := range old {
		if has[p.Subnet] != p {
			c.Old = append(c.Old, p)
		}
	}
	for _, p := range fresh {
		if had[p.Subnet] != p {
			c.New = append(c.New, p)
		}
	}
	return c
}

// Whatever peers come, go and change: to follow them leaves the kernel as an Apply of
// all does on a fresh host, or says that it cannot.
func TestFollowIsApply(t *testing.T) {
	followed, refused := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		options := ""
		if rapid.Bool().Draw(rt, "direct") {
			options = `,"DirectRouting":true`
		}
		h, fresh := newHost(t, dual, options), newHost(t, dual, options)
		peers := drawPeers(rt)
		last := h.desired("10.5.54.0-24&fd05:0:0:54::-64", peers...)
		_ = h.be.Apply(t.Context(), last) // some of them are meant to fail
		for range rapid.IntRange(1, 4).Draw(rt, "steps") {
			next := drawPeers(rt)
			if rapid.Bool().Draw(rt, "few") { // else all of them change
				cut := min(len(peers), len(next), rapid.IntRange(0, 100).Draw(rt, "cut"))
				next = sameBut(peers, next, cut)
			}
			err := h.be.(backend.Follower).Follow(t.Context(), changeTo(peers, next))
			peers, last = next, h.desired("10.5.54.0-24&fd05:0:0:54::-64", next...)
			if followed++; errors.Is(err, backend.ErrNotFollowed) {
				refused++
				_ = h.be.Apply(t.Context(), last)
			}
		}
		_ = fresh.be.Apply(t.Context(), last)
		if diff := lines(state(t, fresh), state(t, h)); diff != "" {
			rt.Errorf("state (-applied +followed)\n%s", diff)
		}
	})
	if refused == followed {
		t.Error("nothing was ever followed")
	}
}

// sameBut are the peers of before up to a subnet of theirs, and those of after from
// there on.
func sameBut(before, after []subnet.Lease, cut int) []subnet.Lease {
	if len(before) == 0 || cut >= len(before) {
		return before
	}
	at := before[cut].Subnet
	out := append([]subnet.Lease(nil), before[:cut]...)
	for _, p := range after {
		if p.Subnet.Compare(at) >= 0 {
			out = append(out, p)
		}
	}
	return out
}

// unlisted is a kernel none of whose peers' entries may be listed.
type unlisted struct {
	kernel.Host
	listed *int
}

type unlistedTable[E any] struct {
	reconcile.Table[E]
	listed *int
}

func (t unlistedTable[E]) List(ctx context.Context) ([]E, error) {
	*t.listed++
	return t.Table.List(ctx)
}

func (k unlisted) Routes() reconcile.Table[kernel.Route] {
	return unlistedTable[kernel.Route]{k.Host.Routes(), k.listed}
}

func (k unlisted) FDB(link int) reconcile.Table[kernel.FDB] {
	return unlistedTable[kernel.FDB]{k.Host.FDB(link), k.listed}
}

func (k unlisted) Neighbours(link int) reconcile.Table[kernel.Neighbour] {
	return unlistedTable[kernel.Neighbour]{k.Host.Neighbours(link), k.listed}
}

// A change costs its own entries, and nothing is listed, however many peers there are.
func TestFollowCostsTheChange(t *testing.T) {
	for _, count := range []int{2, 200} {
		t.Run(fmt.Sprint(count, " peers"), func(t *testing.T) {
			h := newHost(t, v4only, "")
			listed := 0
			h.params.Kernel = unlisted{h.Fake, &listed}
			h.restart()
			peer := func(i, moved int) subnet.Lease {
				return lease(fmt.Sprintf("10.5.%d.0-24", i), fmt.Sprintf("203.0.%d.%d", moved, i), fmt.Sprintf("5e:00:00:00:00:%02x", i), "", "")
			}
			var peers []subnet.Lease
			for i := range count {
				peers = append(peers, peer(i+1, 113))
			}
			h.apply(h.desired("10.5.254.0-24", peers...))
			h.ResetOps()
			listed = 0
			for _, step := range []struct {
				change       backend.Change
				put, deleted int
			}{
				{backend.Change{New: []subnet.Lease{peer(230, 113)}}, 3, 0},
				{backend.Change{Old: []subnet.Lease{peer(2, 113)}, New: []subnet.Lease{peer(2, 114)}}, 1, 0},
				{backend.Change{Old: []subnet.Lease{peer(230, 113)}}, 0, 3},
				{backend.Change{}, 0, 0},
			} {
				h.result = reconcile.Result{}
				if err := h.be.(backend.Follower).Follow(t.Context(), step.change); err != nil {
					t.Fatal(err)
				}
				if want := (reconcile.Result{Put: step.put, Deleted: step.deleted}); h.result != want {
					t.Errorf("%+v: %+v, want %+v", step.change, h.result, want)
				}
			}
			if listed != 0 || len(h.Ops()) != 7 {
				t.Errorf("%d tables were listed, %d entries written: want none, 7", listed, len(h.Ops()))
			}
		})
	}
}

// The MAC of a host with two subnets stays for the one when the other goes.
func TestFollowOneHostWithTwoSubnets(t *testing.T) {
	h := newHost(t, v4only, "")
	second := peer3
	second.Subnet = peer9.Subnet
	h.apply(h.desired("10.5.54.0-24", peer3, second))
	want := newHost(t, v4only, "")
	for _, step := range []struct {
		change backend.Change
		left   []subnet.Lease
	}{
		{backend.Change{Old: []subnet.Lease{peer3}}, []subnet.Lease{second}},
		{backend.Change{New: []subnet.Lease{peer3}}, []subnet.Lease{peer3, second}},
		{backend.Change{Old: []subnet.Lease{peer3, second}}, nil},
	} {
		if err := h.be.(backend.Follower).Follow(t.Context(), step.change); err != nil {
			t.Fatal(err)
		}
		want.apply(want.desired("10.5.54.0-24", step.left...))
		if diff := lines(state(t, want), state(t, h)); diff != "" {
			t.Errorf("%d peers left (-want +got)\n%s", len(step.left), diff)
		}
	}
}

// A peer with our own MAC, which got nothing, gets all of it with another.
func TestFollowPeerThatHadOurMAC(t *testing.T) {
	h := newHost(t, v4only, "")
	h.apply(h.desired("10.5.54.0-24"))
	attrs, err := h.be.Attrs(h.uplink)
	if err != nil {
		t.Fatal(err)
	}
	twin := peer3
	twin.Attrs.BackendData = attrs.BackendData
	f := h.be.(backend.Follower)
	var peerErr *backend.PeerError
	if err := f.Follow(t.Context(), backend.Change{New: []subnet.Lease{twin}}); !errors.As(err, &peerErr) {
		t.Fatalf("a peer with our MAC: %v, want a failure of its own", err)
	}
	if err := f.Follow(t.Context(), backend.Change{Old: []subnet.Lease{twin}, New: []subnet.Lease{peer3}}); err != nil {
		t.Fatal(err)
	}
	want := newHost(t, v4only, "")
	want.apply(want.desired("10.5.54.0-24", peer3))
	if diff := lines(state(t, want), state(t, h)); diff != "" {
		t.Errorf("followed (-want +got)\n%s", diff)
	}
}

// Where the last Apply did not get as far as the routes, or could not read them, nobody
// knows what to go on from.
func TestNothingIsFollowedBlindly(t *testing.T) {
	for name, fails := range map[string]func(kerneltest.Op) bool{
		"routes that cannot be read":      func(o kerneltest.Op) bool { return o.Verb == "list" && o.Kind == "route" },
		"a device that cannot be created": func(o kerneltest.Op) bool { return o.Verb == "add" && o.Kind == "link" },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, v4only, "")
			h.OnOp(kerneltest.FailNth(1, syscall.ENOBUFS, fails))
			if err := h.be.Apply(t.Context(), h.desired("10.5.54.0-24")); !errors.Is(err, syscall.ENOBUFS) {
				t.Fatalf("Apply: %v, want %v", err, syscall.ENOBUFS)
			}
			h.OnOp(nil)
			if err := h.be.(backend.Follower).Follow(t.Context(), backend.Change{New: []subnet.Lease{peer3}}); !errors.Is(err, backend.ErrNotFollowed) {
				t.Errorf("followed: %v, want %v", err, backend.ErrNotFollowed)
			}
		})
	}
}

// What was never applied, or contradicts itself, is not followed.
func TestNotFollowed(t *testing.T) {
	h := newHost(t, v4only, "")
	f := h.be.(backend.Follower)
	add := backend.Change{New: []subnet.Lease{peer3}}
	if err := f.Follow(t.Context(), add); !errors.Is(err, backend.ErrNotFollowed) {
		t.Errorf("before the first Apply: %v", err)
	}
	h.apply(h.desired("10.5.54.0-24"))
	h.ResetOps()
	twin := peer9
	twin.Attrs.BackendData = peer3.Attrs.BackendData
	if err := f.Follow(t.Context(), backend.Change{New: []subnet.Lease{peer3, twin}}); !errors.Is(err, backend.ErrNotFollowed) {
		t.Errorf("two hosts with one MAC: %v", err)
	}
	h.expectOps()
	if err := f.Follow(t.Context(), add); !errors.Is(err, backend.ErrNotFollowed) {
		t.Errorf("after that: %v", err)
	}
	h.apply(h.desired("10.5.54.0-24", peer3))
	if err := f.Follow(t.Context(), backend.Change{New: []subnet.Lease{peer9}}); err != nil {
		t.Errorf("after another Apply: %v", err)
	}
}
