package hosts

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// bootTimeout bounds a boot and a shutdown: each takes seconds.
const bootTimeout = 2 * time.Minute

// Machine is one host with its own systemd and dockerd.
type Machine struct {
	Name string
	// Host is its place in the lab's network.
	Host *lab.Host
	// Root is its file system, as seen from here.
	Root string

	dir    string
	nspawn *exec.Cmd
	exited chan struct{}
	init   int
}

// newMachine prepares a machine on an overlay of base, with an identity of its
// own. It does not boot it.
func newMachine(ctx context.Context, base, dir string, host *lab.Host) (m *Machine, err error) {
	m = &Machine{Name: host.Name, Host: host, dir: dir, Root: filepath.Join(dir, "root")}
	for _, sub := range []string{"root", "upper", "work", "docker"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("make machine: %w", err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", base, dir, dir)
	if err := syscall.Mount("overlay", m.Root, "overlay", 0, options); err != nil {
		return nil, fmt.Errorf("mount %s: %w", m.Root, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Remove())
		}
	}()
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("make machine id: %w", err)
	}
	if err := os.WriteFile(filepath.Join(m.Root, "etc/machine-id"), []byte(hex.EncodeToString(id[:])+"\n"), 0o444); err != nil {
		return nil, fmt.Errorf("write machine id: %w", err)
	}
	return m, nil
}

// Boot starts the machine and waits until systemd says that it runs.
func (m *Machine) Boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	console, err := os.Create(filepath.Join(m.dir, "console.log"))
	if err != nil {
		return fmt.Errorf("make console log: %w", err)
	}
	defer console.Close()
	if err := m.makeCgroups(); err != nil {
		return err
	}
	m.nspawn = exec.Command("sh", "-c", enterCgroups, m.Name, "systemd-nspawn", "-q", "-D", m.Root, "--network-namespace-path=/run/netns/"+m.Name,
		"--capability=all", "--bind="+filepath.Join(m.dir, "docker")+":/var/lib/docker", "--bind=/dev/net/tun",
		"--property=DeviceAllow=/dev/net/tun rwm", "--system-call-filter=add_key keyctl bpf",
		"--register=no", "--keep-unit", "--hostname="+m.Name, "-b",
		// systemd 256 and later want this word before they run on a host
		// with cgroups of version 1; earlier ones do not know it.
		"SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1")
	m.nspawn.Env = append(os.Environ(), "SYSTEMD_NSPAWN_API_VFS_WRITABLE=1")
	m.nspawn.Stdout, m.nspawn.Stderr = console, console
	m.nspawn.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.nspawn.Start(); err != nil {
		return fmt.Errorf("start systemd-nspawn: %w", err)
	}
	m.exited = make(chan struct{})
	go func() {
		defer close(m.exited)
		_ = m.nspawn.Wait() // how it ended is in its log
	}()
	if err := m.waitInit(ctx); err != nil {
		return err
	}
	// Containers need to make cgroups.
	remount := "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,rw,bind $d; done"
	if _, err := m.Run(ctx, "sh", "-c", remount); err != nil {
		return err
	}
	out, err := m.Run(ctx, "systemctl", "is-system-running", "--wait")
	if err != nil {
		why, _ := m.Run(ctx, "sh", "-c", "systemctl --failed --no-legend --plain; journalctl -b --no-pager -p notice -n 30")
		return fmt.Errorf("machine %s is %s: %s", m.Name, strings.TrimSpace(out), why)
	}
	return nil
}

// waitInit finds the machine's process 1 and waits until its systemd answers.
func (m *Machine) waitInit(ctx context.Context) error {
	pid := m.nspawn.Process.Pid
	children := fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)
	return m.poll(ctx, "systemd", func() (bool, error) {
		text, err := os.ReadFile(children)
		if err != nil {
			return false, nil // gone: poll notices
		}
		fields := strings.Fields(string(text))
		if len(fields) == 0 {
			return false, nil
		}
		if m.init, err = strconv.Atoi(fields[0]); err != nil {
			return false, fmt.Errorf("read %s: %w", children, err)
		}
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", m.init))
		if err != nil || strings.TrimSpace(string(comm)) != "systemd" {
			return false, nil
		}
		_, err = m.Run(ctx, "systemctl", "show", "--property=Version")
		return err == nil, nil
	})
}

// poll calls done every tenth of a second until it is, the machine ends, or ctx
// does.
func (m *Machine) poll(ctx context.Context, what string, done func() (bool, error)) error {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-m.exited:
			return fmt.Errorf("machine %s ended while waiting for %s: %s", m.Name, what, tail(m.console(), 20))
		case <-ctx.Done():
			return fmt.Errorf("machine %s: wait for %s: %w", m.Name, what, context.Cause(ctx))
		}
	}
}

// console is what the machine printed while it booted.
func (m *Machine) console() string {
	text, err := os.ReadFile(filepath.Join(m.dir, "console.log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Run runs a program in the machine and returns what it printed.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	return m.Pipe(ctx, nil, args...)
}

// Pipe is Run with a standard input.
func (m *Machine) Pipe(ctx context.Context, in io.Reader, args ...string) (string, error) {
	enter := append([]string{
		"-t", strconv.Itoa(m.init), "-m", "-u", "-i", "-n", "-p", "-C", "--",
		"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root",
	}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", enter...)
	cmd.Stdin = in
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w: %s", m.Name, strings.Join(args, " "), err, tail(string(out), 10))
	}
	return string(out), nil
}

// Read returns a file of the machine, as its own processes see it: /run is not
// in Root.
func (m *Machine) Read(ctx context.Context, path string) (string, error) {
	return m.Run(ctx, "cat", path)
}

// PowerOff shuts the machine down in order, as a reboot does.
func (m *Machine) PowerOff(ctx context.Context) error {
	if m.nspawn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	_, err := m.Run(ctx, "systemctl", "poweroff", "--no-block")
	select {
	case <-m.exited:
		m.nspawn = nil
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("power off %s: %w", m.Name, context.Cause(ctx)), err)
	}
}

// Remove ends the machine at once and removes what newMachine and Boot made.
func (m *Machine) Remove() error {
	if m.nspawn != nil {
		// Process 1 of a namespace takes all others with it.
		if m.init != 0 {
			_ = syscall.Kill(m.init, syscall.SIGKILL)
		}
		_ = m.nspawn.Process.Kill()
		<-m.exited
		m.nspawn = nil
	}
	err := syscall.Unmount(m.Root, syscall.MNT_DETACH)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", m.Root, err)
	}
	if err := m.removeCgroups(); err != nil {
		return err
	}
	if err := os.RemoveAll(m.dir); err != nil {
		return fmt.Errorf("remove machine %s: %w", m.Name, err)
	}
	return nil
}
