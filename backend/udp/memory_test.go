package udp

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

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

func (q *pipe) attached() bool { return !q.gone() }
func (q *pipe) persist() error { return nil }

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
		q.waiting = append(q.waiting, Packet{slices.Clone(b), outer})
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

func (q *pipe) Read(batch []Packet) (int, error) {
	for {
		if n, err := q.poll(batch); n > 0 || err != nil {
			return n, err
		}
		<-q.arrived
	}
}

func (q *pipe) poll(batch []Packet) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.isClosed {
		q.wake() // whoever else waits
		return 0, q.closed
	}
	if err := q.readErr; err != nil {
		q.readErr = nil
		return 0, err
	}
	n := min(len(batch), len(q.waiting))
	for i, p := range q.waiting[:n] {
		b := batch[i].Data[:cap(batch[i].Data)]
		batch[i] = Packet{b[:copy(b, p.Data)], p.Outer}
	}
	q.waiting = q.waiting[n:]
	if n > 0 {
		q.reads++
	}
	return n, nil
}

func (q *pipe) Write(batch []Packet) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, p := range batch {
		if q.isClosed {
			return i, q.closed
		}
		n := q.writes
		q.writes++
		if q.refuse != nil {
			if err := q.refuse(n, p); err != nil {
				return i, err
			}
		}
		q.written = append(q.written, Packet{slices.Clone(p.Data), p.Outer})
	}
	return len(batch), nil
}

func (q *pipe) ReadBatch(batch []Packet) (int, error)  { return q.Read(batch) }
func (q *pipe) WriteBatch(batch []Packet) (int, error) { return q.Write(batch) }

func (q *pipe) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.isClosed = true
	q.wake()
	return nil
}

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
