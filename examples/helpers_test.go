// Package examples_test ties examples and docs to the code: what they show is
// parsed or run, and what the code knows must be in them.
package examples_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/alloc"
	"github.com/flanneld-go/flanneld-go/backend/hostgw"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/udp"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// root is the folder of the module.
const root = ".."

func TestMain(m *testing.M) {
	code := m.Run()
	if err := os.RemoveAll(binDir()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// binDir is where this process keeps the commands that it runs.
func binDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("flannel-examples-%d", os.Getpid()))
}

// build builds both commands, once.
var build = sync.OnceValue(func() error {
	cmd := exec.Command("go", "build", "-o", binDir()+"/", "./cmd/flanneld-go", "./cmd/flannelctl")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
})

// command returns a command of ours, ready to be run with no environment but
// PATH.
func command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir(), name), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	return cmd
}

// backends are all of them: what cmd/internal/catalog has.
var backends = map[string]backend.Constructor{
	"alloc": alloc.New, "host-gw": hostgw.New, "udp": udp.New, "vxlan": vxlan.New,
}

// checked is what the parser and the backend make of a network config.
type checked struct {
	config  *subnet.Config
	mtu     int
	unknown []string
}

// uplinkOf is an uplink of the families given: 4, 6 or both.
func uplinkOf(mtu int, addrs ...string) backend.Uplink {
	up := backend.Uplink{Link: kernel.Link{Index: 2, Name: "eth0", MTU: mtu}}
	for _, text := range addrs {
		a := netip.MustParseAddr(text)
		up.Addr[subnet.FamilyOf(a)], up.Public[subnet.FamilyOf(a)] = a, a
	}
	return up
}

// check parses a config as the daemon does, backend's options included.
func check(text string, uplink backend.Uplink) (checked, error) {
	c, err := subnet.ParseConfig(text)
	if err != nil {
		return checked{}, err
	}
	construct := backends[c.BackendType]
	if construct == nil {
		return checked{}, fmt.Errorf("Backend.Type: %q: no such backend", c.BackendType)
	}
	seen := &unknownKeys{}
	b, err := construct(backend.Params{Config: c, Node: "node", Kernel: kerneltest.New(), Log: slog.New(seen)})
	if err == nil {
		_, err = b.Attrs(uplink)
	}
	if err != nil {
		return checked{}, err
	}
	return checked{c, b.MTU(uplink), slices.Concat(c.Unknown, seen.keys)}, nil
}

// unknownKeys collects the keys that a backend warns of.
type unknownKeys struct{ keys []string }

func (u *unknownKeys) Enabled(context.Context, slog.Level) bool { return true }
func (u *unknownKeys) WithAttrs([]slog.Attr) slog.Handler       { return u }
func (u *unknownKeys) WithGroup(string) slog.Handler            { return u }

func (u *unknownKeys) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "unknown config key") {
		r.Attrs(func(a slog.Attr) bool {
			u.keys = append(u.keys, a.Value.String())
			return true
		})
	}
	return nil
}

// read returns a file of the module.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// blocks returns the fenced blocks of one language in a Markdown text.
func blocks(markdown, language string) []string {
	var found []string
	re := regexp.MustCompile("(?ms)^```" + regexp.QuoteMeta(language) + "\n(.*?)^```$")
	open := regexp.MustCompile("(?ms)^```[a-z]*\n.*?^```$")
	for _, whole := range open.FindAllString(markdown, -1) {
		if m := re.FindStringSubmatch(whole); m != nil {
			found = append(found, m[1])
		}
	}
	return found
}

// needs skips unless the programs are there.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs program %s (see test/install-deps): %v", p, err)
		}
	}
}

// freePorts returns ports of the loopback that nobody else gets until the test ends.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	ports := make([]string, 0, n)
	for range n {
		r, err := etcdtest.Reserve("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
		ports = append(ports, strconv.Itoa(int(r.Addr.Port())))
	}
	return ports
}

// background starts a program, waits for a line that begins with ready, and
// stops it by a signal at the end of the test.
func background(t *testing.T, cmd *exec.Cmd, ready string) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s, after SIGTERM: %v", cmd, err)
		}
	})
	found := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), ready) {
				found <- true
				return
			}
		}
		found <- false
	}()
	select {
	case ok := <-found:
		if !ok {
			t.Fatalf("%s: ended without a line %q", cmd, ready)
		}
	case <-time.After(3 * time.Minute):
		t.Fatalf("%s: no line %q", cmd, ready)
	}
}

// plainEtcd starts Debian's etcd and returns its host:port.
func plainEtcd(t *testing.T) string {
	t.Helper()
	needs(t, "/usr/bin/etcd", "etcdctl")
	ports := freePorts(t, 2)
	client, peer := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	cmd := exec.Command("/usr/bin/etcd", "--data-dir", t.TempDir(), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--log-level", "error")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	})
	wait := exec.CommandContext(t.Context(), "bash", "-c", `until etcdctl --endpoints="$0" endpoint health; do ((SECONDS < 120)) || exit 1; sleep 0.2; done`, client)
	wait.Env = append(os.Environ(), "ETCDCTL_API=3")
	if out, err := wait.CombinedOutput(); err != nil {
		t.Fatalf("etcd: %v\n%s", err, out)
	}
	return strings.TrimPrefix(client, "http://")
}

// runBlocks runs the sh blocks of a page, in order, in one shell in dir, with
// commands of ours in PATH and one host:port for another.
func runBlocks(t *testing.T, page, dir, shown, actual string) {
	t.Helper()
	text := read(t, page)
	scripts := blocks(text, "sh")
	if len(scripts) == 0 || !strings.Contains(text, shown) {
		t.Fatalf("%s has no sh blocks about %s", page, shown)
	}
	script := "set -euo pipefail\n" + strings.ReplaceAll(strings.Join(scripts, ""), shown, actual)
	cmd := command(t, "flannelctl")
	run := exec.CommandContext(t.Context(), "bash", "-c", script)
	run.Dir = dir
	run.Env = []string{"PATH=" + filepath.Dir(cmd.Path) + ":" + os.Getenv("PATH"), "HOME=" + dir}
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
}
