package udp

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// cable is one direction between two hosts, in place of their sockets: it loses
// datagrams, brings them twice, lets later ones overtake them, and flips bits.
type cable struct {
	from netip.AddrPort

	mu      sync.Mutex
	arrived sync.Cond
	closed  bool
	random  *rand.Rand
	waiting [][]byte
	// held are overtaken by what comes next.
	held [][]byte
	done map[string]int
}

func newCable(from netip.AddrPort) *cable {
	c := &cable{from: from, random: rand.New(rand.NewPCG(1, 2)), done: map[string]int{}}
	c.arrived.L = &c.mu
	return c
}

// carry takes one datagram, whose bytes are the caller's.
func (c *cable) carry(b []byte) {
	b = slices.Clone(b)
	switch n := c.random.IntN(200); {
	case len(c.waiting) > 5000: // as a socket's buffer
		c.done["full"]++
	case n < 1:
		c.done["lost"]++
	case n < 2:
		c.done["twice"]++
		c.waiting = append(c.waiting, b, slices.Clone(b))
	case n < 5:
		c.done["late"]++
		c.held = append(c.held, b)
		return
	case n < 7:
		c.done["damaged"]++
		b[c.random.IntN(len(b))] ^= 1 << c.random.IntN(8)
		fallthrough
	default:
		c.waiting = append(c.waiting, b)
	}
	if len(c.held) > 3 || len(c.held) > 0 && c.random.IntN(4) == 0 {
		c.waiting = append(c.waiting, c.held...)
		c.held = nil
	}
}

// cableEnd is a host's Conn.
type cableEnd struct{ in, out *cable }

// ReadBatch joins datagrams of one length, the last of which may be shorter, as
// UDP_GRO does.
func (e cableEnd) ReadBatch(batch []Arrival) (int, error) {
	c := e.in
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.waiting) == 0 && !c.closed {
		c.arrived.Wait()
	}
	if c.closed {
		return 0, net.ErrClosed
	}
	n := 0
	for ; n < len(batch) && len(c.waiting) > 0; n++ {
		a := &batch[n]
		a.Data, a.Size, a.From = a.Data[:0], len(c.waiting[0]), c.from
		for full := true; full && len(c.waiting) > 0; c.waiting = c.waiting[1:] {
			b := c.waiting[0]
			if len(b) > a.Size || len(a.Data)+len(b) > cap(a.Data) {
				break
			}
			a.Data, full = append(a.Data, b...), len(b) == a.Size
		}
	}
	return n, nil
}

// WriteBatch carries each datagram.
func (e cableEnd) WriteBatch(batch []Message) (int, error) {
	c := e.out
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range batch {
		for b := range slices.Chunk(bytes.Join(m.Parts, nil), m.Size) {
			c.carry(b)
		}
	}
	c.arrived.Signal()
	return len(batch), nil
}

func (e cableEnd) Close() error {
	e.in.mu.Lock()
	defer e.in.mu.Unlock()
	e.in.closed = true
	e.in.arrived.Broadcast()
	return nil
}

// The TCP of two kernels passes streams over a bad cable: each byte comes once and as
// it was sent, however packets were cut, mixed up and joined.
func TestKernelBadCable(t *testing.T) {
	m := twoMachines(t)
	there := newCable(netip.MustParseAddrPort("198.18.0.1:8285"))
	back := newCable(netip.MustParseAddrPort("198.18.0.2:8285"))
	ends := [2]cableEnd{{in: back, out: there}, {in: there, out: back}}
	for i, own := range m {
		own.options = `{"Queues":1,"SourcePorts":"fixed"}`
		own.boot(t)
		at := netip.AddrPortFrom(netip.MustParseAddr(own.outer()), defaultPort)
		if err := own.outlets.put(newOutletSet(at, []Conn{ends[i]}, nil)); err != nil {
			t.Fatal(err)
		}
	}
	for i, own := range m {
		own.mustApply(t, m[1-i])
		own.start(t)
	}
	for _, f := range subnet.Families() {
		for i, own := range m {
			echoStream(t, own, m[1-i], f)
		}
	}
	for _, c := range []*cable{there, back} {
		c.mu.Lock()
		for _, what := range []string{"lost", "twice", "late", "damaged"} {
			if c.done[what] == 0 {
				t.Errorf("the cable from %s was a good one: %v", c.from, c.done)
			}
		}
		t.Logf("from %s: %v", c.from, c.done)
		c.mu.Unlock()
	}
}
