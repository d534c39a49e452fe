package udp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// path moves packets between one queue of the TUN device and one socket, with
// one goroutine per direction. It keeps no lock and allocates nothing per
// packet.
type path struct {
	devices *slot
	conn    Conn
	world   *atomic.Pointer[world]
	answers *answers
	mtu     int
	out, in *counters
	log     *slog.Logger
}

// run forwards until ctx ends, which returns nil, or until the socket or the
// device fails for good. It leaves by closing both, since that is what ends a
// blocked call.
func (p *path) run(ctx context.Context, closeAll func() error) error {
	g, inner := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-inner.Done()
		return closeAll()
	})
	g.Go(func() error { return p.sendLoop(inner) })
	g.Go(func() error { return p.receiveLoop(inner) })
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
		batch  = newBatch(batchSize)
		out    = make([]Packet, 0, batchSize)
	)
	for {
		if device, err = p.devices.next(ctx, device); err != nil {
			return err
		}
		if err = p.sendFrom(ctx, device, batch, out); err != nil {
			return err
		}
		if ctx.Err() == nil {
			p.log.Warn("tunnel device is gone, waiting for another")
		}
	}
}

// sendFrom forwards what device yields until it is gone, which returns nil, or
// fails for good.
func (p *path) sendFrom(ctx context.Context, device Device, batch, out []Packet) error {
	var tries patience
	for {
		n, err := device.Read(batch)
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
		p.send(batch[:n], out)
	}
}

// send decides on the packets of batch and writes those that pass to the
// socket. Out is empty scratch space as large as batch.
func (p *path) send(batch, out []Packet) {
	var d Direction
	w := p.world.Load()
	for i := range batch {
		b := batch[i].Data
		to, h, v := w.outbound(b, p.mtu)
		if v != Forwarded {
			d.count(v, len(b))
			p.answers.tell(b, h, v, p.mtu, w.own[h.family])
			continue
		}
		out = append(out, Packet{Data: b, Outer: to})
	}
	for len(out) > 0 {
		n, err := p.conn.WriteBatch(out)
		out = settle(&d, out, n, err, SendFailed)
	}
	p.out.add(&d)
}

// receiveLoop takes datagrams from the socket until it is closed.
func (p *path) receiveLoop(ctx context.Context) error {
	var (
		tries patience
		batch = newBatch(batchSize)
		out   = make([]Packet, 0, batchSize)
	)
	for {
		n, err := p.conn.ReadBatch(batch)
		switch {
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("read tunnel socket: %w", err)
		case err != nil:
			if err = tries.wait(ctx, err); err != nil {
				return fmt.Errorf("read tunnel socket: %w", err)
			}
			continue
		}
		tries = patience{}
		p.receive(batch[:n], out)
	}
}

// receive decides on the datagrams of batch and writes those that pass to the
// current device; without one they are lost. Out is as in send.
func (p *path) receive(batch, out []Packet) {
	var d Direction
	w := p.world.Load()
	for i := range batch {
		b := batch[i].Data
		h, v := w.inbound(b, batch[i].Outer.Addr())
		if v != Forwarded {
			d.count(v, len(b))
			p.answers.tell(b, h, v, p.mtu, w.own[h.family])
			continue
		}
		out = append(out, batch[i])
	}
	device := p.devices.get()
	for len(out) > 0 {
		n, err := 0, errGone
		if device != nil {
			n, err = device.Write(out)
		}
		out = settle(&d, out, n, err, NotDelivered)
	}
	p.in.add(&d)
}

// settle counts the outcome of one write of out, n packets and then perhaps an
// error, and returns what is left to write. A packet that fails is given up and
// the others go on: networks lose packets, and whoever needs them sends them
// again.
func settle(d *Direction, out []Packet, n int, err error, failed Verdict) []Packet {
	for _, p := range out[:n] {
		d.count(Forwarded, len(p.Data))
	}
	out = out[n:]
	if err != nil && len(out) > 0 {
		d.count(failed, len(out[0].Data))
		out = out[1:]
	}
	return out
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
