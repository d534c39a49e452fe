package etcdstore

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// zone is a DNS server on loopback. Every host in it is 127.0.0.1; below invalid there
// are none.
type zone struct {
	conn net.PacketConn

	mu sync.Mutex
	// The fields below are guarded by mu.

	// srv are the targets, host:port, by the name asked for.
	srv map[string][]string
	// code is what every SRV question is answered with.
	code dnsmessage.RCode
	// mute: nothing is answered.
	mute  bool
	asked []string
}

func newZone(t *testing.T) *zone {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z := &zone{conn: conn, srv: map[string][]string{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := z.answer(buf[:n]); answer != nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return z
}

func (z *zone) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", z.conn.LocalAddr().String())
	}}
}

func (z *zone) set(name string, targets ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.code, z.mute = dnsmessage.RCodeSuccess, false
	z.srv[name] = targets
}

func (z *zone) fail(code dnsmessage.RCode) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.code = code
}

func (z *zone) silence() {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.mute = true
}

// questions are the names that were asked for SRV records, since the last time.
func (z *zone) questions() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	asked := z.asked
	z.asked = nil
	return slices.Compact(asked)
}

// awaitQuestion returns when there is a question that was not seen yet.
func (z *zone) awaitQuestion(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(within); len(z.questions()) == 0; await(t, 10*time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody asks DNS")
		}
	}
}

func (z *zone) answer(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	q := m.Questions[0]
	name := strings.TrimSuffix(q.Name.String(), ".")
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
	switch {
	case z.mute:
		return nil
	case strings.HasSuffix(name, ".invalid"):
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeSRV:
		z.asked = append(z.asked, name)
		m.RCode = z.code
		targets, exists := z.srv[name]
		if m.RCode == dnsmessage.RCodeSuccess && !exists {
			m.RCode = dnsmessage.RCodeNameError
		}
		for _, target := range targets {
			host, text, _ := strings.Cut(target, ":")
			port, _ := strconv.Atoi(text)
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: header,
				Body:   &dnsmessage.SRVResource{Priority: uint16(len(m.Answers)), Port: uint16(port), Target: dnsmessage.MustNewName(host + ".")},
			})
		}
	case q.Type == dnsmessage.TypeA:
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}})
	}
	packed, err := m.Pack()
	if err != nil {
		return nil
	}
	return packed
}

const (
	secureName = "_etcd-client-ssl._tcp.example.test"
	plainName  = "_etcd-client._tcp.example.test"
)

// port is where a server listens.
func port(t *testing.T, endpoint string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(endpoint[strings.Index(endpoint, "://")+3:])
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestLookup(t *testing.T) {
	const named, namedPlain = "_etcd-client-ssl-prod._tcp.example.test", "_etcd-client-prod._tcp.example.test"
	for _, c := range []struct {
		name string
		opts Options
		srv  map[string][]string
		code dnsmessage.RCode
		want []string
		// asked are the questions, err what the error has in it.
		asked []string
		err   string
	}{
		{
			name: "with TLS", srv: map[string][]string{secureName: {"b.test:2379", "a.test:2379", "b.test:2379"}, plainName: {"c.test:2379"}},
			want: []string{"https://a.test:2379", "https://b.test:2379"}, asked: []string{secureName},
		},
		{
			name: "without TLS", srv: map[string][]string{plainName: {"c.test:4001"}},
			want: []string{"http://c.test:4001"}, asked: []string{secureName, plainName},
		},
		{
			name: "with a name", opts: Options{DiscoverySRVName: "prod"}, srv: map[string][]string{secureName: {"a.test:1"}, namedPlain: {"b.test:2"}},
			want: []string{"http://b.test:2"}, asked: []string{named, namedPlain},
		},
		{
			name: "without TLS though there is an authority", opts: Options{CAFile: "ca"}, srv: map[string][]string{plainName: {"c.test:4001"}},
			asked: []string{secureName}, err: "no endpoints in DNS: SRV " + secureName + ": no such host (asked ",
		},
		{
			name: "DNS fails", code: dnsmessage.RCodeServerFailure, srv: map[string][]string{plainName: {"c.test:4001"}},
			asked: []string{secureName}, err: "no endpoints in DNS: SRV " + secureName + ": server misbehaving (asked ",
		},
		{
			name: "nothing", asked: []string{secureName, plainName},
			err: "no endpoints in DNS: SRV " + secureName + ": no such host (asked ",
		},
		{
			name: "a service that is not there", srv: map[string][]string{secureName: {":0"}, plainName: {":0"}},
			asked: []string{secureName, plainName}, err: "SRV " + plainName + ": no target",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := newZone(t)
			for name, targets := range c.srv {
				z.set(name, targets...)
			}
			z.fail(c.code)
			c.opts.DiscoverySRV, c.opts.Resolver = "example.test", z.resolver()
			got, err := newDiscovery(&c.opts, nil).lookup(t.Context())
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("endpoints (-want +got)\n%s", diff)
			}
			if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			// The machine's search domains may add questions.
			asked := slices.DeleteFunc(z.questions(), func(q string) bool { return !strings.HasSuffix(q, ".example.test") })
			if diff := cmp.Diff(c.asked, slices.Compact(asked)); diff != "" {
				t.Errorf("questions (-want +got)\n%s", diff)
			}
		})
	}
}

// DNS is down when we start: the first call says so, in the words of DNS, and
// calls get through as soon as DNS does.
func TestDiscoveryWaitsForDNS(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	z := newZone(t)
	z.silence()
	s := open(t, Options{DiscoverySRV: "example.test", Resolver: z.resolver(), Prefix: "/p"})
	if got := s.Endpoints(); len(got) != 0 {
		t.Errorf("endpoints %v before the first call", got)
	}
	load := func(d time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		_, err := s.Load(ctx)
		return err
	}
	fails := func(err error, want string) {
		t.Helper()
		var e *Error
		if !errors.Is(err, ErrUnreachable) || !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("Load: %v, want %q", err, want)
		}
	}
	// Only the end of its time ends what is not answered.
	fails(load(4*time.Second), "load: etcd example.test: no endpoints in DNS: SRV "+secureName+": ")
	z.set("other")
	const absent = "); SRV " + plainName + ": no such host (asked "
	fails(whyNot(t, s, func(err error) bool { return strings.Contains(err.Error(), absent) }), absent)
	errs := make(chan error, 3)
	for range cap(errs) {
		go func() { errs <- load(within) }()
	}
	z.questions()
	z.awaitQuestion(t) // in vain
	z.set(plainName, "e1.test:"+port(t, server.Endpoint()))
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Errorf("Load: %v", err)
		}
	}
	if want := []string{"http://e1.test:" + port(t, server.Endpoint())}; !slices.Equal(s.Endpoints(), want) {
		t.Errorf("endpoints %v, want %v", s.Endpoints(), want)
	}
	wholeLife(t, s)
}

// etcd moves and the records follow: a watch finds it by itself. What DNS says
// when it is down changes nothing.
func TestDiscoveryFollowsTheRecords(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	z := newZone(t)
	first, second := newProxy(t, server), newProxy(t, server)
	z.set(plainName, "e1.test:"+port(t, first.URL))
	s := open(t, Options{DiscoverySRV: "example.test", Resolver: z.resolver(), Prefix: "/p", DialTimeout: time.Minute})
	s.discovery.pause = 10 * time.Millisecond
	o := newOperator(t, server, "/p")
	results := follow(t, s, loaded(t, s).Revision)

	z.fail(dnsmessage.RCodeServerFailure)
	first.Cut()
	o.config(t, "DNS is down")
	if got := config(t, results); got != "DNS is down" {
		t.Errorf("config %q", got)
	}
	// DNS is still down when the connection is lost, and the one endpoint that
	// is known stays gone.
	z.questions()
	first.Refuse()
	z.awaitQuestion(t)
	z.set(plainName, "e1.test:"+port(t, first.URL), "e2.test:"+port(t, second.URL))
	o.config(t, "moved")
	if got := config(t, results); got != "moved" {
		t.Errorf("config %q", got)
	}
	knows := func(n int) {
		t.Helper()
		for end := time.Now().Add(within); len(s.Endpoints()) != n; await(t, 10*time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("endpoints %v, want %d", s.Endpoints(), n)
			}
		}
	}
	knows(2)
	// As long as one is gone DNS is asked, and then no more.
	z.set(plainName, "e2.test:"+port(t, second.URL))
	knows(1)
	// What was under way by then may be asked still.
	asked := []string{"until now"}
	for end := time.Now().Add(within); len(asked) > 0 && time.Now().Before(end); asked = z.questions() {
		z.questions()
		await(t, 3*maxReconnect)
	}
	if len(asked) > 0 {
		t.Errorf("asked %v although all is well", asked)
	}
	second.Cut() // A connection that ends is reason enough.
	z.awaitQuestion(t)
}

// The certificate must be valid for the target's name; the records cannot turn
// TLS off once it was there.
func TestDiscoveryWithTLS(t *testing.T) {
	pki := writePKI(t)
	server := startServer(t, etcdtest.Options{Cert: pki.ServerCert, Key: pki.ServerKey})
	plain := startServer(t, etcdtest.Options{})
	z := newZone(t)
	z.set(secureName, "localhost:"+port(t, server.Endpoint()))
	opts := Options{DiscoverySRV: "example.test", Resolver: z.resolver(), Prefix: "/p", CAFile: pki.CA}
	s := open(t, opts)
	wholeLife(t, s)

	z.set(secureName, "e1.test:"+port(t, server.Endpoint()))
	const want = "certificate is valid for localhost, not e1.test"
	err := whyNot(t, open(t, opts), func(err error) bool { return strings.Contains(err.Error(), want) })
	if !errors.Is(err, ErrTLS) || !strings.Contains(err.Error(), want) {
		t.Errorf("Load: %v, want %q", err, want)
	}

	z.mu.Lock()
	delete(z.srv, secureName)
	z.mu.Unlock()
	z.set(plainName, "e1.test:"+port(t, plain.Endpoint()))
	s.discovery.tlsOnly = false // As if the authority were the system's.
	if got, err := s.discovery.lookup(t.Context()); err == nil {
		t.Errorf("lookup = %v after there was TLS, want none", got)
	}
	if got, err := newDiscovery(&Options{DiscoverySRV: "example.test", Resolver: z.resolver()}, nil).lookup(t.Context()); err != nil || len(got) != 1 {
		t.Errorf("lookup = %v, %v: the test tests nothing", got, err)
	}
}

// deaf is a connection to a DNS server that never answers. No deadline ends it.
type deaf struct {
	net.Conn
	asked chan<- struct{}
}

func (d deaf) Write(b []byte) (int, error) {
	select {
	case d.asked <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (deaf) SetDeadline(time.Time) error { return nil }

// Who closes a store that looks up, or wants a call no more that does, does not wait for
// DNS.
func TestNobodyWaitsForDNS(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	z := newZone(t)
	z.set(plainName, "e1.test:"+port(t, server.Endpoint()))
	var silent atomic.Bool
	asked := make(chan struct{}, 1)
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if !silent.Load() {
			return z.resolver().Dial(ctx, network, address)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		near, far := net.Pipe()
		t.Cleanup(func() { far.Close() })
		return deaf{near, asked}, nil
	}}
	opts := Options{DiscoverySRV: "example.test", Resolver: resolver, Prefix: "/p"}
	looking, waiting := open(t, opts), open(t, opts)
	looking.discovery.pause = 0
	loaded(t, looking)
	silent.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	for name, c := range map[string]struct {
		ask, end func() error
		want     error
	}{
		"Close":           {func() error { looking.discovery.refresh(); return nil }, looking.Close, nil},
		"a canceled Load": {func() error { _, err := waiting.Load(ctx); return err }, func() error { cancel(); return nil }, context.Canceled},
	} {
		ended := make(chan error, 2)
		go func() { ended <- c.ask() }()
		<-asked
		go func() { ended <- c.end() }()
		for range cap(ended) {
			select {
			case err := <-ended:
				if err != nil && !errors.Is(err, c.want) {
					t.Errorf("%s: %v, want %v", name, err, c.want)
				}
			case <-time.After(time.Minute):
				t.Fatalf("%s waits for DNS", name)
			}
		}
	}
	looking.discovery.refresh() // One that is closed asks no more.
	if len(asked) > 0 {
		t.Error("asked after Close")
	}
}
