// Package firewalldtest is firewalld for tests: the real one, in a network
// namespace and with a bus of its own, and a fake.
//
//	Bus    a dbus-daemon on a socket in the test's folder
//	Real   firewalld on it, with a copy of /etc/firewalld and Docker's zone
//	Fake   an object on it that answers as firewalld does, without a kernel
package firewalldtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// Bus is a private message bus.
type Bus struct{ address string }

const busConfig = `<busconfig>
<type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default">
<allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
</policy>
</busconfig>
`

// NewBus starts a bus that ends with the test.
func NewBus(t testing.TB) *Bus {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip("needs program: dbus-daemon")
	}
	// The path of a socket must be short.
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	b := &Bus{filepath.Join(dir, "bus")}
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, b.address), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, exec.Command("dbus-daemon", "--nofork", "--config-file="+config))
	b.until(t, func(ctx context.Context) bool { // the socket is there before it is listened at
		conn, err := b.Connect(ctx)
		return err == nil && conn.Close() == nil
	})
	return b
}

// Connect is what a firewalld.Client connects by.
func (b *Bus) Connect(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.Connect("unix:path="+b.address, dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("connect to the test's bus: %w", err)
	}
	return conn, nil
}

// Real is a running firewalld.
type Real struct {
	bus *Bus
	// config is its copy of /etc/firewalld.
	config string
	stop   func()
}

const dockerZone = `<?xml version="1.0" encoding="utf-8"?>
<zone version="1.0" target="ACCEPT">
  <short>docker</short>
  <description>zone for docker bridge network interfaces</description>
  <interface name="docker0"/>
</zone>
`

// NewReal starts a firewalld in the network namespace of the calling thread; it
// ends with the test. Backend is "nftables" or "iptables".
func NewReal(t testing.TB, bus *Bus, backend string) *Real {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs firewalld")
	}
	if _, err := exec.LookPath("firewalld"); err != nil {
		t.Skip("needs program: firewalld")
	}
	r := &Real{bus: bus, config: filepath.Join(t.TempDir(), "firewalld")}
	if err := os.CopyFS(r.config, os.DirFS("/etc/firewalld")); err != nil {
		t.Fatal(err)
	}
	// The zone that Docker makes.
	zone := filepath.Join(r.config, "zones", "docker.xml")
	if err := os.WriteFile(zone, []byte(dockerZone), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(r.config, "firewalld.conf")
	if err := os.WriteFile(conf, []byte("DefaultZone=public\nFirewallBackend="+backend+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Start(t)
	return r
}

// Start starts it, in the network namespace of the calling thread.
func (r *Real) Start(t testing.TB) {
	t.Helper()
	cmd := exec.Command("firewalld", "--nofork", "--nopid", "--system-config", r.config, "--log-target", "console")
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+r.bus.address)
	r.stop = start(t, cmd)
	r.bus.until(t, func(ctx context.Context) bool {
		conn, err := r.bus.Connect(ctx)
		if err != nil {
			return false
		}
		defer func() { _ = conn.Close() }() // nothing was written
		v, err := conn.Object("org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1").GetProperty("org.fedoraproject.FirewallD1.state")
		return err == nil && v.Value() == "RUNNING"
	})
}

// Config is its folder of permanent objects.
func (r *Real) Config() string { return r.config }

// Stop ends it and waits for it.
func (r *Real) Stop() { r.stop() }

// Cmd runs firewall-cmd and returns what it says.
func (r *Real) Cmd(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("firewall-cmd", args...)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+r.bus.address)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("firewall-cmd %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// Listing is everything that an administrator can see of zones and policies, and
// the names of ipsets.
func (r *Real) Listing(t testing.TB) string {
	t.Helper()
	var w bytes.Buffer
	for _, args := range [][]string{
		{"--list-all-zones"},
		{"--list-all-policies"},
		{"--permanent", "--list-all-zones"},
		{"--permanent", "--list-all-policies"},
		{"--get-ipsets"},
		{"--permanent", "--get-ipsets"},
	} {
		fmt.Fprintf(&w, "%q\n%s", args, r.Cmd(t, args...))
	}
	return w.String()
}

// start starts a process that ends with the test, and returns how to end it
// earlier. What it said is told if the test fails.
func start(t testing.TB, cmd *exec.Cmd) (stop func()) {
	t.Helper()
	said := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()                          // by our signal
		if t.Failed() {
			t.Logf("%s said:\n%s", cmd.Path, said)
		}
	}
	t.Cleanup(stop)
	return stop
}

// until waits for something to be true.
func (b *Bus) until(t testing.TB, true func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !true(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("did not come up within a minute")
		}
	}
}
