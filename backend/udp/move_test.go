package udp

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// window is how many packets of a stream are under way at most.
	window = 100
	// patient is what anything may take that is bound to come: how long it takes
	// proves nothing.
	patient = time.Minute
)

// windowed is a stream of numbered packets from one container to another, as fast as they
// come: their number tells what is lost, and no clock.
type windowed struct {
	name    string
	in, out *net.UDPConn
	ended   sync.WaitGroup

	mu   sync.Mutex
	news sync.Cond // of mu
	// sent is how many were, came those that came, each once.
	sent  int
	came  map[int]bool
	twice int
	// last is the highest number that has come; late is how many came after a higher one.
	last, late int
	// whole is the first number that has not come.
	whole   int
	stopped bool
}

// startWindowed sends until stop.
func startWindowed(t *testing.T, name string, from, to *machine) *windowed {
	t.Helper()
	return startLarge(t, name, 4, from, to)
}

// startLarge is startWindowed with payloads of so many bytes.
func startLarge(t *testing.T, name string, size int, from, to *machine) *windowed {
	t.Helper()
	w := &windowed{name: name, came: map[int]bool{}}
	w.news.L = &w.mu
	address := &net.UDPAddr{IP: net.IPv4(10, 5, byte(to.n), 2), Port: 4000}
	var inErr, outErr error
	to.container.do(t, func() { w.in, inErr = net.ListenUDP("udp4", address) })
	from.container.do(t, func() { w.out, outErr = net.DialUDP("udp4", nil, address) })
	if err := errors.Join(inErr, outErr); err != nil {
		t.Fatal(err)
	}
	raw, err := w.in.SyscallConn()
	if err == nil { // all that are under way may wait to be read
		err = control(raw, func(fd int) error { enlarge(fd); return nil })
	}
	if err != nil {
		t.Fatal(err)
	}
	w.ended.Go(func() { w.send(make([]byte, size)) })
	w.ended.Go(w.receive)
	t.Cleanup(func() {
		w.stop()
		w.in.Close()
		w.ended.Wait()
		w.out.Close()
	})
	return w
}

func (w *windowed) send(payload []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.stopped {
		if w.sent-len(w.came) >= window {
			w.news.Wait()
			continue
		}
		binary.BigEndian.PutUint32(payload, uint32(w.sent))
		if _, err := w.out.Write(payload); err == nil { // else it is about one before
			w.sent++
		}
	}
}

func (w *windowed) receive() {
	for b := make([]byte, 100); ; {
		n, err := w.in.Read(b)
		if err != nil {
			return
		}
		w.mu.Lock()
		i := int(binary.BigEndian.Uint32(b[:n]))
		if w.came[i] {
			w.twice++
		} else {
			w.came[i] = true
		}
		if i < w.last {
			w.late++
		}
		w.last = max(w.last, i)
		for w.came[w.whole] {
			w.whole++
		}
		w.news.Broadcast()
		w.mu.Unlock()
	}
}

func (w *windowed) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.news.Broadcast()
}

// wait waits until cond holds, which is asked after each packet.
func (w *windowed) wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	late := false
	timer := time.AfterFunc(patient, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		late = true
		w.news.Broadcast()
	})
	defer timer.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	for !cond() && !late {
		w.news.Wait()
	}
	if !cond() {
		t.Fatalf("%s: %s: of %d packets %d came, all up to %d", w.name, what, w.sent, len(w.came), w.whole)
	}
}

// more waits until as many more have come.
func (w *windowed) more(t *testing.T, n int) {
	t.Helper()
	w.mu.Lock()
	n += len(w.came)
	w.mu.Unlock()
	w.wait(t, "nothing more comes", func() bool { return len(w.came) >= n })
}

// arrived waits until everything has come that was sent before.
func (w *windowed) arrived(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	sent := w.sent
	w.mu.Unlock()
	w.wait(t, "what was sent is lost", func() bool { return w.whole >= sent })
}

// check ends the stream, of which each packet must come, and once.
func (w *windowed) check(t *testing.T) {
	t.Helper()
	w.stop()
	w.arrived(t)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.twice != 0 {
		t.Errorf("%s: %d packets came twice", w.name, w.twice)
	}
}

// desired is what the machine is to be, with each of the peers as it says itself.
func (m *machine) desired(peers ...*machine) backend.Desired {
	d := backend.Desired{Config: m.config(), Uplink: m.uplink(), Own: m.lease()}
	for _, p := range peers {
		lease := p.lease()
		d.Peers = append(d.Peers, &lease)
	}
	return d
}

// at makes d that of a host at another address of its uplink.
func at(d backend.Desired, addr string, also ...string) backend.Desired {
	d.Uplink.Addr[subnet.IPv4] = netip.MustParseAddr(addr)
	d.Uplink.Public = d.Uplink.Addr
	for _, a := range also {
		d.Also = append(d.Also, netip.MustParseAddr(a))
	}
	return d
}

// knowing makes d that of a host whose only peer is at addr, and was at former a moment
// ago.
func knowing(d backend.Desired, addr string, former ...string) backend.Desired {
	peer := *d.Peers[0]
	for _, was := range former {
		before := peer
		before.Attrs.PublicIP[subnet.IPv4] = netip.MustParseAddr(was)
		d.Former = append(d.Former, before)
	}
	peer.Attrs.PublicIP[subnet.IPv4] = netip.MustParseAddr(addr)
	d.Peers = []*subnet.Lease{&peer}
	return d
}

// mustBe is Apply.
func (m *machine) mustBe(t *testing.T, d backend.Desired) {
	t.Helper()
	var err error
	m.ns.do(t, func() { err = m.Apply(context.Background(), d) })
	if err != nil {
		t.Fatal(err)
	}
}

// The addresses of a host that moves.
const (
	firstAddr, secondAddr = "198.18.0.1", "198.18.0.77"
)

// mover are two machines, of which the first has a second address to go to.
func mover(t *testing.T) (a, b *machine) {
	t.Helper()
	a, b = joined(t)
	a.ns.ip(t, "addr add "+secondAddr+"/24 dev eth0")
	return a, b
}

// Who moves receives at the next address before anybody knows it, and at the former one
// until nobody sends there: no packet is lost, either way. The steps are those of
// the daemon's loop, and each comes once packets have passed since the one before.
func TestKernelMoveLosesNothing(t *testing.T) {
	a, b := mover(t)
	there, back := startWindowed(t, "there", a, b), startWindowed(t, "back", b, a)
	here, next := firstAddr, secondAddr
	for range 4 {
		pass := func() {
			t.Helper()
			there.more(t, 3*window)
			back.more(t, 3*window)
		}
		pass()
		a.mustBe(t, at(a.desired(b), here, next))
		pass()
		b.mustBe(t, knowing(b.desired(a), next, here)) // etcd has told it
		pass()
		a.mustBe(t, at(a.desired(b), next, here))
		// The lingering: what was sent to, or from, the former address is there.
		there.arrived(t)
		back.arrived(t)
		a.mustBe(t, at(a.desired(b), next))
		b.mustBe(t, knowing(b.desired(a), next))
		here, next = next, here
	}
	there.check(t)
	back.check(t)
	for _, m := range []*machine{a, b} {
		if s := m.Stats(); s.In.Packets[WrongSender]+s.Out.Packets[SendFailed]+s.In.Packets[NotDelivered] != 0 {
			t.Errorf("machine %d counted %+v", m.n, s)
		}
	}
}

// A restart in the midst of a move: peers still send to the address that was left, which
// the next process receives, too, before it is told of any.
func TestKernelRestartWhileMoving(t *testing.T) {
	for name, tc := range map[string]struct {
		// left is what the former process sent from, opened where it received as well.
		left   string
		opened []string
		// known is where the peer sends.
		known string
	}{
		"left a moment ago":   {secondAddr, []string{firstAddr}, firstAddr},
		"about to go there":   {firstAddr, []string{secondAddr}, secondAddr},
		"chosen since":        {firstAddr, nil, firstAddr},
		"chosen, and unknown": {firstAddr, []string{secondAddr}, firstAddr},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := mover(t)
			other := map[string]string{firstAddr: secondAddr, secondAddr: firstAddr}[tc.known]
			b.mustBe(t, knowing(b.desired(a), tc.known, other))
			a.mustBe(t, at(a.desired(b), tc.left, tc.opened...))
			there, back := startWindowed(t, "there", a, b), startWindowed(t, "back", b, a)
			there.more(t, window)
			back.more(t, window)

			files := a.keep(t)
			a.stop(t)
			a.boot(t)
			var in backend.Inheritance
			d := at(a.desired(b), secondAddr, "198.18.0.99", firstAddr, "192.0.2.9")
			a.ns.do(t, func() { in = a.Inherit(context.Background(), d, files) })
			if !in.Whole || in.Refused != nil || len(in.Also) != 1 || in.Also[0] != netip.MustParseAddr(firstAddr) {
				t.Fatalf("inherited %+v", in)
			}
			a.start(t)
			there.more(t, 3*window)
			back.more(t, 3*window)
			before := a.outlets.load()
			a.mustBe(t, at(a.desired(b), secondAddr, firstAddr))
			if a.outlets.load() != before {
				t.Errorf("Apply opened others than were inherited: %v", names(a.Descriptors()))
			}
			there.more(t, window)
			back.more(t, window)
			b.mustBe(t, knowing(b.desired(a), secondAddr, firstAddr))
			there.arrived(t)
			back.arrived(t)
			a.mustBe(t, at(a.desired(b), secondAddr))
			there.check(t)
			back.check(t)
			if got := names(a.Descriptors()); len(got) != 4 {
				t.Errorf("open at the end: %v", got)
			}
		})
	}
}
