package udp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
)

// path moves packets between one queue of the TUN device and one socket, with
// one goroutine per direction, and one more for each further address that peers
// send to. It keeps no lock and allocates nothing per packet.
type path struct {
	// queue is the number of the device's queue.
	queue int
	// arrivals is how many one read takes: see arrivalsOf.
	arrivals int
	devices  *slot
	outlets  *outlets
	world    *atomic.Pointer[world]
	answers  *answers
	mtu      *atomic.Int64
	out, in  *counters
	log      *slog.Logger
	// can is what the device takes joined, joins what of it it has refused.
	can   offload.Protocols
	joins *joinLevel
}

// run forwards on all paths until ctx ends, which returns nil, or until a socket or
// a queue fails for good. It leaves by closing all of them, once the loops are
// through with what they have read; see interrupt.
func run(ctx context.Context, paths []*path, closeAll func() error) error {
	g, inner := errgroup.WithContext(ctx)
	var loops []func(context.Context) error
	for _, p := range paths {
		loops = append(loops, p.sendLoop, p.receiveLoop)
	}
	ended := make(chan struct{}, len(loops))
	for _, loop := range loops {
		g.Go(func() error {
			defer func() { ended <- struct{}{} }()
			return loop(inner)
		})
	}
	g.Go(func() error {
		<-inner.Done()
		interrupt(paths, ended)
		return closeAll()
	})
	err := g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// sendLoop takes packets from each device in turn. A deleted device is not its
// end: Apply makes another.
func (p *path) sendLoop(ctx context.Context) error {
	var (
		device Device
		err    error
		s      = newSender(p)
	)
	for {
		if device, err = p.devices.next(ctx, p.queue, device); err != nil {
			return err
		}
		if err = s.sendFrom(ctx, device); err != nil {
			return err
		}
		if ctx.Err() == nil && p.queue == 0 { // once for all of them
			p.log.Warn("tunnel device is gone, waiting for another")
		}
	}
}

// sender is the way out: device to socket.
type sender struct {
	*path
	frames *Frames
	packer *packer
	// queries are about the destinations of the present batch; sum: see answerAll.
	queries [framesMost]query
	sum     uint32
	// by are the sockets, and count what became, of the present batch.
	by    []Sender
	count Direction
}

func newSender(p *path) *sender {
	s := &sender{path: p, frames: newFrames()}
	s.packer = newPacker(s.write)
	return s
}

// sendFrom forwards what device yields until it is gone, which returns nil, or
// fails for good.
func (s *sender) sendFrom(ctx context.Context, device Device) error {
	var tries patience
	for {
		s.frames.Reset()
		err := device.Read(s.frames)
		switch {
		case errors.Is(err, errGone):
			return nil
		case err != nil:
			if err = tries.wait(ctx, err); err != nil {
				return fmt.Errorf("read tunnel device: %w", err)
			}
			continue
		}
		tries = patience{}
		s.forward()
	}
}

// forward decides on the frames and writes what passes to the socket.
func (s *sender) forward() {
	w, mtu := s.world.Load(), int(s.mtu.Load())
	s.by = nil
	if o := s.outlets.load().out(s.queue); o != nil {
		s.by = o.senders
	}
	for i, f := range s.frames.List {
		s.queries[i].read(f.Data)
	}
	s.sum += w.table.answerAll(s.queries[:len(s.frames.List)], destination)
	for i := range s.frames.List {
		f, q := &s.frames.List[i], &s.queries[i]
		cut, err := offload.Plan(f.Header, f.Data)
		if err != nil {
			s.count.drop(Malformed, 1)
			continue
		}
		if v := q.outbound(f.Data, cut.WireSize(), mtu); v != Forwarded {
			s.count.drop(v, cut.Count)
			s.answers.tell(f.Data, q.header, v, mtu, w.own[q.family])
			continue
		}
		s.packer.add(i, q.peer, s.source(q.peer, f.Data, q.header), cut)
	}
	s.packer.pack(s.frames.List)
	s.out.add(&s.count)
}

// source chooses the socket that b leaves by: always the same for one flow, so that
// it keeps its order.
func (s *sender) source(to *endpoint, b []byte, h header) int {
	more := uint64(max(len(s.by), 1) - 1)
	if !to.vary || more == 0 {
		return 0
	}
	return 1 + int(uint64(flowHash(b, h))*more>>32) //nolint:gosec // below more
}

// write sends messages, those of one socket with one call where it can.
func (s *sender) write(messages []Message) {
	for len(messages) > 0 {
		source, n := messages[0].Source, 1
		for n < len(messages) && messages[n].Source == source {
			n++
		}
		s.writeTo(source, messages[:n])
		messages = messages[n:]
	}
}

// writeTo sends messages by one socket. One that fails is given up and the others go
// on: networks lose packets, and whoever needs them sends them again.
func (s *sender) writeTo(source int, messages []Message) {
	for len(messages) > 0 {
		n, err := 0, net.ErrClosed
		if source < len(s.by) {
			n, err = s.by[source].WriteBatch(messages)
		}
		for i := range messages[:n] {
			m := &messages[i]
			s.count.pass(m.Packets-m.Failed, m.Bytes-m.FailedBytes)
			s.count.drop(SendFailed, m.Failed)
		}
		messages = messages[n:]
		if err != nil && len(messages) > 0 {
			s.count.drop(SendFailed, messages[0].Packets)
			messages = messages[1:]
		}
	}
}

// receiveLoop takes datagrams from all sockets that Apply opens.
func (p *path) receiveLoop(ctx context.Context) error {
	g, inner := errgroup.WithContext(ctx)
	g.Go(func() error {
		for read := []*outlet(nil); ; {
			list := p.outlets.load()
			if inner.Err() != nil { // then they may be the next run's, and nobody ends a read of those for us
				return context.Cause(inner)
			}
			open := list.in(p.queue)
			for _, o := range open {
				if !slices.Contains(read, o) {
					g.Go(func() error { return p.receiveFrom(inner, o) })
				}
			}
			read = open
			select {
			case <-list.replaced:
			case <-inner.Done():
				return context.Cause(inner)
			}
		}
	})
	return g.Wait()
}

// receiveFrom takes datagrams from a socket until Apply closes it, which is no error.
func (p *path) receiveFrom(ctx context.Context, o *outlet) error {
	var (
		tries patience
		batch = newArrivals(p.arrivals)
		r     = newReceiver(p)
	)
	for {
		n, err := o.conn.ReadBatch(batch)
		switch {
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !slices.Contains(p.outlets.load().in(p.queue), o):
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("read tunnel socket: %w", err)
		case err != nil:
			if err = tries.wait(ctx, err); err != nil {
				return fmt.Errorf("read tunnel socket: %w", err)
			}
			continue
		}
		tries = patience{}
		r.forward(batch[:n])
	}
}

const (
	// arrivalsMost is how many arrivals one read takes at most.
	arrivalsMost = 32
	// arrivalsAll is how many those of all queues together take: 16 MiB.
	arrivalsAll = 256
)

// arrivalsOf is how many arrivals one read takes with so many queues. Under full load
// each of them is filled with 64 KiB, and most of the daemon's memory.
func arrivalsOf(queues int) int { return min(arrivalsMost, arrivalsAll/queues) }

// receiver is the way in: socket to device.
type receiver struct {
	*path
	// to writes to device, the current one.
	device Device
	to     Writer
	merger *offload.Merger
	parter *parter   // nil until the device has refused something
	count  Direction // of the present batch
	// queries are about the sources of the present batch; sum: see answerAll.
	queries [arrivalsMost]query
	sum     uint32
}

func newReceiver(p *path) *receiver {
	return &receiver{path: p, merger: offload.NewMerger(offload.Options{})}
}

// forward decides on the datagrams of batch and writes those that pass to the
// current device; without one they are lost.
func (r *receiver) forward(batch []Arrival) {
	w, mtu := r.world.Load(), int(r.mtu.Load())
	for i := range batch {
		a := &batch[i]
		r.queries[i].read(a.Data[:min(a.Size, len(a.Data))])
	}
	r.sum += w.table.answerAll(r.queries[:len(batch)], source)
	r.merger.Join(r.joins.of(r.can))
	for i := range batch {
		a, q := &batch[i], &r.queries[i]
		for left := a.Data; ; {
			b := left[:min(a.Size, len(left))]
			left = left[len(b):]
			if r.decide(w, b, q, a.From.Addr(), mtu) {
				// The same may pass for the same reason: of this flow and from this sender.
				left = left[r.merger.Continue(left, a.Size):]
			}
			if len(left) == 0 {
				break
			}
			q.read(left[:min(a.Size, len(left))])
			w.table.answer(q, source)
		}
	}
	r.deliver()
	r.in.add(&r.count)
}

// decide adds b, about which q is, to what is delivered, if it may pass. False: it may not,
// and nothing that follows it may as its continuation.
func (r *receiver) decide(w *world, b []byte, q *query, from netip.Addr, mtu int) bool {
	if v := q.inbound(b, from); v != Forwarded {
		r.count.drop(v, 1)
		r.answers.tell(b, q.header, v, mtu, w.own[q.family])
		return false
	}
	if !r.merger.Add(b) {
		r.deliver()
		r.merger.Add(b)
	}
	return true
}

// deliver writes what the merger holds to the device.
func (r *receiver) deliver() {
	if device := r.devices.get(r.queue); device != r.device {
		r.device, r.to = device, nil
		if device != nil {
			r.to = device.Writer()
		}
	}
	for joined := range r.merger.Flush {
		r.put(joined)
	}
}

// patience is how long a read may fail: with pauses of 10 ms, doubled each time,
// it gives up after the eighth failure in a row, 1.27 s after the first.
type patience struct{ failures int }

// wait pauses after the failure err, or returns an error: err when patience has
// come to its end, or why ctx ended.
func (t *patience) wait(ctx context.Context, err error) error {
	const most, first = 8, 10 * time.Millisecond
	if t.failures++; t.failures >= most {
		return err
	}
	timer := time.NewTimer(first << (t.failures - 1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
