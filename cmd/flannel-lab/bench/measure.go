package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/traffic"
)

// Sample is what one variant did in one round, by the keys of figures.
type Sample map[string]float64

const (
	// warmUp is for TCP to find its window.
	warmUp = 150 * time.Millisecond
	// streamsWithin is how long a stream may deliver nothing, and last at all
	// beyond its window.
	streamsWithin = time.Minute
	// pingEvery lets the machine fall asleep between two requests, as it is for
	// those who wait for one answer.
	pingEvery = time.Millisecond
)

// measure takes all figures of a pair. Each lasts window or a part of it.
func (p *pair) measure(ctx context.Context, window time.Duration) (Sample, error) {
	s := Sample{}
	for _, step := range []struct {
		name string
		take func(context.Context, time.Duration, Sample) error
	}{
		{"TCP", p.measureStreams},
		{"datagrams", p.measureDatagrams},
		{"ping", p.measurePing},
		{"connections", p.measureConnections},
		{"memory", p.measureMemory},
	} {
		if err := step.take(ctx, window, s); err != nil {
			return nil, fmt.Errorf("measure %s: %w", step.name, err)
		}
	}
	return s, nil
}

func (p *pair) measureStreams(ctx context.Context, window time.Duration, s Sample) error {
	for _, m := range []struct {
		key     string
		ends    []int
		streams int
	}{
		{keyStream1, []int{0}, 1},
		{keyStream4, []int{0}, 4},
		{keyTwoWay, []int{0, 1}, 1},
	} {
		f, err := p.streams(ctx, window, m.streams, m.ends...)
		if err != nil {
			return fmt.Errorf("%s: %w", figureOf(m.key).Title, err)
		}
		s[m.key] = f.rate * 8 / 1e9
		if m.key != keyStream1 {
			continue
		}
		gigabytes := f.bytes / 1e9
		s[keyMachine] = f.spent.machine.Seconds() / gigabytes
		if len(p.daemons) > 0 {
			s[keyDaemons] = f.spent.daemons.Seconds() / gigabytes
		}
	}
	return nil
}

// flow is what streams carried within a window.
type flow struct {
	bytes float64
	rate  float64 // bytes per second, both ways added
	spent usage
}

// streams sends over TCP from the given ends at once, for as long as it is watched.
func (p *pair) streams(ctx context.Context, window time.Duration, count int, ends ...int) (flow, error) {
	longest := streamsWithin + window
	watching, cancel := context.WithTimeoutCause(ctx, longest, fmt.Errorf("nothing arrived within %s", longest))
	defer cancel()
	g, grouped := errgroup.WithContext(watching)
	sending, stop := context.WithCancel(grouped)
	for _, end := range ends {
		g.Go(func() error {
			err := p.agents[end].Streams(sending, traffic.Streams{To: p.containerAddr(1 - end), Count: count, For: longest})
			if sending.Err() != nil && grouped.Err() == nil {
				return nil // stopped, not failed
			}
			return err
		})
	}
	var f flow
	g.Go(func() error {
		defer stop()
		var err error
		f, err = p.watch(grouped, window, ends)
		return err
	})
	if err := g.Wait(); err != nil {
		return f, err
	}
	return f, p.settle(ctx)
}

// watch counts what arrives within a window that begins after the warm-up.
func (p *pair) watch(ctx context.Context, window time.Duration, ends []int) (flow, error) {
	idle, err := p.look(ctx)
	if err != nil {
		return flow{}, err
	}
	begin, err := p.lookAfter(ctx, warmUp, idle, ends)
	if err != nil {
		return flow{}, err
	}
	end, err := p.lookAfter(ctx, window, begin, ends)
	if err != nil {
		return flow{}, err
	}
	f := flow{spent: end.spent.since(begin.spent)}
	for _, sender := range ends {
		a, b := end.arrived[1-sender], begin.arrived[1-sender]
		f.bytes += float64(a.Bytes - b.Bytes)
		f.rate += float64(a.Bytes-b.Bytes) / (a.At - b.At).Seconds()
	}
	return f, nil
}

// look is what arrived at both ends and what it cost so far.
type look struct {
	arrived [2]traffic.Arrived
	spent   usage
}

func (p *pair) look(ctx context.Context) (l look, err error) {
	for end, agent := range p.agents {
		if l.arrived[end], err = agent.Arrived(ctx); err != nil {
			return l, err
		}
	}
	l.spent, err = p.usage()
	return l, err
}

// lookAfter looks when some time has passed, and again after more of it where a
// busy machine delivered nothing from one of the senders.
func (p *pair) lookAfter(ctx context.Context, window time.Duration, begin look, senders []int) (look, error) {
	for {
		if err := lab.Wait(ctx, window); err != nil {
			return look{}, err
		}
		l, err := p.look(ctx)
		if err != nil {
			return look{}, err
		}
		silent := func(sender int) bool { return l.arrived[1-sender].Bytes == begin.arrived[1-sender].Bytes }
		if !slices.ContainsFunc(senders, silent) {
			return l, nil
		}
	}
}

func (p *pair) measureDatagrams(ctx context.Context, window time.Duration, s Sample) error {
	for _, size := range sizes() {
		blast, err := p.datagrams(ctx, size, 0, window/2)
		if err != nil {
			return err
		}
		carried, err := highestRate(blast, func(rate float64) (trial, error) {
			return p.datagrams(ctx, size, rate, window/4)
		})
		if err != nil {
			return err
		}
		s[keyBlast(size)] = blast.delivered() / 1e3
		s[keyCarried(size)] = carried / 1e3
	}
	return nil
}

// datagrams sends at a rate, and waits for what is still on its way.
func (p *pair) datagrams(ctx context.Context, size int, rate float64, window time.Duration) (trial, error) {
	before, err := p.agents[1].Arrived(ctx)
	if err != nil {
		return trial{}, err
	}
	sent, err := p.agents[0].Datagrams(ctx, traffic.Datagrams{To: p.containerAddr(1), Size: size, Rate: rate, For: window})
	if err != nil {
		return trial{}, err
	}
	if err := p.settle(ctx); err != nil {
		return trial{}, err
	}
	after, err := p.agents[1].Arrived(ctx)
	if err != nil {
		return trial{}, err
	}
	return trial{sent: sent, arrived: after.Datagrams - before.Datagrams, lasted: after.Last - sent.Began}, nil
}

// quiet is how long nothing arrives before everything has; settleWithin bounds
// the wait for that.
const quiet, settleWithin = 10 * time.Millisecond, 5 * time.Second

// settle waits until nothing arrives any more.
func (p *pair) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleWithin, fmt.Errorf("traffic goes on %s after its end", settleWithin))
	defer cancel()
	var last [2]traffic.Arrived
	for first := true; ; first = false {
		now := last
		for end, agent := range p.agents {
			var err error
			if now[end], err = agent.Arrived(ctx); err != nil {
				return err
			}
			now[end].At, now[end].Last = 0, 0
		}
		if now == last && !first {
			return nil
		}
		last = now
		if err := lab.Wait(ctx, quiet); err != nil {
			return err
		}
	}
}

func (p *pair) measurePing(ctx context.Context, window time.Duration, s Sample) error {
	e, err := p.agents[0].Ping(ctx, traffic.Pings{To: p.containerAddr(1), Every: pingEvery, For: window})
	if err != nil {
		return err
	}
	if len(e.RTT) == 0 {
		return fmt.Errorf("none of %d was answered", e.Lost)
	}
	slices.Sort(e.RTT)
	s[keyPing] = micros(page.Percentile(e.RTT, 50))
	s[keyPing99] = micros(page.Percentile(e.RTT, 99))
	return nil
}

func (p *pair) measureConnections(ctx context.Context, window time.Duration, s Sample) error {
	d, err := p.agents[0].Connect(ctx, traffic.Connects{To: p.containerAddr(1), For: window})
	if err != nil {
		return err
	}
	s[keyConnect] = d.Rate()
	return nil
}

// measureMemory reads the peak, which is that of all rounds so far.
func (p *pair) measureMemory(_ context.Context, _ time.Duration, s Sample) error {
	if len(p.daemons) == 0 {
		return nil
	}
	bytes, err := p.resident()
	if err != nil {
		return err
	}
	s[keyResident] = float64(bytes) / 1e6
	return nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
