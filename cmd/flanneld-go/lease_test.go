package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestPreviousSubnets(t *testing.T) {
	one, two := subnet.Subnet{netip.MustParsePrefix("10.5.1.0/24")}, subnet.Subnet{netip.MustParsePrefix("10.5.2.0/24")}
	tests := []struct {
		name   string
		cached subnet.Subnet
		file   string // empty: there is none
		want   []string
		warned bool
	}{
		{name: "nothing known"},
		{name: "the cache alone", cached: one, want: []string{"10.5.1.0/24"}},
		{name: "the file of a flannel alone", file: "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.2.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", want: []string{"10.5.2.0/24"}},
		{name: "the cache first", cached: one, file: "FLANNEL_SUBNET=10.5.2.1/24\n", want: []string{"10.5.1.0/24", "10.5.2.0/24"}},
		{name: "both the same", cached: two, file: "FLANNEL_SUBNET=10.5.2.1/24\n", want: []string{"10.5.2.0/24"}},
		{name: "a file of no use", cached: one, file: "FLANNEL_SUBNET=ten\n", want: []string{"10.5.1.0/24"}, warned: true},
		{name: "a file without a subnet", file: "FLANNEL_MTU=1450\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "subnet.env")
			if tt.file != "" {
				if err := os.WriteFile(path, []byte(tt.file), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			warned := false
			var got []string
			for _, s := range previousSubnets(tt.cached, path, func(error) { warned = true }) {
				got = append(got, s.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if warned != tt.warned {
				t.Errorf("warned %t, want %t", warned, tt.warned)
			}
		})
	}
}

// What a host routes elsewhere is not to be leased; what is ours, Docker's or
// flannel's may be, or a host could not have its own subnet back.
func TestOccupied(t *testing.T) {
	f := kerneltest.New()
	p := netip.MustParsePrefix
	eth0 := f.Plug(kernel.Link{Name: "eth0", MTU: 1500}, p("198.18.0.1/24"))
	vpn := f.Plug(kernel.Link{Name: "vpn0", MTU: 1400}, p("10.5.40.7/24"))
	docker := f.Plug(kernel.Link{Name: "docker0", MTU: 1500}, p("10.5.1.1/24"))
	flannel := f.Plug(kernel.Link{Name: "flannel0", MTU: 1472}, p("10.5.1.0/16"))
	ours := f.Plug(kernel.Link{Name: "overlay7", MTU: 1450}, p("10.5.2.0/32"))
	gateway := netip.MustParseAddr("198.18.0.254")
	routes := []kernel.Route{
		{Dst: p("10.5.41.0/24"), Link: vpn.Index, Protocol: 4},
		{Dst: p("10.5.50.0/24"), Gateway: gateway, Link: eth0.Index, Protocol: 3}, // flannel's host-gw
		{Dst: p("10.5.51.0/24"), Link: eth0.Index, Protocol: 4},
		{Dst: p("10.5.52.0/24"), Link: vpn.Index, Protocol: kernel.Protocol},
		{Dst: p("10.5.53.0/24"), Link: flannel.Index, Protocol: 3},
		{Dst: p("10.5.54.0/24"), Link: ours.Index, Protocol: 3},
		{Dst: p("10.5.55.0/24"), Link: docker.Index, Protocol: 3},
		{Dst: p("10.5.1.0/24"), Blackhole: true, Protocol: 3},
	}
	if err := f.Routes().Put(t.Context(), routes); err != nil {
		t.Fatal(err)
	}
	list, err := occupied(t.Context(), f, []string{"overlay7"}, eth0.Index)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, prefix := range list {
		got = append(got, prefix.String())
	}
	slices.Sort(got)
	want := []string{"10.5.40.0/24", "10.5.41.0/24", "10.5.51.0/24", "198.18.0.0/24"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What to type names the key in the way, which may be another than ours, or none.
func TestWayOutOfConflict(t *testing.T) {
	const restart = "systemctl restart flanneld-go takes another subnet"
	for name, tt := range map[string]struct {
		deny func(*testHost)
		want string
	}{
		"a wider subnet": {
			deny: func(h *testHost) { h.owned("10.5.0.0-17", "198.18.0.9", "other") },
			want: restart + "; flannelctl release 10.5.0.0/17 --yes gives this one back, if its holder is gone",
		},
		"several, the oldest holds": {
			deny: func(h *testHost) {
				h.owned("10.5.64.0-18", "198.18.0.9", "other")
				h.owned("10.5.0.0-17", "198.18.0.8", "another")
			},
			want: restart + "; flannelctl release 10.5.64.0/18 --yes gives this one back, if its holder is gone",
		},
		"a key that cannot be read": {
			deny: func(h *testHost) { h.put("10.5.0.0-17", "{") },
			want: restart + "; flannelctl release '10.5.0.0-17' --yes gives this one back",
		},
		"the config": {
			deny: func(h *testHost) { h.data.OverwriteConfig(strings.Replace(vxlanConfig, "10.5.", "10.6.", 1)) },
			want: restart,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.onConflict = subnet.Fence
				h.data.OverwriteConfig(vxlanConfig)
				h.start()
				defer h.stop()
				h.ready()
				_, key := h.subnet()
				tt.deny(h) // first: a key that is merely gone is back at once
				h.data.DeleteKey(key)
				h.eventually(promise, "the way out", func() bool { return h.problem(status.ComponentLease).Hint == tt.want })
			})
		})
	}
}
