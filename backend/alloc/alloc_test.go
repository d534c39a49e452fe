package alloc_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/alloc"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestLeaseWithoutDataPath(t *testing.T) {
	h := kerneltest.New()
	eth0 := h.Plug(kernel.Link{Name: "eth0", MTU: 9000}, netip.MustParsePrefix("198.18.0.1/24"))
	config, err := subnet.ParseConfig(`{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}`)
	if err != nil {
		t.Fatal(err)
	}
	public := subnet.ByFamily[netip.Addr]{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd00:198:18::1")}
	var result reconcile.Result
	be, err := alloc.New(backend.Params{
		Config: config, Kernel: h, Blackhole: true, Observe: func(r reconcile.Result) { result = r },
	})
	if err != nil {
		t.Fatal(err)
	}
	// As flannel's: no BackendType, and no address of a family that is off.
	up := backend.Uplink{Link: eth0, Addr: public, Public: public}
	attrs, err := be.Attrs(up)
	if want := (subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{public[0]}}); err != nil || attrs != want {
		t.Errorf("Attrs() = %+v, %v, want %+v", attrs, err, want)
	}
	if be.MTU(up) != 9000 {
		t.Errorf("MTU() = %d, want the uplink's 9000", be.MTU(up))
	}
	if diff := cmp.Diff(backend.Tunnel{}, be.Tunnel()); diff != "" {
		t.Errorf("Tunnel() (-want +got)\n%s", diff)
	}
	// What an earlier backend left goes; peers get nothing.
	left := kernel.Route{Dst: netip.MustParsePrefix("10.5.3.0/24"), Gateway: netip.MustParseAddr("198.18.0.2"), Link: eth0.Index}
	foreign := kernel.Route{Dst: netip.MustParsePrefix("10.5.4.0/24"), Gateway: netip.MustParseAddr("198.18.0.2"), Link: eth0.Index, Protocol: 186}
	if err := h.Routes().Put(t.Context(), []kernel.Route{left, foreign}); err != nil {
		t.Fatal(err)
	}
	h.ResetOps()
	d := backend.Desired{
		Config: config,
		Uplink: up,
		Own:    subnet.Lease{Subnet: subnet.Subnet{netip.MustParsePrefix("10.5.54.0/24")}},
		Peers:  []*subnet.Lease{{Subnet: subnet.Subnet{netip.MustParsePrefix("10.5.3.0/24")}, Attrs: attrs}},
	}
	if err := be.Apply(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if want := (reconcile.Result{Put: 1, Deleted: 1}); result != want {
		t.Errorf("observed %+v, want %+v", result, want)
	}
	if err := be.Apply(t.Context(), d); err != nil || result != (reconcile.Result{}) {
		t.Errorf("second Apply: observed %+v, %v, want nothing", result, err)
	}
	if err := be.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	var ops []string
	for _, o := range h.Ops() {
		ops = append(ops, o.String())
	}
	want := []string{
		"put route blackhole 10.5.54.0/24 metric 1048576", "delete route 10.5.3.0/24 via 198.18.0.2 dev eth0",
		"delete route blackhole 10.5.54.0/24 metric 1048576",
	}
	if diff := cmp.Diff(want, ops); diff != "" {
		t.Errorf("operations (-want +got)\n%s", diff)
	}
}
