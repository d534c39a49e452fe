package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// site are the files of a server and of us, to be replaced.
type site struct {
	server, ours etcdtest.PKI
}

func newSite(t *testing.T) site {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	s := site{
		server: etcdtest.PKI{CA: in("server-ca"), ServerCert: in("server-cert"), ServerKey: in("server-key")},
		ours:   etcdtest.PKI{CA: in("ca"), ClientCert: in("cert"), ClientKey: in("key")},
	}
	s.install(t, writePKI(t))
	return s
}

// install puts the files of pki into the place of the former.
func (s site) install(t *testing.T, pki etcdtest.PKI) {
	t.Helper()
	s.installServer(t, pki)
	put(t, s.ours.CA, contentOf(t, pki.CA))
	put(t, s.ours.ClientCert, contentOf(t, pki.ClientCert))
	put(t, s.ours.ClientKey, contentOf(t, pki.ClientKey))
}

func (s site) installServer(t *testing.T, pki etcdtest.PKI) {
	t.Helper()
	put(t, s.server.CA, contentOf(t, pki.CA))
	put(t, s.server.ServerCert, contentOf(t, pki.ServerCert))
	put(t, s.server.ServerKey, contentOf(t, pki.ServerKey))
}

func (s site) start(t *testing.T) *etcdtest.Server {
	t.Helper()
	return startServer(t, etcdtest.Options{Cert: s.server.ServerCert, Key: s.server.ServerKey, ClientCA: s.server.CA})
}

func (s site) options(endpoint string) Options {
	return Options{Endpoints: []string{endpoint}, Prefix: "/p", CAFile: s.ours.CA, CertFile: s.ours.ClientCert, KeyFile: s.ours.ClientKey}
}

// Every certificate there is, the authority's too, is replaced under a watch: it
// goes on, and never ends.
func TestWatchSurvivesOtherCertificates(t *testing.T) {
	files := newSite(t)
	server := files.start(t)
	p := newProxy(t, server)
	opts := files.options(p.URL)
	opts.DialTimeout = time.Minute
	s := open(t, opts)
	results := follow(t, s, loaded(t, s).Revision)
	arrives := func(text string) {
		t.Helper()
		// Another client, with the certificates of the day.
		other := open(t, files.options(server.Endpoint()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := other.PutConfig(ctx, text, loaded(t, other)); err != nil {
			t.Fatal(err)
		}
		if got := config(t, results); got != text {
			t.Fatalf("config %q, want %q", got, text)
		}
	}
	arrives("before")

	// The server's certificate alone: it takes it at the next handshake.
	again := writePKI(t)
	files.installServer(t, again)
	put(t, files.ours.CA, contentOf(t, again.CA))
	p.Cut()
	// The server still asks for certificates of the authority it started with.
	arrives("another certificate of the server")

	// All of it; the server forgets the former authority.
	files.install(t, writePKI(t))
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	arrives("another authority")
}

// A replacement that is done step by step, in the worst order: each state has its
// error, and the last step ends it.
func TestReplacementStepByStep(t *testing.T) {
	files := newSite(t)
	server := files.start(t)
	log := &logBuffer{}
	opts := files.options(server.Endpoint())
	opts.Log = log.logger()
	s := open(t, opts)
	loaded(t, s)
	const bad, good = "is not in order", "was replaced"
	// Files are read at the next handshake, which may be some time off.
	fails := func(step, want string, told int) {
		t.Helper()
		for end := time.Now().Add(within); ; {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := s.Load(ctx)
			cancel()
			if errors.Is(err, ErrTLS) && strings.Contains(err.Error(), want) && strings.Count(log.String(), bad) == told {
				return
			}
			if err == nil || time.Now().After(end) {
				t.Fatalf("%s: %v, want %q, and %d times in the log that a file %s\n%s", step, err, want, told, bad, log)
			}
		}
	}
	pki := writePKI(t)
	files.installServer(t, pki)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	const untrusted, refused = "certificate not trusted (see --etcd-cafile)", "refuses our certificate"
	fails("a server of another authority", untrusted, 0)
	put(t, files.ours.CA, contentOf(t, pki.CA)[:200])
	fails("half of its certificate", untrusted, 1)
	put(t, files.ours.CA, contentOf(t, pki.CA))
	fails("our former certificate", refused, 1)
	put(t, files.ours.ClientCert, contentOf(t, pki.ClientCert))
	fails("our certificate without its key", refused, 2)
	put(t, files.ours.ClientKey, contentOf(t, pki.ClientKey))
	loaded(t, s)
	for message, want := range map[string]int{bad: 2, good: 2} {
		if n := strings.Count(log.String(), message); n != want {
			t.Errorf("%q was said %d times, want %d\n%s", message, n, want, log)
		}
	}
	for _, hidden := range []string{keyBody(t, pki), "BEGIN"} {
		if strings.Contains(log.String(), hidden) {
			t.Errorf("the log has %q:\n%s", hidden, log)
		}
	}
}

// root is a client with all rights.
func root(t *testing.T, server *etcdtest.Server) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: server.Endpoints(), Username: "root", Password: password, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func setPassword(t *testing.T, client *clientv3.Client, word string) {
	t.Helper()
	if _, err := client.UserChangePassword(t.Context(), "host", word); err != nil {
		t.Fatal(err)
	}
}

// tokenTTL is how long a token lives that is to end soon. A JWT says so in whole seconds
// and lives up to one less: with 1 s it may have ended before it is used, and the next
// one too.
const tokenTTL = 2 * time.Second

// Tokens that end, of each kind, are asked for again, by whichever call finds
// them ended, and no watch ends with them.
func TestExpiredTokens(t *testing.T) {
	pki := writePKI(t)
	jwt := fmt.Sprintf("jwt,pub-key=%s,priv-key=%s,sign-method=ES256,ttl=%s", pki.ServerCert, pki.ServerKey, tokenTTL)
	for name, opts := range map[string]etcdtest.Options{
		"simple":         {AuthTokenTTL: tokenTTL},
		"jwt":            {AuthToken: jwt},
		"debian, simple": {AuthTokenTTL: tokenTTL, Binary: debianEtcd},
		"debian, jwt":    {AuthToken: jwt, Binary: debianEtcd},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if opts.Binary != "" {
				needDebian(t)
			}
			expiredTokens(t, opts)
		})
	}
}

func expiredTokens(t *testing.T, opts etcdtest.Options) {
	server := startServer(t, opts)
	enableAuth(t, server)
	access := Options{Endpoints: server.Endpoints(), Prefix: "/allowed", Username: "host", Password: password}
	// Whoever uses a token less often than it lives meets an ended one each
	// time. A server looks for those once a second.
	const longer = tokenTTL + 1200*time.Millisecond
	s, watcher := open(t, access), open(t, access)
	watcher.tick = longer
	w := loaded(t, s)
	results := follow(t, watcher, loaded(t, watcher).Revision)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for range 3 {
		// Progress, which the watch yields after each proof.
		if r := next(t, results); r.err != nil {
			t.Fatalf("Watch: %v", r.err)
		}
	}
	var err error
	if w.Config, err = s.PutConfig(ctx, "{}", w); err != nil {
		t.Fatal(err)
	}
	if got := config(t, results); got != "{}" {
		t.Errorf("config %q", got)
	}
	l := subnet.Lease{Subnet: mustSubnet(t, "10.5.1.0-24"), Attrs: subnet.Attrs{Owner: "node"}}
	for _, step := range []struct {
		name string
		call func() error
	}{
		{"Create", func() error { l, err = s.Create(ctx, l, time.Hour, w); return err }},
		{"Renew", func() error { l, err = s.Renew(ctx, l); return err }},
		{"Update", func() error { l.Attrs.Instance = "i"; l, err = s.Update(ctx, l); return err }},
		{"Release", func() error { return s.Release(ctx, l) }},
		{"Load", func() error { _, err := s.Load(ctx); return err }},
	} {
		await(t, longer)
		if err := step.call(); err != nil {
			t.Errorf("%s with an ended token: %v", step.name, err)
		}
	}
	if _, err := s.client.Get(ctx, "/forbidden/"); !errors.As(err, new(*denial)) {
		t.Errorf("reading what is forbidden: %v: authentication is off, the test tests nothing", err)
	}
}

// forger gives tokens that no etcd takes.
type forger struct{ pb.AuthClient }

func (forger) Authenticate(context.Context, *pb.AuthenticateRequest, ...grpc.CallOption) (*pb.AuthenticateResponse, error) {
	return &pb.AuthenticateResponse{Token: "forged"}, nil
}

// An etcd that refuses every token is not asked without end.
func TestTokensAreBounded(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	enableAuth(t, server)
	s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/allowed", Username: "host", Password: password})
	s.tokens.auth = forger{}
	const want = "one token after another is refused: invalid auth token"
	if _, err := s.Load(t.Context()); !errors.Is(err, ErrAuth) || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("Load: %v, want %q", err, want)
	}
	if n := s.Stats().Requests; n != maxTokens {
		t.Errorf("%d requests for one Load, want %d", n, maxTokens)
	}
	if _, err := s.keepAlive(t.Context(), 1); err == nil {
		t.Error("keep-alive succeeds")
	}
	for _, err := range s.Watch(t.Context(), 1) {
		if !errors.Is(err, ErrAuth) {
			t.Errorf("Watch: %v, want %v", err, ErrAuth)
		}
	}
	if n := s.Stats().Requests; n != maxTokens+2+maxTokens {
		t.Errorf("%d requests, want %d for a Load, 2 for a keep-alive and %d for a watch", n, maxTokens, maxTokens)
	}
}

// issuer gives tokens that are all different.
type issuer struct {
	pb.AuthClient
	n int
}

func (i *issuer) Authenticate(context.Context, *pb.AuthenticateRequest, ...grpc.CallOption) (*pb.AuthenticateResponse, error) {
	i.n++
	return &pb.AuthenticateResponse{Token: fmt.Sprint("token ", i.n)}, nil
}

// refuser takes no token, and is slow to say so.
type refuser struct {
	pb.LeaseClient
	meanwhile func()
}

func (r refuser) LeaseKeepAlive(context.Context, ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error) {
	r.meanwhile()
	return nil, rpctypes.ErrGRPCInvalidAuthToken
}

// What a stream says of the token that it was opened with says nothing of one that
// another call has got since.
func TestLateRefusal(t *testing.T) {
	s := open(t, Options{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/allowed", Username: "host", Password: password})
	tokens := &issuer{}
	s.tokens.auth = tokens
	another := func() {
		former, _ := s.tokens.current()
		s.tokens.refused(former, rpctypes.ErrGRPCInvalidAuthToken)
		if _, err := s.tokens.get(t.Context()); err != nil {
			t.Error(err)
		}
	}
	s.leases = refuser{meanwhile: another}
	if _, err := s.keepAlive(t.Context(), 1); !wantsToken(err) {
		t.Errorf("keep-alive: %v", err)
	}
	// One to begin with, one per stream by others.
	if _, stale := s.tokens.current(); stale || tokens.n != 3 {
		t.Errorf("after a keep-alive: %d tokens, stale: %t; want 3, the last one fresh", tokens.n, stale)
	}
	w := &watch{Store: s}
	w.token, _ = s.tokens.current()
	another()
	if err := w.refused(t.Context(), "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"); !errors.Is(err, errTokenEnded) {
		t.Errorf("watch: %v, want %v", err, errTokenEnded)
	}
	if _, stale := s.tokens.current(); stale {
		t.Error("after a watch the token of another call is stale")
	}
}

// A password that is changed at etcd while we run is an error that says so, and
// is over when both sides have the same again.
func TestPasswordChanges(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	enableAuth(t, server)
	admin := root(t, server)
	path := filepath.Join(t.TempDir(), "password")
	put(t, path, password+"\n")
	log := &logBuffer{}
	byFile := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/allowed", Username: "host", PasswordFile: path, Log: log.logger()})
	byFlag := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/allowed", Username: "host", Password: password, Log: log.logger()})
	results := follow(t, byFile, loaded(t, byFile).Revision)
	loaded(t, byFlag)
	const want = `authentication failed, invalid user ID or password: user "host" with the password of --etcd-password-file or --etcd-password`
	refused := func(s *Store) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := s.Load(ctx)
		if !errors.Is(err, ErrAuth) || err.Error() != "load: etcd "+server.Endpoint()+": "+want {
			t.Errorf("Load: %v, want %s", err, want)
		}
	}
	setPassword(t, admin, "another")
	refused(byFile)
	refused(byFlag)
	for {
		r := next(t, results)
		if r.err == nil {
			continue
		}
		if !errors.Is(r.err, ErrAuth) || !strings.Contains(r.err.Error(), want) {
			t.Errorf("Watch: %v, want %s", r.err, want)
		}
		break
	}
	put(t, path, "another\n")
	loaded(t, byFile)
	refused(byFlag)
	setPassword(t, admin, password)
	loaded(t, byFlag)
	refused(byFile)
	put(t, path, password)
	w := loaded(t, byFile)
	results = follow(t, byFile, w.Revision)
	if _, err := byFlag.PutConfig(t.Context(), "{}", w); err != nil {
		t.Fatal(err)
	}
	if got := config(t, results); got != "{}" {
		t.Errorf("config %q", got)
	}
	for _, hidden := range []string{password, "another"} {
		if strings.Contains(log.String(), hidden) {
			t.Errorf("the log has %q:\n%s", hidden, log)
		}
	}
}

// await lets time pass that only a server can count.
func await(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
