package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(patient{m})
}

// patient waits for what ends after the last test: what watches the firewall may be in the
// kernel still when its daemon is gone. A leak stays.
type patient struct{ *testing.M }

func (p patient) Run() int {
	code := p.M.Run()
	for end := time.Now().Add(time.Minute); code == 0 && goleak.Find() != nil && time.Now().Before(end); {
	}
	return code
}

func TestRunAndExitCode(t *testing.T) {
	tests := []struct {
		name           string
		args           []string
		stdout, stderr string // beginnings
		code           int
	}{
		{"version", []string{"--version"}, "flanneld-go devel (go", "", exitOK},
		{"version, as flannel is asked", []string{"-version"}, "flanneld-go devel (go", "", exitOK},
		{"version wins over what is wrong", []string{"--version", "--docker-restart=always"}, "flanneld-go devel (go", "", exitOK},
		{"help", []string{"--help"}, "flanneld-go leases a subnet for this Docker host", "", exitOK},
		{"help by one dash", []string{"-help"}, "flanneld-go leases a subnet for this Docker host", "", exitOK},
		{"usage", []string{"--docker-restart=always"}, "", "flanneld-go: --docker-restart: \"always\": must be never or on-change\n", exitUsage},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := exitCode(run(t.Context(), tt.args, cli.EnvOf(nil), &stdout, &stderr), &stderr)
			if code != tt.code || !strings.HasPrefix(stdout.String(), tt.stdout) || !strings.HasPrefix(stderr.String(), tt.stderr) {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d, %q.., %q..", code, stdout.String(), stderr.String(), tt.code, tt.stdout, tt.stderr)
			}
			if (tt.stdout == "") != (stdout.Len() == 0) || (tt.stderr == "") != (stderr.Len() == 0) {
				t.Errorf("stdout %q, stderr %q: one of them should be empty", stdout.String(), stderr.String())
			}
		})
	}
	var stderr bytes.Buffer
	if code := exitCode(errors.New("no netlink"), &stderr); code != exitFatal || stderr.String() != "flanneld-go: no netlink\n" {
		t.Errorf("exit code %d, stderr %q", code, stderr.String())
	}
}

// needRoot skips where the daemon itself would refuse.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the daemon refuses other users")
	}
}

func startEtcd(t *testing.T) *etcdtest.Server {
	t.Helper()
	s, err := etcdtest.Start(t.Context(), etcdtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close etcd: %v", err)
		}
	})
	return s
}

// flagsFor keeps a daemon's files in dir.
func flagsFor(dir, endpoint string) []string {
	return []string{
		"--etcd-endpoints=" + endpoint, "--node-id=me", "--docker-config=none", "--socket=" + filepath.Join(dir, "d.sock"),
		"--state-dir=" + filepath.Join(dir, "state"), "--subnet-file=" + filepath.Join(dir, "subnet.env"),
	}
}

// The whole daemon on a real etcd without a config: it answers, waits, touches
// nothing, and ends well.
func TestDaemonWaits(t *testing.T) {
	needRoot(t)
	etcd := startEtcd(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stdout bytes.Buffer
	log := &logBuffer{}
	done := make(chan error, 1)
	go func() { done <- run(ctx, flagsFor(dir, etcd.Endpoint()), cli.EnvOf(nil), &stdout, log) }()
	for end := time.Now().Add(time.Minute); log.count("no network config yet: waiting for key /coreos.com/network/config at "+etcd.Endpoint()) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the daemon does not say that it waits for a config")
		}
	}
	err := run(ctx, flagsFor(dir, etcd.Endpoint()), cli.EnvOf(nil), &stdout, log)
	if !strings.Contains(text(err), "another flanneld-go answers there") {
		t.Errorf("a second daemon: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "d.sock")); err != nil {
		t.Errorf("the refused daemon took the first one's socket away: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stopped with %v", err)
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
	if log.count(`msg="stopped; devices, routes and rules stay in place"`) != 1 {
		t.Error("the stop was not logged")
	}
}

// A password that everybody on the way can read is said once at the start, and
// by --check.
func TestRiskIsSaidOnce(t *testing.T) {
	needRoot(t)
	// This machine by an address that does not say so; nobody listens there.
	args := append(flagsFor(t.TempDir(), "http://0.0.0.0:1"), "--etcd-username=host", "--etcd-password=hunter2")
	const risk = `msg="access to etcd is not safe" risk="the password of user host goes over the network in plain text to http://0.0.0.0:1:`
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log := &logBuffer{}
	done := make(chan error, 1)
	go func() { done <- run(ctx, args, cli.EnvOf(nil), &bytes.Buffer{}, log) }()
	for end := time.Now().Add(time.Minute); log.count("component=etcd") == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the daemon does not get to its first round")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stopped with %v", err)
	}
	if n := log.count(risk); n != 1 || log.count("hunter2") != 0 {
		t.Errorf("%d times, want once, and without the password:\n%s", n, log.buf.String())
	}
	log = &logBuffer{}
	if err := run(t.Context(), append(args, "--check"), cli.EnvOf(nil), &bytes.Buffer{}, log); !strings.Contains(text(err), "connection refused") || log.count(risk) != 1 {
		t.Errorf("--check: %v, log:\n%s", err, log.buf.String())
	}
}

// --check says what a start would come to, and writes nothing.
func TestCheck(t *testing.T) {
	etcd := startEtcd(t)
	ns := kerneltest.NetNS(t, kernel.Options{})
	ns.Run(t, "ip", "link", "add", "up0", "mtu", "1400", "type", "bridge")
	ns.Run(t, "ip", "addr", "add", "198.18.0.1/24", "dev", "up0")
	ns.Run(t, "ip", "link", "set", "up0", "up")
	dir := t.TempDir()
	args := append(flagsFor(dir, etcd.Endpoint()), "--check", "--iface=up0")
	check := func() (string, error) {
		var stdout bytes.Buffer
		var err error
		ns.Do(t, func() { err = run(t.Context(), args, cli.EnvOf(nil), &stdout, &logBuffer{}) })
		return stdout.String(), err
	}
	if _, err := check(); !strings.HasPrefix(text(err), "no network config yet: waiting for key /coreos.com/network/config") {
		t.Errorf("without a config: %v", err)
	}
	store, err := etcdstore.New(etcdstore.Options{Endpoints: etcd.Endpoints(), Prefix: cli.DefaultPrefix})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	world, err := store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutConfig(t.Context(), `{"Network":"10.5.0.0/16","SubnetMin":"10.5.3.0","SubnetMax":"10.5.3.0","Backend":{"Type":"vxlan"}}`, world); err != nil {
		t.Fatal(err)
	}
	before, err := store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := check()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"network   10.5.0.0/16, backend vxlan (config revision ", "uplink    up0, 198.18.0.1, mtu 1400\n", "subnet    10.5.3.0/24\n",
		"data path flannel.1, mtu 1350\n", "peers     0\n",
		filepath.Join(dir, "subnet.env") + ":\n  FLANNEL_NETWORK=10.5.0.0/16\n  FLANNEL_SUBNET=10.5.3.1/24\n  FLANNEL_MTU=1350\n  FLANNEL_IPMASQ=false\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the plan lacks %q:\n%s", want, out)
		}
	}
	after, err := store.Load(t.Context())
	if err != nil || after.Revision != before.Revision {
		t.Errorf("etcd was written to: revision %d, then %d, %v", before.Revision, after.Revision, err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("files were written: %v, %v", list, err)
	}
	links, err := ns.Links(t.Context())
	if err != nil || len(links) != 2 {
		t.Errorf("links %v, %v; want lo and up0", links, err)
	}
}

// A kernel that others keep busy takes its time, and none of that which etcd has.
func TestCheckWaitsForTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.kernel.OnOp(func(kerneltest.Op) error {
			time.Sleep(checkTimeout)
			return nil
		})
		d := h.daemon()
		d.open = func(kernel.Options) (openHost, error) {
			time.Sleep(checkTimeout)
			return steppingKernel{Host: h.kernel}, nil
		}
		var out bytes.Buffer
		if err := d.check(t.Context(), &out); err != nil || !strings.Contains(out.String(), "\nsubnet    10.5.") {
			t.Errorf("error %v, plan:\n%s", err, &out)
		}
	})
}
