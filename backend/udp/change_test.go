package udp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// checkStream fails unless the stream lost nothing and kept its order.
func checkStream(t *testing.T, name string, got []int) {
	t.Helper()
	if len(got) != streamLength {
		t.Errorf("%s: %d of %d packets came", name, len(got), streamLength)
	}
	for i := 1; i < len(got); i++ {
		if got[i] <= got[i-1] {
			t.Errorf("%s: packet %d came after %d", name, got[i], got[i-1])
		}
	}
}

// The uplink's MTU falls below what the tunnel was made for, and rises again, while
// large packets pass as fast as they come: none is lost, for what does not fit is sent in
// fragments. The same trains are cut by the kernel before and after. Only the sender's
// changes, for a cable drops what is too large for the receiver's.
func TestKernelUplinkMTUChanges(t *testing.T) {
	for name, outer := range uplinks {
		t.Run(name, func(t *testing.T) {
			m := twoMachines(t)
			m[0].address, m[1].address = outer[0], outer[1]
			join(t, m)
			a, b := m[0], m[1]
			mustPing(t, a.container, "10.5.2.2")
			there := startLarge(t, "there", 1380, a, b)
			for _, mtu := range []int{1300, 1500, 1400, 1484, 1500} {
				there.more(t, 3*window)
				a.ns.ip(t, fmt.Sprintf("link set eth0 mtu %d", mtu))
				a.mustApply(t, b)
			}
			there.more(t, 3*window)
			there.check(t)
			if there.late != 0 {
				t.Errorf("%d packets were overtaken", there.late)
			}
			if frags := a.ns.fragments(t); frags < 100 {
				t.Errorf("the uplink cut packets into %d fragments: it was never too small", frags)
			}
			if level := a.Level(); !level.Offloads[offloadSegment] {
				t.Errorf("udp_segment was given up: %v", level)
			}
			if n := a.Stats().Out.Packets[SendFailed]; n != 0 {
				t.Errorf("%d packets could not be sent", n)
			}
		})
	}
}

// uplinks are two machines' addresses, by family.
var uplinks = map[string][2]string{ //nolint:gochecknoglobals // a table
	"ipv4": {"198.18.0.1", "198.18.0.2"},
	"ipv6": {"fd00:198:18::1", "fd00:198:18::2"},
}

// fragments is how many the namespace has made of packets of either family.
func (n netns) fragments(t testing.TB) int {
	t.Helper()
	total := 0
	for _, m := range regexp.MustCompile(`(?:IpFragCreates|Ip6FragCreates)\s+(\d+)`).FindAllStringSubmatch(n.exec(t, "nstat -asz"), -1) {
		count, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		total += count
	}
	return total
}

// The uplink loses its address and gets it back, as when a lease of DHCP is renewed
// late: what is sent meanwhile is lost, nothing else is, and nobody does anything.
func TestKernelUplinkAddressReturns(t *testing.T) {
	a, b := joined(t)
	for range 2 {
		mustPing(t, a.container, "10.5.2.2")
		a.ns.ip(t, "addr del 198.18.0.1/24 dev eth0")
		if out := a.container.ping("-c 2 10.5.2.2"); !regexp.MustCompile(`100% packet loss|unreachable`).MatchString(out) {
			t.Errorf("ping without an address:\n%s", out)
		}
		a.mustApply(t, b)
		a.ns.ip(t, "addr add 198.18.0.1/24 dev eth0")
	}
	there, back := numbers{from: a, to: b, size: 1400, burst: 5}.start(t), numbers{from: b, to: a, size: 1400, burst: 5}.start(t)
	checkStream(t, "there", <-there)
	checkStream(t, "back", <-back)
	if level := a.Level(); !level.Offloads[offloadSegment] {
		t.Errorf("udp_segment was given up: %v", level)
	}
	if n := a.Stats().Out.Packets[SendFailed]; n < 2 {
		t.Errorf("%d packets could not be sent without an address, want those of the pings", n)
	}
}

// The uplink gets another address, and a new process takes its place with that: its
// peers go on once they are told, and only what is sent before that is lost.
func TestKernelUplinkAddressChanges(t *testing.T) {
	a, b := joined(t)
	mustPing(t, a.container, "10.5.2.2")
	files := a.keep(t)
	a.stop(t)
	a.ns.ip(t, "addr del 198.18.0.1/24 dev eth0")
	a.ns.ip(t, "addr add 198.18.0.77/24 dev eth0")
	a.address = "198.18.0.77"
	a.boot(t)
	in := a.inherit(t, files, b)
	if in.Whole || len(in.Refused) != 2 || len(a.Descriptors()) != 2 {
		t.Errorf("inherited %v, refused %v; want the queues, and no socket of the former address", names(a.Descriptors()), in.Refused)
	}
	a.mustApply(t, b)
	a.start(t)
	b.mustApply(t, a)
	there, back := numbers{from: a, to: b}.start(t), numbers{from: b, to: a}.start(t)
	checkStream(t, "there", <-there)
	checkStream(t, "back", <-back)
}

// crowd are n peers that exist in etcd alone.
func crowd(n int) []subnet.Lease {
	var leases []subnet.Lease
	for i := range n {
		leases = append(leases, lease(fmt.Sprintf("10.5.%d.0/24", 10+i), fmt.Sprintf("198.18.1.%d", 1+i)))
	}
	return leases
}

// applyLeases is Apply with peers that need be no machines.
func (m *machine) applyLeases(t testing.TB, peers ...subnet.Lease) {
	t.Helper()
	var err error
	m.ns.do(t, func() {
		err = m.Apply(context.Background(), backend.Desired{Config: m.config(), Uplink: m.uplink(), Own: m.lease(), Peers: slices.Collect(subnet.Each(peers))})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// followLease is Follow, of one peer that was like old and is like fresh.
func (m *machine) followLease(t testing.TB, old, fresh subnet.Lease) {
	t.Helper()
	var err error
	m.ns.do(t, func() {
		err = m.Follow(context.Background(), backend.Change{Old: []subnet.Lease{old}, New: []subnet.Lease{fresh}})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// flood sends small packets from one container to another without a pause until ctx
// ends, and returns their number.
func flood(ctx context.Context, t testing.TB, from, to *machine) <-chan uint64 {
	t.Helper()
	var out *net.UDPConn
	from.container.do(t, func() {
		var err error
		if out, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 5, byte(to.n), 2), Port: 9}); err != nil {
			t.Error(err)
		}
	})
	if out == nil {
		t.FailNow()
	}
	sent := make(chan uint64, 1)
	go func() {
		n := uint64(0)
		for ; ctx.Err() == nil; n++ {
			_, _ = out.Write([]byte("flood"))
		}
		out.Close()
		sent <- n
	}()
	return sent
}

// transmitted is how many pings ping(8) has sent that printed out.
func transmitted(t testing.TB, out string) (n uint64) {
	t.Helper()
	if m := regexp.MustCompile(`(\d+) packets transmitted`).FindStringSubmatch(out); m != nil {
		n, _ = strconv.ParseUint(m[1], 10, 64)
	}
	return n
}

// Peers are added, removed and moved to other addresses, hundreds of times, under
// packets to one that stays and to one that changes: those to the first all come, in
// their order, also those of a flood find their way, and those to the second come
// while it is there.
func TestKernelPeersUnderLoad(t *testing.T) {
	a, b := joined(t)
	mustPing(t, a.container, "10.5.2.2")
	there := numbers{from: a, to: b, size: 1400, burst: 5}.start(t)
	back := numbers{from: b, to: a, size: 1400, burst: 5}.start(t)
	// The peer that changes is b again, with another subnet.
	b.container.ip(t, "addr add 10.5.3.2/24 dev lo")
	b.ns.ip(t, "route add 10.5.3.0/24 dev docker0")
	second := b.lease()
	second.Subnet = subnet.Subnet{netip.MustParsePrefix("10.5.3.0/24")}
	pings := a.container.startPing(t, "10.5.3.2")
	other := crowd(200)
	changes, got := 0, []int(nil)
	for began := time.Now(); got == nil || !pings.printed("bytes from 10.5.3.2") || !pings.printed("Net Unreachable"); changes++ {
		if time.Since(began) > 2*patient { // the stream is given patient for what lacks
			t.Fatalf("ping to the peer that comes and goes:\n%s", pings.end())
		}
		peers := append([]subnet.Lease{b.lease()}, other[:(changes*37)%len(other)]...)
		if changes%2 == 0 {
			peers = append(peers, second)
		}
		a.applyLeases(t, peers...)
		other[changes%len(other)].Attrs.PublicIP[subnet.IPv4] = netip.AddrFrom4([4]byte{198, 18, 2, byte(changes)})
		select {
		case got = <-there:
		default:
		}
	}
	checkStream(t, "there", got)
	checkStream(t, "back", <-back)
	out := pings.end()
	// Of the last pings some may wait in the device still, or be in the batch that is not
	// counted yet: once others have passed, and others after those, they are through.
	a.applyLeases(t, b.lease(), second)
	mustPing(t, a.container, "10.5.3.2")
	mustPing(t, a.container, "10.5.3.2")
	before := a.Stats().Out.Packets[NoPeer]
	if sent := transmitted(t, out); before == 0 || before > sent {
		t.Errorf("%d packets had no peer, want some of %d pings", before, sent)
	}
	// Of the flood the machine may drop as much as it likes, but not for want of a peer.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	flooded := flood(ctx, t, a, b)
	for i := range 2000 {
		a.applyLeases(t, append([]subnet.Lease{b.lease()}, other[:(i*37)%len(other)]...)...)
	}
	a.applyLeases(t, append([]subnet.Lease{b.lease()}, other...)...)
	for i := range 2000 {
		moved := other[i%len(other)]
		moved.Attrs.PublicIP[subnet.IPv4] = netip.AddrFrom4([4]byte{198, 18, 3, byte(i)})
		a.followLease(t, other[i%len(other)], moved)
		other[i%len(other)] = moved
	}
	cancel()
	sent := <-flooded
	if missed := a.Stats().Out.Packets[NoPeer] - before; missed != 0 || sent < 1000 {
		t.Errorf("%d packets of a flood of %d had no peer", missed, sent)
	}
	t.Logf("%d changes, then 4000 under a flood of %d packets", changes, sent)
}
