package netns_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// follow is how long a host may take to follow a change here: less than the 30 s
	// after which it asks for what nobody told. 100 ms are promised, and logged.
	follow = 20 * time.Second
	// hold is how long a deleted peer keeps its path (decision 6).
	hold = 2 * time.Second
	// holdSlack is how much earlier it must not be gone.
	holdSlack = 1500 * time.Millisecond
)

// A ghost is a host that exists in etcd alone.
type ghost struct {
	public netip.Addr
	mac    net.HardwareAddr
}

func newGhost(number byte) ghost {
	return ghost{
		public: netip.AddrFrom4([4]byte{198, 18, 0, number}),
		mac:    net.HardwareAddr{2, 0, 0, 0, 0, number},
	}
}

// ghostSubnet is leased by ghosts in turn; no host may that has a config of
// besideGhosts.
var ghostSubnet = netip.MustParsePrefix("10.5.200.0/24")

// besideGhosts is a config whose pool ends below the ghosts' subnet.
func besideGhosts(backend string) string {
	return strings.Replace(configs[backend], "{", `{"SubnetMax":"10.5.199.0",`, 1)
}

func ghostKey() string { return lab.Prefix + "/subnets/" + (subnet.Subnet{ghostSubnet}).Key() }

// value is what the ghost's daemon would put.
func (g ghost) value(t *testing.T, backend string) string {
	t.Helper()
	a := subnet.Attrs{Owner: subnet.NodeID("ghost-" + g.public.String()), Instance: "1"}
	a.PublicIP[subnet.IPv4] = g.public
	a.BackendType = backend
	if backend == "vxlan" {
		a.BackendData[subnet.IPv4] = subnet.RawJSON(fmt.Sprintf(`{"VNI":1,"VtepMAC":%q}`, g.mac))
	}
	text, err := a.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Keys come, change hands and go; the host's path follows.
func TestPathsFollowTheStore(t *testing.T) {
	for _, backend := range []string{"vxlan", "host-gw"} {
		t.Run(backend, func(t *testing.T) {
			l := newNetwork(t, 1, besideGhosts(backend))
			f := follower{t: t, lab: l, host: l.Hosts[0], backend: backend}
			first, second, third := newGhost(101), newGhost(102), newGhost(103)

			f.put(first)
			f.expect("a new peer", first.public, 0, follow)

			f.put(second)
			f.expect("a subnet overwritten by another owner", second.public, 0, follow)

			f.delete()
			f.expect("a deleted peer", netip.Addr{}, hold-holdSlack, hold+follow)

			f.put(first)
			f.expect("a peer that came back", first.public, 0, follow)

			f.handOver(first, third)
			f.put(third)
			f.expect("a peer that came back", third.public, 0, follow)
			f.comesBack(third)
		})
	}
}

// handOver frees the subnet of one owner and gives it to the other, and back, until the
// path follows before the hold is over: the former owner's does not apply. A machine may
// give a host no time, but not again and again.
func (f *follower) handOver(from, to ghost) {
	f.t.Helper()
	for end := time.Now().Add(time.Minute); ; from, to = to, from {
		f.delete()
		freed := f.changed
		f.put(to)
		f.expect("a subnet freed and taken by another owner", to.public, 0, hold+follow)
		took := time.Since(freed)
		if took < hold {
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("a subnet freed and taken by another owner: sends to him after %s, want less than the hold of %s once", took, hold)
		}
	}
}

// comesBack deletes the key of a peer and creates it again, so that the host has heard of
// both before the hold is over: the path stays. Where it heard too late on a machine that
// gave it no time, nothing is known, and it is done again.
func (f *follower) comesBack(g ghost) {
	f.t.Helper()
	const what = "a peer whose key was deleted and created again"
	for end := time.Now().Add(time.Minute); ; {
		f.delete()
		deleted := f.changed
		left := f.leaves(g.public, func() bool { return time.Since(deleted) > hold/4 })
		f.put(g)
		left = f.leaves(g.public, func() bool {
			s, err := f.host.Status(within(f.t, time.Minute))
			if err != nil {
				f.t.Fatal(err)
			}
			return s.Etcd.Revision >= f.revision
		}) || left
		heard := time.Since(deleted)
		switch {
		case heard < hold && left:
			f.t.Fatalf("%s: sends elsewhere meanwhile", what)
		case heard < hold:
			stays := time.Now().Add(hold + holdSlack)
			if f.leaves(g.public, func() bool { return time.Now().After(stays) }) {
				f.t.Fatalf("%s: sends elsewhere later", what)
			}
			return
		case time.Now().After(end):
			f.t.Fatalf("%s: heard of after %s, want less than the hold of %s once", what, heard, hold)
		}
		f.expect(what, g.public, 0, hold+follow)
	}
}

// follower watches how one host sends to the ghosts' subnet.
type follower struct {
	t       *testing.T
	lab     *lab.Lab
	host    *lab.Host
	backend string
	// changed is when the last change was begun, revision that of the last put.
	changed  time.Time
	revision int64
}

func (f *follower) put(g ghost) {
	f.t.Helper()
	f.changed = time.Now()
	put, err := f.lab.Client().Put(within(f.t, time.Minute), ghostKey(), g.value(f.t, f.backend), f.lease())
	if err != nil {
		f.t.Fatal(err)
	}
	f.revision = put.Header.Revision
}

func (f *follower) delete() {
	f.t.Helper()
	f.changed = time.Now()
	if _, err := f.lab.Client().Delete(within(f.t, time.Minute), ghostKey()); err != nil {
		f.t.Fatal(err)
	}
}

// lease makes the key one that expires, as hosts' are.
func (f *follower) lease() clientv3.OpOption {
	f.t.Helper()
	granted, err := f.lab.Client().Grant(within(f.t, time.Minute), 3600)
	if err != nil {
		f.t.Fatal(err)
	}
	return clientv3.WithLease(granted.ID)
}

// expect waits until the host sends to want, not before earliest and not after
// latest since the last change.
func (f *follower) expect(what string, want netip.Addr, earliest, latest time.Duration) {
	f.t.Helper()
	for {
		got, err := nextHost(f.host, ghostSubnet.Addr().Next())
		took := time.Since(f.changed)
		switch {
		case err != nil:
			f.t.Fatal(err)
		case got == want && took < earliest:
			f.t.Fatalf("%s: sends to %v already after %s", what, got, took)
		case got == want:
			f.t.Logf("%s: after %s", what, took)
			return
		case took > latest:
			f.t.Fatalf("%s: sends to %v after %s, want %v", what, got, took, want)
		}
		pause(f.t, time.Millisecond)
	}
}

// leaves reports whether the host sends elsewhere than to public until something is over.
func (f *follower) leaves(public netip.Addr, over func() bool) bool {
	f.t.Helper()
	left := false
	for {
		got, err := nextHost(f.host, ghostSubnet.Addr().Next())
		if err != nil {
			f.t.Fatal(err)
		}
		left = left || got != public
		if over() {
			return left
		}
		pause(f.t, time.Millisecond)
	}
}

// nextHost is the host to which h sends packets for dst, read from the kernel;
// invalid when it has no path of its own to dst.
func nextHost(h *lab.Host, dst netip.Addr) (netip.Addr, error) {
	routes, err := h.Links().RouteGet(dst.AsSlice())
	if err != nil {
		return netip.Addr{}, err
	}
	gateway, _ := netip.AddrFromSlice(routes[0].Gw)
	link, err := h.Links().LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return netip.Addr{}, err
	}
	if link.Type() != "vxlan" {
		if gateway == defaultGateway {
			return netip.Addr{}, nil
		}
		return gateway, nil
	}
	neighbours, err := h.Links().NeighList(link.Attrs().Index, unix.AF_INET)
	if err != nil {
		return netip.Addr{}, err
	}
	fdb, err := h.Links().NeighList(link.Attrs().Index, unix.AF_BRIDGE)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, n := range neighbours {
		if !n.IP.Equal(gateway.AsSlice()) {
			continue
		}
		for _, e := range fdb {
			if bytes.Equal(e.HardwareAddr, n.HardwareAddr) {
				public, _ := netip.AddrFromSlice(e.IP.To4())
				return public, nil
			}
		}
	}
	return netip.Addr{}, nil
}

// defaultGateway is the switch, which knows no container.
var defaultGateway = netip.MustParseAddr("198.18.0.254")
