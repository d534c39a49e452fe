package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// newTestProxy makes a lab of one host and a proxy to a listener in the place of
// an etcd of one member.
func newTestProxy(t *testing.T) (*Lab, *Proxy, *net.TCPListener) {
	t.Helper()
	l := newTestLab(t, 1, "sleep 60")
	m := &Member{Node: l.Switch, Number: 1, Addr: l.plan.gateways[0].Addr()}
	c, err := l.newCluster([]*Member{m}, ClusterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := l.Switch.Listen(netip.AddrPortFrom(m.Addr, etcdPort))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	p, err := l.NewProxy(l.Hosts[0], c)
	if err != nil {
		t.Fatal(err)
	}
	return l, p, ln
}

// patience bounds every read and accept.
const patience = time.Minute

// silence is how long nothing must arrive where all is held back.
const silence = 100 * time.Millisecond

// wire is a connection through a proxy: host dialled, member accepted.
type wire struct{ host, member *net.TCPConn }

func (w wire) close() {
	w.host.Close()
	w.member.Close()
}

func dialProxy(t *testing.T, l *Lab, p *Proxy) *net.TCPConn {
	t.Helper()
	conn, err := l.Hosts[0].Dial(within(t, patience), p.routes[0].listen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func connectThrough(t *testing.T, l *Lab, p *Proxy, ln *net.TCPListener) wire {
	t.Helper()
	return wire{host: dialProxy(t, l, p), member: accept(t, ln)}
}

func accept(t *testing.T, ln *net.TCPListener) *net.TCPConn {
	t.Helper()
	if err := ln.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// expect reads exactly what is wanted.
func expect(t *testing.T, conn net.Conn, want []byte) {
	t.Helper()
	if err := arrives(conn, want); err != nil {
		t.Fatal(err)
	}
}

// arrives is expect, for any goroutine.
func arrives(conn net.Conn, want []byte) error {
	got := make([]byte, len(want))
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if n, err := io.ReadFull(conn, got); err != nil {
		return fmt.Errorf("%d of %d bytes, then %w", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes arrive changed or in another order", len(want))
	}
	return nil
}

// expectNothing fails when anything arrives, an end too.
func expectNothing(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(silence)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if n, err := conn.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%d bytes and %v arrive through a block", n, err)
	}
}

func expectEnd(t *testing.T, conn net.Conn, want error) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func send(t *testing.T, conn net.Conn, data []byte) {
	t.Helper()
	if err := conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
}

func randomBytes(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestProxyCarriesBothWays(t *testing.T) {
	l, p, ln := newTestProxy(t)
	w := connectThrough(t, l, p, ln)
	// More than all buffers hold, both ways at once.
	out, in := randomBytes(8<<20), bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	sent := make(chan error, 2)
	go func() { _, err := w.host.Write(out); sent <- errors.Join(err, w.host.CloseWrite()) }()
	go func() { _, err := w.member.Write(in); sent <- err }()
	received := make(chan error, 1)
	go func() { received <- arrives(w.host, in) }()
	expect(t, w.member, out)
	if err := errors.Join(<-received, <-sent, <-sent); err != nil {
		t.Error(err)
	}
	// The half that was closed is closed, the other is not.
	expectEnd(t, w.member, io.EOF)
	send(t, w.member, []byte("more"))
	expect(t, w.host, []byte("more"))
	w.member.Close()
	expectEnd(t, w.host, io.EOF)
	w.host.Close()
	waitClosed(t, p)
	want := ProxyStats{Connections: 1, BytesOut: uint64(len(out)), BytesIn: uint64(len(in) + len("more"))}
	if got := p.Stats(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// waitClosed waits until no connection is left.
func waitClosed(t *testing.T, p *Proxy) {
	t.Helper()
	err := poll(within(t, patience), func() (bool, error) { return p.Stats().Open == 0, nil })
	if err != nil {
		t.Errorf("%d connections are left: %v", p.Stats().Open, err)
	}
}

func TestProxyDelays(t *testing.T) {
	l, p, ln := newTestProxy(t)
	w := connectThrough(t, l, p, ln)
	// One after the other so many parcels would take longer than all of them are
	// waited for.
	const delay, never = time.Second, time.Hour
	const parcels = int(2 * patience / delay)
	for name, tc := range map[string]struct {
		delay func(by time.Duration)
		a, b  net.Conn
	}{
		"out": {func(by time.Duration) { p.SetDelay(by, 0) }, w.host, w.member},
		"in":  {func(by time.Duration) { p.SetDelay(0, by) }, w.member, w.host},
	} {
		tc.delay(delay)
		begin := time.Now()
		data := randomBytes(parcels * parcelSize)
		send(t, tc.a, data)
		expect(t, tc.b, data)
		if took := time.Since(begin); took < delay {
			t.Errorf("%s: %d parcels take %s with a delay of %s", name, parcels, took, delay)
		}
		// The other way has none, however long this one is.
		tc.delay(never)
		send(t, tc.b, []byte("back"))
		expect(t, tc.a, []byte("back"))
	}
	p.SetDelay(never, 0)
	send(t, w.host, []byte("late"))
	expectNothing(t, w.member)
	p.SetDelay(0, 0)
	expect(t, w.member, []byte("late"))
}

func TestProxyBlocksAndHeals(t *testing.T) {
	l, p, ln := newTestProxy(t)
	for _, tc := range []struct {
		block   Direction
		out, in bool // what is held
	}{
		{Out, true, false},
		{In, false, true},
		{Both, true, true},
	} {
		t.Run(tc.block.String(), func(t *testing.T) {
			w := connectThrough(t, l, p, ln)
			defer w.close()
			p.Block(tc.block)
			data := randomBytes(3 * parcelSize)
			for _, way := range []struct {
				from, to net.Conn
				held     bool
			}{{w.host, w.member, tc.out}, {w.member, w.host, tc.in}} {
				send(t, way.from, data)
				if way.held {
					expectNothing(t, way.to)
				} else {
					expect(t, way.to, data)
				}
			}
			if err := p.Heal(); err != nil {
				t.Fatal(err)
			}
			if tc.out {
				expect(t, w.member, data)
			}
			if tc.in {
				expect(t, w.host, data)
			}
		})
	}
}

// A block fills the buffers, then the sender waits; after it every byte arrives,
// in order, and then the end.
func TestProxyKeepsAllThatWasHeldBack(t *testing.T) {
	l, p, ln := newTestProxy(t)
	w := connectThrough(t, l, p, ln)
	p.Block(Out)
	data := randomBytes(32 << 20)
	sent := make(chan error, 1)
	go func() {
		_, err := w.host.Write(data)
		sent <- errors.Join(err, w.host.CloseWrite())
	}()
	expectNothing(t, w.member)
	select {
	case err := <-sent:
		t.Fatalf("%d bytes are sent into a block: %v", len(data), err)
	default:
	}
	if err := p.Heal(); err != nil {
		t.Fatal(err)
	}
	expect(t, w.member, data)
	expectEnd(t, w.member, io.EOF)
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// Behind a block a host learns nothing: not of a member that is gone, nor that it
// cannot be reached, and the member nothing of the host.
func TestProxyBlockHidesEnds(t *testing.T) {
	l, p, ln := newTestProxy(t)
	dying := connectThrough(t, l, p, ln)
	leaving := connectThrough(t, l, p, ln)
	p.Block(Both)
	reset(dying.member)
	leaving.host.Close()
	ln.Close()
	fresh := dialProxy(t, l, p)
	send(t, fresh, []byte("hello"))
	for _, conn := range []net.Conn{dying.host, leaving.member, fresh} {
		expectNothing(t, conn)
	}
	if err := p.Heal(); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, dying.host, syscall.ECONNRESET)
	expectEnd(t, leaving.member, io.EOF)
	expectEnd(t, fresh, syscall.ECONNRESET)
	leaving.close()
	// A refusal is held back on its way in.
	p.Block(In)
	fresh = dialProxy(t, l, p)
	expectNothing(t, fresh)
	if err := p.Heal(); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, fresh, syscall.ECONNRESET)
	waitClosed(t, p)
}

// A new connection under a block is made when the block ends.
func TestProxyAcceptsIntoABlock(t *testing.T) {
	l, p, ln := newTestProxy(t)
	p.Block(Out)
	host := dialProxy(t, l, p)
	send(t, host, []byte("hello"))
	expectNothing(t, host)
	if err := ln.SetDeadline(time.Now().Add(silence)); err != nil {
		t.Fatal(err)
	}
	if conn, err := ln.AcceptTCP(); err == nil {
		t.Error("a connection arrives through a block")
		conn.Close()
	}
	if err := p.Heal(); err != nil {
		t.Fatal(err)
	}
	expect(t, accept(t, ln), []byte("hello"))
}

func TestProxyCutResets(t *testing.T) {
	l, p, ln := newTestProxy(t)
	w := connectThrough(t, l, p, ln)
	send(t, w.host, []byte("x"))
	expect(t, w.member, []byte("x"))
	p.Block(Both)
	p.Cut()
	expectEnd(t, w.host, syscall.ECONNRESET)
	expectEnd(t, w.member, syscall.ECONNRESET)
	if conn, err := l.Hosts[0].Dial(within(t, patience), p.routes[0].listen); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection to a proxy that is cut: %v, %v", conn, err)
	}
	for range 2 {
		if err := p.Heal(); err != nil {
			t.Fatal(err)
		}
	}
	w = connectThrough(t, l, p, ln)
	send(t, w.host, []byte("y"))
	expect(t, w.member, []byte("y"))
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	expectEnd(t, w.host, syscall.ECONNRESET)
	if err := p.Heal(); err != nil || p.Stats().Open != 0 {
		t.Errorf("a closed proxy heals: %v, %+v", err, p.Stats())
	}
	if _, err := l.Hosts[0].Dial(within(t, patience), p.routes[0].listen); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection to a closed proxy: %v", err)
	}
}

func TestProxiesOfHosts(t *testing.T) {
	l, p, _ := newTestProxy(t)
	if got := p.Endpoints(); !slices.Equal(got, []string{"http://198.18.0.254:20011"}) {
		t.Errorf("endpoints %s", got)
	}
	if _, err := l.NewProxy(l.Hosts[0], l.Cluster()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second proxy of one host: %v", err)
	}
}

// The rules of waiting, by a clock that tells exactly.
func TestPass(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(*Proxy)
		want time.Duration
	}{
		{"a good link", func(*Proxy) {}, 0},
		{"the other way", func(p *Proxy) { p.SetDelay(0, time.Hour); p.Block(In) }, 0},
		{"a delay", func(p *Proxy) { p.SetDelay(time.Second, 0) }, time.Second},
		{"a delay that grows", func(p *Proxy) {
			p.SetDelay(time.Second, 0)
			time.AfterFunc(time.Second/2, func() { p.SetDelay(3*time.Second, 0) })
		}, 3 * time.Second},
		{"a delay that shrinks", func(p *Proxy) {
			p.SetDelay(time.Hour, 0)
			time.AfterFunc(time.Second, func() { p.SetDelay(time.Second/2, 0) })
		}, time.Second},
		{"a block within a delay", func(p *Proxy) {
			p.SetDelay(5*time.Second, 0)
			p.Block(Out)
			time.AfterFunc(time.Second, func() { _ = p.Heal(); p.SetDelay(5*time.Second, 0) })
		}, 5 * time.Second},
		{"a delay that is healed", func(p *Proxy) {
			p.SetDelay(time.Hour, 0)
			time.AfterFunc(time.Second, func() { _ = p.Heal() })
		}, time.Second},
		{"blocks that add up", func(p *Proxy) {
			p.Block(Out)
			p.Block(In)
			time.AfterFunc(time.Minute, func() { _ = p.Heal() })
		}, time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// Of one without ports Heal opens none.
				p := &Proxy{}
				p.link.Store(&link{changed: make(chan struct{})})
				begin := time.Now()
				tc.do(p)
				if !p.pass(t.Context(), Out, begin) {
					t.Error("does not pass")
				}
				if took := time.Since(begin); took != tc.want {
					t.Errorf("passes after %s, want %s", took, tc.want)
				}
			})
		})
	}
}

func TestPassEndsWithItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Proxy{}
		p.link.Store(&link{changed: make(chan struct{})})
		p.Block(Both)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if p.pass(ctx, In, time.Now()) {
			t.Error("passes through a block")
		}
	})
}
