package udp

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// lab is one path between a device and a conn in memory.
type lab struct {
	path
	device, conn *pipe
	told         injected
	cancel       context.CancelFunc
	ended        chan error
}

func newLab() *lab {
	l := &lab{device: newMemoryDevice(), conn: newMemoryConn(), ended: make(chan error, 1)}
	l.path = path{
		arrivals: arrivalsMost, devices: newSlot(), outlets: newOutlets(), world: new(atomic.Pointer[world]), answers: &answers{out: &l.told},
		mtu: new(atomic.Int64), out: new(counters), in: new(counters), log: slog.New(slog.DiscardHandler),
		can: offload.Protocols{TCP: true}, joins: &joinLevel{log: slog.New(slog.DiscardHandler)},
	}
	l.mtu.Store(1472)
	l.sendBy(l.conn)
	l.world.Store(testWorld())
	l.devices.put(l.device)
	return l
}

// sendBy makes conn, and more to send from, the sockets of the path.
func (l *lab) sendBy(conn Conn, more ...Sender) {
	sets := []*outletSet{newOutletSet(netip.AddrPort{}, []Conn{conn}, [][]Sender{more})}
	l.outlets.current.Store(&outletList{sets: sets, replaced: make(chan struct{})})
}

// start runs the path in a synctest bubble.
func (l *lab) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l.cancel = cancel
	go func() {
		l.ended <- run(ctx, []*path{&l.path}, func() error {
			if d := l.devices.get(0); d != nil {
				d.Close()
			}
			return l.outlets.put()
		})
	}()
	synctest.Wait()
}

// stop ends the path and expects no error.
func (l *lab) stop(t *testing.T) {
	t.Helper()
	l.cancel()
	if err := <-l.ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

func out(dst string, n byte) flow {
	return flow{src: "10.5.1.2", dst: dst, hops: 64, proto: 17, payload: []byte{n, 0, 0, 0, 0, 0, 0, 0}}
}

func in(src string, n byte) flow {
	return flow{src: src, dst: "10.5.1.2", hops: 64, proto: 17, payload: []byte{n, 0, 0, 0, 0, 0, 0, 0}}
}

// after is f one hop later.
func (f flow) after() []byte { f.hops--; return f.packet() }

func TestForwardBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab()
		l.start(t)
		var want []Packet
		var feed [][]byte
		for i := range byte(200) { // several batches, in order
			dst, to := "10.5.2.9", "198.18.0.2:8285"
			if i%3 == 0 {
				dst, to = "10.5.3.9", "198.18.0.3:8290"
			}
			feed = append(feed, out(dst, i).packet())
			want = append(want, Packet{Data: out(dst, i).after(), Outer: netip.MustParseAddrPort(to)})
		}
		l.device.feed("", feed...)
		l.conn.feed("198.18.0.2:61000", in("10.5.2.9", 1).packet(), in("10.5.2.0", 2).packet())
		synctest.Wait()
		// What goes to one receiver keeps its order.
		if diff := cmp.Diff(byReceiver(want), byReceiver(l.conn.taken())); diff != "" {
			t.Errorf("sent (-want +got):\n%s", diff)
		}
		var got [][]byte
		for _, p := range l.device.taken() {
			got = append(got, p.Data)
		}
		if diff := cmp.Diff([][]byte{in("10.5.2.9", 1).after(), in("10.5.2.0", 2).after()}, got); diff != "" {
			t.Errorf("delivered (-want +got):\n%s", diff)
		}
		l.stop(t)
		if got := l.out.snapshot(); got.Packets != (ByVerdict{Forwarded: 200}) || got.Bytes != 200*28 {
			t.Errorf("counted %+v out", got)
		}
		if got := l.in.snapshot(); got.Packets != (ByVerdict{Forwarded: 2}) || got.Bytes != 2*28 {
			t.Errorf("counted %+v in", got)
		}
	})
}

// TestLargePacketsPass: what one host's device hands over, the other's gets: cut on
// the wire, joined again, two hops later.
func TestLargePacketsPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := newLab(), newLab()
		there.world.Store(&world{table: newTable([]peer{peerAt("10.5.1.0/24", "198.18.0.1:8285")})})
		here.start(t)
		there.start(t)
		header, large := largeTCP("10.5.2.9", bytes.Repeat([]byte("flannel0"), 5001), 1420)
		here.device.feedLarge(header, large)
		synctest.Wait()
		var wire [][]byte
		for _, p := range here.conn.taken() {
			if len(p.Data) > 1460 {
				t.Errorf("%d bytes in a datagram", len(p.Data))
			}
			wire = append(wire, p.Data)
		}
		there.conn.feedArrival("198.18.0.1:8285", 1460, wire...)
		synctest.Wait()
		want := slices.Clone(large)
		lowerHops(want, subnet.IPv4)
		lowerHops(want, subnet.IPv4)
		if p := there.device.taken(); len(p) != 1 || p[0].Header != header || !bytes.Equal(p[0].Data, want) {
			t.Errorf("delivered %d packets, not the large one under %+v", len(p), header)
		}
		here.stop(t)
		there.stop(t)
		const packets = (5001*8 + 1419) / 1420
		sent, got := here.out.snapshot(), there.in.snapshot()
		if sent.Packets != (ByVerdict{Forwarded: packets}) || sent.Bytes != 5001*8+packets*40 {
			t.Errorf("counted %+v out", sent)
		}
		if got.Packets != (ByVerdict{Forwarded: packets}) {
			t.Errorf("counted %+v in", got)
		}
	})
}

func byReceiver(packets []Packet) map[string][][]byte {
	m := map[string][][]byte{}
	for _, p := range packets {
		to := p.Outer.String()
		m[to] = append(m[to], p.Data)
	}
	return m
}

func TestDropsAreCountedAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab()
		l.start(t)
		expired, big := out("10.5.2.9", 2), out("10.5.2.9", 3)
		expired.hops, big.whole, big.payload = 1, true, make([]byte, 1453)
		late := in("10.5.2.9", 4)
		late.hops = 1
		l.device.feed("", out("10.5.9.9", 1).packet(), expired.packet(), big.packet(), out("224.0.0.1", 1).packet(), []byte{0x45})
		synctest.Wait()
		l.conn.feed("198.18.0.2:8285", late.packet(), in("10.5.3.9", 5).packet(), in("192.0.2.1", 5).packet(), nil)
		synctest.Wait()
		l.stop(t)
		if diff := cmp.Diff(ByVerdict{NoPeer: 1, Expired: 1, TooBig: 1, Multicast: 1, Malformed: 1}, l.out.snapshot().Packets); diff != "" {
			t.Errorf("out (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(ByVerdict{Expired: 1, WrongSender: 1, UnknownSource: 1, Malformed: 1}, l.in.snapshot().Packets); diff != "" {
			t.Errorf("in (-want +got):\n%s", diff)
		}
		if n := len(l.conn.taken()) + len(l.device.taken()); n != 0 {
			t.Errorf("%d dropped packets were forwarded", n)
		}
		type told struct {
			To        string
			Type, Arg byte
			Quoted    []byte
		}
		want := []told{
			{"10.5.1.2", 3, 0, out("10.5.9.9", 1).packet()},
			{"10.5.1.2", 11, 0, expired.packet()},
			{"10.5.1.2", 3, 4, big.packet()[:548]},
			{"10.5.2.9", 11, 0, late.packet()},
		}
		var got []told
		for i, p := range l.told.packets {
			got = append(got, told{l.told.to[i].String(), p[20], p[21], p[28:]})
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
		if n := l.answers.sent.Load(); n != 4 {
			t.Errorf("counted %d answers, want 4", n)
		}
	})
}

func TestAnswersAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab()
		l.start(t)
		l.device.feed("", slices.Repeat([][]byte{out("10.5.9.9", 1).packet()}, 200)...)
		synctest.Wait()
		l.stop(t)
		if sent, not := l.answers.sent.Load(), l.answers.suppressed.Load(); sent != answersBurst || not != 200-answersBurst {
			t.Errorf("sent %d answers, suppressed %d", sent, not)
		}
	})
}

// TestFailedWritesAreSkipped: what one packet meets, the others do not.
func TestFailedWritesAreSkipped(t *testing.T) {
	for _, cause := range []error{unix.ECONNREFUSED, unix.ENETUNREACH, unix.EPERM, unix.ENOBUFS, unix.EMSGSIZE, unix.EINVAL} {
		t.Run(cause.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab()
				every3rd := func(n int, _ Packet) error {
					if n%3 == 0 {
						return cause
					}
					return nil
				}
				l.conn.refuse, l.device.refuse = every3rd, every3rd
				l.start(t)
				for i := range byte(100) {
					f := out("10.5.2.9", i)
					f.payload = append(f.payload, make([]byte, i)...) // longer than the last: a message of its own
					l.device.feed("", f.packet())
					l.conn.feed("198.18.0.2:8285", in("10.5.2.9", i).packet())
				}
				synctest.Wait()
				l.stop(t)
				if got := l.out.snapshot().Packets; got != (ByVerdict{Forwarded: 66, SendFailed: 34}) {
					t.Errorf("out: %v", got)
				}
				if got := l.in.snapshot().Packets; got != (ByVerdict{Forwarded: 66, NotDelivered: 34}) {
					t.Errorf("in: %v", got)
				}
				for _, q := range []*pipe{l.conn, l.device} {
					for i, p := range q.taken() {
						if n := byte(i/2*3 + i%2 + 1); p.Data[20] != n {
							t.Fatalf("packet %d is number %d, want %d", i, p.Data[20], n)
						}
					}
				}
			})
		})
	}
}

// TestRunFollowsTheDevice: the device is deleted, packets come in meanwhile,
// another takes its place.
func TestRunFollowsTheDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab()
		l.start(t)
		l.device.Close()
		synctest.Wait()
		l.conn.feed("198.18.0.2:8285", in("10.5.2.9", 1).packet())
		synctest.Wait()
		l.devices.put()
		l.conn.feed("198.18.0.2:8285", in("10.5.2.9", 2).packet())
		synctest.Wait()
		second := newMemoryDevice()
		l.devices.put(second)
		second.feed("", out("10.5.2.9", 3).packet())
		l.conn.feed("198.18.0.2:8285", in("10.5.2.9", 4).packet())
		synctest.Wait()
		if got := l.conn.taken(); len(got) != 1 || got[0].Data[20] != 3 {
			t.Errorf("sent from the second device: %v", got)
		}
		if got := second.taken(); len(got) != 1 || got[0].Data[20] != 4 {
			t.Errorf("delivered to the second device: %v", got)
		}
		l.stop(t)
		if got := l.in.snapshot().Packets; got != (ByVerdict{Forwarded: 1, NotDelivered: 2}) {
			t.Errorf("in: %v", got)
		}
	})
}

// TestQueuesFollowTheDevice: each queue has its own socket, and all of them go on
// with the next device, whichever found first that the old one was gone.
func TestQueuesFollowTheDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const queues = 3
		var (
			paths []*path
			conns []*pipe
			l     = newLab()
		)
		for i := range queues {
			conns = append(conns, newMemoryConn())
			p := l.path
			p.queue = i
			paths = append(paths, &p)
		}
		_ = l.outlets.put(newOutletSet(netip.AddrPort{}, []Conn{conns[0], conns[1], conns[2]}, nil)) // memory
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		first, second := newMemoryTunnel(queues), newMemoryTunnel(queues)
		l.devices.put(first.queues()...)
		go func() {
			ended <- run(ctx, paths, func() error {
				first.Close()
				second.Close()
				for _, c := range conns {
					c.Close()
				}
				return nil
			})
		}()
		pass := func(device memoryTunnel, n byte) {
			t.Helper()
			for i := range byte(queues) {
				device[i].feed("", out("10.5.2.9", n+i).packet())
				conns[i].feed("198.18.0.2:8285", in("10.5.2.9", n+i).packet())
			}
			synctest.Wait()
			for i := range byte(queues) {
				if got := conns[i].taken(); len(got) != 1 || got[0].Data[20] != n+i {
					t.Errorf("queue %d sent %v", i, got)
				}
				if got := device[i].taken(); len(got) != 1 || got[0].Data[20] != n+i {
					t.Errorf("queue %d got %v", i, got)
				}
			}
		}
		pass(first, 10)
		first[2].Close()
		synctest.Wait()
		first.Close()
		l.devices.put(second.queues()...)
		pass(second, 20)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// TestReadErrorsPass: any number of errors, as long as a read succeeds now and
// then.
func TestReadErrorsPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab()
		l.start(t)
		for i := range 5 {
			for range 5 {
				l.conn.fail(unix.ECONNREFUSED)
				l.device.fail(unix.EIO)
				time.Sleep(time.Second)
			}
			l.device.feed("", out("10.5.2.9", 1).packet())
			l.conn.feed("198.18.0.2:8285", in("10.5.2.9", 2).packet())
			synctest.Wait()
			if len(l.conn.taken()) != 1 || len(l.device.taken()) != 1 {
				t.Fatalf("the path did not go on after %d errors", 5*(i+1))
			}
		}
		l.stop(t)
	})
}

// stubborn fails every read.
type stubborn struct{ *pipe }

func (s stubborn) Read(*Frames) error {
	if s.gone() {
		return s.closed
	}
	return unix.EIO
}
func (s stubborn) ReadBatch([]Arrival) (int, error) { return 0, s.Read(nil) }

func TestRunEndsWhenReadsFailForGood(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*lab)
		want  error
	}{
		"device":        {func(l *lab) { l.devices.put(stubborn{l.device}) }, unix.EIO},
		"socket":        {func(l *lab) { l.sendBy(stubborn{l.conn}) }, unix.EIO},
		"socket closed": {func(l *lab) { l.conn.Close() }, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab()
				tc.spoil(l)
				begin := time.Now()
				l.start(t)
				defer l.cancel()
				if err := <-l.ended; !errors.Is(err, tc.want) {
					t.Errorf("run: %v, want %v", err, tc.want)
				}
				if took := time.Since(begin); took > 2*time.Second {
					t.Errorf("gave up after %v", took)
				}
			})
		})
	}
}

func TestRunEndsWithContext(t *testing.T) {
	for name, spoil := range map[string]func(*lab){
		"while reads block": func(*lab) {},
		"without a device":  func(l *lab) { l.devices.put() },
		"while reads fail":  func(l *lab) { l.devices.put(stubborn{l.device}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab()
				spoil(l)
				l.start(t)
				l.stop(t)
			})
		})
	}
}

// TestPacketPathDoesNotAllocate covers forwarding and drops both ways; the
// kernel's half is in kernel_test.go.
func TestPacketPathDoesNotAllocate(t *testing.T) {
	l := newLab()
	l.told.err = errNoRaw // a recorder would allocate
	sink := discard{}
	l.sendBy(sink, sink, sink)
	l.devices.put(sink)
	packets := map[string][]byte{
		"forwarded": out("10.5.2.9", 1).packet(), "no peer": out("10.5.9.9", 1).packet(),
		"ipv6": flow{src: "fd05:0:0:2::9", dst: "fd05:0:0:2::8", hops: 9}.packet(), "malformed": {1, 2, 3},
		"both ways": flow{src: "10.5.2.9", dst: "10.5.3.9", hops: 200}.packet(),
	}
	send, receive := newSender(&l.path), newReceiver(&l.path)
	batch := newArrivals(arrivalsMost)
	for name, b := range packets {
		fill := func() {
			send.frames.Reset()
			for i := range batch {
				send.frames.put(offload.Header{}, b)
				batch[i].set(b, "198.18.0.2:8285")
			}
		}
		if n := testing.AllocsPerRun(20, func() { fill(); send.forward() }); n != 0 {
			t.Errorf("%s: send allocates %v times per batch", name, n)
		}
		if n := testing.AllocsPerRun(20, func() { fill(); receive.forward(batch) }); n != 0 {
			t.Errorf("%s: receive allocates %v times per batch", name, n)
		}
	}
}

type discard struct{}

func (discard) Read(*Frames) error                  { return errGone }
func (discard) Write(offload.Joined) error          { return nil }
func (d discard) Writer() Writer                    { return d }
func (discard) ReadBatch([]Arrival) (int, error)    { return 0, net.ErrClosed }
func (discard) WriteBatch(b []Message) (int, error) { return len(b), nil }
func (discard) Close() error                        { return nil }

// TestWorldChangesUnderLoad is for the race detector: peers come and go while
// packets pass, and each packet meets one world or the other.
func TestWorldChangesUnderLoad(t *testing.T) {
	l := newLab()
	l.devices.put(discard{})
	l.sendBy(discard{})
	empty := &world{table: newTable(nil)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 2000 {
			l.world.Store([]*world{empty, testWorld()}[i%2])
		}
	}()
	send := newSender(&l.path)
	total := uint64(0)
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		send.frames.Reset()
		for range 4 {
			send.frames.put(offload.Header{}, out("10.5.2.9", 1).packet())
		}
		send.forward()
		total += 4
	}
	if got := l.out.snapshot().Packets; got[Forwarded]+got[NoPeer] != total {
		t.Errorf("%d packets, counted %v", total, got)
	}
}

func TestVerdictsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for v := range verdicts {
		name := v.String()
		if name == "" || name == "unknown" || seen[name] {
			t.Errorf("verdict %d is called %q", v, name)
		}
		seen[name] = true
	}
}
