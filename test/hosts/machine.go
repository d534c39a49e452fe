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

// Machine is one host with its own dockerd.
type Machine struct {
	Name string
	// Host is its place in the lab's network.
	Host *lab.Host
	// Root is its file system, as seen from here.
	Root string

	dir      string
	services supervisor
	process  *exec.Cmd // lives as long as the machine
	exited   chan struct{}
	init     int
}

// newMachine prepares a machine on an overlay of base, with an identity of its
// own. It does not boot it.
func newMachine(r recipe, base, dir string, host *lab.Host) (m *Machine, err error) {
	m = &Machine{Name: host.Name, Host: host, dir: dir, services: r.services, Root: filepath.Join(dir, "root")}
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

// Boot starts the machine and waits until its services run.
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
	argv := append([]string{"-c", enterCgroups, m.Name}, m.services.boot(m)...)
	m.process = exec.Command("sh", argv...)
	m.process.Env = append(os.Environ(), "SYSTEMD_NSPAWN_API_VFS_WRITABLE=1")
	m.process.Stdout, m.process.Stderr = console, console
	m.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.process.Start(); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	m.exited = make(chan struct{})
	go func() {
		defer close(m.exited)
		_ = m.process.Wait() // how it ended is in its log
	}()
	if err := m.waitInit(ctx); err != nil {
		return err
	}
	if out, err := m.script(ctx, m.services.settle); err != nil {
		return fmt.Errorf("machine %s has not settled: %w: %s", m.Name, err, out)
	}
	return m.waitDocker(ctx)
}

// waitDocker waits until dockerd answers.
func (m *Machine) waitDocker(ctx context.Context) error {
	return m.poll(ctx, "dockerd", func() (bool, error) {
		_, err := m.Run(ctx, "docker", "version")
		return err == nil, nil
	})
}

// waitInit finds the machine's process 1 and waits until it is up.
func (m *Machine) waitInit(ctx context.Context) error {
	pid := m.process.Process.Pid
	children := fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)
	return m.poll(ctx, "process 1", func() (bool, error) {
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
		if !leadsNamespace(m.init) {
			return false, nil
		}
		_, err = m.script(ctx, m.services.up)
		return err == nil, nil
	})
}

// leadsNamespace reports whether a process is the first one of a namespace of its
// own. The first child of systemd-nspawn is not: it makes the machine's process 1 and
// ends, and systemctl succeeds there, as in every chroot.
func leadsNamespace(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false // gone
	}
	for line := range strings.Lines(string(text)) {
		if pids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(pids)
			return len(fields) > 1 && fields[len(fields)-1] == "1"
		}
	}
	return false
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

// enter is the command that runs a program in the machine.
func (m *Machine) enter(args ...string) []string {
	var argv []string
	if m.services.join {
		argv = []string{"sh", "-c", enterCgroups, m.Name}
	}
	argv = append(argv, "nsenter", "-t", strconv.Itoa(m.init), "-m", "-u", "-i", "-n", "-p", "-C", "--",
		"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root")
	return append(argv, args...)
}

// Run runs a program in the machine and returns what it printed.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	return m.Pipe(ctx, nil, args...)
}

// Pipe is Run with a standard input.
func (m *Machine) Pipe(ctx context.Context, in io.Reader, args ...string) (string, error) {
	argv := m.enter(args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = in
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w: %s", m.Name, strings.Join(args, " "), err, tail(string(out), 10))
	}
	return string(out), nil
}

// script runs a script of the machine's supervisor.
func (m *Machine) script(ctx context.Context, script string, args ...string) (string, error) {
	return m.Run(ctx, append([]string{"sh", "-c", script}, args...)...)
}

// Service does what verb says to a service: start, stop or restart. Docker
// answers when it returns.
func (m *Machine) Service(ctx context.Context, service, verb string) error {
	if _, err := m.script(ctx, m.services.service, service, verb); err != nil {
		return err
	}
	if service == dockerService && verb != "stop" {
		return m.waitDocker(ctx)
	}
	return nil
}

// Read returns a file of the machine, as its own processes see it: /run is not
// in Root.
func (m *Machine) Read(ctx context.Context, path string) (string, error) {
	return m.Run(ctx, "cat", path)
}

// PowerOff shuts the machine down in order, as a reboot does.
func (m *Machine) PowerOff(ctx context.Context) error {
	if m.process == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	_, err := m.script(ctx, m.services.off)
	select {
	case <-m.exited:
		m.process = nil
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("power off %s: %w", m.Name, context.Cause(ctx)), err)
	}
}

// Remove ends the machine at once and removes what newMachine and Boot made.
func (m *Machine) Remove() error {
	if m.process != nil {
		// Process 1 of a namespace takes all others with it.
		if m.init != 0 {
			_ = syscall.Kill(m.init, syscall.SIGKILL)
		}
		_ = m.process.Process.Kill()
		<-m.exited
		m.process = nil
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
