package kernel_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
)

// next returns the first event that is not of the given topics.
func next(t *testing.T, ch <-chan kernel.Event, skip kernel.Topic) kernel.Event {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case e := <-ch:
			if e.Topic&skip == 0 {
				return e
			}
		case <-timeout:
			t.Fatal("no event in a minute")
		}
	}
}

func TestEventsLeaveNoiseOut(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	l := vxlan(t, ns)
	for _, line := range []string{
		"link add br0 type bridge", "link set br0 up", "addr add 198.18.0.1/24 dev br0",
		"neigh add 198.18.0.9 lladdr 02:00:00:00:00:09 dev br0 nud reachable",
	} {
		ns.Run(t, "ip", strings.Fields(line)...)
	}
	br, err := ns.LinkByName(t.Context(), "br0")
	if err != nil {
		t.Fatal(err)
	}
	keepStates(t, ns, l.Name) // else one of ours that ages is told of again when it has grown old
	put(t, ns.Neighbours(l.Index), kernel.Neighbour{Link: l.Index, Addr: gw3, MAC: kernel.MAC{2, 0, 0, 0, 0, 3}})
	put(t, ns.Routes(), via(l.Index, net3, gw3))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch, err := ns.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, noise, signal string
		want                kernel.Event
	}{
		{
			"ARP on another link", "ip neigh replace 198.18.0.9 lladdr 02:00:00:00:00:09 dev br0 nud stale",
			"ip neigh replace 198.18.0.8 lladdr 02:00:00:00:00:08 dev br0 nud permanent",
			kernel.Event{Topic: kernel.TopicNeighbour, Link: br.Index},
		},
		{
			"a learned MAC", "bridge fdb add 02:00:00:00:00:04 dev flannel.1 dst 198.18.0.2 dynamic",
			"bridge fdb add 02:00:00:00:00:05 dev flannel.1 dst 198.18.0.2",
			kernel.Event{Topic: kernel.TopicFDB, Link: l.Index},
		},
		{
			"another table's route", "ip route add 10.77.0.0/16 dev br0 table 100",
			"ip route add 10.77.0.0/16 dev br0",
			kernel.Event{Topic: kernel.TopicRoute, Link: br.Index},
		},
		{
			"a neighbour of ours that ages from now on", "true",
			"ip neigh change 10.5.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud reachable",
			kernel.Event{Topic: kernel.TopicNeighbour, Link: l.Index},
		},
		{
			"forwarding of one interface", "sysctl -qw net.ipv4.conf.br0.forwarding=1 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.forwarding=1 net.ipv4.conf.default.forwarding=0",
			"sysctl -qw net.ipv4.ip_forward=1",
			kernel.Event{Topic: kernel.TopicForwarding},
		},
		{
			"other switches of one interface", "sysctl -qw net.ipv4.conf.br0.rp_filter=1 net.ipv6.conf.br0.forwarding=1 net.ipv6.conf.br0.forwarding=0",
			"sysctl -qw net.ipv4.conf.br0.forwarding=0",
			kernel.Event{Topic: kernel.TopicForwarding, Link: br.Index},
		},
		{"a route that goes with its nexthop", "true", "ip nexthop flush", kernel.Event{Topic: kernel.TopicRoute}},
	} {
		ns.Run(t, "sh", "-c", tc.noise+" && "+tc.signal)
		if got := next(t, ch, kernel.TopicLink); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestEventsOverrun(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	l := vxlan(t, ns)
	sock, err := ns.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	if err := kernel.SetBuffer(sock, 1); err != nil {
		t.Fatal(err)
	}
	fdb, _, _ := peers(l.Index, 200)
	put(t, ns.FDB(l.Index), fdb...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch, err := ns.Watch(ctx, sock)
	if err != nil {
		t.Fatal(err)
	}
	if got := next(t, ch, kernel.TopicFDB); got.Topic != kernel.TopicOverrun {
		t.Errorf("got %v, want an overrun", got)
	}
	if err := kernel.SetBuffer(sock, 1<<20); err != nil {
		t.Fatal(err)
	}
	put(t, ns.Routes(), via(l.Index, net3, gw3))
	if got := next(t, ch, kernel.TopicOverrun|kernel.TopicFDB); got.Topic != kernel.TopicRoute {
		t.Errorf("after an overrun: got %v, want a route", got)
	}
}

// TestEventsNobodyTakes: a reader that sleeps stops nobody, and sees in the end
// that something happened.
func TestEventsNobodyTakes(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	l := vxlan(t, ns)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch, err := ns.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	fdb, neighbours, routes := peers(l.Index, 3000)
	apply(t, ns, l.Index, fdb, neighbours, routes)
	want := kernel.TopicFDB | kernel.TopicNeighbour | kernel.TopicRoute
	for seen := kernel.Topic(0); seen&want != want; {
		e := next(t, ch, 0)
		if seen |= e.Topic; e.Topic == kernel.TopicOverrun {
			seen = want
		}
	}
}
