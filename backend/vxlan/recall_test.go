package vxlan_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/backendtest"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// recall asks a backend that knows nothing but the kernel.
func (h *host) recall() ([]subnet.Lease, error) {
	h.t.Helper()
	h.restart()
	return h.be.(backend.Recaller).Recall(h.t.Context())
}

func sameLeases(want, got []subnet.Lease) string {
	for _, list := range [][]subnet.Lease{want, got} {
		slices.SortFunc(list, func(a, b subnet.Lease) int { return a.Subnet.Compare(b.Subnet) })
	}
	return cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}))
}

// What Apply made of leases, Recall makes leases of, one per family; applied again
// they change nothing.
func TestRecall(t *testing.T) {
	const own = "10.5.6.0-24&fd05:0:0:30::-64"
	both := lease("10.5.35.0-24&fd05:0:0:52::-64", "198.18.0.2", "ee:27:87:43:1f:08", "fd00:198:18::2", "e2:fb:49:af:e6:a8")
	half4 := lease("10.5.35.0-24", "198.18.0.2", "ee:27:87:43:1f:08", "", "")
	half6 := lease("0.0.0.0-0&fd05:0:0:52::-64", "", "", "fd00:198:18::2", "e2:fb:49:af:e6:a8")
	far := lease("10.5.9.0-24", "203.0.113.9", "5e:ca:ce:aa:6f:09", "", "")
	// A direct path tells no MAC, and needs none.
	direct4, direct6 := half4, half6
	direct4.Attrs.BackendData, direct6.Attrs.BackendData = subnet.ByFamily[subnet.RawJSON]{}, subnet.ByFamily[subnet.RawJSON]{}
	tests := map[string]struct {
		config, options string
		peers, want     []subnet.Lease
	}{
		"nothing":        {config: dual},
		"one family":     {config: v4only, peers: []subnet.Lease{half4, far}, want: []subnet.Lease{far, half4}},
		"dual stack":     {config: dual, peers: []subnet.Lease{both}, want: []subnet.Lease{half4, half6}},
		"direct routing": {config: dual, options: `,"DirectRouting":true`, peers: []subnet.Lease{both, far}, want: []subnet.Lease{far, direct4, direct6}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, tt.config, tt.options)
			h.apply(h.desired(own, tt.peers...))
			h.ResetOps()
			got, err := h.recall()
			if diff := sameLeases(tt.want, got); err != nil || diff != "" {
				t.Fatalf("Recall: %v (-want +got)\n%s", err, diff)
			}
			h.expectOps()
			h.apply(h.desired(own, got...))
			h.expectOps()
		})
	}
}

// What is not ours, or leads nowhere, is nobody's path.
func TestRecallTakesNoOther(t *testing.T) {
	h := newHost(t, v4only, "")
	h.apply(h.desired("10.5.54.0-24", peer3, peer9))
	dev, err := h.LinkByName(t.Context(), "flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	through := func(dst string, link, protocol int) kernel.Route {
		p := netip.MustParsePrefix(dst)
		return kernel.Route{Dst: p, Gateway: p.Addr(), Link: link, OnLink: true, Protocol: protocol}
	}
	foreign := []kernel.Route{
		through("10.5.20.0/24", dev.Index, 3),
		through("10.6.20.0/24", dev.Index, kernel.Protocol),
		through("10.5.21.0/24", dev.Index, kernel.Protocol), // to no neighbour
		through("10.5.22.0/24", h.uplink.Link.Index, kernel.Protocol),
		{Dst: netip.MustParsePrefix("10.5.23.0/24"), Link: dev.Index, Protocol: kernel.Protocol},
	}
	if err := h.Routes().Put(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	// Where somebody sends all that he knows no way to.
	unknown := []kernel.FDB{{Link: dev.Index, Dst: netip.MustParseAddr("203.0.113.77")}}
	if err := h.FDB(dev.Index).Put(t.Context(), unknown); err != nil {
		t.Fatal(err)
	}
	got, err := h.recall()
	if diff := sameLeases([]subnet.Lease{peer3, peer9}, got); err != nil || diff != "" {
		t.Errorf("Recall: %v (-want +got)\n%s", err, diff)
	}
}

// Half of what the kernel knows is an error, not a shorter list.
func TestRecallFails(t *testing.T) {
	for _, kind := range []string{"route", "neighbour", "fdb"} {
		t.Run(kind, func(t *testing.T) {
			h := newHost(t, v4only, "")
			h.apply(h.desired("10.5.54.0-24", peer3))
			h.OnOp(kerneltest.FailNth(1, syscall.ENOBUFS, func(o kerneltest.Op) bool { return o.Verb == "list" && o.Kind == kind }))
			if got, err := h.recall(); !errors.Is(err, syscall.ENOBUFS) || got != nil {
				t.Errorf("Recall() = %v, %v; want nothing and ENOBUFS", got, err)
			}
		})
	}
}

// The running kernel tells the same, and all hosts still reach each other by what
// it told.
func TestRecallFromTheKernel(t *testing.T) {
	for name, options := range map[string]string{"vxlan": "", "direct routing": `,"DirectRouting":true`} {
		t.Run(name, func(t *testing.T) {
			lab := backendtest.NewLab(t, vxlan.New, fmt.Sprintf(dual, options), 0, 0, 1)
			lab.ApplyAll()
			h := lab.Hosts[0]
			d := h.Desired()
			peers, err := h.Backend.(backend.Recaller).Recall(t.Context())
			if err != nil || len(peers) != 4 {
				t.Fatalf("Recall() = %v, %v; want two peers in two families", peers, err)
			}
			d.Peers = slices.Collect(subnet.Each(peers))
			if err := h.Backend.Apply(t.Context(), d); err != nil || h.Result != (reconcile.Result{}) {
				t.Errorf("Apply of what Recall said: observed %+v, %v; want nothing", h.Result, err)
			}
			lab.PingAll()
		})
	}
}
