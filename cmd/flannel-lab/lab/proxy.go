package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// firstProxyPort is below the range that the kernel takes for outgoing
// connections, so that nobody has a port that a healed proxy wants back. Each
// host has ten ports, one per member by its number.
const (
	firstProxyPort = 20000
	portsPerHost   = MaxMembers + 1
)

// Proxy carries one host's TCP connections to the members of etcd, byte by byte,
// and can be a bad link. It stands on the switch.
//
//	host h2 --> :20021 --[out: delay, block]--> e1 :2379
//	        <--        <-[ in: delay, block]---
//	        --> :20022 ...                      e2
//
// Unlike a partition it lets the host's kernel believe in its connections:
// they are acknowledged here. Bytes that it has handed on are not taken back.
type Proxy struct {
	host *Host
	// routes are by member.
	routes []route
	// link is what the proxy does now. A change replaces it and closes the
	// old one's changed.
	link atomic.Pointer[link]

	accepted, bytesOut, bytesIn atomic.Uint64
	// running are the goroutines of listeners and relays.
	running sync.WaitGroup

	// mu guards what follows.
	mu        sync.Mutex
	listeners []*net.TCPListener // none while cut
	relays    map[*relay]struct{}
	closed    bool
	failures  []error // of listeners
}

// route leads from a port of the switch to a member.
type route struct{ listen, member netip.AddrPort }

// link is a state of the proxy. It does not change; its replacement is told by
// changed.
type link struct {
	held    Direction
	delay   [2]time.Duration // out, in
	changed chan struct{}
}

// of is the delay of one direction.
func (l *link) of(d Direction) time.Duration {
	if d == Out {
		return l.delay[0]
	}
	return l.delay[1]
}

// ProxyStats are counted since NewProxy.
type ProxyStats struct {
	// Connections is the number of those accepted, Open of those that live.
	Connections uint64
	Open        int
	// BytesOut and BytesIn were handed to a member and to the host.
	BytesOut, BytesIn uint64
}

// NewProxy starts a proxy for one host: its daemon is to be given Endpoints as
// --etcd-endpoints. A host has at most one at a time. Lab.Close closes it.
func (l *Lab) NewProxy(h *Host, c *Cluster) (*Proxy, error) {
	p := &Proxy{host: h, relays: make(map[*relay]struct{})}
	p.link.Store(&link{changed: make(chan struct{})})
	for _, m := range c.Members {
		p.routes = append(p.routes, route{
			listen: netip.AddrPortFrom(l.plan.gateways[0].Addr(), uint16(firstProxyPort+portsPerHost*h.Number+m.Number)),
			member: netip.AddrPortFrom(m.Addr, etcdPort),
		})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.listen(); err != nil {
		return nil, fmt.Errorf("start proxy of %s: %w", h.Name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proxies = append(l.proxies, p)
	return p, nil
}

// listen opens all listeners, or none. mu is held.
func (p *Proxy) listen() (err error) {
	defer func() {
		if err != nil {
			p.unlisten()
		}
	}()
	for _, r := range p.routes {
		ln, err := p.host.lab.Switch.Listen(r.listen)
		if err != nil {
			return err
		}
		p.listeners = append(p.listeners, ln)
		p.running.Go(func() { p.serve(ln, r.member) })
	}
	return nil
}

// unlisten closes the listeners; who is in their queues is reset. mu is held.
func (p *Proxy) unlisten() {
	for _, ln := range p.listeners {
		_ = ln.Close()
	}
	p.listeners = nil
}

func (p *Proxy) serve(ln *net.TCPListener, member netip.AddrPort) {
	for {
		conn, err := ln.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, say: refuse rather than be silent.
			p.mu.Lock()
			defer p.mu.Unlock()
			p.failures = append(p.failures, err, ln.Close())
			return
		}
		p.accepted.Add(1)
		p.admit(ln, conn, member)
	}
}

// admit starts a relay, unless its listener has been closed meanwhile.
func (p *Proxy) admit(ln *net.TCPListener, conn *net.TCPConn, member netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, current := range p.listeners {
		if current == ln {
			r := newRelay(p, conn, member)
			p.relays[r] = struct{}{}
			p.running.Go(r.run)
			return
		}
	}
	reset(conn)
}

// forget removes a relay that has ended.
func (p *Proxy) forget(r *relay) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.relays, r)
}

// Endpoints are the URLs of the proxy, one per member.
func (p *Proxy) Endpoints() []string {
	var urls []string
	for _, r := range p.routes {
		urls = append(urls, "http://"+r.listen.String())
	}
	return urls
}

// Stats says how much went through.
func (p *Proxy) Stats() ProxyStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return ProxyStats{
		Connections: p.accepted.Load(), Open: len(p.relays),
		BytesOut: p.bytesOut.Load(), BytesIn: p.bytesIn.Load(),
	}
}

// change replaces the link's state and wakes everybody who waits on it.
func (p *Proxy) change(f func(*link)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.link.Load()
	next := *old
	next.changed = make(chan struct{})
	f(&next)
	p.link.Store(&next)
	close(old.changed)
}

// SetDelay makes bytes, ends of connections and new connections arrive so much
// later, in their order. It holds for what is under way too.
func (p *Proxy) SetDelay(out, in time.Duration) {
	p.change(func(l *link) { l.delay = [2]time.Duration{out, in} })
}

// Block holds back whatever goes in a direction, beside what is held back
// already. Connections stay open; new ones are accepted and silent.
func (p *Proxy) Block(d Direction) {
	p.change(func(l *link) { l.held |= d })
}

// Cut resets all connections and refuses new ones.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

// cut is Cut; mu is held.
func (p *Proxy) cut() {
	p.unlisten()
	for r := range p.relays {
		r.abort()
	}
}

// Heal makes the link good again, whatever was wrong with it: no delay, nothing
// held back, connections accepted. What was held back arrives now.
func (p *Proxy) Heal() error {
	p.change(func(l *link) { l.held, l.delay = 0, [2]time.Duration{} })
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.listeners != nil {
		return nil
	}
	if err := p.listen(); err != nil {
		return fmt.Errorf("heal proxy of %s: %w", p.host.Name, err)
	}
	return nil
}

// Close ends the proxy and its connections, and returns when all is gone. It may
// be called again.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.cut()
	p.mu.Unlock()
	p.running.Wait()
	if err := errors.Join(p.failures...); err != nil {
		return fmt.Errorf("proxy of %s: %w", p.host.Name, err)
	}
	return nil
}

// pass waits until what was sent at a moment may arrive; false when ctx ends
// first.
func (p *Proxy) pass(ctx context.Context, d Direction, sent time.Time) bool {
	for ctx.Err() == nil {
		now := p.link.Load()
		var due <-chan time.Time
		if now.held&d == 0 {
			wait := time.Until(sent.Add(now.of(d)))
			if wait <= 0 {
				return true
			}
			due = time.After(wait)
		}
		select {
		case <-due:
		case <-now.changed:
		case <-ctx.Done():
		}
	}
	return false
}
