package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// withPorts is f with a transport header that begins with ports.
func (f flow) withPorts(src, dst uint16) flow {
	f.payload = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src), dst)
	f.payload = append(f.payload, 1, 2, 3, 4)
	return f
}

func hashOf(t *testing.T, b []byte) uint32 {
	t.Helper()
	h, ok := parse(b)
	if !ok {
		t.Fatalf("not a packet: %x", b)
	}
	return flowHash(b, h)
}

func TestFlowHash(t *testing.T) {
	v4 := flow{src: "10.5.1.2", dst: "10.5.2.9", hops: 64, proto: protoTCP}
	v6 := flow{src: "fd05:0:0:1::2", dst: "fd05:0:0:2::9", hops: 64, proto: protoUDP}
	moreFragments := func(f flow) []byte {
		b := f.packet()
		b[6] |= 0x20
		return b
	}
	with := func(f flow, change func(*flow)) flow { change(&f); return f }
	for name, tc := range map[string]struct {
		a, b  []byte
		alike bool
	}{
		"another TTL, payload":     {v4.withPorts(1, 2).packet(), with(v4.withPorts(1, 2), func(f *flow) { f.hops = 9; f.payload = append(f.payload, 7) }).packet(), true},
		"with IPv4 options":        {v4.withPorts(1, 2).packet(), with(v4.withPorts(1, 2), func(f *flow) { f.options = 8 }).packet(), true},
		"another source port":      {v4.withPorts(1, 2).packet(), v4.withPorts(3, 2).packet(), false},
		"another destination port": {v4.withPorts(1, 2).packet(), v4.withPorts(1, 3).packet(), false},
		"another destination":      {v4.withPorts(1, 2).packet(), with(v4, func(f *flow) { f.dst = "10.5.2.8" }).withPorts(1, 2).packet(), false},
		"IPv6, another port":       {v6.withPorts(1, 2).packet(), v6.withPorts(1, 3).packet(), false},
		"IPv6, another source":     {v6.withPorts(1, 2).packet(), with(v6, func(f *flow) { f.src = "fd05:0:0:1::3" }).withPorts(1, 2).packet(), false},
		"IPv6, another payload":    {v6.withPorts(1, 2).packet(), with(v6.withPorts(1, 2), func(f *flow) { f.payload[5]++ }).packet(), true},
		"first and last fragment":  {moreFragments(v4.withPorts(1, 2)), with(v4.withPorts(5, 6), func(f *flow) { f.fragment = 100 }).packet(), true},
		"IPv6 fragments":           {with(v6.withPorts(1, 2), func(f *flow) { f.proto = protoFragment }).packet(), with(v6.withPorts(3, 4), func(f *flow) { f.proto = protoFragment }).packet(), true},
		"ping": {
			with(v4.withPorts(1, 2), func(f *flow) { f.proto = protoICMP }).packet(), with(v4.withPorts(1, 3), func(f *flow) { f.proto = protoICMP }).packet(), true,
		},
		"too short for ports": {with(v4, func(f *flow) { f.payload = []byte{1, 2, 3} }).packet(), with(v4, func(f *flow) { f.payload = []byte{1, 2, 4} }).packet(), true},
	} {
		t.Run(name, func(t *testing.T) {
			if alike := hashOf(t, tc.a) == hashOf(t, tc.b); alike != tc.alike {
				t.Errorf("alike: %v, want %v\n%x\n%x", alike, tc.alike, tc.a, tc.b)
			}
		})
	}
}

// TestFlowsSpread: whatever tells the flows apart, each of 8 sockets gets between
// half and twice its share.
func TestFlowsSpread(t *testing.T) {
	const sockets, flows = 8, 800
	s := &sender{by: make([]Sender, 1+sockets)}
	to := &endpoint{vary: true}
	for name, make := range map[string]func(i int) flow{
		"source ports":      func(i int) flow { return out("10.5.2.9", 0).withPorts(uint16(32768+i), 80) },
		"even source ports": func(i int) flow { return out("10.5.2.9", 0).withPorts(uint16(32768+2*i), 80) },
		"destinations":      func(i int) flow { return out(fmt.Sprintf("10.5.%d.%d", i/200, i%200), 0).withPorts(40000, 80) },
		"IPv6 ports": func(i int) flow {
			return flow{src: "fd05:0:0:1::2", dst: "fd05:0:0:2::9", hops: 64, proto: protoTCP}.withPorts(uint16(40000+i), 80)
		},
		"IPv6 destinations": func(i int) flow {
			return flow{src: "fd05:0:0:1::2", dst: fmt.Sprintf("fd05:0:0:%x::9", i), hops: 64, proto: protoTCP}.withPorts(40000, 80)
		},
	} {
		var got [1 + sockets]int
		for i := range flows {
			b := make(i).packet()
			h, _ := parse(b)
			got[s.source(to, b, h)]++
		}
		for i, n := range got {
			if i == 0 && n != 0 || i > 0 && (n < flows/sockets/2 || n > flows/sockets*2) {
				t.Errorf("%s: socket %d has %d of %d flows: %v", name, i, n, flows, got)
			}
		}
	}
}

// TestFlowsKeepTheirSocket: and with it their order; what goes to a peer that may
// be flannel's leaves from our own port.
func TestFlowsKeepTheirSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab()
		more := []*pipe{newMemoryConn(), newMemoryConn(), newMemoryConn()}
		l.sendBy(l.conn, more[0], more[1], more[2])
		l.start(t)
		const flows, packets = 20, 30
		var feed [][]byte
		for n := range byte(packets) {
			for port := range uint16(flows) {
				f := out("10.5.2.9", 0).withPorts(port, 80)
				f.payload[4] = n
				feed = append(feed, f.packet())
			}
			feed = append(feed, out("10.5.3.9", n).packet())
		}
		l.device.feed("", feed...)
		synctest.Wait()
		l.stop(t)
		for i, p := range l.conn.taken() {
			if want := netip.MustParseAddrPort("198.18.0.3:8290"); p.Outer != want || p.Data[20] != byte(i) {
				t.Errorf("from our port: number %d to %v", p.Data[20], p.Outer)
			}
		}
		next, home := map[uint16]byte{}, map[uint16]int{}
		for i, q := range more {
			taken := q.taken()
			if len(taken) == 0 {
				t.Errorf("nothing left by socket %d", i+1)
			}
			for _, p := range taken {
				port := binary.BigEndian.Uint16(p.Data[20:])
				if n := next[port]; p.Data[24] != n || n > 0 && home[port] != i {
					t.Errorf("packet %d of flow %d left by socket %d, want %d by %d", p.Data[24], port, i+1, n, home[port]+1)
				}
				next[port], home[port] = p.Data[24]+1, i
			}
		}
		want := map[uint16]byte{}
		for port := range uint16(flows) {
			want[port] = packets
		}
		if diff := cmp.Diff(want, next); diff != "" {
			t.Errorf("packets of flows (-want +got):\n%s", diff)
		}
	})
}

// someSenders are those of so many queues, from so many ports.
func someSenders(t *testing.T, queues, ports int) [][]Sender {
	t.Helper()
	senders, err := openSenders(netip.MustParseAddr("127.0.0.1"), ports, socketOptions{Queues: queues, Level: new(socketLevel)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closeSenders(slices.Concat(senders...)); err != nil {
			t.Error(err)
		}
	})
	return senders
}

// TestSendersOfAllQueuesHaveTheSamePorts: by what queue a packet leaves does not show in
// its port, or two hosts could make each other change a flow's queue with each answer:
// the device sends a flow to the queue that its last answer came by, the peer's kernel
// chooses that by the port, and the other way round.
func TestSendersOfAllQueuesHaveTheSamePorts(t *testing.T) {
	ports := make([][]uint16, 3)
	for q, senders := range someSenders(t, 3, 4) {
		for _, s := range senders {
			ports[q] = append(ports[q], s.(*socket).at.Port())
		}
	}
	if distinct := slices.Compact(slices.Sorted(slices.Values(ports[0]))); len(distinct) != 4 {
		t.Errorf("ports of a queue: %v, want 4", ports[0])
	}
	for _, of := range ports[1:] {
		if diff := cmp.Diff(ports[0], of); diff != "" {
			t.Errorf("ports of two queues (-one +other):\n%s", diff)
		}
	}
}

// TestSendersAreDeaf: what comes to their ports is not kept.
func TestSendersAreDeaf(t *testing.T) {
	senders := someSenders(t, 1, 2)
	s := senders[0][0].(*socket)
	from, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(s.at))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	if _, err := from.Write([]byte("flannel0")); err != nil { // on loopback it has arrived then
		t.Fatal(err)
	}
	err = control(s.raw, func(fd int) error {
		_, _, err := unix.Recvfrom(fd, make([]byte, 100), unix.MSG_DONTWAIT)
		return err
	})
	if !errors.Is(err, unix.EAGAIN) {
		t.Errorf("received: %v", err)
	}
}

// TestKernelSourcePorts: flows between hosts of ours leave from many ports and so
// reach all queues; from one port they reach one.
func TestKernelSourcePorts(t *testing.T) {
	for options, want := range map[string]int{
		`{"Queues":2}`:                       2,
		`{"Queues":2,"SourcePorts":"fixed"}`: 1,
	} {
		t.Run(options, func(t *testing.T) {
			m := twoMachines(t)
			m[0].options, m[1].options = options, options
			join(t, m)
			sendFlows(t, m[0], 64)
			await(t, "64 packets have come", func() bool { return m[1].Stats().In.Packets[Forwarded] >= 64 })
			used := 0
			for i := range m[1].traffic {
				if m[1].traffic[i].in.snapshot().Packets[Forwarded] > 0 {
					used++
				}
			}
			if used != want {
				t.Errorf("%d queues received, want %d", used, want)
			}
		})
	}
}

// sendFlows sends the other machine a datagram from each of n ports.
func sendFlows(t *testing.T, from *machine, n int) {
	t.Helper()
	from.ns.do(t, func() {
		for range n {
			c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 5, byte(3-from.n), 9), Port: 9})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err := c.Write([]byte("flannel0")); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestFlowsKeepTheirQueue: whatever comes back of a flow, its packets reach either host
// by one queue.
func TestFlowsKeepTheirQueue(t *testing.T) {
	m := twoMachines(t)
	m[0].options, m[1].options = `{"Queues":4}`, `{"Queues":4}`
	join(t, m)
	used := func(own *machine) (packets []uint64) {
		for i := range own.traffic {
			packets = append(packets, own.traffic[i].in.snapshot().Packets[Forwarded])
		}
		return packets
	}
	const each = 10
	for flow := range uint64(24) {
		before := [2][]uint64{used(m[0]), used(m[1])}
		echo(t, m[0], m[1], each)
		for i, own := range m {
			// What was delivered is counted a moment later: the next flow must not be
			// taken for this one.
			await(t, "what came is counted", func() bool { return own.Stats().In.Packets[Forwarded] >= (flow+1)*each })
			queues := 0
			for q, n := range used(own) {
				if n > before[i][q] {
					queues++
				}
			}
			if queues != 1 {
				t.Errorf("flow %d came to host %d by %d queues, want 1", flow, own.n, queues)
			}
		}
	}
}

// echo sends the other machine so many datagrams, each when the last one is back.
func echo(t *testing.T, from, to *machine, count int) {
	t.Helper()
	var server, client *net.UDPConn
	var err error
	to.ns.do(t, func() {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.inner(subnet.IPv4), 0)))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	at, _ := server.LocalAddr().(*net.UDPAddr)
	from.ns.do(t, func() { client, err = net.DialUDP("udp", nil, at) })
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	deadline := time.Now().Add(patient)
	if err := errors.Join(server.SetDeadline(deadline), client.SetDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8)
	for range count {
		if _, err := client.Write(b); err != nil {
			t.Fatal(err)
		}
		_, who, err := server.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.WriteToUDPAddrPort(b, who); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(b); err != nil {
			t.Fatal(err)
		}
	}
}
