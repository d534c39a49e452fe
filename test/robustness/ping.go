package robustness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

const (
	// meshHosts is up to how many hosts all pairs ping each other.
	meshHosts = 6
	// lostAfter is when a request without an answer is lost.
	lostAfter = time.Second
	// seriesFor is how long one series of requests lasts before the next one
	// takes over: what it remembers of each request is memory.
	seriesFor = time.Minute
)

// between is a pair by the hosts' places.
type between struct{ from, to int }

// choosePairs are all pairs of a few hosts. Of many they are a ring, so that
// every host sends and is sent to, and half as many again by the seed.
func choosePairs(hosts int, seed uint64) []between {
	var out []between
	if hosts <= meshHosts {
		for from := range hosts {
			for to := range hosts {
				if from != to {
					out = append(out, between{from, to})
				}
			}
		}
		return out
	}
	taken := make(map[between]bool)
	add := func(p between) {
		if p.from != p.to && !taken[p] {
			taken[p] = true
			out = append(out, p)
		}
	}
	random := rand.New(rand.NewPCG(seed, 0))
	order := random.Perm(hosts)
	for i, from := range order {
		add(between{from, order[(i+1)%hosts]})
	}
	for len(out) < hosts+hosts/2 {
		add(between{random.IntN(hosts), random.IntN(hosts)})
	}
	return out
}

// pings are the requests between the chosen pairs. Methods but retarget and stop
// are its own.
type pings struct {
	hosts  []*watched
	every  time.Duration
	at     func(time.Time) time.Duration
	chosen []between

	// one is held by retarget and stop.
	one     sync.Mutex
	running map[between]*pairing

	mu sync.Mutex
	// pairs are guarded by mu.
	pairs []Pair
	err   error
}

// pairing is one pair under way.
type pairing struct {
	from, to *lab.Container
	stop     context.CancelFunc
	done     chan struct{}
}

func newPings(hosts []*watched, o recorderOptions, at func(time.Time) time.Duration) *pings {
	return &pings{hosts: hosts, every: o.PingEvery, at: at, chosen: choosePairs(len(hosts), o.Seed), running: map[between]*pairing{}}
}

// retarget ends the pairs of a host that have another container now, and begins
// those whose two containers are there.
func (p *pings) retarget(ctx context.Context, w *watched) error {
	p.one.Lock()
	defer p.one.Unlock()
	var errs []error
	var ended []*pairing
	for _, b := range p.chosen {
		if p.hosts[b.from] != w && p.hosts[b.to] != w {
			continue
		}
		from, to := p.hosts[b.from].host.Container, p.hosts[b.to].host.Container
		running := p.running[b]
		if running != nil && running.from == from && running.to == to {
			continue
		}
		if running != nil {
			running.stop()
			ended = append(ended, running)
			delete(p.running, b)
		}
		if from == nil || to == nil {
			continue
		}
		errs = append(errs, p.begin(ctx, b, from, to))
	}
	for _, running := range ended {
		<-running.done
	}
	return errors.Join(errs...)
}

// begin begins a pair.
func (p *pings) begin(ctx context.Context, b between, from, to *lab.Container) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	options := lab.PingOptions{To: to.Addr(), Interval: p.every, Timeout: lostAfter}
	began := time.Now()
	first, err := from.StartPing(ctx, options)
	if err != nil {
		cancel()
		return fmt.Errorf("ping %s from %s: %w", p.hosts[b.to].Name, p.hosts[b.from].Name, err)
	}
	running := &pairing{from: from, to: to, stop: cancel, done: make(chan struct{})}
	p.running[b] = running
	go func() {
		defer close(running.done)
		defer cancel()
		pair := Pair{From: p.hosts[b.from].Name, To: p.hosts[b.to].Name, Began: p.at(began), Interval: p.every}
		err := p.follow(ctx, &pair, first, func() (*lab.Pinging, error) { return from.StartPing(ctx, options) })
		pair.Ended = p.at(time.Now())
		p.mu.Lock()
		defer p.mu.Unlock()
		p.pairs = append(p.pairs, pair)
		p.err = errors.Join(p.err, err)
	}()
	return nil
}

// follow adds up one series after the other until ctx ends, or until the container
// is gone, which retarget comes to know a moment later.
func (p *pings) follow(ctx context.Context, pair *Pair, series *lab.Pinging, next func() (*lab.Pinging, error)) error {
	for {
		change := time.NewTimer(seriesFor)
		select {
		case <-ctx.Done():
			change.Stop()
			p.count(pair, series)
			return nil
		case <-change.C:
		}
		// It sends before the last answers of this one are in.
		following, err := next()
		p.count(pair, series)
		switch {
		case errors.Is(err, lab.ErrRemoved):
			return nil
		case err != nil:
			return fmt.Errorf("ping %s from %s: %w", pair.To, pair.From, err)
		}
		series = following
	}
}

// count ends a series and adds it to its pair.
func (p *pings) count(pair *Pair, series *lab.Pinging) {
	pair.Sent += series.Stop().Sent
	for _, at := range series.LostAt() {
		pair.Lost = append(pair.Lost, p.at(at))
	}
}

// stop ends all pairs and waits for the last answers.
func (p *pings) stop() ([]Pair, error) {
	p.one.Lock()
	defer p.one.Unlock()
	for _, running := range p.running {
		running.stop()
	}
	for _, running := range p.running {
		<-running.done
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pairs, p.err
}
