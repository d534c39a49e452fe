package udp

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestHeirloomNames(t *testing.T) {
	for want, h := range map[string]heirloom{
		"udp.tun.0.flannel0":              {device: "flannel0"},
		"udp.tun.11.a.b":                  {n: 11, device: "a.b"},
		"udp.socket.0.8285.192.0.2.1":     {at: netip.MustParseAddrPort("192.0.2.1:8285")},
		"udp.socket.3.53.fd00--1":         {n: 3, at: netip.MustParseAddrPort("[fd00::1]:53")},
		"udp.socket.0.1.--ffff-192.0.2.1": {at: netip.MustParseAddrPort("[::ffff:192.0.2.1]:1")},
	} {
		if diff := cmp.Diff(want, h.String()); diff != "" {
			t.Errorf("name (-want +got):\n%s", diff)
		}
		got, err := parseHeirloom(want)
		if diff := cmp.Diff(h, got, cmp.AllowUnexported(heirloom{}), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || err != nil {
			t.Errorf("parse %s: %v (-want +got):\n%s", want, err, diff)
		}
	}
}

// What is taken for a name is the only name of what it says, and one that systemd
// takes; nothing else is.
func FuzzHeirloomName(f *testing.F) {
	for _, name := range []string{
		"udp.tun.0.flannel0", "udp.tun.0.", "udp.tun.00.flannel0", "udp.tun.-1.flannel0", "udp.tun.x.flannel0", "udp.tun.", "stored", "",
		"udp.socket.0.8285.192.0.2.1", "udp.socket.0.8285.", "udp.socket.0.65536.192.0.2.1", "udp.socket.0.1.fd00--1", "udp.socket.0.1.fd00::1",
		"udp.socket.0.1.FD00--1", "udp.socket.1.1.fe80--1%eth0", "udp.socket.0.0.192.0.2.1",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		h, err := parseHeirloom(name)
		switch {
		case err != nil && (!errors.Is(err, errNoHeirloom) || h != heirloom{}):
			t.Errorf("%q: %+v with error %v", name, h, err)
		case err == nil && (h.String() != name || (h.device == "") != h.at.IsValid() || h.n < 0):
			t.Errorf("%q is taken for %+v, which is %q", name, h, h)
		case err == nil && h.device == "" && strings.Contains(name, ":"):
			t.Errorf("%q: systemd refuses a colon", name)
		}
	})
}

// TestReattach: without descriptors an heir goes on from the device alone, if nothing is
// lacking to that, and the next Apply finds all that it wants. Else it opens nothing.
func TestReattach(t *testing.T) {
	left := kernel.Link{
		Name: device, Type: linkType, Alias: kernel.Instance(0).Alias(), MTU: 1472, TxQueueLen: queueLen, Up: true,
		Tun: kernel.Tun{Persist: true, MultiQueue: true},
	}
	with := func(change func(l *kernel.Link)) *kernel.Link {
		l := left
		change(&l)
		return &l
	}
	for name, tc := range map[string]struct {
		link *kernel.Link
		busy bool // the port
		low  bool // the uplink's MTU
		want bool
	}{
		"as it was left":        {link: &left, want: true},
		"no device":             {},
		"of somebody else":      {link: with(func(l *kernel.Link) { l.Alias = "" })},
		"of another kind":       {link: with(func(l *kernel.Link) { l.Type = "bridge" })},
		"down":                  {link: with(func(l *kernel.Link) { l.Up = false })},
		"ends with its holder":  {link: with(func(l *kernel.Link) { l.Tun.Persist = false })},
		"of one queue":          {link: with(func(l *kernel.Link) { l.Tun.MultiQueue = false })},
		"held":                  {link: with(func(l *kernel.Link) { l.Tun.Queues = 1 })},
		"the port is taken":     {link: &left, busy: true},
		"uplink carries little": {link: &left, low: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			d := h.desired()
			if tc.link != nil {
				up := tc.link.Up
				link := h.fake.Plug(*tc.link)
				if err := h.fake.SetLink(t.Context(), link.Index, kernel.LinkChange{Up: &up}); err != nil {
					t.Fatal(err)
				}
			}
			if tc.busy {
				taken, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(d.Uplink.Addr[subnet.IPv4], h.port)))
				if err != nil {
					t.Fatal(err)
				}
				defer taken.Close()
			}
			if tc.low {
				d.Uplink.Link.MTU = 500
			}
			h.fake.ResetOps()
			in := h.Inherit(t.Context(), d, nil)
			open := h.tunnel != nil && h.outlets.load().open() && h.devices.get(1) != nil
			nothing := h.tunnel == nil && h.raw == nil && !h.outlets.load().open() && h.devices.get(0) == nil
			if in.Whole != tc.want || open != tc.want || nothing == tc.want || in.Refused != nil {
				t.Errorf("%+v, all open: %v, nothing: %v", in, open, nothing)
			}
			if ops := h.ops(); len(ops) > 0 {
				t.Errorf("did %v in the kernel", ops)
			}
			if !tc.want {
				return
			}
			if to := h.known()[netip.MustParsePrefix("10.5.2.0/24")]; !to.to.IsValid() || h.mtu.Load() != 1472 {
				t.Errorf("knows %v, MTU %d", h.known(), h.mtu.Load())
			}
			was := h.outlets.load()
			if err := h.Apply(t.Context(), d); err != nil || h.outlets.load() != was || len(h.opened) != 1 {
				t.Errorf("apply: %v; other sockets: %v, devices opened: %d", err, h.outlets.load() != was, len(h.opened))
			}
		})
	}
}
