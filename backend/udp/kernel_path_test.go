package udp

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// TestKernelDoesNotAllocate is the kernel's half of
// TestPacketPathDoesNotAllocate.
func TestKernelDoesNotAllocate(t *testing.T) {
	a := twoMachines(t)[0]
	a.options = `{"Queues":1}`
	a.boot(t)
	a.mustApply(t)
	defer a.Close()
	var stimulus *net.UDPConn
	a.ns.do(t, func() {
		var err error
		stimulus, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 5, 2, 9), Port: 9})
		if err != nil {
			t.Error(err)
		}
	})
	defer stimulus.Close()
	conn, queue := a.outlets.load().out(0).conn, a.tunnel.queues()[0]
	writer := queue.Writer()
	frames, batch, payload := newFrames(), newArrivals(1), make([]byte, 100)
	messages := make([]Message, 1)
	parts := make([][]byte, 1)
	self := netip.MustParseAddrPort("198.18.0.1:8285")
	if n := testing.AllocsPerRun(100, func() {
		_, _ = stimulus.Write(payload)
		frames.Reset()
		err := queue.Read(frames)
		if err == nil {
			parts[0] = frames.List[0].Data
			messages[0] = Message{To: self, Parts: parts, Size: len(parts[0]), Packets: 1, Bytes: len(parts[0])}
			_, err = conn.WriteBatch(messages)
		}
		if err == nil {
			_, err = conn.ReadBatch(batch)
		}
		if err == nil {
			parts[0] = batch[0].Data
			err = writer.Write(offload.Joined{Parts: parts})
		}
		if err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("a packet through the kernel allocates %v times", n)
	}
}

// TestKernelTUNContract: what Device promises of Read, Write and Close.
func TestKernelTUNContract(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *machine){
		"closed":  func(_ *testing.T, m *machine) { m.tunnel.Close() },
		"deleted": func(t *testing.T, m *machine) { m.ns.ip(t, "link del flannel0") },
	} {
		t.Run(name, func(t *testing.T) {
			m := twoMachines(t)[0]
			m.options = `{"Queues":1}`
			m.boot(t)
			m.mustApply(t)
			defer m.Close()
			d := m.tunnel.queues()[0]
			type result struct {
				n   int
				err error
			}
			results := make(chan result, 100)
			go func() {
				frames := newFrames()
				for {
					frames.Reset()
					err := d.Read(frames)
					results <- result{len(frames.List), err}
					if err != nil {
						return
					}
				}
			}()
			m.ns.ping("-c 1 10.5.2.9")
			await(t, "a read has returned", func() bool { return len(results) > 0 })
			end(t, m)
			packets := 0
			for r := range results {
				if errors.Is(r.err, errGone) {
					break
				}
				if r.err != nil || r.n < 1 {
					t.Fatalf("read %d packets, %v", r.n, r.err)
				}
				packets += r.n
			}
			if packets == 0 {
				t.Error("read no packet")
			}
			if err := d.Writer().Write(offload.Joined{Parts: [][]byte{out("10.5.2.9", 1).packet()}}); !errors.Is(err, errGone) {
				t.Errorf("wrote a packet: %v", err)
			}
			if m.tunnel.attached() {
				t.Error("attached to nothing")
			}
			if err := errors.Join(d.Close(), d.Close()); err != nil {
				t.Errorf("close twice: %v", err)
			}
		})
	}
}

// BenchmarkTunnelTCP is one TCP stream between two hosts.
func BenchmarkTunnelTCP(b *testing.B) {
	from, to := joined(b)
	client, server := stream(b, from, to, subnet.IPv4)
	defer server.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<18)
		for {
			if _, err := server.Read(buf); err != nil {
				return
			}
		}
	}()
	chunk := make([]byte, 1<<18)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := client.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	client.Close()
	<-done
}
