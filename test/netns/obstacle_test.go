package netns_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// What stands in the way on a host is named, and the daemon goes on by itself
// once it is gone.

func TestForeignDevice(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	h := l.Hosts[0]
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "flannel.1"
	foreign := &netlink.Bridge{LinkAttrs: attrs}
	if err := h.Links().LinkAdd(foreign); err != nil {
		t.Fatal(err)
	}
	putConfig(t, l, configs["vxlan"])
	startDaemons(t, l)
	problem, err := h.WaitProblem(within(t, time.Minute), "kernel", "flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(problem.Message, "bridge") {
		t.Errorf("the device's type is not named: %s", problem.Message)
	}
	left, err := h.Links().LinkByName("flannel.1")
	if err != nil || left.Type() != "bridge" || left.Attrs().Index != foreign.Index {
		t.Fatalf("the foreign device was touched: %v, %v", left, err)
	}
	if err := h.Links().LinkDel(foreign); err != nil {
		t.Fatal(err)
	}
	if _, err := h.WaitReady(within(t, time.Minute), 0); err != nil {
		t.Error(err)
	}
}

func TestPortTaken(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	h := l.Hosts[0]
	var squatter *net.UDPConn
	err := h.Do(func() error {
		var err error
		squatter, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 8285})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()
	putConfig(t, l, configs["udp"])
	startDaemons(t, l)
	problem, err := h.WaitProblem(within(t, time.Minute), "kernel", "8285")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(problem.Message, "ss -lunp") {
		t.Errorf("the message does not say how to find who has the port: %s", problem.Message)
	}
	if err := squatter.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.WaitReady(within(t, time.Minute), 0); err != nil {
		t.Error(err)
	}
}

// wrapped writes a script that runs the daemon in a mount namespace of its own,
// after some preparation.
func wrapped(t *testing.T, preparation string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "flanneld-go")
	script := fmt.Sprintf("#!/bin/sh\nexec unshare --mount sh -ec '%s; exec \"$0\" \"$@\"' %s \"$@\"\n", preparation, command(t, "flanneld-go"))
	// A child that another goroutine forks meanwhile would hold the file open until it
	// becomes another program, and nobody can run what is open for writing.
	syscall.ForkLock.RLock()
	err := os.WriteFile(path, []byte(script), 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNoTunDevice(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1, Daemon: wrapped(t, "mount -t tmpfs none /dev/net")})
	h := l.Hosts[0]
	putConfig(t, l, configs["udp"])
	startDaemons(t, l)
	if _, err := h.WaitProblem(within(t, time.Minute), "kernel", "/dev/net/tun"); err != nil {
		t.Error(err)
	}
}

// A file that cannot be written does not keep traffic from flowing.
func TestReadOnlySubnetFile(t *testing.T) {
	folder := t.TempDir()
	l := newLab(t, lab.Options{
		Hosts:      2,
		Daemon:     wrapped(t, fmt.Sprintf("mount --bind %[1]s %[1]s; mount -o remount,bind,ro %[1]s", folder)),
		DaemonArgs: []string{"--subnet-file=" + filepath.Join(folder, "subnet.env")},
	})
	putConfig(t, l, configs["host-gw"])
	startDaemons(t, l)
	for i, h := range l.Hosts {
		problem, err := h.WaitProblem(within(t, time.Minute), "files", folder)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(problem.Message, "read-only file system") {
			t.Errorf("the cause is not named: %s", problem.Message)
		}
		peer := l.Hosts[1-i].Addrs[0].Addr()
		s, err := h.WaitStatus(within(t, time.Minute), "a path to the peer", func(s lab.Status) bool { return len(s.Peers) == 1 && s.Peers[0].Error == "" })
		if err != nil {
			t.Fatal(err)
		}
		if s.Ready {
			t.Errorf("%s counts as ready although subnet.env is not written", h.Name)
		}
		if s.Peers[0].PublicIP != peer.String() {
			t.Errorf("%s has peer %+v, want a path to %s", h.Name, s.Peers[0], peer)
		}
	}
}

func TestDaemonJSONThatIsNone(t *testing.T) {
	const garbage = "{\n  \"bip\": \"10.1.1.1/24\",,\n}\n"
	path := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(path, []byte(garbage), 0o644); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, lab.Options{Hosts: 1, DaemonArgs: []string{"--docker-config=" + path}})
	h := l.Hosts[0]
	putConfig(t, l, configs["host-gw"])
	startDaemons(t, l)
	problem, err := h.WaitProblem(within(t, time.Minute), "docker", path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(problem.Message, "line 2") {
		t.Errorf("the place of the mistake is not named: %s", problem.Message)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != garbage {
		t.Errorf("the file was touched: %q, %v", text, err)
	}
	if _, err := h.WaitSubnet(within(t, time.Minute)); err != nil {
		t.Error(err)
	}
}

// What cannot work ends the daemon at once with one line, and with status 2,
// which systemd does not restart, when it is a mistake of who typed it.
func TestUsage(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	h := l.Hosts[0]
	for _, tc := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"unknown flag", []string{"--colour=red"}, 2, "--colour"},
		{"two that exclude each other", []string{"--docker-config=/x", "--docker-options=/y"}, 2, "--docker-config and --docker-options exclude each other"},
		{"bad endpoint", []string{"--etcd-endpoints=ftp://h:1"}, 2, `--etcd-endpoints: "ftp://h:1": must be a URL`},
		{"kubernetes", []string{"--kube-subnet-mgr"}, 2, "--kube-subnet-mgr: flanneld-go keeps leases in etcd"},
		// Not the command line is wrong: a restart may find the file.
		{"certificate file missing", []string{"--etcd-endpoints=https://198.18.0.254:2379", "--etcd-cafile=/nonexistent/ca.pem"}, 1, "--etcd-cafile: open /nonexistent/ca.pem: no such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := os.Remove(filepath.Join(h.Dir, "flanneld-go.log")); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			if err := h.StartDaemon(tc.args...); err != nil {
				t.Fatal(err)
			}
			code, err := h.Daemon.ExitCode(within(t, time.Minute))
			if err != nil {
				t.Fatal(errStop(h, err))
			}
			log, err := h.Daemon.Log()
			if err != nil {
				t.Fatal(err)
			}
			if code != tc.code || !strings.Contains(log, tc.says) || strings.Count(log, "\n") != 1 {
				t.Errorf("exit status %d, want %d and one line with %q:\n%s", code, tc.code, tc.says, log)
			}
		})
	}
}

// errStop ends a daemon that should have ended by itself.
func errStop(h *lab.Host, err error) error {
	if kill := h.Daemon.Kill(); kill != nil {
		return kill
	}
	return err
}

func TestUnknownInterface(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1, DaemonArgs: []string{"--iface=eth7"}})
	putConfig(t, l, configs["host-gw"])
	startDaemons(t, l)
	problem, err := l.Hosts[0].WaitProblem(within(t, time.Minute), "uplink", "eth7")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(problem.Message, "eth0") || !strings.Contains(problem.Message, "198.18.0.1") {
		t.Errorf("the candidates are not named: %s", problem.Message)
	}
}

// Nobody listens at the endpoint: the daemon waits, says so, and goes on when
// etcd is there.
func TestEtcdUnreachable(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	putConfig(t, l, configs["host-gw"])
	if err := l.Etcd().Stop(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	startDaemons(t, l)
	h := l.Hosts[0]
	problem, err := h.WaitProblem(within(t, time.Minute), "etcd", l.EtcdURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("says: %s", problem.Message)
	if err := l.StartEtcd(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.WaitReady(within(t, time.Minute), 0); err != nil {
		t.Error(err)
	}
}

// A user without rights is told so, in one line.
func TestNotRoot(t *testing.T) {
	newLab(t, lab.Options{Hosts: 1}) // builds, or says why it cannot run here
	// The build's folder is root's own: a descriptor reaches into it.
	binary, err := os.Open(filepath.Join(binDir(), "flanneld-go"))
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	cmd := exec.CommandContext(within(t, time.Minute), "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{binary}
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	const want = "flanneld-go: must run as root: it makes network devices, routes and firewall rules\n"
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || string(out) != want {
		t.Errorf("%v: %q\nwant exit status 1 and %q", err, out, want)
	}
}
