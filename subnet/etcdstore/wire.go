package etcdstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// wire makes the client's connections and remembers, per endpoint, why there is
// none. gRPC only retries, and what it says in the end is text: here causes are
// seen as they happen, as typed errors.
//
//	dial -----> handshake -----> first byte of an answer
//	  |             |                   |
//	refused     no TLS there,     closed without one:      one: all is well
//	            not trusted       ask in the other way
type wire struct {
	dialer net.Dialer
	// askFor is how long an endpoint is asked how it speaks.
	askFor time.Duration
	// tlsConfig makes the config of one handshake.
	tlsConfig func() *tls.Config
	// secure: the endpoints speak TLS. It changes only with the endpoints.
	secure atomic.Bool
	// onTrouble, where it is set, is called when a connection cannot be made
	// or ends. It does not block.
	onTrouble func()

	mu sync.Mutex
	// trouble holds the cause per address, and open the connections; guarded by mu.
	trouble map[string]cause
	open    map[*wireConn]bool
}

// cause is why an endpoint does not work.
type cause struct{ kind, err error }

// What is wrong with an endpoint that speaks the other way.
var (
	errSpeaksTLS   = errors.New("speaks TLS: use https:// in --etcd-endpoints")
	errSpeaksPlain = errors.New("does not speak TLS: use http:// in --etcd-endpoints")
)

// probeTimeout bounds the question whether an endpoint speaks TLS or not.
const probeTimeout = time.Second

// letGoWithin bounds the wait for the client to let go of a connection that was closed,
// which takes it less than a millisecond as a rule.
const letGoWithin = time.Second

func newWire(timeout time.Duration, resolver *net.Resolver, tlsConfig func() *tls.Config) *wire {
	return &wire{
		dialer:    net.Dialer{Timeout: timeout, Resolver: resolver},
		askFor:    probeTimeout,
		tlsConfig: tlsConfig,
		trouble:   map[string]cause{},
		open:      map[*wireConn]bool{},
	}
}

func (w *wire) record(addr string, kind, err error) {
	w.mu.Lock()
	w.trouble[addr] = cause{kind, err}
	w.mu.Unlock()
	w.troubled()
}

func (w *wire) troubled() {
	if w.onTrouble != nil {
		w.onTrouble()
	}
}

func (w *wire) forget(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.trouble, addr)
}

// explain completes e by what is known of its endpoints, and reports whether
// that is anything. Trouble with TLS comes first: it does not pass by itself.
func (w *wire) explain(e *Error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, kind := range []error{ErrTLS, ErrUnreachable} {
		var same []string
		var why error
		for _, endpoint := range e.Endpoints {
			_, addr, _ := strings.Cut(endpoint, "://")
			c, ok := w.trouble[addr]
			if !ok || !errors.Is(c.kind, kind) || why != nil && c.err.Error() != why.Error() {
				continue
			}
			same, why = append(same, endpoint), c.err
		}
		if why != nil {
			e.Kind, e.Endpoints, e.Err = kind, same, why
			return true
		}
	}
	return false
}

// dial opens a connection for gRPC.
func (w *wire) dial(ctx context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	if _, known := w.trouble[addr]; !known {
		// Until there is more to say: packets may vanish.
		w.trouble[addr] = cause{ErrUnreachable, errors.New("does not answer")}
	}
	w.mu.Unlock()
	conn, err := w.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		if !errors.Is(ctx.Err(), context.Canceled) {
			w.record(addr, ErrUnreachable, plainly(err))
		}
		return nil, err
	}
	c := &wireConn{
		Conn: conn, wire: w, addr: addr, secure: w.secure.Load(), plain: true,
		resting: resting{closed: make(chan struct{})}, released: make(chan struct{}),
	}
	if sock, ok := conn.(syscall.Conn); ok {
		c.raw, _ = sock.SyscallConn() // one that was just opened has it
	}
	w.mu.Lock()
	w.open[c] = true
	w.mu.Unlock()
	return c, nil
}

// abandon closes the connections from a local address, and returns when the client has
// let go of them: before that it may send what is asked next on one of them.
func (w *wire) abandon(local netip.Addr) {
	w.mu.Lock()
	var dead []*wireConn
	for c := range w.open {
		if from, ok := c.LocalAddr().(*net.TCPAddr); ok && from.AddrPort().Addr().Unmap() == local {
			dead = append(dead, c)
		}
	}
	w.mu.Unlock()
	for _, c := range dead {
		_ = c.end() // whoever reads hears of it, and closes it
	}
	late := time.NewTimer(letGoWithin)
	defer late.Stop()
	for _, c := range dead {
		select {
		case <-c.released:
		case <-late.C:
			return
		}
	}
}

// Close forgets the connection. The client calls it when it does not use it any more.
func (c *wireConn) Close() error {
	err := c.end()
	if c.plain {
		c.letGo.Do(func() { close(c.released) })
	}
	return err
}

// end closes the connection, whoever uses it.
func (c *wireConn) end() error {
	c.wire.mu.Lock()
	if c.wire.open[c] {
		delete(c.wire.open, c)
		close(c.closed)
	}
	c.wire.mu.Unlock()
	return c.Conn.Close()
}

// wireConn is a connection that has not answered yet. It is used by one reader,
// gRPC's.
type wireConn struct {
	net.Conn
	wire *wire
	addr string
	// secure: it is to speak TLS. plain: this is the connection below TLS;
	// with TLS there is one above it, too.
	secure, plain bool
	answered      bool
	// resting is that of a plain one, and so is released, which letGo closes when the
	// client has closed it.
	resting
	letGo    sync.Once
	released chan struct{}
}

// Read watches for the first answer, and for the end.
func (c *wireConn) Read(b []byte) (int, error) {
	n, err := c.take(b)
	switch {
	case c.plain && c.secure:
	case n > 0 && !c.answered:
		c.answered = true
		if strings.HasPrefix(string(b[:n]), "HTTP/") {
			c.wire.record(c.addr, ErrUnreachable, errors.New("is no etcd: it answers in HTTP/1"))
			break
		}
		c.wire.forget(c.addr)
	case err == nil || errors.Is(err, net.ErrClosed):
	case c.answered:
		c.wire.troubled()
	default:
		c.unanswered(err)
	}
	return n, err
}

// take reads when it is worth its cost.
func (c *wireConn) take(b []byte) (int, error) {
	if c.plain {
		if err := c.rest(); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(b)
	c.read(n, len(b))
	return n, err
}

// unanswered finds out why a connection ended with err before any answer.
func (c *wireConn) unanswered(err error) {
	w, addr := c.wire, c.addr
	if c.secure {
		if isRemoteAlert(err) {
			// With TLS 1.3 a server refuses a client after the handshake.
			w.record(addr, ErrTLS, fmt.Errorf("refuses our certificate: see --etcd-certfile and --etcd-keyfile: %w", plainly(err)))
			return
		}
	} else if w.decide(addr, w.speaksTLS(context.Background(), addr), errSpeaksTLS) {
		return
	}
	w.record(addr, ErrUnreachable, fmt.Errorf("closes the connection: %w", plainly(err)))
}

// decide records what is wrong with an endpoint if it says that it speaks the other way,
// and reports whether that is known by now: one that has said so before and does not
// answer in time may be busy.
func (w *wire) decide(addr string, said reply, wrong error) bool {
	switch said {
	case replyYes:
		w.record(addr, ErrTLS, wrong)
		return true
	case replyNone:
		w.mu.Lock()
		known := errors.Is(w.trouble[addr].err, wrong)
		w.mu.Unlock()
		if known {
			w.troubled()
		}
		return known
	default:
		return false
	}
}

// isRemoteAlert reports whether the other side ended the connection by a TLS
// alert. crypto/tls wraps those in a net.OpError of this name.
func isRemoteAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// wireCreds are the client's transport credentials: TLS with the certificates as
// they are at the time, or none.
type wireCreds struct{ wire *wire }

var _ credentials.TransportCredentials = wireCreds{}

// ClientHandshake implements [credentials.TransportCredentials]. The authority
// is the endpoint's host and port, and its certificate must be valid for that
// host.
func (c wireCreds) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	below, ok := raw.(*wireConn)
	if !ok || !below.secure {
		return insecure.NewCredentials().ClientHandshake(ctx, authority, raw)
	}
	conn, info, err := credentials.NewTLS(c.wire.tlsConfig()).ClientHandshake(ctx, authority, raw)
	if err != nil {
		// One that was abandoned says nothing of the endpoint.
		if !errors.Is(ctx.Err(), context.Canceled) && !errors.Is(err, net.ErrClosed) {
			c.wire.refused(ctx, below.addr, err)
		}
		return nil, nil, err
	}
	return &wireConn{Conn: conn, wire: c.wire, addr: below.addr, secure: true}, info, nil
}

// ServerHandshake implements [credentials.TransportCredentials]; we are none.
func (wireCreds) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("not a server")
}

// Info implements [credentials.TransportCredentials].
func (c wireCreds) Info() credentials.ProtocolInfo {
	if c.wire.secure.Load() {
		return credentials.NewTLS(nil).Info()
	}
	return insecure.NewCredentials().Info()
}

// Clone implements [credentials.TransportCredentials].
func (c wireCreds) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements [credentials.TransportCredentials]: each endpoint
// has a name of its own.
func (wireCreds) OverrideServerName(string) error {
	return errors.New("endpoints have their own names")
}

// refused says why a TLS handshake failed.
func (w *wire) refused(ctx context.Context, addr string, err error) {
	var untrusted *tls.CertificateVerificationError
	var noTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &untrusted):
		hint := ""
		if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) {
			hint = " (see --etcd-cafile)"
		}
		w.record(addr, ErrTLS, fmt.Errorf("certificate not trusted%s: %w", hint, untrusted.Err))
	case isRemoteAlert(err):
		w.record(addr, ErrTLS, fmt.Errorf("refuses our certificate: see --etcd-certfile and --etcd-keyfile: %w", plainly(err)))
	default:
		said := replyYes
		if !errors.As(err, &noTLS) {
			said = w.speaksPlain(ctx, addr)
		}
		if !w.decide(addr, said, errSpeaksPlain) {
			w.record(addr, ErrUnreachable, fmt.Errorf("TLS handshake: %w", plainly(err)))
		}
	}
}

// reply is what an endpoint says to the question how it speaks.
type reply uint8

const (
	// replyNone: nobody was there, or there was no time.
	replyNone reply = iota
	replyNo
	replyYes
)

// speaksTLS asks an endpoint for its half of a handshake.
func (w *wire) speaksTLS(ctx context.Context, addr string) reply {
	return w.probe(ctx, addr, func(conn net.Conn) error {
		// Whether to trust it is not the question, and nothing is sent to it.
		err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).Handshake() //nolint:gosec // see above
		if isRemoteAlert(err) {
			return nil
		}
		return err
	})
}

// speaksPlain asks an endpoint for the HTTP/2 settings that a server begins
// with.
func (w *wire) speaksPlain(ctx context.Context, addr string) reply {
	const (
		preface       = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
		emptySettings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
		typeAt        = 3 // in a frame's header, behind three bytes of length
	)
	return w.probe(ctx, addr, func(conn net.Conn) error {
		if _, err := io.WriteString(conn, preface+emptySettings); err != nil {
			return err
		}
		var header [len(emptySettings)]byte
		if _, err := io.ReadFull(conn, header[:]); err != nil {
			return err
		}
		if header[typeAt] != emptySettings[typeAt] {
			return errors.New("something else than settings")
		}
		return nil
	})
}

// probe asks an endpoint a question, whose answer is yes if there is no error.
func (w *wire) probe(ctx context.Context, addr string, ask func(net.Conn) error) reply {
	ctx, cancel := context.WithTimeout(ctx, w.askFor)
	defer cancel()
	conn, err := w.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return replyNone
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err = conn.SetDeadline(deadline); err == nil {
		err = ask(conn)
	}
	switch {
	case err == nil:
		return replyYes
	case errors.Is(err, os.ErrDeadlineExceeded):
		return replyNone
	default:
		return replyNo
	}
}
