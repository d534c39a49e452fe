package udp

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
)

// Packet is a packet on its way to or from a test: one of the wire, or one of the
// device with the header it came with.
type Packet struct {
	Data   []byte
	Outer  netip.AddrPort
	Header offload.Header
	size   int // of a datagram in an arrival of several
}

// put adds a frame as a device's Read does; false: there is no room.
func (f *Frames) put(h offload.Header, b []byte) bool {
	room := f.Room()
	if room == nil {
		return false
	}
	h.Put(room)
	return f.Add(offload.HeaderSize + copy(room[offload.HeaderSize:], b))
}

// set makes a one datagram from a sender.
func (a *Arrival) set(b []byte, from string) {
	at := a.Data[:cap(a.Data)]
	*a = Arrival{Data: at[:copy(at, b)], Size: max(len(b), 1), From: netip.MustParseAddrPort(from)}
}

// pipe is a queue of packets that stands for what lies behind a Device or a
// Conn. It obeys the contract of both and counts on it: a buffer that is used
// after a call returned shows up as a wrong packet.
type pipe struct {
	closed  error // what a closed pipe says
	arrived chan struct{}

	mu       sync.Mutex
	isClosed bool
	waiting  []Packet                    // to be read
	written  []Packet                    // that were written
	readErr  error                       // once, then nil
	refuse   func(n int, p Packet) error // may refuse the n-th packet ever written
	writes   int
	reads    int // calls that returned packets
}

func newPipe(closed error) *pipe { return &pipe{closed: closed, arrived: make(chan struct{}, 1)} }

func (q *pipe) gone() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.isClosed
}

func (q *pipe) wake() {
	select {
	case q.arrived <- struct{}{}:
	default:
	}
}

// feed makes packets wait to be read.
func (q *pipe) feed(from string, packets ...[]byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var outer netip.AddrPort
	if from != "" {
		outer = netip.MustParseAddrPort(from)
	}
	for _, b := range packets {
		q.waiting = append(q.waiting, Packet{Data: slices.Clone(b), Outer: outer})
	}
	q.wake()
}

// fail makes the next read fail.
func (q *pipe) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.readErr = err
	q.wake()
}

// taken returns what was written since the last call.
func (q *pipe) taken() []Packet {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.written
	q.written = nil
	return w
}

// feedArrival makes datagrams of size bytes each wait as the kernel joins them.
func (q *pipe) feedArrival(from string, size int, packets ...[]byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, Packet{Data: bytes.Join(packets, nil), Outer: netip.MustParseAddrPort(from), size: size})
	q.wake()
}

// feedLarge makes a packet wait that is to be cut as h says.
func (q *pipe) feedLarge(h offload.Header, b []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, Packet{Data: slices.Clone(b), Header: h})
	q.wake()
}

// await blocks until there is something to read.
func (q *pipe) await() error {
	for {
		q.mu.Lock()
		closed, err, n := q.isClosed, q.readErr, len(q.waiting)
		q.readErr = nil
		q.mu.Unlock()
		switch {
		case closed:
			q.wake() // whoever else waits
			return q.closed
		case err != nil:
			return err
		case n > 0:
			return nil
		}
		<-q.arrived
	}
}

func (q *pipe) Read(f *Frames) error {
	if err := q.await(); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range q.waiting {
		if !f.put(p.Header, p.Data) {
			break
		}
		q.waiting = q.waiting[1:]
	}
	q.reads++
	return nil
}

func (q *pipe) ReadBatch(batch []Arrival) (int, error) {
	if err := q.await(); err != nil {
		return 0, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(batch), len(q.waiting))
	for i, p := range q.waiting[:n] {
		batch[i].set(p.Data, p.Outer.String())
		if p.size != 0 {
			batch[i].Size = p.size
		}
	}
	q.waiting = q.waiting[n:]
	q.reads++
	return n, nil
}

// write takes p unless it is to be refused.
func (q *pipe) write(p Packet) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.isClosed {
		return q.closed
	}
	n := q.writes
	q.writes++
	if q.refuse != nil {
		if err := q.refuse(n, p); err != nil {
			return err
		}
	}
	q.written = append(q.written, p)
	return nil
}

// Writer returns the pipe itself.
func (q *pipe) Writer() Writer { return q }

// Write records a joined packet as one.
func (q *pipe) Write(p offload.Joined) error {
	return q.write(Packet{Data: bytes.Join(p.Parts, nil), Header: p.Header})
}

// WriteBatch records each datagram. A message that is refused is refused whole,
// like the kernel's, and by its first.
func (q *pipe) WriteBatch(batch []Message) (int, error) {
	for i, m := range batch {
		b := bytes.Join(m.Parts, nil)
		for first := true; len(b) > 0 || first; first = false {
			n := min(m.Size, len(b))
			if err := q.write(Packet{Data: b[:n:n], Outer: m.To}); err != nil {
				return i, err
			}
			b = b[n:]
		}
	}
	return len(batch), nil
}

func (q *pipe) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.isClosed = true
	q.wake()
	return nil
}

// memoryTunnel is a TUN device of such queues.
type memoryTunnel []*pipe

func newMemoryTunnel(queues int) (m memoryTunnel) {
	for range queues {
		m = append(m, newMemoryDevice())
	}
	return m
}

func (m memoryTunnel) queues() (all []Device) {
	for _, q := range m {
		all = append(all, q)
	}
	return all
}

func (m memoryTunnel) Close() error {
	for _, q := range m {
		q.Close()
	}
	return nil
}

func (m memoryTunnel) gone() bool                { return m[0].gone() }
func (m memoryTunnel) attached() bool            { return !m.gone() }
func (m memoryTunnel) persist() error            { return nil }
func (m memoryTunnel) offloads() (tso, uso bool) { return true, true }

// injected is an Injector that remembers.
type injected struct {
	mu      sync.Mutex
	packets [][]byte
	to      []netip.Addr
	err     error
}

func (i *injected) Inject(packet []byte, dst netip.Addr) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return i.err
	}
	i.packets = append(i.packets, slices.Clone(packet))
	i.to = append(i.to, dst)
	return nil
}

func newMemoryConn() *pipe   { return newPipe(net.ErrClosed) }
func newMemoryDevice() *pipe { return newPipe(errGone) }
