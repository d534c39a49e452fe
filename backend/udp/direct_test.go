package udp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// plainRoutes are the routes by gateways, as text.
func plainRoutes(t *testing.T, host kernel.Host) []string {
	t.Helper()
	list, err := host.Routes().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var routes []string
	for _, r := range list {
		if r.Gateway.IsValid() {
			link, err := host.LinkByName(t.Context(), "eth0")
			if err != nil || r.Link != link.Index || r.Protocol != kernel.Protocol {
				t.Errorf("route %+v is not ours by %+v: %v", r, link, err)
			}
			routes = append(routes, fmt.Sprintf("%s via %s", r.Dst, r.Gateway))
		}
	}
	slices.Sort(routes)
	return routes
}

// Who is on the segment, and says that it wants that, is reached without the tunnel,
// and nobody else; all stay in the tunnel's table. A start without a cache finds
// those routes, which would lead where they led before.
func TestDirectRouting(t *testing.T) {
	const direct = `{"Port":8285,"DirectRouting":true}`
	dual := lease("10.5.2.0/24", "198.18.0.2")
	dual.Subnet[subnet.IPv6] = netip.MustParsePrefix("fd05:0:0:2::/64")
	dual.Attrs.BackendData[subnet.IPv4] = direct
	with := func(l subnet.Lease, data subnet.RawJSON) subnet.Lease {
		l.Attrs.BackendData[subnet.IPv4] = data
		return l
	}
	peers := []subnet.Lease{
		dual,
		with(lease("10.5.3.0/24", "198.18.0.3"), direct),
		with(lease("10.5.4.0/24", "198.51.100.4"), direct), // behind a router
		with(lease("10.5.5.0/24", "198.18.0.5"), `{"Port":8285}`),
		lease("10.5.6.0/24", "198.18.0.6"), // flannel's
	}
	for name, tc := range map[string]struct {
		options string
		want    []string
	}{
		"on":  {`,"DirectRouting":true`, []string{"10.5.2.0/24 via 198.18.0.2", "10.5.3.0/24 via 198.18.0.3"}},
		"off": {"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			p := h.params
			p.Config = testConfig(fmt.Sprintf(`{"Port":%d,"Queues":2%s}`, h.port, tc.options))
			p.Config.Ranges[subnet.IPv6] = subnet.Range{Network: netip.MustParsePrefix("fd05::/48"), SubnetLen: 64}
			h.replace(t, p)
			up := testUplink("127.0.0.1")
			up.Link = h.fake.Plug(kernel.Link{Name: "eth0", MTU: 1500}, netip.MustParsePrefix("198.18.0.1/24"))
			up.Segments = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}
			on := func(peers ...subnet.Lease) backend.Desired {
				d := desired(p.Config, "10.5.1.0/24", peers...)
				d.Uplink = up
				return d
			}
			// What a run with DirectRouting left tells nobody anything where that is off.
			left := kernel.Route{Dst: netip.MustParsePrefix("10.5.9.0/24"), Gateway: netip.MustParseAddr("198.18.0.9"), Link: up.Link.Index, Protocol: kernel.Protocol}
			if err := h.fake.Routes().Put(t.Context(), []kernel.Route{left}); err != nil {
				t.Fatal(err)
			}
			if recalled, err := h.Recall(t.Context()); err != nil || (len(recalled) == 1) != (tc.want != nil) {
				t.Errorf("recalled %v, %v", recalled, err)
			}
			d := on(peers...)
			for range 2 {
				if err := h.Apply(t.Context(), d); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.want, plainRoutes(t, h.fake)); diff != "" {
					t.Errorf("routes (-want +got):\n%s", diff)
				}
			}
			for _, l := range peers {
				if h.world.Load().table.lookup(subnet.IPv4, addressOf(l.Subnet[subnet.IPv4].Addr())) == nil {
					t.Errorf("%s is not in the tunnel's table", l.Subnet)
				}
			}
			if got := h.Tunnel().Direct; got != (tc.want != nil) {
				t.Errorf("the firewall is told direct: %t", got)
			}
			if h.MTU(up) != 1472 {
				t.Errorf("MTU %d, want the tunnel's", h.MTU(up))
			}
			attrs, err := h.Attrs(up)
			if err != nil || strings.Contains(string(attrs.BackendData[subnet.IPv4]), `"DirectRouting":true`) != (tc.want != nil) {
				t.Errorf("published %s, %v", attrs.BackendData[subnet.IPv4], err)
			}
			recalled, err := h.Recall(t.Context())
			if err != nil || len(recalled) != len(tc.want) {
				t.Errorf("recalled %v, %v", recalled, err)
			}
			if err := h.Apply(t.Context(), on(recalled...)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, plainRoutes(t, h.fake)); diff != "" {
				t.Errorf("routes of recalled peers (-want +got):\n%s", diff)
			}
			if err := h.Apply(t.Context(), on()); err != nil {
				t.Fatal(err)
			}
			if got := plainRoutes(t, h.fake); got != nil {
				t.Errorf("routes without peers: %v", got)
			}
		})
	}
}

// replace makes the backend anew, of other parameters.
func (h *host) replace(t testing.TB, p backend.Params) {
	t.Helper()
	made, err := New(p)
	if err != nil {
		t.Fatal(err)
	}
	h.Backend = made.(*Backend)
	h.open = h.plug
}

// Packets take the short way only where both hosts want it, and pass in any case,
// also by kernels that look for the way back.
func TestKernelDirectRouting(t *testing.T) {
	const on, off = `{"Queues":1,"DirectRouting":true}`, `{"Queues":1}`
	for name, tc := range map[string]struct {
		options [2]string
		direct  bool
	}{
		"both":     {[2]string{on, on}, true},
		"one only": {[2]string{on, off}, false},
		"none":     {[2]string{off, off}, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := twoMachines(t)
			for i, own := range m {
				own.options = tc.options[i]
				command(t, "ip", "netns", "exec", string(own.ns), "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
			}
			join(t, m)
			mustPing(t, m[0].container, "10.5.2.2")
			mustPing(t, m[1].container, "10.5.1.2")
			mustPing(t, m[0].ns, "fd05:0:0:2::") // the uplink's family alone has gateways
			for i, own := range m {
				got := own.ns.ip(t, fmt.Sprintf("route get 10.5.%d.2", m[1-i].n))
				if direct := strings.Contains(got, fmt.Sprintf("via %s dev eth0", m[1-i].outer())); direct != tc.direct {
					t.Errorf("host %d: %s", own.n, got)
				}
			}
			m[0].stop(t)
			if err := m[0].Cleanup(t.Context()); err != nil {
				t.Error(err)
			}
			if left := m[0].ns.ip(t, "route"); strings.Contains(left, "10.5.2.0") {
				t.Errorf("left by Cleanup:\n%s", left)
			}
		})
	}
}
