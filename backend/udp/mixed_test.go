package udp

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// kind is how one host of a pair moves packets.
type kind struct {
	options string
	// apply changes what the host has found its kernel to be capable of, before
	// packets pass; nil: nothing.
	apply func(t *testing.T, m *machine)
	// lacks is the offload that it then says is off.
	lacks string
	// flannel: it is none of ours.
	flannel bool
}

// kinds are all that hosts of one network can be of.
func kinds() map[string]kind {
	return map[string]kind{
		"auto": {},
		"no uso": {lacks: offloadUSO, apply: func(t *testing.T, m *machine) {
			m.open = func(name string, o tunOptions) (tunnel, error) {
				opened, err := openTUN(name, o)
				if err != nil {
					return nil, err
				}
				for _, q := range opened.(tuns) {
					const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
					q.uso = false
					err = errors.Join(err, control(q.raw, func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso) }))
				}
				return opened, err
			}
		}},
		"no udp_segment": {lacks: offloadSegment, apply: func(t *testing.T, m *machine) {
			open := m.open
			m.open = func(name string, o tunOptions) (tunnel, error) { // the sockets are open then
				m.sockets.segment.Store(false)
				return open(name, o)
			}
		}},
		"no joins": {lacks: offloadJoinTCP, apply: func(t *testing.T, m *machine) {
			m.open = func(name string, o tunOptions) (tunnel, error) {
				opened, err := openTUN(name, o)
				return refusing{opened}, err
			}
		}},
		"off":     {options: `{"Queues":2,"Offload":"off"}`, lacks: offloadTSO},
		"flannel": {flannel: true},
	}
}

// refusing is a tunnel whose kernel knows no joined packets.
type (
	refusing       struct{ tunnel }
	refusingQueue  struct{ Device }
	refusingWriter struct{ Writer }
)

func (r refusing) queues() (all []Device) {
	for _, q := range r.tunnel.queues() {
		all = append(all, refusingQueue{q})
	}
	return all
}

func (q refusingQueue) Writer() Writer { return refusingWriter{q.Device.Writer()} }

func (w refusingWriter) Write(packet offload.Joined) error {
	if packet.Packets > 1 {
		return unix.EINVAL
	}
	return w.Writer.Write(packet)
}

// plain is a host as flannel's are: one packet per call and datagram, from one port,
// IPv4 alone. It is written as simply as that can be.
type plain struct {
	device *os.File
	conn   *net.UDPConn
	peer   netip.AddrPort
	wait   sync.WaitGroup
	// wrong is what came that flannel would not have understood.
	wrong []string
}

// startPlain makes m such a host, with a tunnel to peer, until the test ends.
func startPlain(t *testing.T, m, peer *machine) *plain {
	t.Helper()
	p := &plain{peer: netip.AddrPortFrom(netip.MustParseAddr(peer.outer()), defaultPort)}
	m.ns.do(t, func() {
		fd, err := unix.Open(tunNode, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Error(err)
			return
		}
		req, err := unix.NewIfreq(device)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		p.device = os.NewFile(uintptr(fd), tunNode)
		var bindErr error
		p.conn, bindErr = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(m.outer()), defaultPort)))
		if err := errors.Join(err, bindErr); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	m.ns.ip(t, "link set flannel0 mtu 1472 up")
	m.ns.ip(t, "addr add "+m.inner(subnet.IPv4).String()+"/32 dev flannel0")
	m.ns.ip(t, "route add 10.5.0.0/16 dev flannel0")
	p.wait.Go(p.out)
	p.wait.Go(p.in)
	t.Cleanup(func() {
		err := errors.Join(p.device.Close(), p.conn.Close())
		p.wait.Wait()
		if err != nil || len(p.wrong) > 0 {
			t.Errorf("the plain host: %v, %q", err, p.wrong)
		}
	})
	return p
}

func (p *plain) out() {
	b := make([]byte, maxPacket)
	for {
		n, err := p.device.Read(b)
		if err != nil {
			return
		}
		if h, ok := parse(b[:n]); ok && h.family == subnet.IPv4 {
			lowerHops(b[:n], h.family)
			_, _ = p.conn.WriteToUDPAddrPort(b[:n], p.peer)
		}
	}
}

func (p *plain) in() {
	b := make([]byte, maxPacket)
	for {
		n, from, err := p.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		h, ok := parse(b[:n])
		if !ok || from != p.peer {
			p.wrong = append(p.wrong, from.String())
			continue
		}
		lowerHops(b[:n], h.family)
		_, _ = p.device.Write(b[:n])
	}
}

// inner is the tunnel's address of a family.
func (m *machine) inner(f subnet.Family) netip.Addr {
	return [...]netip.Addr{
		netip.AddrFrom4([4]byte{10, 5, byte(m.n), 0}),
		netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x05, 7: byte(m.n)}),
	}[f]
}

// TestKernelMixed: hosts of all kinds exchange streams and datagrams, over either
// family and of either, each way.
func TestKernelMixed(t *testing.T) {
	pairs := [][2]string{
		{"auto", "auto"},
		{"auto", "no uso"},
		{"auto", "no udp_segment"},
		{"auto", "no joins"},
		{"auto", "off"},
		{"off", "no udp_segment"},
		{"auto", "flannel"},
		{"no udp_segment", "flannel"},
		{"off", "flannel"},
	}
	for _, pair := range pairs {
		for _, over := range slices.Sorted(maps.Keys(uplinks)) {
			if pair[1] == "flannel" && over == "ipv6" {
				continue // it knows no other uplink than that of IPv4
			}
			t.Run(pair[0]+" and "+pair[1]+" over "+over, func(t *testing.T) { testMixed(t, pair, uplinks[over]) })
		}
	}
}

func testMixed(t *testing.T, pair, outer [2]string) {
	m := twoMachines(t)
	families := subnet.Families()
	inner := families[:]
	for i, own := range m {
		l := kinds()[pair[i]]
		own.options, own.address = l.options, outer[i]
		if l.flannel {
			inner = []subnet.Family{subnet.IPv4}
			continue
		}
		own.boot(t)
		if l.apply != nil {
			l.apply(t, own)
		}
	}
	for i, own := range m {
		if own.Backend == nil {
			startPlain(t, own, m[1-i])
			continue
		}
		own.mustApply(t, m[1-i])
		own.start(t)
	}
	for _, f := range inner {
		mustPing(t, m[0].ns, m[1].inner(f).String())
		for i, own := range m {
			echoStream(t, own, m[1-i], f)
			echoDatagrams(t, own, m[1-i], f)
		}
	}
	for i, own := range m {
		if own.Backend == nil {
			continue
		}
		if s := own.Stats(); s.Out.Packets[SendFailed]+s.In.Packets[NotDelivered]+s.In.Packets[Malformed] != 0 {
			t.Errorf("%s counted out %v, in %v", pair[i], s.Out.Packets, s.In.Packets)
		}
		if on := own.Level().Offloads; on[kinds()[pair[i]].lacks] {
			t.Errorf("%s has %v", pair[i], on)
		}
	}
}

// pattern is n bytes that tell where they belong.
func pattern(n int, seed uint32) []byte {
	b := make([]byte, n)
	for i := range b {
		seed = seed*1664525 + 1013904223
		b[i] = byte(seed >> 24)
	}
	return b
}

// echoStream sends a stream and reads it again from a host that sends it back.
func echoStream(t *testing.T, from, to *machine, f subnet.Family) {
	t.Helper()
	client, server := stream(t, from, to, f)
	defer client.Close()
	deadline := time.Now().Add(patient)
	if err := errors.Join(client.SetDeadline(deadline), server.SetDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		defer server.Close()
		_, _ = io.Copy(struct{ io.Writer }{server}, server)
	})
	sent := pattern(1<<20, uint32(from.n))
	wait.Go(func() { _, _ = client.Write(sent) })
	got := make([]byte, len(sent))
	n, err := io.ReadFull(client, got)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("stream from host %d over %v: %d of %d bytes came back, equal: %t, %v", from.n, f, n, len(sent), bytes.Equal(got, sent), err)
	}
	client.Close()
	wait.Wait()
}

// echoDatagrams does so with datagrams of all sizes, in bursts.
func echoDatagrams(t *testing.T, from, to *machine, f subnet.Family) {
	t.Helper()
	at := net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.inner(f), 5001))
	var client, server *net.UDPConn
	to.ns.do(t, func() {
		var err error
		if server, err = net.ListenUDP("udp", at); err != nil {
			t.Error(err)
		}
	})
	defer server.Close()
	from.ns.do(t, func() {
		var err error
		if client, err = net.DialUDP("udp", nil, at); err != nil {
			t.Error(err)
		}
	})
	defer client.Close()
	go func() {
		for b := make([]byte, 2000); ; {
			n, who, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(b[:n], who)
		}
	}()
	_ = client.SetDeadline(time.Now().Add(patient))
	got := make([]byte, 2000)
	for burst := range uint32(20) {
		// With its first answer a flow may change its queue, and those that are on their
		// way may then be overtaken; never again, unless nothing comes for 3 s: then the
		// kernel has forgotten the flow (TUN_FLOW_EXPIRE).
		_, err := client.Write(got[:1])
		if err == nil {
			_, err = client.Read(got)
		}
		if err != nil {
			t.Fatalf("the first datagram from host %d over %v: %v", from.n, f, err)
		}
		var sent [][]byte
		for i := range uint32(20) {
			// Runs of one length, which can be joined, and others.
			size := [...]int{1400, 700, 1 + int(burst*20+i)*3}[burst%3]
			sent = append(sent, pattern(size, burst<<16|i))
			if _, err := client.Write(sent[i]); err != nil {
				t.Fatal(err)
			}
		}
		for i, want := range sent {
			n, err := client.Read(got)
			if err != nil || !bytes.Equal(got[:n], want) {
				is := slices.IndexFunc(sent, func(b []byte) bool { return bytes.Equal(b, got[:n]) })
				t.Fatalf("datagrams from host %d over %v: burst %d: number %d came back with %d bytes, those of number %d, want %d: %v",
					from.n, f, burst, i, n, is, len(want), err)
			}
		}
	}
}
