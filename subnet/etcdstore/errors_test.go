package etcdstore

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

const (
	password = "hunter2-of-the-operator"
	// within is what a store has to find out why a call fails: on a busy machine a
	// handshake alone takes seconds.
	within = time.Minute
)

// expiring is a context whose deadline passes when the test says so.
type expiring struct {
	context.Context
	passed chan struct{}
}

func (e expiring) Done() <-chan struct{} { return e.passed }

func (e expiring) Err() error {
	select {
	case <-e.passed:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// whyNot is the error of a Load. Unless it ends by itself its deadline passes when enough
// would be said then, or has not been for long.
func whyNot(t *testing.T, s *Store, enough func(error) bool) error {
	t.Helper()
	ctx, over := expiring{t.Context(), make(chan struct{})}, expiring{t.Context(), make(chan struct{})}
	close(over.passed)
	ended := make(chan error, 1)
	go func() {
		_, err := s.Load(ctx)
		ended <- err
	}()
	tick, latest := time.NewTicker(20*time.Millisecond), time.After(within)
	defer tick.Stop()
	for said := false; !said; {
		select {
		case err := <-ended:
			return err
		case <-tick.C:
			said = enough(s.fail(over, "load", over.Err()))
		case <-latest:
			said = true
		}
	}
	close(ctx.passed)
	select {
	case err := <-ended:
		return err
	case <-time.After(within):
		t.Error("Load goes on behind its deadline")
		return <-ended
	}
}

// listen runs a server that does something to every connection.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var open []net.Conn
		for {
			conn, err := l.Accept()
			if err != nil {
				break
			}
			open = append(open, conn)
			go serve(conn)
		}
		for _, c := range open {
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// vacant is an address where nobody listens.
func vacant(t *testing.T) string {
	t.Helper()
	r, err := etcdtest.Reserve("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r.Addr.String()
}

// guardedByCertificate is a server whose users have certificates.
func guardedByCertificate(t *testing.T, binary string, pki etcdtest.PKI) *etcdtest.Server {
	t.Helper()
	server := startServer(t, etcdtest.Options{Binary: binary, Cert: pki.ServerCert, Key: pki.ServerKey, ClientCA: pki.CA})
	cfg, err := pki.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	enableAuthBy(t, clientv3.Config{Endpoints: server.Endpoints(), TLS: cfg})
	return server
}

// enableAuth makes a root, and a user "host" who may read and write below
// /allowed/ alone.
func enableAuth(t *testing.T, server *etcdtest.Server) {
	t.Helper()
	enableAuthBy(t, clientv3.Config{Endpoints: server.Endpoints()})
}

func enableAuthBy(t *testing.T, cfg clientv3.Config) {
	t.Helper()
	cfg.Logger = zap.NewNop()
	client, err := clientv3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, step := range []func() error{
		func() error { _, err := client.RoleAdd(ctx, "root"); return err },
		func() error { _, err := client.RoleAdd(ctx, "hosts"); return err },
		func() error {
			_, err := client.RoleGrantPermission(ctx, "hosts", "/allowed/", clientv3.GetPrefixRangeEnd("/allowed/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := client.UserAdd(ctx, "root", password); return err },
		func() error { _, err := client.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := client.UserAdd(ctx, "host", password); return err },
		func() error { _, err := client.UserGrantRole(ctx, "host", "hosts"); return err },
		func() error { _, err := client.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

func writePKI(t *testing.T) etcdtest.PKI {
	t.Helper()
	pki, err := etcdtest.WritePKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return pki
}

// Every way of not getting through, each as the operator sees it.
func TestErrorsTellTheOperator(t *testing.T) {
	t.Run("embedded", func(t *testing.T) { errorsTell(t, "") })
	t.Run("debian", func(t *testing.T) { needDebian(t); errorsTell(t, debianEtcd) })
}

func errorsTell(t *testing.T, binary string) {
	pki := writePKI(t)
	plain := startServer(t, etcdtest.Options{Binary: binary}).Endpoint()
	secure := startServer(t, etcdtest.Options{Binary: binary, Cert: pki.ServerCert, Key: pki.ServerKey}).Endpoint()
	mutual := startServer(t, etcdtest.Options{Binary: binary, Cert: pki.ServerCert, Key: pki.ServerKey, ClientCA: pki.CA}).Endpoint()
	elsewhere := startServer(t, etcdtest.Options{Binary: binary, Listen: "https://127.0.0.2:0", Cert: pki.ServerCert, Key: pki.ServerKey}).Endpoint()
	expired := startServer(t, etcdtest.Options{Binary: binary, Cert: pki.ExpiredCert, Key: pki.ExpiredKey}).Endpoint()
	guarded := startServer(t, etcdtest.Options{Binary: binary})
	enableAuth(t, guarded)
	named := guardedByCertificate(t, binary, pki).Endpoint()
	var ignored atomic.Int64
	silent := "http://" + listen(t, func(net.Conn) { ignored.Add(1) })
	rude := "http://" + listen(t, func(c net.Conn) { c.Close() })
	web := "http://" + listen(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n"); c.Close() })
	nobody := "http://" + vacant(t)
	as := func(scheme, endpoint string) string { return scheme + endpoint[strings.Index(endpoint, "://"):] }

	cases := []struct {
		name string
		opts Options
		kind error
		// where is the endpoint blamed, the only one by default.
		where string
		why   string
		// until, where it is set, is what is awaited besides.
		until func() bool
	}{
		{name: "nobody listens", opts: Options{Endpoints: []string{nobody}}, kind: ErrUnreachable, why: "connect: connection refused"},
		{name: "unknown name", opts: Options{Endpoints: []string{"http://etcd.invalid:2379"}, Resolver: newZone(t).resolver()}, kind: ErrUnreachable, why: "lookup etcd.invalid"},
		{name: "silence", opts: Options{Endpoints: []string{silent}}, kind: ErrUnreachable, why: "does not answer", until: func() bool { return ignored.Load() > 1 }},
		{name: "hangs up", opts: Options{Endpoints: []string{rude}}, kind: ErrUnreachable, why: "closes the connection: "},
		{name: "some web server", opts: Options{Endpoints: []string{web}}, kind: ErrUnreachable, why: "is no etcd: it answers in HTTP/1"},
		{name: "plain to TLS", opts: Options{Endpoints: []string{as("http", secure)}}, kind: ErrTLS, why: "speaks TLS: use https:// in --etcd-endpoints"},
		{name: "plain to TLS with client certificates", opts: Options{Endpoints: []string{as("http", mutual)}}, kind: ErrTLS, why: "speaks TLS: use https:// in --etcd-endpoints"},
		{name: "TLS to plain", opts: Options{Endpoints: []string{as("https", plain)}, CAFile: pki.CA}, kind: ErrTLS, why: "does not speak TLS: use http:// in --etcd-endpoints"},
		{name: "unknown authority", opts: Options{Endpoints: []string{secure}}, kind: ErrTLS, why: "certificate not trusted (see --etcd-cafile): x509: certificate signed by unknown authority"},
		{name: "wrong authority", opts: Options{Endpoints: []string{secure}, CAFile: pki.StrangeCA}, kind: ErrTLS, why: "certificate not trusted (see --etcd-cafile): x509: certificate signed by unknown authority"},
		{name: "wrong host", opts: Options{Endpoints: []string{elsewhere}, CAFile: pki.CA}, kind: ErrTLS, why: "certificate not trusted: x509: certificate is valid for 127.0.0.1, ::1, not 127.0.0.2"},
		{name: "expired certificate", opts: Options{Endpoints: []string{expired}, CAFile: pki.CA}, kind: ErrTLS, why: "certificate not trusted: x509: certificate has expired or is not yet valid: current time "},
		{name: "our certificate expired", opts: Options{Endpoints: []string{mutual}, CAFile: pki.CA, CertFile: pki.ExpiredCert, KeyFile: pki.ExpiredKey}, kind: ErrTLS, why: "refuses our certificate: see --etcd-certfile and --etcd-keyfile: "},
		{name: "user of a certificate without rights", opts: Options{Endpoints: []string{named}, CAFile: pki.CA, CertFile: pki.HostCert, KeyFile: pki.HostKey, Prefix: "/forbidden"}, kind: ErrAuth, why: `permission denied: user "host" has no right to read /forbidden/flanneld-go/store, nor to `},
		{name: "no client certificate", opts: Options{Endpoints: []string{mutual}, CAFile: pki.CA}, kind: ErrTLS, why: "refuses our certificate: see --etcd-certfile and --etcd-keyfile"},
		{name: "no user", opts: Options{Endpoints: guarded.Endpoints()}, kind: ErrAuth, why: "wants a user: --etcd-username and --etcd-password-file"},
		{name: "wrong password", opts: Options{Endpoints: guarded.Endpoints(), Username: "host", Password: password + "!"}, kind: ErrAuth, why: `authentication failed, invalid user ID or password: user "host" with`},
		{name: "unknown user", opts: Options{Endpoints: guarded.Endpoints(), Username: "nobody", Password: password}, kind: ErrAuth, why: `authentication failed, invalid user ID or password: user "nobody" with`},
		{name: "no permission", opts: Options{Endpoints: guarded.Endpoints(), Username: "host", Password: password, Prefix: "/forbidden"}, kind: ErrAuth, why: `permission denied: user "host" has no right to read /forbidden/flanneld-go/store, nor to read /forbidden/config, nor to read everything below /forbidden/subnets/`},
		{name: "no records", opts: Options{DiscoverySRV: "example.test", Resolver: newZone(t).resolver()}, kind: ErrUnreachable, where: "example.test", why: "no endpoints in DNS: SRV " + secureName + ": no such host"},
		{name: "one refuses and one speaks TLS", opts: Options{Endpoints: []string{nobody, as("http", secure)}}, kind: ErrTLS, where: as("http", secure), why: "speaks TLS"},
	}
	for i := range cases {
		c := &cases[i]
		if c.opts.Prefix == "" {
			c.opts.Prefix = "/allowed"
		}
		if c.where == "" {
			c.where = c.opts.Endpoints[0]
		}
	}
	begins := func(i int) string { return "load: etcd " + cases[i].where + ": " + cases[i].why }
	// Some take long: together.
	errs := make([]error, len(cases))
	var wg sync.WaitGroup
	for i, c := range cases {
		s := open(t, c.opts)
		wg.Go(func() {
			errs[i] = whyNot(t, s, func(err error) bool {
				return strings.HasPrefix(err.Error(), begins(i)) && (c.until == nil || c.until())
			})
		})
	}
	wg.Wait()
	quoted := quotes(t)
	if len(quoted) < 10 {
		t.Errorf("docs/operations.md quotes %q alone", quoted)
	}
	for _, quote := range quoted {
		if !slices.ContainsFunc(errs, func(err error) bool { return strings.Contains(err.Error(), quote) }) {
			t.Errorf("docs/operations.md quotes %q, which no error has", quote)
		}
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := errs[i]
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("Load: %v, want an *Error", err)
			}
			for _, kind := range []error{ErrUnreachable, ErrTLS, ErrAuth} {
				if got := errors.Is(err, kind); got != errors.Is(kind, c.kind) {
					t.Errorf("errors.Is(%v, %v) = %t", err, kind, got)
				}
			}
			if want := begins(i); !strings.HasPrefix(err.Error(), want) {
				t.Errorf("error\n%s\ndoes not begin with\n%s", err, want)
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), password) {
				t.Errorf("error has several lines or the password: %s", err)
			}
			t.Log(err)
		})
	}
}

// quotes are what docs/operations.md says that errors say.
func quotes(t *testing.T) []string {
	t.Helper()
	_, table, found := strings.Cut(contentOf(t, "../../docs/operations.md"), "| it says |")
	if !found {
		t.Fatal("docs/operations.md has no table of errors")
	}
	var all []string
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 && len(all) > 0 {
			break
		}
		if len(cells) > 1 {
			for i, part := range strings.Split(cells[1], "`") {
				if i%2 == 1 {
					all = append(all, part)
				}
			}
		}
	}
	return all
}

// Right options get through, also those that others get wrong.
func TestConnects(t *testing.T) {
	pki := writePKI(t)
	guarded := startServer(t, etcdtest.Options{})
	enableAuth(t, guarded)
	for name, opts := range map[string]Options{
		"TLS with the authority alone": {
			Endpoints: startServer(t, etcdtest.Options{Cert: pki.ServerCert, Key: pki.ServerKey}).Endpoints(),
			CAFile:    pki.CA,
		},
		"a user by certificate": {
			Endpoints: guardedByCertificate(t, "", pki).Endpoints(),
			CAFile:    pki.CA, CertFile: pki.HostCert, KeyFile: pki.HostKey,
		},
		"TLS with a client certificate": {
			Endpoints: startServer(t, etcdtest.Options{Cert: pki.ServerCert, Key: pki.ServerKey, ClientCA: pki.CA}).Endpoints(),
			CAFile:    pki.CA, CertFile: pki.ClientCert, KeyFile: pki.ClientKey,
		},
		"a user with rights below the prefix": {Endpoints: guarded.Endpoints(), Username: "host", Password: password},
		"one of two endpoints":                {Endpoints: append([]string{"http://" + vacant(t)}, startServer(t, etcdtest.Options{}).Endpoints()...)},
		"a user where there are none":         {Endpoints: startServer(t, etcdtest.Options{}).Endpoints(), Username: "host", Password: password},
	} {
		t.Run(name, func(t *testing.T) {
			opts.Prefix = "/allowed"
			wholeLife(t, open(t, opts))
		})
	}
}

// The user that is named counts, and not that of the certificate, which has other
// rights.
func TestNamedUserBeforeCertificate(t *testing.T) {
	pki := writePKI(t)
	server := guardedByCertificate(t, "", pki)
	opts := Options{
		Endpoints: server.Endpoints(), Prefix: "/forbidden", CAFile: pki.CA, CertFile: pki.HostCert, KeyFile: pki.HostKey,
		Username: "root", Password: password,
	}
	wholeLife(t, open(t, opts))
	opts.Username, opts.CertFile, opts.KeyFile = "host", pki.ClientCert, pki.ClientKey
	_, err := open(t, opts).Load(t.Context())
	if !errors.Is(err, ErrAuth) || !strings.Contains(err.Error(), `user "host" has no right`) {
		t.Errorf("Load as host: %v, want a denial", err)
	}
}

// wholeLife uses every call once.
func wholeLife(t *testing.T, s *Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w, err := s.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if w.Config, err = s.PutConfig(ctx, `{"Network":"10.5.0.0/16"}`, w); err != nil {
		t.Fatal(err)
	}
	l := subnet.Lease{Subnet: mustSubnet(t, "10.5.1.0-24"), Attrs: subnet.Attrs{Owner: "node"}}
	if l, err = s.Create(ctx, l, time.Hour, w); err != nil {
		t.Fatal(err)
	}
	if l, err = s.Renew(ctx, l); err != nil {
		t.Fatal(err)
	}
	l.Attrs.Instance = "another"
	if l, err = s.Update(ctx, l); err != nil {
		t.Fatal(err)
	}
	for b, err := range s.Watch(ctx, l.Modified-1) {
		if err != nil {
			t.Fatal(err)
		}
		if len(b.Put) == 1 {
			break
		}
	}
	if _, _, err := s.TTL(ctx, l.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(ctx, l); err != nil {
		t.Fatal(err)
	}
}

func mustSubnet(t *testing.T, key string) subnet.Subnet {
	t.Helper()
	s, err := subnet.ParseSubnet(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// With authentication a token is lost when etcd restarts, and asked for again.
func TestTokenIsRenewed(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	enableAuth(t, server)
	s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/allowed", Username: "host", Password: password})
	wholeLife(t, s)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if _, err := s.Load(ctx); err != nil {
		t.Errorf("Load after a restart: %v", err)
	}
}

// silentEnv makes the test binary a client that fails in every way.
const silentEnv = "ETCDSTORE_TEST_ENDPOINTS"

// Neither the client nor gRPC write to standard error by themselves.
func TestNothingOnStandardError(t *testing.T) {
	if endpoints := os.Getenv(silentEnv); endpoints != "" {
		for e := range strings.SplitSeq(endpoints, ",") {
			s := open(t, Options{Endpoints: []string{e}, Prefix: "/x", Username: "host", Password: password})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := s.Load(ctx)
			cancel()
			if err == nil {
				t.Errorf("Load from %s succeeds", e)
			}
		}
		return
	}
	pki := writePKI(t)
	secure := startServer(t, etcdtest.Options{Cert: pki.ServerCert, Key: pki.ServerKey})
	guarded := startServer(t, etcdtest.Options{})
	enableAuth(t, guarded)
	endpoints := []string{
		"http://" + vacant(t), "http://" + listen(t, func(c net.Conn) { c.Close() }),
		secure.Endpoint(), strings.Replace(secure.Endpoint(), "https", "http", 1), guarded.Endpoint(),
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestNothingOnStandardError$")
	cmd.Env = append(os.Environ(), silentEnv+"="+strings.Join(endpoints, ","))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if out, err := cmd.Output(); err != nil {
		t.Errorf("client: %v\n%s", err, out)
	}
	if stderr.Len() > 0 {
		t.Errorf("standard error:\n%s", stderr.String())
	}
}

func TestNewRefuses(t *testing.T) {
	pki := writePKI(t)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const missing = "/nonexistent/file"
	ok := []string{"https://127.0.0.1:2379"}
	for _, c := range []struct {
		name string
		opts Options
		want string
	}{
		{"no endpoint", Options{}, "--etcd-endpoints: must name at least one URL"},
		{"no URL", Options{Endpoints: []string{"127.0.0.1"}}, `--etcd-endpoints: "127.0.0.1": must be a URL such as http://192.0.2.10:2379`},
		{"no port", Options{Endpoints: []string{"http://127.0.0.1"}}, `--etcd-endpoints: "http://127.0.0.1": must be a URL such as http://192.0.2.10:2379`},
		{"password in a URL", Options{Endpoints: []string{"http://host:" + password + "@127.0.0.1:1"}}, "--etcd-endpoints: must hold no user: give --etcd-username and --etcd-password-file"},
		{"schemes mixed", Options{Endpoints: []string{ok[0], "http://127.0.0.1:1"}}, `--etcd-endpoints: "http://127.0.0.1:1": must be https like the others`},
		{"no prefix", Options{Endpoints: ok, Prefix: "-"}, `--etcd-prefix: "/": must be a key such as /coreos.com/network`},
		{"cafile missing", Options{Endpoints: ok, CAFile: missing}, "--etcd-cafile: open /nonexistent/file: no such file or directory"},
		{"cafile empty", Options{Endpoints: ok, CAFile: empty}, "--etcd-cafile: " + empty + ": has no certificate in PEM"},
		{"certfile missing", Options{Endpoints: ok, CertFile: missing, KeyFile: pki.ClientKey}, "--etcd-certfile: open /nonexistent/file: no such file or directory"},
		{"keyfile missing", Options{Endpoints: ok, CertFile: pki.ClientCert, KeyFile: missing}, "--etcd-keyfile: open /nonexistent/file: no such file or directory"},
		{"key of another", Options{Endpoints: ok, CertFile: pki.ClientCert, KeyFile: pki.ServerKey}, "--etcd-certfile " + pki.ClientCert + ", --etcd-keyfile " + pki.ServerKey + ": tls: private key does not match public key"},
		{"certificate without key", Options{Endpoints: ok, CertFile: pki.ClientCert}, "--etcd-certfile and --etcd-keyfile go together"},
		{"password without user", Options{Endpoints: ok, Password: password}, "--etcd-username and --etcd-password (or --etcd-password-file) go together"},
		{"two passwords", Options{Endpoints: ok, Username: "host", Password: password, PasswordFile: missing}, "--etcd-password and --etcd-password-file exclude each other"},
		{"user without password", Options{Endpoints: ok, Username: "host"}, "--etcd-username and --etcd-password (or --etcd-password-file) go together"},
		{"password file missing", Options{Endpoints: ok, Username: "host", PasswordFile: missing}, "--etcd-password-file: open /nonexistent/file: no such file or directory"},
		{"password file empty", Options{Endpoints: ok, Username: "host", PasswordFile: empty}, "--etcd-password-file: " + empty + ": has no password in its first line"},
		{"endpoints and discovery", Options{Endpoints: ok, DiscoverySRV: "example.com"}, "--etcd-endpoints and --etcd-discovery-srv exclude each other"},
	} {
		t.Run(c.name, func(t *testing.T) {
			switch c.opts.Prefix {
			case "":
				c.opts.Prefix = "/p"
			case "-":
				c.opts.Prefix = ""
			}
			s, err := New(c.opts)
			if err == nil {
				s.Close()
				t.Fatal("New succeeds")
			}
			if got := err.Error(); got != c.want {
				t.Errorf("New: %s\nwant: %s", got, c.want)
			}
		})
	}
}
