package traffic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ErrAgent: the agent answered that it could not do what it was asked for.
var ErrAgent = errors.New("the agent failed")

// Where every agent listens, at its own address.
const (
	sinkPort   = 20201 // TCP and UDP: read and counted
	answerPort = 20202 // TCP: one byte for one byte
)

// Options describe an agent.
type Options struct {
	// Socket is the unix socket that it is asked on.
	Socket string
	// Addr is where it receives.
	Addr netip.Addr
}

// Agent is one end of a measured path.
type Agent struct {
	addr             netip.Addr
	bytes, datagrams atomic.Uint64
	last             atomic.Int64 // when the datagrams' queue was last read empty

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil once Serve ends
}

// Serve runs an agent until ctx ends.
func Serve(ctx context.Context, o Options) error {
	a := &Agent{addr: o.Addr, conns: map[net.Conn]struct{}{}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, a.hangUp)()
	for _, start := range []func(*errgroup.Group, context.Context) error{a.sinkStreams, a.sinkDatagrams, a.answer} {
		if err := start(g, ctx); err != nil {
			cancel()
			return errors.Join(fmt.Errorf("start agent: %w", err), unlessClosed(g.Wait()))
		}
	}
	// Last, so that an agent that can be asked can also receive.
	g.Go(func() error { return a.listen(ctx, o.Socket) })
	if err := unlessClosed(g.Wait()); err != nil {
		return fmt.Errorf("run agent: %w", err)
	}
	return nil
}

// unlessClosed drops the errors of what the end of its context closed.
func unlessClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// listen answers questions until ctx ends.
func (a *Agent) listen(ctx context.Context, socket string) error {
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           a.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		// What is under way sees the end of ctx and returns.
		ended <- server.Shutdown(context.WithoutCancel(ctx))
	})
	err = server.Serve(ln)
	if !stop() {
		err = <-ended
	}
	return err
}

func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	handle(mux, "arrived", func(context.Context, nothing) (Arrived, error) { return a.arrived(), nil })
	handle(mux, "streams", func(ctx context.Context, q Streams) (nothing, error) { return nothing{}, sendStreams(ctx, q) })
	handle(mux, "datagrams", sendDatagrams)
	handle(mux, "ping", ping)
	handle(mux, "connect", connect)
	return mux
}

// handle answers one kind of question with f.
func handle[Question, Answer any](mux *http.ServeMux, what string, f func(context.Context, Question) (Answer, error)) {
	mux.HandleFunc("POST /"+what, func(w http.ResponseWriter, r *http.Request) {
		var q Question
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer, err := f(r.Context(), q)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		// Fails only if nobody listens any more.
		_ = json.NewEncoder(w).Encode(answer)
	})
}

func (a *Agent) arrived() Arrived {
	return Arrived{
		At: monotonic(), Bytes: a.bytes.Load(),
		Datagrams: a.datagrams.Load(), Last: time.Duration(a.last.Load()),
	}
}

// monotonic is the machine's clock, the same in every process.
func monotonic() time.Duration {
	var now unix.Timespec
	// The kernel always has this clock.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return time.Duration(now.Nano())
}

// sinkStreams reads and counts what comes over TCP.
func (a *Agent) sinkStreams(g *errgroup.Group, ctx context.Context) error {
	return a.accept(g, ctx, sinkPort, func(conn net.Conn) {
		g.Go(func() error {
			defer a.drop(conn)
			// A stream ends as its sender likes, a reset included.
			_, _ = io.CopyBuffer(counter{&a.bytes}, onlyReader{conn}, make([]byte, chunk))
			return nil
		})
	})
}

// chunk is what one call writes to, or reads from, a stream.
const chunk = 256 << 10

// counter counts what is written to it.
type counter struct{ n *atomic.Uint64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(uint64(len(b)))
	return len(b), nil
}

// onlyReader hides the shortcuts of a connection, which would not use our buffer.
type onlyReader struct{ io.Reader }

// answer gives every connection one byte for its first.
func (a *Agent) answer(g *errgroup.Group, ctx context.Context) error {
	return a.accept(g, ctx, answerPort, func(conn net.Conn) {
		defer a.drop(conn)
		var b [1]byte
		if _, err := conn.Read(b[:]); err == nil {
			// The other end counts what it gets.
			_, _ = conn.Write(b[:])
		}
	})
}

// accept hands every connection to a port to serve, which must drop it.
func (a *Agent) accept(g *errgroup.Group, ctx context.Context, port uint16, serve func(net.Conn)) error {
	ln, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.addr, port)))
	if err != nil {
		return err
	}
	closeAtEnd(g, ctx, ln)
	g.Go(func() error {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return err
			}
			if a.hold(conn) {
				serve(conn)
			}
		}
	})
	return nil
}

// closeAtEnd closes what receives when ctx ends. The group waits for it: until then its
// port is taken, by nobody who would answer.
func closeAtEnd(g *errgroup.Group, ctx context.Context, c io.Closer) {
	g.Go(func() error {
		<-ctx.Done()
		return c.Close()
	})
}

// hold notes a connection for hangUp; after that it closes it and says no.
func (a *Agent) hold(conn net.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conns == nil {
		_ = conn.Close()
		return false
	}
	a.conns[conn] = struct{}{}
	return true
}

func (a *Agent) drop(conn net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.conns, conn)
	_ = conn.Close()
}

// hangUp closes every connection, which ends its reader.
func (a *Agent) hangUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for conn := range a.conns {
		_ = conn.Close()
	}
	a.conns = nil
}
