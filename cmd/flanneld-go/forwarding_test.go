package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

const dualConfig = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"vxlan"}}`

// sysctl is a sysctl's value.
func (h *testHost) sysctl(name string) string {
	h.t.Helper()
	v, err := h.kernel.Sysctl(name)
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

func (h *testHost) setSysctl(name, value string) {
	h.t.Helper()
	if err := h.kernel.SetSysctl(name, value); err != nil {
		h.t.Fatal(err)
	}
}

// Somebody turns forwarding of single interfaces off: of those that the overlay's
// packets come in by it is turned on again at once, of others not.
func TestForwardingOfInterfaces(t *testing.T) {
	for name, tc := range map[string]struct {
		config string
		kept   []string
		others []string
	}{
		"vxlan":   {vxlanConfig, []string{"flannel.1", dockerBridge}, []string{"eth0", "veth9"}},
		"host-gw": {networkConfig, []string{"eth0", dockerBridge}, []string{"veth9"}},
	} {
		t.Run(name, func(t *testing.T) {
			following(t, tc.config, nil, func(t *testing.T, h *testHost) {
				own, _ := h.subnet()
				h.kernel.Plug(kernel.Link{Name: dockerBridge, Type: "bridge", MTU: 1450}, netip.PrefixFrom(netip.MustParsePrefix(own).Addr().Next(), 24))
				h.kernel.Plug(kernel.Link{Name: "veth9", Type: "veth", MTU: 1500}, netip.MustParsePrefix("172.30.0.1/16"))
				time.Sleep(time.Second)
				for _, link := range tc.others {
					h.setSysctl("net/ipv4/conf/"+link+"/forwarding", "0")
				}
				time.Sleep(time.Minute)
				for _, link := range tc.kept {
					name := "net/ipv4/conf/" + link + "/forwarding"
					h.setSysctl(name, "0")
					h.eventually(100*time.Millisecond, "forwarding of "+link, func() bool { return h.sysctl(name) == "1" })
					h.line("msg=\"forwarding turned on\" sysctl=" + name + " before=0 after=1")
				}
				for _, link := range tc.others {
					if got := h.sysctl("net/ipv4/conf/" + link + "/forwarding"); got != "0" {
						t.Errorf("forwarding of %s is %s, and it is not ours", link, got)
					}
				}
				if n := h.log.count(`repaired what somebody else changed in the kernel" put=1 deleted=0 events=forwarding`); n != len(tc.kept) {
					t.Errorf("%d repairs said, want %d", n, len(tc.kept))
				}
			})
		})
	}
}

// Interfaces begin without forwarding, ours among them: nobody has undone anything.
func TestForwardingIsOffByDefault(t *testing.T) {
	off := func(h *testHost) {
		h.setSysctl("net/ipv4/ip_forward", "1")
		h.setSysctl("net/ipv4/conf/default/forwarding", "0")
	}
	following(t, vxlanConfig, off, func(t *testing.T, h *testHost) {
		const name = "net/ipv4/conf/flannel.1/forwarding"
		h.eventually(100*time.Millisecond, "forwarding", func() bool { return h.sysctl(name) == "1" })
		h.line("sysctl=" + name)
		if n := h.log.count("repaired what somebody else"); n != 0 {
			t.Error("called a repair")
		}
	})
}

// Who turns it off each time is opposed ever more slowly, and that is said once.
func TestForwardingThatIsFoughtOver(t *testing.T) {
	following(t, vxlanConfig, nil, func(t *testing.T, h *testHost) {
		const name = "net/ipv4/conf/flannel.1/forwarding"
		time.Sleep(time.Minute)
		turnedOn := 0
		for began := time.Now(); time.Since(began) < time.Minute; turnedOn++ {
			h.setSysctl(name, "0")
			h.eventually(2*quarrelMax, "forwarding", func() bool { return h.sysctl(name) == "1" })
		}
		if least, most := int(time.Minute/quarrelMax), int(time.Minute/quarrelMax)+20; turnedOn < least || turnedOn > most {
			t.Errorf("turned on %d times, want %d to %d", turnedOn, least, most)
		}
		if n := h.log.count("repairs are slowed down"); n != 1 {
			t.Errorf("said %d times", n)
		}
		if n := h.log.count("sysctl=" + name); n > quarrelBurst+1 {
			t.Errorf("%d lines about it", n)
		}
	})
}

// The uplink lives on router advertisements, which it must accept for as long as it
// forwards for our sake; who forwards for his own has his own reasons.
func TestAdvertisementsAreKept(t *testing.T) {
	const accept, forward = "net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/all/forwarding"
	for name, ours := range map[string]bool{"for our sake": true, "for his own": false} {
		t.Run(name, func(t *testing.T) {
			prepare := func(h *testHost) {
				h.addr(h.eth0.Index, true, "fd00:198:18::1/64")
				h.kernel.DefineSysctl(accept, "1")
				if !ours {
					h.setSysctl(forward, "1")
				}
			}
			following(t, dualConfig, prepare, func(t *testing.T, h *testHost) {
				want := map[bool]string{true: "2", false: "1"}[ours]
				for _, again := range []bool{false, true} {
					if again {
						h.stop()
						h.start()
						h.ready()
					}
					if got := h.sysctl(accept); got != want || h.sysctl(forward) != "1" {
						t.Errorf("accept_ra is %s, want %s", got, want)
					}
					h.setSysctl(accept, "1")
					time.Sleep(resync)
					if got := h.sysctl(accept); got != want {
						t.Errorf("accept_ra is %s after a while, want %s", got, want)
					}
				}
			})
		})
	}
}
