package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What a relay holds at most per direction: beyond that the sender's kernel
// keeps the bytes, and then the sender waits.
const (
	parcelSize    = 32 << 10
	queuedParcels = 64
)

// relay is one connection through a proxy. What happens to one end, bytes, an end
// of file, a reset, is a parcel to the other, and parcels wait like everything
// else: a host behind a block does not learn that its member died.
type relay struct {
	proxy  *Proxy
	host   *net.TCPConn
	dialTo netip.AddrPort
	// ctx ends with abort.
	ctx    context.Context
	cancel context.CancelFunc

	mu sync.Mutex
	// member is nil until it is dialled; guarded by mu.
	member *net.TCPConn
}

// parcel is what one end sent. Without data it is the end.
type parcel struct {
	sent  time.Time
	data  []byte
	reset bool
}

func newRelay(p *Proxy, host *net.TCPConn, member netip.AddrPort) *relay {
	r := &relay{proxy: p, host: host, dialTo: member}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// abort resets both ends.
func (r *relay) abort() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancel()
	reset(r.host)
	if r.member != nil {
		reset(r.member)
	}
}

// reset closes a connection with RST in place of FIN.
func reset(conn *net.TCPConn) {
	// Both fail only on one that is closed.
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

// run carries both ways until both have ended.
func (r *relay) run() {
	defer r.proxy.forget(r)
	defer r.cancel()
	// The request for a connection takes its time as well.
	if !r.proxy.pass(r.ctx, Out, time.Now()) {
		return
	}
	if err := r.dial(); err != nil {
		r.proxy.pass(r.ctx, In, time.Now())
		r.abort()
		return
	}
	var ways sync.WaitGroup
	ways.Go(func() { r.carry(Out, r.host, r.member, &r.proxy.bytesOut) })
	ways.Go(func() { r.carry(In, r.member, r.host, &r.proxy.bytesIn) })
	ways.Wait()
	_ = r.host.Close()
	_ = r.member.Close()
}

func (r *relay) dial() error {
	conn, err := r.proxy.host.lab.Switch.Dial(r.ctx, r.dialTo)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.member = conn
	// An abort that came meanwhile found nothing to reset.
	return r.ctx.Err()
}

// carry takes one direction from its first byte to its end.
func (r *relay) carry(d Direction, from, to *net.TCPConn, count *atomic.Uint64) {
	queue := make(chan parcel, queuedParcels)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(queue)
		r.collect(from, queue)
	})
	r.deliver(d, to, queue, count)
	reader.Wait()
}

// collect queues what one end sends, to its end.
func (r *relay) collect(from *net.TCPConn, queue chan<- parcel) {
	buf := make([]byte, parcelSize)
	for {
		n, err := from.Read(buf)
		if n > 0 && !r.enqueue(queue, parcel{data: slices.Clone(buf[:n])}) {
			return
		}
		if err != nil {
			r.enqueue(queue, parcel{reset: !errors.Is(err, io.EOF)})
			return
		}
	}
}

// enqueue adds a parcel of now; false when the relay was aborted.
func (r *relay) enqueue(queue chan<- parcel, p parcel) bool {
	p.sent = time.Now()
	select {
	case queue <- p:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// deliver hands parcels to the other end when their time has come.
func (r *relay) deliver(d Direction, to *net.TCPConn, queue <-chan parcel, count *atomic.Uint64) {
	for p := range queue {
		if !r.proxy.pass(r.ctx, d, p.sent) {
			return
		}
		if p.reset {
			r.abort()
			return
		}
		if p.data == nil {
			// Fails only if the other end is gone, which its reader tells.
			_ = to.CloseWrite()
			return
		}
		n, err := to.Write(p.data)
		count.Add(uint64(n))
		if err != nil {
			// The sender learns of it by the way back.
			r.proxy.pass(r.ctx, d.opposite(), time.Now())
			r.abort()
			return
		}
	}
}
