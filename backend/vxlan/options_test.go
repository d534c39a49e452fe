package vxlan_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestOptions(t *testing.T) {
	tests := map[string]struct {
		config, options string
		mtu             int
		want            string
		log             string
	}{
		"MTU":             {config: v4only, options: `,"MTU":1400`, mtu: 1400},
		"MTU 0":           {config: v4only, options: `,"MTU":0`, mtu: 1450},
		"MTU over uplink": {config: v4only, options: `,"MTU":8950`, mtu: 1450, log: `msg="configured mtu is more than the uplink allows" device=flannel.1 configured=8950 mtu=1450`},
		"unknown key":     {config: v4only, options: `,"Speed":1`, mtu: 1450, log: `msg="unknown config key is ignored" key=Backend.Speed`},
		"VNI":             {config: v4only, options: `,"VNI":17000000`, want: "Backend.VNI: 17000000: must be between 1 and 16777215"},
		"several at once": {
			config: v4only, options: `,"VNI":0,"Port":65536,"MTU":"big","DirectRouting":1,"GBP":"on","Learning":{}`,
			want: "Backend.VNI: 0: must be between 1 and 16777215\n" +
				"Backend.Port: 65536: must be between 0 and 65535\n" +
				"Backend.MTU: big: must be an integer without quotes\n" +
				"Backend.DirectRouting: 1: must be true or false\n" +
				"Backend.GBP: on: must be true or false\n" +
				"Backend.Learning: {}: must be true or false",
		},
		"MTU too small": {config: v4only, options: `,"MTU":500`, want: "Backend.MTU: 500: must be 0 or at least 576 for IPv4"},
		"MTU too small for IPv6": {
			config: dual, options: `,"MTU":1200`, want: "Backend.MTU: 1200: must be 0 or at least 1280 for IPv6",
		},
		"MTU too large": {config: v4only, options: `,"MTU":65500`, want: "Backend.MTU: 65500: must be between 0 and 65485"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, tc.config, "")
			c, err := subnet.ParseConfig(fmt.Sprintf(tc.config, tc.options))
			if err != nil {
				t.Fatal(err)
			}
			h.params.Config = c
			be, err := vxlan.New(h.params)
			if err == nil {
				_, err = be.Attrs(h.uplink)
			}
			if tc.want != "" {
				if err == nil || err.Error() != tc.want {
					t.Errorf("New error\n got %v\nwant %s", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if be.MTU(h.uplink) != tc.mtu {
				t.Errorf("MTU() = %d, want %d", be.MTU(h.uplink), tc.mtu)
			}
			if !strings.Contains(h.log.String(), tc.log) {
				t.Errorf("log lacks %s\n%s", tc.log, h.log.String())
			}
		})
	}
}

// What an uplink does not allow is said once for each MTU, however often it is looked at.
func TestSmallUplinkIsSaidOnce(t *testing.T) {
	h := newHost(t, v4only, `,"MTU":1400`)
	for range 3 {
		for _, mtu := range []int{1500, 1400, 1400, 1300} {
			h.uplink.Link.MTU = mtu
			if _, err := h.be.Attrs(h.uplink); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := strings.Count(h.log.String(), "configured mtu is more than the uplink allows"); n != 6 {
		t.Errorf("said %d times, want 6:\n%s", n, h.log.String())
	}
}

func TestUplinkThatWillNotDo(t *testing.T) {
	h := newHost(t, dual, "")
	h.uplink.Addr[subnet.IPv6] = netip.Addr{}
	if _, err := h.be.Attrs(h.uplink); err == nil || err.Error() != "uplink eth0 has no IPv6 address, which the IPv6 network needs" {
		t.Errorf("Attrs error %v", err)
	}
	h = newHost(t, v4only, "")
	h.uplink.Link.MTU = 600
	if _, err := h.be.Attrs(h.uplink); err == nil || err.Error() != "uplink eth0 has MTU 600: IPv4 over VXLAN needs at least 626" {
		t.Errorf("Attrs error %v", err)
	}
}

func TestGBPAndLearningReachTheDevice(t *testing.T) {
	h := newHost(t, v4only, `,"GBP":true,"Learning":true`)
	h.apply(h.desired("10.5.54.0-24"))
	dev, err := h.LinkByName(t.Context(), "flannel.1")
	if err != nil || !dev.VXLAN.GBP || !dev.VXLAN.Learning {
		t.Errorf("device %+v, %v", dev, err)
	}
}
