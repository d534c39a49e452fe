package examples_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// What must show nowhere, and one that is only asked for.
const (
	hidden, hiddenLater = "correct-horse-battery", "staple-of-the-operator"
	wrong               = "wrong-horse-of-nobody"
)

// transcript is everything that our programs printed, wrote or answered.
type transcript struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (x *transcript) Write(b []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.buf.Write(b)
}

func (x *transcript) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.buf.String()
}

// await returns when text was written.
func (x *transcript) await(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !strings.Contains(x.String(), text); pause(t) {
		if time.Now().After(end) {
			t.Fatalf("nobody says %q:\n%s", text, x)
		}
	}
}

func pause(t *testing.T) {
	select {
	case <-time.After(20 * time.Millisecond):
	case <-t.Context().Done():
	}
}

// vault is a host in a namespace of its own, with an etcd that wants a
// certificate, a user and a password.
type vault struct {
	ns     *kerneltest.Namespace
	dir    string
	pki    etcdtest.PKI
	server *etcdtest.Server
	admin  *clientv3.Client
	said   *transcript
}

// The daemon lives with a secret, which it is given in each of the ways there
// are, and flannelctl too; everything that can be seen of it is searched: log,
// help, status, metrics, errors, files, and the stacks of a crash.
func TestNoSecretIsShown(t *testing.T) {
	needs(t, "/usr/bin/etcd")
	v := newVault(t)
	secret, credentials := filepath.Join(v.dir, "secret"), filepath.Join(v.dir, "credentials")
	v.put(t, secret, hidden+"\n")
	if err := os.Mkdir(credentials, 0o700); err != nil {
		t.Fatal(err)
	}
	v.put(t, filepath.Join(credentials, "etcd-password"), hidden+"\n")
	// --check first: whoever dies early is cheaper.
	for name, given := range map[string]struct{ flag, env string }{
		"flag":        {flag: "--etcd-password=" + hidden},
		"environment": {env: "FLANNELD_ETCD_PASSWORD=" + hidden},
		"file":        {flag: "--etcd-password-file=" + secret},
		"credential":  {env: "CREDENTIALS_DIRECTORY=" + credentials},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"--log-level=debug"}
			if given.flag != "" {
				args = append(args, given.flag)
			}
			out := v.run(t, "flanneld-go", given.env, append(v.flags(), append(args, "--check")...)...)
			if !strings.Contains(out, "network   10.5.0.0/16") {
				t.Errorf("--check with the password by %s does not get through:\n%s", name, out)
			}
			v.briefly(t, given.env, append(v.flags(), args...))
			v.run(t, "flanneld-go", given.env, append(args, "--help")...)
			v.run(t, "flanneld-go", given.env, append(args, "--iface=none", "--on-conflict=none")...)
			v.run(t, "flannelctl", given.env, append(append([]string{"leases"}, v.access()...), args[1:]...)...)
			v.run(t, "flannelctl", given.env, append([]string{"leases", "--no-such-flag"}, args[1:]...)...)
			v.run(t, "flannelctl", given.env, append([]string{"leases", "--etcd-username="}, args[1:]...)...)
		})
	}
	v.live(t, secret)
	v.search(t)
}

func newVault(t *testing.T) *vault {
	v := &vault{ns: kerneltest.NetNS(t, kernel.Options{}), dir: t.TempDir(), said: &transcript{}}
	v.ns.Run(t, "ip", "link", "set", "lo", "up")
	v.ns.Run(t, "ip", "link", "add", "up0", "type", "bridge")
	v.ns.Run(t, "ip", "addr", "add", "198.18.0.1/24", "dev", "up0")
	v.ns.Run(t, "ip", "link", "set", "up0", "up")
	var err error
	if v.pki, err = etcdtest.WritePKI(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	v.ns.Do(t, func() {
		v.server, err = etcdtest.Start(t.Context(), etcdtest.Options{Binary: "/usr/bin/etcd", Cert: v.pki.ServerCert, Key: v.pki.ServerKey, ClientCA: v.pki.CA})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.server.Close(); err != nil {
			t.Error(err)
		}
	})
	v.admin = v.client(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, step := range []func() error{
		func() error { _, err := v.admin.RoleAdd(ctx, "root"); return err },
		func() error { _, err := v.admin.UserAdd(ctx, "root", "root"); return err },
		func() error { _, err := v.admin.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := v.admin.UserAdd(ctx, "host", hidden); return err },
		func() error { _, err := v.admin.UserGrantRole(ctx, "host", "root"); return err },
		func() error {
			_, err := v.admin.Put(ctx, "/coreos.com/network/config", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`) // whose device gets an address: a debug line
			return err
		},
		func() error { _, err := v.admin.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	v.admin = v.client(t, "root")
	return v
}

// client is an administrator's, whose connections are in the namespace.
func (v *vault) client(t *testing.T, user string) *clientv3.Client {
	t.Helper()
	cfg, err := v.pki.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: v.server.Endpoints(), TLS: cfg, Username: user, Password: user, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(v.dial(t))},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func (v *vault) dial(t *testing.T) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (conn net.Conn, err error) {
		v.ns.Do(t, func() { conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr) })
		return conn, err
	}
}

func (v *vault) put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (v *vault) access() []string {
	return []string{
		"--etcd-endpoints=" + v.server.Endpoint(), "--etcd-cafile=" + v.pki.CA, "--etcd-certfile=" + v.pki.ClientCert, "--etcd-keyfile=" + v.pki.ClientKey,
		"--etcd-username=host", "--socket=" + filepath.Join(v.dir, "d.sock"),
	}
}

func (v *vault) flags() []string {
	return append(v.access(), "--node-id=me", "--docker-config=none", "--iface=up0", "--subnet-file="+filepath.Join(v.dir, "subnet.env"), "--state-dir="+filepath.Join(v.dir, "state"))
}

// start starts a program in the namespace, whose output is for the record and to
// be returned later.
func (v *vault) start(t *testing.T, name, env string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd, out := command(t, name, args...), new(bytes.Buffer)
	cmd.Env = append(cmd.Env, env, "GOTRACEBACK=all")
	both := io.MultiWriter(v.said, out)
	cmd.Stdout, cmd.Stderr = both, both
	var err error
	v.ns.Do(t, func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// run runs a program to its end, whatever that is.
func (v *vault) run(t *testing.T, name, env string, args ...string) string {
	t.Helper()
	cmd, out := v.start(t, name, env, args...)
	if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	if out.Len() == 0 {
		t.Errorf("%s %q says nothing", name, args)
	}
	return out.String()
}

// briefly has a daemon start, work and end.
func (v *vault) briefly(t *testing.T, env string, args []string) {
	t.Helper()
	daemon, _ := v.start(t, "flanneld-go", env, args...)
	defer func() { _ = daemon.Process.Kill() }() // unless it has ended
	v.awaitSubnet(t)
	if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Wait(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(v.dir, "subnet.env")); err != nil {
		t.Fatal(err)
	}
}

// awaitSubnet returns when a daemon has leased a subnet and written it.
func (v *vault) awaitSubnet(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; pause(t) {
		if _, err := os.Stat(filepath.Join(v.dir, "subnet.env")); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no subnet.env:\n%s", v.said)
		}
	}
}

// live has a daemon lease a subnet, be refused, lose its certificate, and crash.
func (v *vault) live(t *testing.T, secret string) {
	const metrics, healthz = "127.0.0.1:9094", "8286"
	daemon, _ := v.start(t, "flanneld-go", "", append(v.flags(), "--etcd-password-file="+secret, "--log-level=debug",
		"--metrics-listen="+metrics, "--healthz-ip=127.0.0.1", "--healthz-port="+healthz)...)
	defer func() { _ = daemon.Process.Kill() }() // unless it has ended
	v.awaitSubnet(t)
	look := func() {
		t.Helper()
		for _, url := range []string{"http://" + metrics + "/metrics", "http://127.0.0.1:" + healthz + "/healthz", "http://127.0.0.1:" + healthz + "/readyz"} {
			v.get(t, url)
		}
		socket := "--socket=" + filepath.Join(v.dir, "d.sock")
		v.run(t, "flannelctl", "", "status", socket)
		v.run(t, "flannelctl", "", "status", "--json", socket)
		v.run(t, "flannelctl", "FLANNELD_ETCD_PASSWORD="+wrong, append([]string{"leases"}, v.access()...)...)
		v.run(t, "flannelctl", "", append([]string{"config", "get", "--etcd-password-file=" + secret}, v.access()...)...)
	}
	look()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := v.admin.UserChangePassword(ctx, "host", hiddenLater); err != nil {
		t.Fatal(err)
	}
	v.put(t, secret, "\n") // and the file is emptied, before the new one is in it
	v.said.await(t, "etcd access file is not in order")
	v.said.await(t, "authentication failed")
	look()
	v.put(t, secret, hiddenLater+"\n")
	v.said.await(t, "etcd access file was replaced")

	key, err := os.ReadFile(v.pki.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	v.put(t, v.pki.ClientKey, string(key[:len(key)/2]))
	v.ns.Do(t, func() { err = v.server.Restart(t.Context()) })
	if err != nil {
		t.Fatal(err)
	}
	v.said.await(t, "--etcd-keyfile "+v.pki.ClientKey)
	look()
	v.put(t, v.pki.ClientKey, string(key))

	if err := daemon.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait() // by the signal
	v.said.await(t, "SIGQUIT: quit")
}

func (v *vault) get(t *testing.T, url string) {
	t.Helper()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, addr string) (net.Conn, error) { return v.dial(t)(ctx, addr) },
	}}
	resp, err := client.Get(url)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	if n, err := io.Copy(v.said, resp.Body); err != nil || n == 0 {
		t.Errorf("%s: %d bytes, %v", url, n, err)
	}
}

// search looks for secrets in all that was said and written.
func (v *vault) search(t *testing.T) {
	t.Helper()
	places := map[string]string{"output": v.said.String()}
	err := filepath.WalkDir(v.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Base(path) == "secret" || filepath.Base(path) == "etcd-password" {
			return err
		}
		text, err := os.ReadFile(path)
		places[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(places) < 3 { // subnet.env and the cache
		t.Errorf("%v alone were searched", slices.Sorted(maps.Keys(places)))
	}
	for _, seen := range []string{"authentication failed", "host", "flanneld_ready", v.pki.ClientKey, "level=DEBUG", `"lease"`, "goroutine "} {
		if !strings.Contains(places["output"], seen) {
			t.Errorf("the output has no %q: not all of it was searched", seen)
		}
	}
	key, err := os.ReadFile(v.pki.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{hidden, hiddenLater, wrong}
	for line := range strings.Lines(string(key)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "-----") {
			secrets = append(secrets, line)
		}
	}
	for _, secret := range secrets {
		for _, form := range []string{secret, hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret))} {
			for place, text := range places {
				if at := strings.Index(text, form); at >= 0 {
					t.Errorf("%s shows %s: ..%s..", place, form, text[max(0, at-200):min(len(text), at+100)])
				}
			}
		}
	}
}
