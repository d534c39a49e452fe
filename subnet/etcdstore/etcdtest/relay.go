package etcdtest

import (
	"fmt"
	"net"
	"strings"
	"sync"
)

// Relay hands on, byte for byte, what goes between clients and a server: a network that
// can be cut, frozen and listened to. Its methods may be called concurrently.
type Relay struct {
	// URL is where clients find it.
	URL string

	target   string
	sent     func([]byte)
	listener net.Listener
	running  sync.WaitGroup

	mu sync.Mutex
	// moved is of mu, and tells of frozen.
	moved  sync.Cond
	frozen bool
	// refuses: there are no connections any more.
	refuses bool
	conns   map[net.Conn]bool
}

// StartRelay starts one to the server at endpoint, a URL. Sent, if there is one, is called
// with what clients send before the server gets it, for each connection by itself.
func StartRelay(endpoint string, sent func([]byte)) (*Relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start relay: %w", err)
	}
	scheme, target, _ := strings.Cut(endpoint, "://")
	r := &Relay{URL: scheme + "://" + l.Addr().String(), target: target, sent: sent, listener: l, conns: map[net.Conn]bool{}}
	r.moved.L = &r.mu
	r.running.Go(r.accept)
	return r, nil
}

func (r *Relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", r.target)
		if err != nil {
			client.Close() // as a server that is gone does
			continue
		}
		r.mu.Lock()
		r.conns[client], r.conns[server] = true, true
		refuses := r.refuses
		r.mu.Unlock()
		if refuses {
			r.Cut() // it came before the end, and is seen after it
		}
		r.running.Go(func() { r.forward(server, client, r.sent) })
		r.running.Go(func() { r.forward(client, server, nil) })
	}
}

// forward goes on until either end has ended, which is the other's end then.
func (r *Relay) forward(to, from net.Conn, sent func([]byte)) {
	defer to.Close()
	for buf := make([]byte, 64<<10); ; {
		n, err := from.Read(buf)
		r.mu.Lock()
		for r.frozen {
			r.moved.Wait()
		}
		r.mu.Unlock()
		if sent != nil && n > 0 {
			sent(buf[:n])
		}
		if _, writeErr := to.Write(buf[:n]); err != nil || writeErr != nil {
			return
		}
	}
}

// Cut ends all connections; new ones are welcome.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
		delete(r.conns, c)
	}
}

// Refuse ends all connections, and refuses others from now on.
func (r *Relay) Refuse() {
	r.mu.Lock()
	r.refuses = true
	r.mu.Unlock()
	r.listener.Close()
	r.Cut()
}

// Freeze lets nothing pass until Thaw.
func (r *Relay) Freeze() { r.set(true) }

// Thaw ends what Freeze began: what waited passes.
func (r *Relay) Thaw() { r.set(false) }

func (r *Relay) set(frozen bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = frozen
	r.moved.Broadcast()
}

// Close ends it, and waits for all that it does. It is idempotent.
func (r *Relay) Close() {
	r.Refuse()
	r.Thaw()
	r.running.Wait()
}
