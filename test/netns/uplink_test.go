package netns_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// followed is how long a host may take to go to another uplink.
const followed = 20 * time.Second

// The uplink of a host becomes another one in each way there is. While both are there
// nothing is lost; where it is broken first, traffic flows again.
func TestUplinkIsFollowed(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			u := newMovedUplink(t, b.name, 1500-b.mtu)
			u.lossless(t, "another interface", "eth1", "198.18.0.101", 1500, "ip route replace default via "+u.gateway+" dev eth1")
			u.lossless(t, "renamed", "lan0", "198.18.0.101", 1500, "ip link set eth1 name lan0")
			u.lossless(t, "smaller", "lan0", "198.18.0.101", 1400, "ip link set lan0 mtu 1400")
			u.lossless(t, "larger", "lan0", "198.18.0.101", 1500, "ip link set lan0 mtu 1500")
			u.restored(t, "deleted", "eth0", "198.18.0.1", "ip link delete lan0", "ip route replace default via "+u.gateway+" dev eth0")
			u.restored(t, "another address", "eth0", "198.18.0.77", "ip addr delete 198.18.0.1/24 dev eth0",
				"ip addr add 198.18.0.77/24 dev eth0", "ip route replace default via "+u.gateway+" dev eth0")
		})
	}
}

// Moves in a row, each before what the last one left is over. Between interfaces that are
// there nothing is lost; where each address is taken away first, each move has its gap.
func TestUplinkMovesInARow(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			u := newMovedUplink(t, b.name, 1500-b.mtu)
			u.thrice(t)
			u.host, u.peer = u.peer, u.host
			u.readdressed(t, time.Second*8/5, "198.18.0.2", "198.18.0.77", "198.18.0.78", "198.18.0.79")
		})
	}
}

// newMovedUplink is a network of two hosts, the first with another interface that leads
// to the second.
func newMovedUplink(t *testing.T, backend string, overhead int) *movedUplink {
	t.Helper()
	l := newNetwork(t, 2, configs[backend])
	startContainers(t, l)
	u := &movedUplink{Lab: l, host: l.Hosts[0], peer: l.Hosts[1], gateway: l.Gateway(subnet.IPv4).Addr().String(), overhead: overhead}
	u.second(t)
	return u
}

// thrice moves between two interfaces, as soon as the last move is done.
func (u *movedUplink) thrice(t *testing.T) {
	t.Helper()
	out, in := startPing(t, u.host.Container, u.peer.Container), startPing(t, u.peer.Container, u.host.Container)
	pause(t, 200*time.Millisecond)
	began := time.Now()
	for _, to := range [][2]string{{"eth1", "198.18.0.101"}, {"eth0", "198.18.0.1"}, {"eth1", "198.18.0.101"}} {
		u.on(t, "ip route replace default via "+u.gateway+" dev "+to[0])
		u.wait(t, to[0], to[1], 1500)
	}
	took := time.Since(began)
	pause(t, time.Second)
	for way, r := range map[string]lab.PingResult{"out": out.Stop(), "in": in.Stop()} {
		t.Logf("three moves in %s, %s: %s", took, way, r)
		if r.Lost() > 0 || r.Received == 0 {
			t.Errorf("three moves, %s: %s", way, r)
		}
	}
}

// readdressed takes the address of eth0 away and gives it another one, again and again,
// without waiting for what comes of it.
func (u *movedUplink) readdressed(t *testing.T, every time.Duration, addrs ...string) {
	t.Helper()
	out, in := startPing(t, u.host.Container, u.peer.Container), startPing(t, u.peer.Container, u.host.Container)
	for i, addr := range addrs[1:] {
		u.on(t, "ip addr delete "+addrs[i]+"/24 dev eth0", "ip addr add "+addr+"/24 dev eth0", "ip route replace default via "+u.gateway+" dev eth0")
		pause(t, every)
	}
	u.wait(t, "eth0", addrs[len(addrs)-1], 1500)
	pause(t, time.Second)
	for way, r := range map[string]lab.PingResult{"out": out.Stop(), "in": in.Stop()} {
		t.Logf("%d addresses, %s: %s", len(addrs)-1, way, r)
		if r.Gap > followed || r.Received == 0 {
			t.Errorf("%d addresses, %s: %s; want no gap of more than %s", len(addrs)-1, way, r, followed)
		}
	}
}

// movedUplink is a host whose uplink becomes another one.
type movedUplink struct {
	*lab.Lab
	host, peer *lab.Host
	gateway    string
	overhead   int
}

// second gives the host another interface, eth1, beside eth0.
func (u *movedUplink) second(t *testing.T) {
	t.Helper()
	u.on(t, "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2")
	if _, err := u.Switch.Run(t.Context(), "ip", strings.Fields("link add second master br0 up type veth peer name eth1 netns "+u.host.Name)...); err != nil {
		t.Fatal(err)
	}
	u.on(t, "ip addr add 198.18.0.101/24 dev eth1", "ip link set eth1 up")
}

// on runs commands on the host.
func (u *movedUplink) on(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		words := strings.Fields(line)
		if _, err := u.host.Run(t.Context(), words[0], words[1:]...); err != nil {
			t.Fatal(err)
		}
	}
}

// wait waits until host, etcd and the peer are where the uplink is.
func (u *movedUplink) wait(t *testing.T, name, addr string, mtu int) {
	t.Helper()
	_, err := u.host.WaitStatus(within(t, followed), "the uplink "+name, func(s lab.Status) bool {
		env, err := u.host.ReadSubnet()
		return err == nil && env.MTU == mtu-u.overhead && s.Backend.MTU == env.MTU &&
			s.Ready && s.Uplink.Name == name && slices.Contains(s.Uplink.Public, addr)
	})
	if err == nil {
		_, err = u.peer.WaitStatus(within(t, followed), "the peer at "+addr, func(s lab.Status) bool {
			return s.Ready && len(s.Peers) == 1 && s.Peers[0].PublicIP == addr && s.Peers[0].Error == ""
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// lossless changes the uplink while both the old and the new one are there.
func (u *movedUplink) lossless(t *testing.T, what, name, addr string, mtu int, lines ...string) {
	t.Helper()
	out, in := startPing(t, u.host.Container, u.peer.Container), startPing(t, u.peer.Container, u.host.Container)
	pause(t, 200*time.Millisecond)
	u.on(t, lines...)
	u.wait(t, name, addr, mtu)
	pause(t, time.Second)
	for way, r := range map[string]lab.PingResult{"out": out.Stop(), "in": in.Stop()} {
		t.Logf("%s, %s: %s", what, way, r)
		if r.Lost() > 0 || r.Received == 0 {
			t.Errorf("%s, %s: %s", what, way, r)
		}
	}
}

// restored changes the uplink at one blow: what is sent meanwhile is lost.
func (u *movedUplink) restored(t *testing.T, what, name, addr string, lines ...string) {
	t.Helper()
	out := startPing(t, u.host.Container, u.peer.Container)
	u.on(t, lines...)
	u.wait(t, name, addr, 1500)
	if err := u.WaitMesh(within(t, followed)); err != nil {
		t.Error(err)
	}
	r := out.Stop()
	t.Logf("%s: %s", what, r)
	if r.Gap > followed {
		t.Errorf("%s: traffic stood still for %s", what, r.Gap)
	}
}
