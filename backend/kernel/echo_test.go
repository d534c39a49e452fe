package kernel_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
)

// Of everything that a daemon does to its entries nothing comes back to it as an
// event, and everything that somebody else does to the same entries does.
func TestEventsTellOfOthersOnly(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{OthersOnly: true})
	l := vxlan(t, ns)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch, err := ns.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	fdb, neighbours, routes := peers(l.Index, 40)
	moved, changed, turned := fdb[0], neighbours[0], routes[0]
	moved.Dst, changed.MAC, turned.Gateway = fdb[1].Dst, kernel.MAC{2, 9, 9, 9, 9, 9}, neighbours[1].Addr
	for _, own := range []struct {
		name string
		do   func()
	}{
		{"new entries", func() { apply(t, ns, l.Index, fdb, neighbours, routes) }},
		{"again", func() { apply(t, ns, l.Index, fdb, neighbours, routes) }},
		{"changed entries", func() {
			put(t, ns.FDB(l.Index), moved)
			put(t, ns.Neighbours(l.Index), changed)
			put(t, ns.Routes(), turned)
		}},
		{"and back", func() { apply(t, ns, l.Index, fdb, neighbours, routes) }},
		{"fewer entries", func() { apply(t, ns, l.Index, fdb[4:], neighbours[4:], routes[4:]) }},
		{"all of them again", func() { apply(t, ns, l.Index, fdb, neighbours, routes) }},
	} {
		own.do()
		// What was told of our own would be told before this.
		ns.Run(t, "ip", "route", "add", "10.77.0.0/16", "dev", l.Name)
		if got, want := next(t, ch, 0), (kernel.Event{Topic: kernel.TopicRoute, Link: l.Index}); got != want {
			t.Errorf("%s: told of %v, want only the other's %v", own.name, got, want)
		}
		ns.Run(t, "ip", "route", "del", "10.77.0.0/16")
		if got := next(t, ch, 0); got.Topic != kernel.TopicRoute {
			t.Errorf("%s: told of %v, want only the other's route", own.name, got)
		}
	}
	first, gateway := fdb[5], routes[5]
	for i, other := range []struct {
		command string
		want    kernel.Topic
	}{
		{"bridge fdb del " + first.MAC.String() + " dev flannel.1 dst " + first.Dst.String(), kernel.TopicFDB},
		{"bridge fdb replace " + fdb[6].MAC.String() + " dev flannel.1 dst 198.19.0.9", kernel.TopicFDB},
		{"bridge fdb add 02:11:11:11:11:11 dev flannel.1 dst 198.19.0.9", kernel.TopicFDB},
		{"ip neigh del " + gateway.Gateway.String() + " dev flannel.1", kernel.TopicNeighbour},
		{"ip neigh replace " + neighbours[6].Addr.String() + " lladdr 02:22:22:22:22:22 dev flannel.1 nud permanent", kernel.TopicNeighbour},
		{"ip route del " + gateway.Dst.String(), kernel.TopicRoute},
		{"ip route replace " + routes[6].Dst.String() + " dev flannel.1", kernel.TopicRoute},
		{"ip link set flannel.1 mtu 1300", kernel.TopicLink},
		{"ip nexthop flush", kernel.TopicRoute},
	} {
		words := strings.Fields(other.command)
		ns.Run(t, words[0], words[1:]...)
		if got := next(t, ch, kernel.TopicOverrun); got.Topic != other.want {
			t.Errorf("%s: told of %v, want topic %v", other.command, got, other.want)
		}
		// One command may make several messages. What is told of the next one comes behind.
		ns.Run(t, "ip", "addr", "add", fmt.Sprintf("10.254.0.%d/32", i), "dev", l.Name)
		for next(t, ch, 0).Topic != kernel.TopicAddr {
		}
	}
	// What another has undone is put again, and is ours again.
	apply(t, ns, l.Index, fdb, neighbours, routes)
	ns.Run(t, "bridge", "fdb", "del", first.MAC.String(), "dev", "flannel.1", "dst", first.Dst.String())
	if got := next(t, ch, 0); got.Topic != kernel.TopicFDB {
		t.Errorf("an entry that was put again and deleted again: told of %v", got)
	}
}

// What an earlier process wrote is known once it was listed.
func TestEventsOfEntriesThatWereThere(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{OthersOnly: true})
	l := vxlan(t, ns)
	ns.Run(t, "bridge", "fdb", "add", "02:00:00:00:00:05", "dev", "flannel.1", "dst", "198.18.0.2")
	ns.Run(t, "ip", "neigh", "add", "10.5.3.0", "lladdr", "02:00:00:00:00:05", "dev", "flannel.1", "nud", "permanent")
	ch, err := ns.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ns.FDB(l.Index).List(t.Context()); err != nil || len(got) != 1 {
		t.Fatalf("fdb %v, %v", got, err)
	}
	if got, err := ns.Neighbours(l.Index).List(t.Context()); err != nil || len(got) != 1 {
		t.Fatalf("neighbours %v, %v", got, err)
	}
	ns.Run(t, "bridge", "fdb", "del", "02:00:00:00:00:05", "dev", "flannel.1", "dst", "198.18.0.2")
	if got := next(t, ch, 0); got.Topic != kernel.TopicFDB {
		t.Errorf("told of %v", got)
	}
	ns.Run(t, "ip", "neigh", "del", "10.5.3.0", "dev", "flannel.1")
	if got := next(t, ch, 0); got.Topic != kernel.TopicNeighbour {
		t.Errorf("told of %v", got)
	}
}

// What tells nothing does not even reach the socket: reading it again would take a
// start with thousands of peers a sixth of its time.
func TestEchoesAreFiltered(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{OthersOnly: true})
	l := vxlan(t, ns)
	sock, err := ns.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	const n = 40
	fdb, neighbours, routes := peers(l.Index, n)
	apply(t, ns, l.Index, fdb, neighbours, routes)
	apply(t, ns, l.Index, nil, nil, nil)
	ns.Run(t, "ip", "neigh", "add", "10.5.3.0", "lladdr", "02:00:00:00:00:05", "dev", l.Name, "nud", "permanent")
	ns.Run(t, "ip", "nexthop", "add", "id", "7", "via", "10.5.3.0", "dev", l.Name, "onlink")
	ns.Run(t, "ip", "nexthop", "del", "id", "7")
	ns.Run(t, "ip", "route", "add", "10.77.0.0/16", "dev", l.Name)
	ns.Run(t, "ip", "route", "del", "10.77.0.0/16")
	got := readTypes(t, sock, unix.RTM_DELROUTE)
	want := map[uint16]int{
		unix.RTM_NEWNEIGH: 1, unix.RTM_NEWNEXTHOP: 1, unix.RTM_DELNEXTHOP: 1, unix.RTM_NEWROUTE: 1, unix.RTM_DELROUTE: 1,
		unix.RTM_DELNEIGH: n, // Of these the kernel does not say whose they are.
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("messages of each type, of others only (-want +got):\n%s", d)
	}
	if err := ns.DeleteLink(t.Context(), l.Index); err != nil {
		t.Fatal(err)
	}
	readTypes(t, sock, unix.RTM_DELLINK)
}

// readTypes counts messages, up to the first of type last. It leaves out those of an FDB
// and of neighbours that are none yet or no longer.
func readTypes(t *testing.T, sock *os.File, last uint16) map[uint16]int {
	t.Helper()
	got := map[uint16]int{}
	buf := make([]byte, 1<<16)
	for got[last] == 0 {
		_ = sock.SetReadDeadline(time.Now().Add(time.Minute))
		size, err := sock.Read(buf)
		if err != nil || size < unix.SizeofNlMsghdr+unix.SizeofNdMsg {
			t.Fatalf("%d bytes, %v, after %v", size, err, got)
		}
		const family, state = unix.SizeofNlMsghdr, unix.SizeofNlMsghdr + 8
		switch typ := binary.NativeEndian.Uint16(buf[4:]); {
		case typ == unix.RTM_NEWNEIGH && binary.NativeEndian.Uint16(buf[state:])&unix.NUD_PERMANENT == 0:
		case (typ == unix.RTM_NEWNEIGH || typ == unix.RTM_DELNEIGH) && buf[family] == unix.AF_BRIDGE:
		default:
			got[typ]++
		}
	}
	return got
}
