package hostgw_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/backendtest"
	"github.com/flanneld-go/flanneld-go/backend/hostgw"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/backend/uplink"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// On the running kernel a host of ours looks like flannel's, to the word, also
// when flannel was there before; cleaned up, it looks as if none had been.
func TestHostLooksLikeFlannels(t *testing.T) {
	for name, before := range map[string]string{
		"fresh": "true", "after flannel": "ip route add 10.5.33.0/24 via 198.18.0.2 && ip route add 10.5.34.0/24 via 198.18.0.2",
	} {
		t.Run(name, func(t *testing.T) {
			ns := backendtest.FlannelHost(t)
			clean := ns.Run(t, "ip", "route")
			ns.Run(t, "sh", "-c", before)
			c, err := subnet.ParseConfig(`{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`)
			if err != nil {
				t.Fatal(err)
			}
			up, err := uplink.Choose(t.Context(), ns, uplink.Options{})
			if err != nil {
				t.Fatal(err)
			}
			var result reconcile.Result
			be, err := hostgw.New(backend.Params{Config: c, Kernel: ns, Observe: func(r reconcile.Result) { result = r }})
			if err != nil {
				t.Fatal(err)
			}
			d := backend.Desired{
				Config: c, Uplink: up, Own: lease("10.5.89.0-24", "198.18.0.1", ""), Peers: slices.Collect(subnet.Each([]subnet.Lease{lease("10.5.33.0-24", "198.18.0.2", "")})),
			}
			if err := be.Apply(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			if err := be.Apply(t.Context(), d); err != nil || result != (reconcile.Result{}) {
				t.Errorf("second Apply: observed %+v, %v, want nothing", result, err)
			}
			backendtest.ExpectCapture(t, "testdata/host-gw.txt", backendtest.Capture(t, ns))
			if err := be.Cleanup(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(clean, ns.Run(t, "ip", "route")); diff != "" {
				t.Errorf("after cleanup (-before +after)\n%s", diff)
			}
		})
	}
}

// Containers and hosts reach each other, lost routes come back, and a peer that
// moves is followed by one changed route.
func TestPing(t *testing.T) {
	lab := backendtest.NewLab(t, hostgw.New, dual, 0, 0, 0)
	lab.ApplyAll()
	lab.PingAll()
	h, mover := lab.Hosts[0], lab.Hosts[1]
	whole := routes(t, h)
	for name, command := range map[string]string{
		"all routes":    "for r in $(ip route show proto 158 | cut -d' ' -f1); do ip route del $r; done",
		"one route":     "ip route del 10.5.2.0/24",
		"all nexthops":  "ip nexthop flush",
		"route changed": "ip route del 10.5.2.0/24 && ip route add 10.5.2.0/24 via 198.18.0.9 proto 158",
	} {
		t.Run(name, func(t *testing.T) {
			h.Run(t, "sh", "-c", command)
			if routes(t, h) == whole {
				t.Fatalf("%s broke nothing", command)
			}
			h.Apply(t.Context())
			if diff := cmp.Diff(whole, routes(t, h)); diff != "" {
				t.Errorf("after one Apply (-whole +got)\n%s", diff)
			}
			lab.PingAll()
		})
	}

	mover.Run(t, "ip", "addr", "del", "198.18.0.2/24", "dev", "eth0")
	mover.Run(t, "ip", "addr", "add", "198.18.0.22/24", "dev", "eth0")
	mover.Restart(netip.MustParseAddr("198.18.0.22"))
	lab.ApplyAll()
	if want := (reconcile.Result{Put: 1}); h.Result != want {
		t.Errorf("a peer moved: observed %+v, want %+v", h.Result, want)
	}
	lab.PingAll()
}

func routes(t *testing.T, h *backendtest.Host) string {
	t.Helper()
	all, err := h.Routes().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range all {
		if r.Protocol == kernel.Protocol {
			lines = append(lines, r.String())
		}
	}
	return strings.Join(lines, "\n")
}
