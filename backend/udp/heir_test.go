package udp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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
