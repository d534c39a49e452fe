// Package netns_test runs the daemon's own binary on hosts made of network
// namespaces, and breaks what it is promised to survive. Machines with systemd
// and dockerd are in test/hosts.
//
//	test --> lab (cmd/flannel-lab/lab) --> flanneld-go on h1..hN, etcd on sw
//	  \________ netlink, etcd's client, pings: look and meddle ________/
//
// Bounds are generous, since machines that run tests are slow; the true figures
// are logged (go test -v).
package netns_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

const module = "github.com/flanneld-go/flanneld-go/"

// The network configs of the backends, each by its name.
var configs = map[string]string{
	"udp":     `{"Network":"10.5.0.0/16"}`,
	"vxlan":   `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`,
	"host-gw": `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`,
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := os.RemoveAll(binDir()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// binDir is where this process keeps the commands that it tests.
func binDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("flannel-netns-%d", os.Getpid()))
}

// build builds the commands, once, as `make build` does: figures are taken
// from them.
var build = sync.OnceValue(func() error {
	if err := os.Mkdir(binDir(), 0o700); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", binDir(), module+"cmd/flanneld-go", module+"cmd/flannelctl", module+"cmd/flannel-lab")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the commands: %w\n%s", err, out)
	}
	return nil
})

// command is the path of a command of ours.
func command(t *testing.T, name string) string {
	t.Helper()
	if err := lab.CheckRoot(); err != nil {
		t.Skip(err)
	}
	if err := build(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(binDir(), name)
}

// within is a context for one wait.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("not within %s", d))
	t.Cleanup(cancel)
	return ctx
}

// lateness begins to watch for how long the machine keeps this process waiting, and
// others with it; the function that it returns says so and ends it.
func lateness(t *testing.T) func() time.Duration {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	sum := make(chan time.Duration, 1)
	go func() {
		const every = 10 * time.Millisecond
		var late time.Duration
		for ctx.Err() == nil {
			began := time.Now()
			_ = lab.Wait(ctx, every) // its end is seen above
			if more := time.Since(began) - every; more > every {
				late += more
			}
		}
		sum <- late
	}()
	return func() time.Duration {
		cancel()
		return <-sum
	}
}

// newLab makes hosts and a running etcd of one member. When the test fails, the
// ends of the daemons' logs are shown and all files are kept.
func newLab(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	l := bareLab(t, o)
	if err := l.StartEtcd(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	return l
}

// newClusterLab is newLab with an etcd of three members.
func newClusterLab(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	l := bareLab(t, o)
	if _, err := l.StartCluster(within(t, 3*time.Minute), lab.ClusterOptions{}); err != nil {
		t.Fatal(err)
	}
	return l
}

func bareLab(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	if o.Daemon == "" {
		o.Daemon = command(t, "flanneld-go")
	}
	o.Self = command(t, "flannel-lab")
	l, err := lab.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.KeepFiles()
			for _, h := range l.Hosts[:min(len(l.Hosts), 4)] {
				if h.Daemon != nil {
					t.Logf("the end of %s:\n%s", h.Daemon.Spec.Log, h.Daemon.Tail(40))
				}
			}
		}
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// newNetwork makes a lab whose daemons are ready and know each other.
func newNetwork(t *testing.T, hosts int, config string, args ...string) *lab.Lab {
	t.Helper()
	l := newLab(t, lab.Options{Hosts: hosts, DaemonArgs: args})
	putConfig(t, l, config)
	startDaemons(t, l)
	waitReady(t, l)
	return l
}

func putConfig(t *testing.T, l *lab.Lab, config string) {
	t.Helper()
	if err := l.PutConfig(within(t, time.Minute), config); err != nil {
		t.Fatal(err)
	}
}

func startDaemons(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, h := range l.Hosts {
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
}

// waitReady waits until every daemon is ready and has a path to all others.
func waitReady(t *testing.T, l *lab.Lab) {
	t.Helper()
	err := l.Each(within(t, 3*time.Minute), func(ctx context.Context, h *lab.Host) error {
		_, err := h.WaitReady(ctx, len(l.Hosts)-1)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// startContainers starts a container per host and waits until all have talked.
func startContainers(t *testing.T, l *lab.Lab) {
	t.Helper()
	ctx := within(t, time.Minute)
	if err := errors.Join(l.StartContainers(ctx), l.WaitMesh(ctx)); err != nil {
		t.Fatal(err)
	}
}
