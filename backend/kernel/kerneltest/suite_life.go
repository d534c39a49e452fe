package kerneltest

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// full is a tunnel with one peer of both families.
func full(b *bench) (kernel.Link, kernel.FDB, []kernel.Neighbour, []kernel.Route) {
	b.t.Helper()
	l := b.tunnel()
	f := kernel.FDB{Link: l.Index, MAC: peerMAC, Dst: vtep}
	ns := []kernel.Neighbour{{Link: l.Index, Addr: gw, MAC: peerMAC}, {Link: l.Index, Addr: gw6, MAC: peerMAC}}
	rs := []kernel.Route{via(l, subnet3, gw), via(l, subnet3v6, gw6)}
	b.must("put fdb", b.FDB(l.Index).Put(b.ctx(), []kernel.FDB{f}))
	b.must("put neighbours", b.Neighbours(l.Index).Put(b.ctx(), ns))
	b.must("put routes", b.Routes().Put(b.ctx(), rs))
	return l, f, ns, rs
}

func linkDown(b *bench) {
	l, f, ns, rs := full(b)
	b.must("set down", b.SetLink(b.ctx(), l.Index, kernel.LinkChange{Up: &down}))
	holds(b, "fdb", b.FDB(l.Index), f)
	holds(b, "neighbours", b.Neighbours(l.Index))
	b.resolved(l.Index)
	holds(b, "routes", b.Routes())
	holds(b, "addresses", b.Addrs(l.Index), kernel.Addr{Link: l.Index, Prefix: netip.MustParsePrefix("10.5.72.0/32")})
	b.must("set up", b.SetLink(b.ctx(), l.Index, kernel.LinkChange{Up: &up}))
	holds(b, "routes once up again", b.Routes())
	// What was known of before must not be relied on.
	b.must("put neighbours", b.Neighbours(l.Index).Put(b.ctx(), ns))
	b.must("put routes", b.Routes().Put(b.ctx(), rs))
	holds(b, "neighbours put again", b.Neighbours(l.Index), ns...)
	holds(b, "routes put again", b.Routes(), rs...)
}

func linkDeleted(b *bench) {
	l, _, ns, _ := full(b)
	b.must("delete", b.DeleteLink(b.ctx(), l.Index))
	holds(b, "routes", b.Routes())
	holds(b, "fdb", b.FDB(l.Index))
	holds(b, "neighbours", b.Neighbours(l.Index))
	holds(b, "addresses", b.Addrs(l.Index))
	again, err := b.AddLink(b.ctx(), kernel.Link{Name: "flannel.1", Type: "vxlan", VXLAN: kernel.VXLAN{VNI: 1}})
	b.must("add again", err)
	if again.Index == l.Index {
		b.t.Errorf("index %d is used again", l.Index)
	}
	b.must("set up", b.SetLink(b.ctx(), again.Index, kernel.LinkChange{Up: &up}))
	r := via(again, subnet3, gw)
	b.must("put a route", b.Routes().Put(b.ctx(), []kernel.Route{r}))
	holds(b, "routes", b.Routes(), r)
	b.refused("put neighbours on the old index", b.Neighbours(l.Index).Put(b.ctx(), ns), kernel.ErrNotFound, "no such device")
}

// linkRewired: a tunnel goes on by another uplink with all that it has, and goes away
// with that.
func linkRewired(b *bench) {
	l, fdb, neighbours, routes := full(b)
	other, err := b.AddLink(b.ctx(), kernel.Link{Name: "eth1", Type: "bridge"})
	b.must("add uplink", err)
	want, err := b.LinkByName(b.ctx(), l.Name)
	b.must("find", err)
	whole := func() {
		b.t.Helper()
		b.link(l.Name, want)
		holds(b, "fdb entries", b.FDB(l.Index), fdb)
		holds(b, "neighbours", b.Neighbours(l.Index), neighbours...)
		holds(b, "routes", b.Routes(), routes...)
	}
	for _, c := range []kernel.LinkChange{
		{Local: netip.MustParseAddr("198.18.1.1"), Uplink: other.Index, MTU: 1300},
		{Local: netip.MustParseAddr("198.18.2.1")},
		{Uplink: want.VXLAN.Uplink},
	} {
		b.must("change", b.SetLink(b.ctx(), l.Index, c))
		if c.Local.IsValid() {
			want.VXLAN.Local = c.Local
		}
		if c.Uplink != 0 {
			want.VXLAN.Uplink = c.Uplink
		}
		if c.MTU != 0 {
			want.MTU = c.MTU
		}
		whole()
	}
	b.refused("other family", b.SetLink(b.ctx(), l.Index, kernel.LinkChange{Local: netip.MustParseAddr("fd00::1")}), nil, "family")
	b.refused("no such link", b.SetLink(b.ctx(), l.Index, kernel.LinkChange{Uplink: 4711}), kernel.ErrNotFound, "set link flannel.1: ")
	b.refused("no tunnel", b.SetLink(b.ctx(), other.Index, kernel.LinkChange{Uplink: l.Index}), nil, "not supported")
	whole()
	b.must("set", b.SetLink(b.ctx(), l.Index, kernel.LinkChange{Uplink: other.Index}))
	b.must("delete", b.DeleteLink(b.ctx(), other.Index))
	_, err = b.LinkByName(b.ctx(), l.Name)
	b.refused("find", err, kernel.ErrNotFound, "")
}

func linkMissing(b *bench) {
	const no = 4711
	holds(b, "addresses", b.Addrs(no))
	holds(b, "neighbours", b.Neighbours(no))
	holds(b, "fdb", b.FDB(no))
	ctx := b.ctx()
	b.refused("put address", b.Addrs(no).Put(ctx, []kernel.Addr{{Link: no, Prefix: subnet3}}),
		kernel.ErrNotFound, "put 10.5.3.0/24 dev if4711: no such device")
	b.refused("put neighbour", b.Neighbours(no).Put(ctx, []kernel.Neighbour{{Link: no, Addr: gw, MAC: peerMAC}}),
		kernel.ErrNotFound, "put 10.5.3.0 dev if4711 lladdr 02:00:00:00:00:03: no such device")
	b.refused("put fdb", b.FDB(no).Put(ctx, []kernel.FDB{{Link: no, MAC: peerMAC, Dst: vtep}}),
		kernel.ErrNotFound, "put 02:00:00:00:00:03 dev if4711 dst 198.18.0.2: no such device")
	b.refused("put route", b.Routes().Put(ctx, []kernel.Route{via(kernel.Link{Index: no}, subnet3, gw)}),
		nil, "put 10.5.3.0/24 via 10.5.3.0 dev if4711 onlink: ")
	b.must("delete", errors.Join(
		b.Addrs(no).Delete(ctx, []kernel.Addr{{Link: no, Prefix: subnet3}}),
		b.Neighbours(no).Delete(ctx, []kernel.Neighbour{{Link: no, Addr: gw, MAC: peerMAC}}),
		b.FDB(no).Delete(ctx, []kernel.FDB{{Link: no, MAC: peerMAC, Dst: vtep}}),
		b.Routes().Delete(ctx, []kernel.Route{via(kernel.Link{Index: no}, subnet3, gw)}),
	))
}

func sysctls(b *bench) {
	const forward = "net/ipv4/ip_forward"
	for _, v := range []string{"1", "0", "1"} {
		b.must("set", b.SetSysctl(forward, v))
		got, err := b.Sysctl(forward)
		b.must("read", err)
		if got != v {
			b.t.Errorf("%s is %q, want %q", forward, got, v)
		}
	}
	b.must("set", b.SetSysctl("net/ipv4/conf/default/forwarding", "0"))
	l := b.tunnel()
	single := "net/ipv4/conf/" + l.Name + "/forwarding"
	if got, err := b.Sysctl(single); err != nil || got != "0" {
		b.t.Errorf("%s is %q, %v, want 0 as by default", single, got, err)
	}
	for _, v := range []string{"0", "1"} {
		b.must("set", b.SetSysctl(forward, v))
		if got, err := b.Sysctl(single); err != nil || got != v {
			b.t.Errorf("%s is %q, %v, want %q as for all", single, got, err, v)
		}
	}
	b.must("delete", b.DeleteLink(b.ctx(), l.Index))
	_, err := b.Sysctl(single)
	b.refused("read", err, kernel.ErrNotFound, "read sysctl "+single+": ")
	_, err = b.Sysctl("net/ipv4/no_such")
	b.refused("read", err, kernel.ErrNotFound, "read sysctl net/ipv4/no_such: ")
	b.refused("set", b.SetSysctl("net/ipv4/no_such", "1"), kernel.ErrNotFound, "write sysctl net/ipv4/no_such: ")
}

// events waits for each change's own event; others may come in between.
func events(b *bench) {
	ctx, cancel := context.WithCancel(b.ctx())
	defer cancel()
	l := b.tunnel()
	ch, err := b.Events(ctx)
	b.must("subscribe", err)
	f := []kernel.FDB{{Link: l.Index, MAC: peerMAC, Dst: vtep}}
	n := []kernel.Neighbour{{Link: l.Index, Addr: gw, MAC: peerMAC}}
	r := []kernel.Route{via(l, subnet3, gw)}
	a := []kernel.Addr{{Link: l.Index, Prefix: netip.MustParsePrefix("10.5.73.0/32")}}
	single := "net/ipv4/conf/" + l.Name + "/forwarding"
	b.must("set", b.SetSysctl(single, "1"))
	b.settle(ch)
	b.must("set", b.SetSysctl(single, "0"))
	b.await(ch, single, kernel.Event{Topic: kernel.TopicForwarding, Link: l.Index})
	for _, step := range []struct {
		name  string
		do    func() error
		topic kernel.Topic
	}{
		{"put fdb", func() error { return b.FDB(l.Index).Put(ctx, f) }, kernel.TopicFDB},
		{"put neighbour", func() error { return b.Neighbours(l.Index).Put(ctx, n) }, kernel.TopicNeighbour},
		{"put route", func() error { return b.Routes().Put(ctx, r) }, kernel.TopicRoute},
		{"put address", func() error { return b.Addrs(l.Index).Put(ctx, a) }, kernel.TopicAddr},
		{"delete route", func() error { return b.Routes().Delete(ctx, r) }, kernel.TopicRoute},
		{"delete neighbour", func() error { return b.Neighbours(l.Index).Delete(ctx, n) }, kernel.TopicNeighbour},
		{"delete fdb", func() error { return b.FDB(l.Index).Delete(ctx, f) }, kernel.TopicFDB},
		{"delete address", func() error { return b.Addrs(l.Index).Delete(ctx, a) }, kernel.TopicAddr},
		{"change link", func() error { return b.SetLink(ctx, l.Index, kernel.LinkChange{MTU: 1400}) }, kernel.TopicLink},
		{"delete link", func() error { return b.DeleteLink(ctx, l.Index) }, kernel.TopicLink},
	} {
		b.settle(ch)
		b.must(step.name, step.do())
		b.await(ch, step.name, kernel.Event{Topic: step.topic, Link: l.Index})
	}
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		before, err := b.Sysctl(name)
		b.must("read", err)
		b.settle(ch)
		b.must("set", b.SetSysctl(name, map[string]string{"0": "1", "1": "0"}[before]))
		b.await(ch, name, kernel.Event{Topic: kernel.TopicForwarding})
	}
	cancel()
	for range ch { // it ends only when the channel is closed
	}
}

// settle takes what is still on its way from the step before: an event that arrives later
// than its cause was seen would be taken for the next one's. That of a new link is behind
// all of them.
func (b *bench) settle(ch <-chan kernel.Event) {
	b.t.Helper()
	l, err := b.AddLink(b.ctx(), kernel.Link{Name: "last", Type: "bridge"})
	b.must("add link", err)
	b.await(ch, "a link behind all else", kernel.Event{Topic: kernel.TopicLink, Link: l.Index})
	b.must("delete link", b.DeleteLink(b.ctx(), l.Index))
}

func (b *bench) await(ch <-chan kernel.Event, what string, want kernel.Event) {
	b.t.Helper()
	timeout := time.After(time.Minute)
	var got []kernel.Event
	for {
		select {
		case e, open := <-ch:
			if e == want {
				return
			}
			if !open {
				b.t.Fatalf("%s: closed after %v", what, got)
			}
			got = append(got, e)
		case <-timeout:
			b.t.Fatalf("%s: got %v, want %v", what, got, want)
		}
	}
}

func endedContext(b *bench) {
	l := b.tunnel()
	ctx, cancel := context.WithCancel(b.ctx())
	cancel()
	_, err := b.Routes().List(ctx)
	b.refused("list", err, context.Canceled, "")
	_, err = b.Resolved(ctx, l.Index)
	b.refused("resolved", err, context.Canceled, "list resolved neighbours: ")
	err = b.Confirm(ctx, l.Index, nil)
	b.refused("confirm", err, context.Canceled, "confirm neighbours: ")
	_, err = b.Links(ctx)
	b.refused("links", err, context.Canceled, "")
	err = b.Routes().Put(ctx, []kernel.Route{via(l, subnet3, gw)})
	b.refused("put", err, context.Canceled, "put 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink: ")
	holds(b, "routes", b.Routes())
}

// peer runs what a backend does: two peers, one of which moves, then leaves.
func peer(b *bench) {
	l := b.tunnel()
	foreign := kernel.Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Gateway: vtep, Link: l.Index - 1, Protocol: 4}
	b.must("put a foreign route", b.Routes().Put(b.ctx(), []kernel.Route{foreign}))
	apply := func(fs []kernel.FDB, ns []kernel.Neighbour, rs []kernel.Route, want reconcile.Result) {
		b.t.Helper()
		got, err := reconcile.Apply(b.ctx(),
			reconcile.NewStep("fdb", b.FDB(l.Index), fs, nil),
			reconcile.NewStep("neighbour", b.Neighbours(l.Index), ns, nil),
			reconcile.NewStep("route", b.Routes(), rs, func(r kernel.Route) bool { return r.Protocol == kernel.Protocol }))
		b.must("apply", err)
		if got != want {
			b.t.Errorf("apply did %+v, want %+v", got, want)
		}
		holds(b, "fdb", b.FDB(l.Index), fs...)
		holds(b, "neighbours", b.Neighbours(l.Index), ns...)
		holds(b, "routes", b.Routes(), append([]kernel.Route{foreign}, rs...)...)
	}
	fs := []kernel.FDB{{Link: l.Index, MAC: peerMAC, Dst: vtep}, {Link: l.Index, MAC: secondMAC, Dst: vtep2}}
	ns := []kernel.Neighbour{{Link: l.Index, Addr: gw, MAC: peerMAC}, {Link: l.Index, Addr: gw2, MAC: secondMAC}}
	rs := []kernel.Route{via(l, subnet3, gw), via(l, subnet4, gw2)}
	apply(fs, ns, rs, reconcile.Result{Put: 6})
	apply(fs, ns, rs, reconcile.Result{})
	fs[1].Dst, ns[1].MAC, fs[1].MAC = netip.MustParseAddr("198.18.0.4"), kernel.MAC{2, 0, 0, 0, 0, 5}, kernel.MAC{2, 0, 0, 0, 0, 5}
	apply(fs, ns, rs, reconcile.Result{Put: 2, Deleted: 1})
	apply(fs[:1], ns[:1], rs[:1], reconcile.Result{Deleted: 3})
	apply(nil, nil, nil, reconcile.Result{Deleted: 3})
}
