package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := os.RemoveAll(selfDir()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// needsRoot skips a test that makes namespaces.
func needsRoot(t *testing.T) {
	t.Helper()
	if err := CheckRoot(); err != nil {
		t.Skip(err)
	}
}

// newTestLab makes a lab that the test's end closes. Its daemon is a shell
// script.
func newTestLab(t *testing.T, hosts int, script string) *Lab {
	t.Helper()
	needsRoot(t)
	return newTestLabWith(t, Options{Hosts: hosts, Daemon: writeScript(t, script)})
}

func newTestLabWith(t *testing.T, o Options) *Lab {
	t.Helper()
	l, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return l
}

func writeScript(t *testing.T, script string) string {
	path := filepath.Join(t.TempDir(), "daemon")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// traces lists what there is of a lab on the machine.
func traces(t *testing.T, name string) []string {
	t.Helper()
	namespaces, err := filepath.Glob(filepath.Join(netnsDir, name+"-*"))
	if err != nil {
		t.Fatal(err)
	}
	folders, err := filepath.Glob(filepath.Join(root, name+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return append(namespaces, folders...)
}

func TestHostsReachEachOtherAndLeaveNoTrace(t *testing.T) {
	needsRoot(t)
	l, err := New(t.Context(), Options{Hosts: 3})
	if err != nil {
		t.Fatal(err)
	}
	for family := range 2 {
		for _, from := range l.Hosts {
			for _, to := range l.Hosts {
				// The kernel may take a second to notice that a link is up.
				if err := from.WaitPing(within(t, patience), to.Addrs[family].Addr()); err != nil {
					t.Fatal(err)
				}
				r, err := from.Ping(t.Context(), PingOptions{To: to.Addrs[family].Addr(), Count: 3})
				if err != nil || r.Lost() > 0 {
					t.Errorf("%s pings %s: %s, %v", from.Name, to.Addrs[family], r, err)
				}
			}
		}
	}
	if got := len(traces(t, l.Name)); got != 5 {
		t.Errorf("%d traces of a running lab, want 4 namespaces and a folder", got)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if left := traces(t, l.Name); len(left) > 0 {
		t.Errorf("left behind: %s", left)
	}
}

// Nothing of a lab may be seen in the namespace of who makes it, which is no other test's
// here.
func TestNothingAppearsOutside(t *testing.T) {
	needsRoot(t)
	if !alone(t, "--net") {
		return
	}
	updates, done := make(chan netlink.LinkUpdate, 100), make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		t.Fatal(err)
	}
	newTestLab(t, 2, "sleep 60")
	// What the lab did is told before this.
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "last"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	select {
	case u := <-updates:
		if name := u.Attrs().Name; name != attrs.Name {
			t.Errorf("interface %s changed outside of the lab", name)
		}
	case <-time.After(patience):
		t.Error("nothing is told of any interface")
	}
}

func TestPingCountsLoss(t *testing.T) {
	l := newTestLab(t, 2, "sleep 60")
	// An address of the segment that nobody has.
	r, err := l.Hosts[0].Ping(t.Context(), PingOptions{To: netip.MustParseAddr("198.18.0.99"), Count: 4, Timeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 4 || r.Received != 0 || r.Gap == 0 {
		t.Errorf("got %+v, want 4 lost and a gap", r)
	}
	eth0, err := l.Hosts[1].Links().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Hosts[0].StartPing(t.Context(), PingOptions{To: l.Hosts[1].Addrs[0].Addr(), Timeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	until := func(what string, so func() bool) {
		t.Helper()
		if err := poll(within(t, patience), func() (bool, error) { return so(), nil }); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	until("an answer", func() bool { return p.Answered(time.Time{}) })
	if err := l.Hosts[1].Links().LinkSetDown(eth0); err != nil {
		t.Fatal(err)
	}
	down := time.Now()
	until("a request into nothing", func() bool { return p.Since(down).Sent > 0 })
	r = p.Stop()
	if r.Received == 0 || r.Lost() == 0 || r.Received+r.Lost() != r.Sent {
		t.Errorf("a link that goes down half-way: %s", r)
	}
}

func TestWaitPingGivesUp(t *testing.T) {
	l := newTestLab(t, 1, "sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := l.Hosts[0].WaitPing(ctx, netip.MustParseAddr("198.18.0.99")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
}

func TestTransfer(t *testing.T) {
	l := newTestLab(t, 2, "sleep 60")
	from, to := l.Hosts[0], l.Hosts[1]
	r, err := Transfer(t.Context(), from.Node, to.Node, to.Addrs[0].Addr(), 3<<20+1)
	if err != nil {
		t.Fatal(err)
	}
	if r.Bytes != 3<<20+1 || r.Took <= 0 || r.Source != from.Addrs[0].Addr() {
		t.Errorf("got %+v", r)
	}
}

func TestContainersTalkThroughTheirHosts(t *testing.T) {
	l := newTestLab(t, 2, `
		for a; do case $a in --node-id=*) n=${a##*h};; --subnet-file=*) f=${a#*=};; esac; done
		echo 1 >/proc/sys/net/ipv4/ip_forward
		printf "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.$n.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=false\n" >$f.new
		mv $f.new $f
		exec sleep 60`)
	for _, h := range l.Hosts {
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.StartContainers(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, h := range l.Hosts {
		peer := l.Hosts[1-i]
		route := &netlink.Route{Dst: netlink.NewIPNet([]byte{10, 5, byte(peer.Number), 0}), Gw: peer.Addrs[0].Addr().AsSlice()}
		route.Dst.Mask = []byte{255, 255, 255, 0}
		if err := h.Links().RouteAdd(route); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.WaitMesh(t.Context()); err != nil {
		t.Fatal(err)
	}
	mesh, err := l.Mesh(t.Context(), PingOptions{Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	if mesh[0][1].Received != 2 || mesh[1][0].Received != 2 || mesh[0][0].Sent != 0 {
		t.Errorf("mesh: %v", mesh)
	}
	eth0, err := l.Hosts[0].Container.Links().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if eth0.Attrs().MTU != 1400 || l.Hosts[0].Container.Addr().String() != "10.5.1.2" {
		t.Errorf("container has MTU %d and address %s, want those of subnet.env", eth0.Attrs().MTU, l.Hosts[0].Container.Addr())
	}
}

func TestWaitEndsWithTheDaemon(t *testing.T) {
	l := newTestLab(t, 1, "echo first line; echo last words; exit 3")
	h := l.Hosts[0]
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	_, err := h.WaitSubnet(t.Context())
	if err == nil {
		t.Fatal("waiting for a daemon that has ended succeeds")
	}
	for _, want := range []string{"exit status 3", "last words", h.Daemon.Spec.Log} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

func TestDaemonLife(t *testing.T) {
	t.Setenv("FLANNELD_IFACE", "eth7")
	t.Setenv("FLANNELD_OWN", "the caller's")
	l := newTestLab(t, 1, `trap 'echo got TERM; exit 0' TERM
		echo "running with $# arguments in $(readlink /proc/self/ns/net), FLANNELD_IFACE=$FLANNELD_IFACE, FLANNELD_OWN=$FLANNELD_OWN"
		while :; do sleep 0.01; done`)
	h := l.Hosts[0]
	h.Env = []string{"FLANNELD_OWN=the host's"}
	if err := h.StartDaemon("--one-more"); err != nil {
		t.Fatal(err)
	}
	if err := h.StartDaemon(); err == nil {
		t.Error("a second daemon starts")
	}
	waitLog(t, h, "running", 1)
	if err := h.Daemon.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if code, err := h.Daemon.ExitCode(t.Context()); err != nil || code != 0 {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := h.RelaunchDaemon(); err != nil {
		t.Fatal(err)
	}
	waitLog(t, h, "running", 2)
	// One that is paused ends when asked, too.
	if err := h.Daemon.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := h.Daemon.Stop(within(t, patience)); err != nil {
		t.Error(err)
	}
	if err := h.RelaunchDaemon(); err != nil {
		t.Fatal(err)
	}
	waitLog(t, h, "running", 3)
	if err := h.Daemon.Kill(); err != nil {
		t.Error(err)
	}
	if code, err := h.Daemon.ExitCode(t.Context()); err != nil || code != -1 {
		t.Errorf("exit code %d, %v, want -1 for a signal", code, err)
	}
	log, err := h.Daemon.Log()
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("running with %d arguments", len(h.DaemonArgs())+1); strings.Count(log, want) != 3 {
		t.Errorf("%q is not three times in the log:\n%s", want, log)
	}
	if !strings.Contains(log, "got TERM") || strings.Count(log, "FLANNELD_IFACE=, FLANNELD_OWN=the host's\n") != 3 {
		t.Errorf("the daemon was not asked to end, or has not the environment of its host alone:\n%s", log)
	}
	info, err := os.Stat(filepath.Join(netnsDir, h.Name))
	if err != nil {
		t.Fatal(err)
	}
	if ns := fmt.Sprintf("net:[%d]", info.Sys().(*syscall.Stat_t).Ino); !strings.Contains(log, ns) {
		t.Errorf("the daemon was not in %s:\n%s", ns, log)
	}
}

func waitLog(t *testing.T, h *Host, text string, times int) {
	t.Helper()
	err := h.waitDaemon(t.Context(), text, func() (bool, error) {
		log, err := h.Daemon.Log()
		return strings.Count(log, text) >= times, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRun(t *testing.T) {
	l := newTestLab(t, 1, "sleep 60")
	out, err := l.Hosts[0].Run(t.Context(), "/bin/sh", "-c", "cat /proc/net/dev")
	if err != nil || !strings.Contains(out, "eth0") {
		t.Errorf("got %v and:\n%s", err, out)
	}
	if _, err := l.Hosts[0].Run(t.Context(), "/bin/sh", "-c", "echo why; exit 4"); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a program that fails: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	begin := time.Now()
	if _, err := l.Hosts[0].Run(ctx, "/bin/sh", "-c", "sleep 300; true"); err == nil || time.Since(begin) > time.Minute {
		t.Errorf("a program whose child goes on: %v after %s", err, time.Since(begin))
	}
}

// Frames between hosts pass no firewall of the switch, which would cost each of
// them as much as a host does.
func TestSwitchHasNoFirewall(t *testing.T) {
	l := newTestLab(t, 1, "exec sleep 60")
	const path = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	read := func() error {
		got, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // br_netfilter is not loaded
			return nil
		}
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(got)) != "0" {
			return fmt.Errorf("%s = %s", path, got)
		}
		return nil
	}
	if err := l.Switch.Do(read); err != nil {
		t.Error("the switch looks at packets:", err)
	}
}
