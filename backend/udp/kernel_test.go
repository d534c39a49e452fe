package udp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestKernelHostState(t *testing.T) {
	m := twoMachines(t)[0]
	m.boot(t)
	m.mustApply(t)
	defer m.Close()
	link := m.ns.ip(t, "-d link show flannel0")
	for _, want := range []string{"<POINTOPOINT,MULTICAST,NOARP,UP,LOWER_UP> mtu 1472", "qlen 2000", "tun type tun pi off vnet_hdr on multi_queue numqueues 2 numdisabled 0 persist on", "alias flanneld-go"} {
		if !strings.Contains(link, want) {
			t.Errorf("no %q in:\n%s", want, link)
		}
	}
	if got, want := m.ns.ip(t, "-o -4 addr show flannel0"), "inet 10.5.1.0/32 scope global"; !strings.Contains(got, want) {
		t.Errorf("no %q in:\n%s", want, got)
	}
	if got, want := m.ns.ip(t, "route show 10.5.0.0/16"), "10.5.0.0/16 dev flannel0"; !strings.HasPrefix(got, want) {
		t.Errorf("no %q in:\n%s", want, got)
	}
	if got, want := m.ns.ip(t, "-6 route show fd05::/48"), "fd05::/48 dev flannel0"; !strings.HasPrefix(got, want) {
		t.Errorf("no %q in:\n%s", want, got)
	}
	if err := m.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := m.ns.ip(t, "link") + m.ns.ip(t, "route") + m.ns.ip(t, "-6 route"); strings.Contains(left, "flannel0") {
		t.Errorf("left by Cleanup:\n%s", left)
	}
}

func TestKernelPing(t *testing.T) {
	a, b := joined(t)
	mustPing(t, a.ns, "10.5.2.0")
	mustPing(t, b.ns, "10.5.1.0")
	mustPing(t, a.container, "10.5.2.2")
	mustPing(t, a.ns, "10.5.2.2")
	mustPing(t, b.container, "10.5.1.0")
	mustPing(t, a.ns, "fd05:0:0:2::")
	// 20 + 8 + 1444 = 1472, and then one more.
	mustPing(t, a.container, "-M do -s 1444 10.5.2.2")
	if out := a.ns.pingAnswered("-c 1 -M do -s 1445 10.5.2.2"); !strings.Contains(out, "mtu=1472") && !strings.Contains(out, "mtu = 1472") {
		t.Errorf("ping above the MTU:\n%s", out)
	}
	mustPing(t, a.container, "-M dont -s 20000 10.5.2.2")
	if s := a.Stats(); s.Out.Packets[Forwarded] == 0 || s.In.Packets[Forwarded] == 0 || s.Out.Packets[SendFailed] != 0 {
		t.Errorf("counted %+v", s)
	}
}

// TestKernelErrors: what a container is told, and by whom.
func TestKernelErrors(t *testing.T) {
	a, b := joined(t)
	for args, want := range map[string]string{
		"-c 2 10.5.99.9": "From 10.5.1.0 icmp_seq=1 Destination Net Unreachable",
		// The hops: gateway, our device, the peer's, the peer's kernel.
		"-c 1 -t 1 10.5.2.2": "From 10.5.1.1 icmp_seq=1 Time to live exceeded",
		"-c 1 -t 2 10.5.2.2": "From 10.5.1.0 icmp_seq=1 Time to live exceeded",
		"-c 1 -t 3 10.5.2.2": "From 10.5.2.0 icmp_seq=1 Time to live exceeded",
		"-c 1 -t 5 10.5.2.2": "1 received",
	} {
		if out := a.container.pingAnswered(args); !strings.Contains(out, want) {
			t.Errorf("ping %s: no %q in:\n%s", args, want, out)
		}
	}
	for args, want := range map[string]string{
		"-c 2 10.5.99.9":      "From 10.5.1.0 icmp_seq=1 Destination Net Unreachable",
		"-c 2 fd05:0:0:99::9": "From fd05:0:0:1:: icmp_seq=1 Destination unreachable: No route",
	} {
		if out := a.ns.pingAnswered(args); !strings.Contains(out, want) {
			t.Errorf("ping %s from the host: no %q in:\n%s", args, want, out)
		}
	}
	// Path MTU discovery against a device whose MTU somebody raised.
	a.ns.ip(t, "link set flannel0 mtu 9000")
	a.ns.ip(t, "link set docker0 mtu 9000")
	a.container.ip(t, "link set eth0 mtu 9000")
	if out := a.container.pingAnswered("-c 1 -M do -s 2000 10.5.2.2"); !strings.Contains(out, "From 10.5.1.0 icmp_seq=1 Frag needed and DF set (mtu = 1472)") {
		t.Errorf("ping above the MTU:\n%s", out)
	}
	// A peer that nobody listens at is no error of ours.
	b.stop(t)
	if out := a.container.ping("-c 2 10.5.2.2"); !strings.Contains(out, "100% packet loss") {
		t.Errorf("ping without a peer:\n%s", out)
	}
	if s := a.Stats(); s.Out.Packets[NoPeer] < 3 || s.Answers < 5 {
		t.Errorf("counted %+v", s)
	}
}

// TestKernelPorts: each host publishes where it receives.
func TestKernelPorts(t *testing.T) {
	m := twoMachines(t)
	m[0].options, m[1].options = `{"Port":9001}`, `{"Port":9002}`
	join(t, m)
	mustPing(t, m[0].container, "10.5.2.2")
	mustPing(t, m[1].container, "10.5.1.2")
}

// TestKernelDatagram is the wire format seen from outside: one datagram is one
// IP packet, from the port it goes to; answers may come from any port.
func TestKernelDatagram(t *testing.T) {
	m := twoMachines(t)
	a, b := m[0], m[1]
	a.boot(t)
	a.mustApply(t, b)
	a.start(t)
	var at, other *net.UDPConn
	b.ns.do(t, func() {
		var err1, err2 error
		at, err1 = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(198, 18, 0, 2), Port: 8285})
		other, err2 = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(198, 18, 0, 2)})
		if err := errors.Join(err1, err2); err != nil {
			t.Error(err)
		}
	})
	defer at.Close()
	defer other.Close()
	answered := make(chan string, 1)
	go func() { answered <- a.container.pingAnswered("-c 1 -t 64 10.5.2.77") }()

	buf := make([]byte, maxPacket)
	_ = at.SetReadDeadline(time.Now().Add(patient))
	n, from, err := at.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatalf("%v\n%s", err, <-answered)
	}
	b4 := buf[:n]
	h, ok := parse(b4)
	want := header{family: subnet.IPv4, hops: 62, whole: h.whole, src: v4("10.5.1.2"), dst: v4("10.5.2.77")}
	if !ok || h != want || n != 84 || slowChecksum(b4[:20]) != binary.BigEndian.Uint16(b4[10:]) {
		t.Errorf("datagram %x: %+v, want %+v", b4, h, want)
	}
	if want := netip.MustParseAddrPort("198.18.0.1:8285"); from != want {
		t.Errorf("sent from %v, want %v", from, want)
	}
	reply := flow{src: "10.5.2.77", dst: "10.5.1.2", hops: 64, proto: protoICMP, payload: append([]byte{0, 0, 0, 0}, b4[24:]...)}
	binary.BigEndian.PutUint16(reply.payload[2:], onesComplement(reply.payload))
	spoofed := reply
	spoofed.src = "10.5.3.77"
	to := net.UDPAddrFromAddrPort(from)
	for _, p := range [][]byte{reply.packet()[:60], append(reply.packet(), 0), spoofed.packet(), reply.packet()} {
		if _, err := other.WriteToUDP(p, to); err != nil {
			t.Fatal(err)
		}
	}
	if out := <-answered; !strings.Contains(out, "from 10.5.2.77: icmp_seq=1 ttl=62") {
		t.Errorf("ping:\n%s", out)
	}
	// What was delivered is counted a moment later.
	counted := ByVerdict{Forwarded: 1, Malformed: 2, UnknownSource: 1}
	await(t, fmt.Sprintf("received: %v", counted), func() bool { return a.Stats().In.Packets == counted })
}

func TestKernelDeviceDeleted(t *testing.T) {
	a, b := joined(t)
	for range 3 {
		mustPing(t, a.container, "10.5.2.2")
		a.ns.ip(t, "link del flannel0")
		if out := a.container.ping("-c 1 10.5.2.2"); strings.Contains(out, " 0% packet loss") {
			t.Fatalf("ping without a device:\n%s", out)
		}
		a.mustApply(t, b)
	}
	mustPing(t, a.container, "10.5.2.2")
	a.ns.ip(t, "link set flannel0 down") // takes the route with it
	a.mustApply(t, b)
	mustPing(t, a.container, "10.5.2.2")
}

// TestKernelRestart: device, address and route outlive the daemon, and the next
// one takes them over.
func TestKernelRestart(t *testing.T) {
	a, b := joined(t)
	before := index(t, a)
	a.stop(t)
	if routes := a.ns.ip(t, "route"); !strings.Contains(routes, "10.5.0.0/16 dev flannel0") {
		t.Errorf("the route is gone:\n%s", routes)
	}
	a.options = `{"Queues":4}`
	a.boot(t)
	a.mustApply(t, b)
	a.start(t)
	mustPing(t, a.container, "10.5.2.2")
	if after := index(t, a); after != before {
		t.Errorf("device %s was replaced by %s", before, after)
	}
	if link := a.ns.ip(t, "-d link show flannel0"); !strings.Contains(link, "numqueues 4") {
		t.Errorf("not 4 queues:\n%s", link)
	}
}

// index is the number of the machine's tunnel device.
func index(t testing.TB, m *machine) string {
	return regexp.MustCompile(`^\d+`).FindString(m.ns.ip(t, "-o link show flannel0"))
}

// TestKernelQueues: each queue carries its share.
func TestKernelQueues(t *testing.T) {
	m := twoMachines(t)
	m[0].options, m[1].options = `{"Queues":4}`, `{"Queues":4}`
	join(t, m)
	sendFlows(t, m[0], 64)
	if ss := m[0].ns.exec(t, "ss -Haun sport = :8285"); strings.Count(ss, "198.18.0.1:8285") != 4 {
		t.Errorf("sockets:\n%s", ss)
	}
	await(t, "64 packets and more by 3 queues and more", func() bool {
		queues := 0
		for i := range m[0].traffic {
			if m[0].traffic[i].out.snapshot().Packets[Forwarded] > 0 {
				queues++
			}
		}
		return queues >= 3 && m[0].Stats().Out.Packets[Forwarded] >= 64
	})
}

// await waits until something is so.
func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for deadline := time.After(patient); !so(); {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("not so after %s: %s", patient, what)
		}
	}
}

// TestKernelAdopts: a free device that can have our queues stays, and so does one of a
// single queue that is ours where we want one. Others of a single queue, as flannel's, are
// replaced. Packets pass in any case.
func TestKernelAdopts(t *testing.T) {
	for _, tc := range []struct {
		flags, alias, options string
		stays                 bool
	}{
		{"", "", `{"Queues":1}`, false},
		{" vnet_hdr", "", `{"Queues":1}`, false},
		{" vnet_hdr", kernel.Alias, `{"Queues":1}`, true},
		{" vnet_hdr", kernel.Alias, `{"Queues":3}`, false},
		{" multi_queue", "", `{"Queues":1}`, true},
		{" multi_queue", "", `{"Queues":3}`, true},
	} {
		m := twoMachines(t)
		m[0].options = tc.options
		a, b := m[0], m[1]
		a.ns.ip(t, "tuntap add dev flannel0 mode tun"+tc.flags)
		if tc.alias != "" {
			a.ns.ip(t, "link set flannel0 alias "+tc.alias)
		}
		a.ns.ip(t, "addr add 10.5.77.0/32 dev flannel0")
		a.ns.ip(t, "link set flannel0 up")
		before := index(t, a)
		a.ns.ip(t, "route add 10.5.0.0/16 dev flannel0")
		join(t, m)
		mustPing(t, a.container, "10.5.2.2")
		mustPing(t, b.container, "10.5.1.2")
		if got := a.ns.ip(t, "-o -4 addr show flannel0"); strings.Contains(got, "10.5.77.0") {
			t.Errorf("the old address is there:\n%s", got)
		}
		if after := index(t, a); (after == before) != tc.stays {
			t.Errorf("%+v: the device was %s and is %s", tc, before, after)
		}
	}
}

// TestKernelOffloadsLeftOn: a host without offloads turns off those that an earlier
// holder of its device had on.
func TestKernelOffloadsLeftOn(t *testing.T) {
	m := twoMachines(t)
	m[0].options = `{"Offload":"off"}`
	m[0].ns.do(t, func() {
		before, err := openTUN(device, tunOptions{Queues: 1})
		if err != nil {
			t.Error(err)
			return
		}
		defer before.Close()
		err = control(before.(tuns)[0].raw, func(fd int) error {
			return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4)
		})
		if err := errors.Join(err, before.persist()); err != nil {
			t.Error(err)
		}
	})
	join(t, m)
	echoStream(t, m[0], m[1], subnet.IPv4)
}

// stream opens a TCP connection between the two hosts' tunnel addresses.
func stream(t testing.TB, from, to *machine, f subnet.Family) (client, server net.Conn) {
	t.Helper()
	address := netip.AddrPortFrom(to.inner(f), 5000).String()
	var ln net.Listener
	to.ns.do(t, func() {
		var err error
		if ln, err = net.Listen("tcp", address); err != nil {
			t.Error(err)
		}
	})
	defer ln.Close()
	from.ns.do(t, func() {
		var err error
		if client, err = net.DialTimeout("tcp", address, patient); err != nil {
			t.Error(err)
		}
	})
	if client == nil {
		t.FailNow()
	}
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

func TestKernelForeignDevices(t *testing.T) {
	a := twoMachines(t)[0]
	for _, add := range []string{"link add flannel0 type bridge", "tuntap add dev flannel0 mode tap"} {
		a.ns.ip(t, add)
		a.boot(t)
		if err := a.apply(t); !errors.Is(err, ErrForeignDevice) {
			t.Errorf("after ip %s: %v", add, err)
		}
		if link := a.ns.ip(t, "link show flannel0"); strings.Contains(link, "UP") || strings.Contains(link, "alias") {
			t.Errorf("touched:\n%s", link)
		}
		a.ns.ip(t, "link del flannel0")
		a.Close()
	}
}

func TestKernelWithoutNode(t *testing.T) {
	newNetNS(t).do(t, func() {
		err := errors.Join(
			unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("none", "/dev/net", "tmpfs", 0, ""),
		)
		if err != nil {
			t.Error(err)
			return
		}
		_, err = openTUN(device, tunOptions{Queues: 1})
		if !errors.Is(err, ErrNoTUN) || !strings.Contains(err.Error(), "cannot use /dev/net/tun: no such file or directory: run `modprobe tun`") {
			t.Errorf("open: %v", err)
		}
	})
}

func TestKernelWithoutCapability(t *testing.T) {
	newNetNS(t).do(t, func() {
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Error(err)
			return
		}
		if _, err := openTUN(device, tunOptions{Queues: 1}); !errors.Is(err, kernel.ErrPermission) || !strings.Contains(err.Error(), "needs CAP_NET_ADMIN") {
			t.Errorf("open: %v", err)
		}
		raw, err := openRaw(context.Background(), []subnet.Family{subnet.IPv4})
		if err == nil {
			t.Error("raw sockets without CAP_NET_RAW")
		}
		if err := raw.Inject([]byte{0x45}, netip.MustParseAddr("10.5.1.2")); !errors.Is(err, errNoRaw) {
			t.Errorf("inject: %v", err)
		}
	})
}

// TestKernelUnderChange: peers come and go, and the device is deleted, while
// packets flow; nothing gets stuck.
func TestKernelUnderChange(t *testing.T) {
	a, b := joined(t)
	flood := make(chan string)
	go func() {
		defer close(flood)
		a.container.ping("-w 1 10.5.2.2")
	}()
	changes := [][]*machine{{b}, {}}
	for i, running := 0, true; running; i++ {
		a.mustApply(t, changes[i%2]...)
		if i == 10 {
			a.ns.ip(t, "link del flannel0")
		}
		select {
		case <-flood:
			running = false
		default:
		}
	}
	a.mustApply(t, b)
	mustPing(t, a.container, "10.5.2.2")
}
