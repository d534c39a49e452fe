package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
)

// Traffic does not depend on the state directory: one that cannot be written is
// said, and written once it can be, what was done in the meantime included.
func TestLoopUnwritableStateDir(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.peer("10.5.200.0-24", "198.18.0.2")
		h.writeFile("state", "in the way")
		// Docker's keys are remembered in the same place.
		h.opts.dockerConfig = ""
		h.start()
		defer h.stop()
		h.eventually(soon, "the directory is a problem", func() bool {
			return strings.Contains(h.problem(status.ComponentCache).Message, h.path("state"))
		})
		if s := h.board.Snapshot(); !s.Ready || s.State != status.StateDegraded || len(h.routes()) != 1 {
			t.Errorf("%s, ready %t, routes %v; want degraded, ready, with the peer's route", s.Line(), s.Ready, h.routes())
		}
		if err := os.Remove(h.path("state")); err != nil {
			t.Fatal(err)
		}
		h.eventually(resync, "no problem any more", func() bool { return h.problem(status.ComponentCache) == status.Problem{} })
		if text := h.file("state/host.json"); !strings.Contains(text, `"host-gw"`) || !strings.Contains(text, "ip_forward") {
			t.Errorf("host.json: %s; want the backend and the sysctl", text)
		}
	})
}

// A key that is no lease is named: some host may believe that it is.
func TestLoopUnreadableKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		if _, err := h.data.Put("10.5.99.0-24", "garbage", 0); err != nil {
			t.Fatal(err)
		}
		h.eventually(soon, "the key is a problem", func() bool {
			p := h.problem(status.ComponentPeers)
			return strings.HasPrefix(p.Message, "1 keys in etcd are no leases, the first: ") && strings.Contains(p.Message, "10.5.99.0-24") && p.Hint == "flannelctl release '10.5.99.0-24' --yes deletes such a key"
		})
		h.data.DeleteKey("10.5.99.0-24")
		h.eventually(soon, "no problem any more", func() bool { return h.problem(status.ComponentPeers) == status.Problem{} })
	})
}

// An uplink that is not what it was is named, with what to do.
func TestLoopUplinkChanges(t *testing.T) {
	tests := []struct {
		name, want, hint string
		change           func(t *testing.T, h *testHost)
	}{
		{name: "down", want: "uplink eth0 is down", hint: "ip link set eth0 up, and then the routes that it had", change: func(t *testing.T, h *testHost) {
			down := false
			if err := h.kernel.SetLink(t.Context(), h.eth0.Index, kernel.LinkChange{Up: &down}); err != nil {
				t.Fatal(err)
			}
		}},
		{
			name: "unplugged", want: "uplink eth0 has no carrier", hint: "look at its cable, its switch, or what else it hangs on: ip -d link show eth0",
			change: func(_ *testing.T, h *testHost) { h.kernel.SetRunning(h.eth0.Index, false) },
		},
		{name: "deleted", want: "uplink eth0 is gone", hint: "bring it back, or name another interface by --iface: what the options choose is followed", change: func(t *testing.T, h *testHost) {
			if err := h.kernel.DeleteLink(t.Context(), h.eth0.Index); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "made anew without an address", want: "uplink eth0 has lost its address 198.18.0.1", hint: "ip addr add ADDRESS/LENGTH dev eth0: another address is followed, too", change: func(t *testing.T, h *testHost) {
			if err := h.kernel.DeleteLink(t.Context(), h.eth0.Index); err != nil {
				t.Fatal(err)
			}
			h.kernel.Plug(kernel.Link{Name: "eth0", MTU: 1500})
		}},
		{name: "too small", want: "uplink eth0 has MTU 600: IPv4 over VXLAN needs at least 626", hint: "ip link set eth0 mtu 1500", change: func(t *testing.T, h *testHost) {
			if err := h.kernel.SetLink(t.Context(), h.eth0.Index, kernel.LinkChange{MTU: 600}); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "no address", want: "uplink eth0 has lost its address 198.18.0.1", hint: "ip addr add ADDRESS/LENGTH dev eth0: another address is followed, too", change: func(t *testing.T, h *testHost) {
			addrs := h.kernel.Addrs(h.eth0.Index)
			list, err := addrs.List(t.Context())
			if err == nil {
				err = addrs.Delete(t.Context(), list)
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.data.OverwriteConfig(vxlanConfig)
				h.start()
				defer h.stop()
				h.ready()
				tt.change(t, h)
				h.eventually(resync, "the uplink is a problem", func() bool {
					p := h.problem(status.ComponentUplink)
					return strings.HasPrefix(p.Message, tt.want) && p.Blocking && p.Hint == tt.hint
				})
				if h.board.Snapshot().Ready {
					t.Error("ready without its uplink")
				}
			})
		})
	}
}

// flaky is a data path that fails at once until it is well.
type flaky struct {
	backend.Backend
	well atomic.Bool
}

func (f *flaky) Run(ctx context.Context) error {
	if !f.well.Load() {
		return errors.New("no device")
	}
	<-ctx.Done()
	return nil
}

// A data path that fails again and again is one problem, not many, and no host
// is ready with it.
func TestDataPathFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		f := &flaky{}
		go h.loop.runDataPath(ctx, f)
		h.eventually(resync, "not ready", func() bool { return !h.board.Snapshot().Ready })
		time.Sleep(time.Minute)
		if h.log.count("msg=problem component=data_path") != 1 || h.log.count("msg=recovered component=data_path") != 0 {
			t.Error("the problem was logged more than once, or as recovered")
		}
		if p := h.problem(status.ComponentDataPath); p.Message != "no device" || !p.Blocking {
			t.Errorf("problem %+v", p)
		}
		f.well.Store(true)
		h.eventually(time.Minute, "ready", func() bool { return h.board.Snapshot().Ready })
		if h.problem(status.ComponentDataPath) != (status.Problem{}) {
			t.Error("ready with a problem")
		}
	})
}
