package vxlan_test

import (
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

// drawPeers draws a world of up to 100 peers, some of them on the segment, some
// unusable, some with another's MAC.
func drawPeers(t *rapid.T) []subnet.Lease {
	var peers []subnet.Lease
	for i, b := range rapid.SliceOfN(rapid.Byte(), 100, 100).Draw(t, "peers") {
		kind := b >> 2 % 10
		if kind < 4 {
			continue
		}
		public := fmt.Sprintf("198.18.0.%d", 100+i)
		if b&1 != 0 {
			public = fmt.Sprintf("203.0.113.%d", 100+i)
		}
		mac := fmt.Sprintf("5e:00:00:00:%02x:%02x", b>>1&1, i)
		l := lease(fmt.Sprintf("10.5.%d.0-24&fd05:0:0:%x::-64", 100+i, 100+i), public, mac,
			fmt.Sprintf("fd00:198:18::%x", 100+i), fmt.Sprintf("5e:00:00:00:02:%02x", i))
		switch kind {
		case 4:
			l.Attrs.BackendType = "host-gw"
		case 5:
			l.Attrs.BackendData[subnet.IPv4] = `{"VNI":1,"VtepMAC":"5e:00:00:00:ff:ff"}`
		}
		peers = append(peers, l)
	}
	return peers
}

// harm does to the overlay what people and other programs do.
func harm(t *rapid.T, h *host) {
	ctx := h.t.Context()
	links, err := h.Links(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type != "vxlan" || rapid.Bool().Draw(t, "spare") {
			continue
		}
		down := false
		switch rapid.SampledFrom([]string{"delete", "down", "mac", "mtu", "addr", "fdb", "neigh", "route"}).Draw(t, "harm") {
		case "delete":
			err = h.DeleteLink(ctx, l.Index)
		case "down":
			err = h.SetLink(ctx, l.Index, kernel.LinkChange{Up: &down})
		case "mac":
			err = h.SetLink(ctx, l.Index, kernel.LinkChange{MAC: kernel.MAC{2, 0, 0, 0, 0, 1}})
		case "mtu":
			err = h.SetLink(ctx, l.Index, kernel.LinkChange{MTU: 1400})
		case "addr":
			err = lose(t, h, h.Addrs(l.Index))
		case "fdb":
			stray := kernel.FDB{Link: l.Index, MAC: kernel.MAC{2, 9}, Dst: l.VXLAN.Local.Next()}
			err = errors.Join(lose(t, h, h.FDB(l.Index)), h.FDB(l.Index).Put(ctx, []kernel.FDB{stray}))
		case "neigh":
			err = lose(t, h, h.Neighbours(l.Index))
		case "route":
			err = lose(t, h, h.Routes())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// lose deletes entries of a table, all or some.
func lose[E any](t *rapid.T, h *host, table reconcile.Table[E]) error {
	entries, err := table.List(h.t.Context())
	if err != nil || len(entries) == 0 {
		return err
	}
	n := rapid.IntRange(0, len(entries)-1).Draw(t, "first")
	return table.Delete(h.t.Context(), entries[n:])
}

// After any sequence of states desired, harm, failures and restarts, one Apply
// gives what a fresh host has, and the next one has nothing to do.
func TestApplyConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		options := ""
		if rapid.Bool().Draw(rt, "direct") {
			options = `,"DirectRouting":true`
		}
		h := newHost(t, dual, options)
		start(rt, h)
		var last backend.Desired
		for range rapid.IntRange(1, 5).Draw(rt, "steps") {
			own := rapid.SampledFrom([]string{"10.5.54.0-24&fd05:0:0:54::-64", "10.5.55.0-24&fd05:0:0:55::-64"}).Draw(rt, "own")
			last = h.desired(own, drawPeers(rt)...)
			if rapid.Bool().Draw(rt, "fail") {
				h.OnOp(kerneltest.FailNth(rapid.IntRange(1, 60).Draw(rt, "nth"), syscall.ENOBUFS, nil))
			}
			_ = h.be.Apply(t.Context(), last) // may fail: that is what is tested
			h.OnOp(nil)
			harm(rt, h)
			if rapid.Bool().Draw(rt, "restart") {
				// A new process believes the MAC that it finds.
				_ = h.be.Apply(t.Context(), last)
				h.restart()
				start(rt, h)
			}
		}
		fresh := newHost(t, dual, options)
		want := fresh.be.Apply(t.Context(), last)
		got := h.be.Apply(t.Context(), last)
		if diff := lines(text(want), text(got)); diff != "" {
			rt.Errorf("error of Apply (-fresh +walked)\n%s", diff)
		}
		if diff := lines(state(t, fresh), state(t, h)); diff != "" {
			rt.Errorf("state (-fresh +walked)\n%s", diff)
		}
		h.ResetOps()
		_ = h.be.Apply(t.Context(), last)
		if ops := h.Ops(); len(ops) > 0 {
			rt.Errorf("second Apply did %v", ops)
		}
		var pe *backend.PeerError
		if want != nil && !errors.As(want, &pe) {
			rt.Errorf("error %v, want PeerErrors only", want)
		}
	})
}

// start does what the daemon does first: it asks what to tell the peers.
func start(t *rapid.T, h *host) {
	if _, err := h.be.Attrs(h.uplink); err != nil {
		t.Fatal(err)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
