package kerneltest_test

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// plugged is a fake with an uplink and three peers' routes to put.
func plugged(t *testing.T) (*kerneltest.Fake, kernel.Link, []kernel.Route) {
	t.Helper()
	f := kerneltest.New()
	eth0 := f.Plug(kernel.Link{Name: "eth0", MTU: 1500}, netip.MustParsePrefix("198.18.0.1/24"))
	var rs []kernel.Route
	for _, dst := range []string{"10.5.3.0/24", "10.5.4.0/24", "10.5.5.0/24"} {
		rs = append(rs, kernel.Route{
			Dst: netip.MustParsePrefix(dst), Gateway: netip.MustParseAddr("198.18.0.2"),
			Link: eth0.Index, Protocol: kernel.Protocol,
		})
	}
	return f, eth0, rs
}

func ops(f *kerneltest.Fake) (out []string) {
	for _, o := range f.Ops() {
		out = append(out, o.String())
	}
	return out
}

func TestFakeRecords(t *testing.T) {
	ctx := t.Context()
	f, eth0, rs := plugged(t)
	if l, err := f.LinkByName(ctx, "eth0"); err != nil || !l.Up || !l.Running || l.Type != "" || l.Index != eth0.Index {
		t.Errorf("plugged link %+v, %v", l, err)
	}
	up := true
	l, err := f.AddLink(ctx, kernel.Link{Name: "flannel.1", Type: "vxlan", VXLAN: kernel.VXLAN{VNI: 1, Uplink: eth0.Index}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		f.SetLink(ctx, l.Index, kernel.LinkChange{Up: &up}),
		f.Routes().Put(ctx, rs[:1]),
		f.Routes().Delete(ctx, rs[:1]),
		f.SetSysctl("net/ipv4/ip_forward", "1"),
		f.DeleteLink(ctx, l.Index),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Routes().List(ctx); err != nil { // not recorded
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{
		"add link flannel.1", "set link flannel.1",
		"put route 10.5.3.0/24 via 198.18.0.2 dev eth0", "delete route 10.5.3.0/24 via 198.18.0.2 dev eth0",
		"set sysctl net/ipv4/ip_forward=1", "delete link flannel.1",
	}, ops(f)); d != "" {
		t.Errorf("ops (-want +got):\n%s", d)
	}
	f.ResetOps()
	if got := f.Ops(); len(got) != 0 {
		t.Errorf("ops after reset: %v", got)
	}
}

func TestFakeRefuses(t *testing.T) {
	ctx := t.Context()
	f, _, rs := plugged(t)
	isPut := func(o kerneltest.Op) bool { return o.Verb == "put" }
	f.OnOp(kerneltest.FailNth(2, syscall.ENOBUFS, isPut))
	err := f.Routes().Put(ctx, rs)
	var failed []any
	for e := range reconcile.Failures(err) {
		failed = append(failed, e.Value)
	}
	if len(failed) != 1 || failed[0] != rs[1] || !errors.Is(err, syscall.ENOBUFS) {
		t.Errorf("failed %v, %v, want the second", failed, err)
	}
	if d := cmp.Diff([]string{
		"put route 10.5.3.0/24 via 198.18.0.2 dev eth0", "put route 10.5.5.0/24 via 198.18.0.2 dev eth0",
	}, ops(f)); d != "" {
		t.Errorf("ops (-want +got):\n%s", d)
	}
	for _, list := range []struct {
		kind string
		do   func() error
	}{
		{"link", func() error { _, err := f.Links(ctx); return err }},
		{"route", func() error { _, err := f.Routes().List(ctx); return err }},
		{"addr", func() error { _, err := f.Addrs(0).List(ctx); return err }},
	} {
		f.OnOp(kerneltest.FailNth(1, syscall.EINTR, func(o kerneltest.Op) bool { return o == kerneltest.Op{Verb: "list", Kind: list.kind} }))
		if err := list.do(); !errors.Is(err, syscall.EINTR) {
			t.Errorf("list %s: %v, want EINTR", list.kind, err)
		}
		if err := list.do(); err != nil {
			t.Errorf("list %s again: %v", list.kind, err)
		}
	}
	f.OnOp(nil)
	if err := f.Routes().Put(ctx, rs); err != nil {
		t.Errorf("put without a hook: %v", err)
	}
}

func TestFakeEvents(t *testing.T) {
	f, eth0, _ := plugged(t)
	ctx, cancel := context.WithCancel(t.Context())
	ch, err := f.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f.SetRunning(eth0.Index, false)
	if got, want := <-ch, (kernel.Event{Topic: kernel.TopicLink, Link: eth0.Index}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if l, err := f.LinkByName(ctx, "eth0"); err != nil || l.Running || !l.Up {
		t.Errorf("link without a cable: %+v, %v", l, err)
	}
	f.Overrun()
	if got := <-ch; got.Topic != kernel.TopicOverrun {
		t.Errorf("got %v, want an overrun", got)
	}
	cancel()
	if e, open := <-ch; open {
		t.Errorf("got %v after the end", e)
	}
	f.Overrun() // nobody listens
}

func TestFakeSysctl(t *testing.T) {
	f := kerneltest.New()
	const name = "net/ipv4/conf/eth0/rp_filter"
	if err := f.SetSysctl(name, "2"); !errors.Is(err, kernel.ErrNotFound) {
		t.Errorf("set one that is not there: %v", err)
	}
	f.DefineSysctl(name, "1")
	if err := f.SetSysctl(name, "2"); err != nil {
		t.Error(err)
	}
	if got, err := f.Sysctl(name); err != nil || got != "2" {
		t.Errorf("got %q, %v", got, err)
	}
}
