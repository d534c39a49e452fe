package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Spec says what to start.
type Spec struct {
	// Path is the executable, Args its arguments without the program's name.
	Path string
	Args []string
	// Env is added to the caller's environment, cleaned of what would
	// configure a daemon.
	Env []string
	// Log is the file that output is appended to.
	Log string
}

// Process is a running program in a node, in a process group of its own so that
// a Ctrl-C at the terminal reaches the lab alone.
type Process struct {
	Spec Spec

	cmd  *exec.Cmd
	done chan struct{}
	err  error // set before done is closed
}

// start starts a program in the node's namespace.
func (n *Node) start(lab string, s Spec) (*Process, error) {
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	cmd := exec.Command(s.Path, s.Args...)
	cmd.Env = append(append(cleanEnv(os.Environ()), s.Env...), markEnv+"="+lab)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The child inherits the namespace of the thread that forks it.
	err = errors.Join(n.Do(cmd.Start), log.Close())
	if err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", s.Path, n.Name, err)
	}
	p := &Process{Spec: s, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// Run runs a program inside the namespace to its end and returns what it
// printed, with an error when that was not status 0. When ctx ends, so do the
// program and what it started: one that went on would hold what is printed to,
// and Run with it.
func (n *Node) Run(ctx context.Context, path string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = cleanEnv(os.Environ())
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
			return err
		}
		return os.ErrProcessDone
	}
	err := n.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("run %s in %s: %w: %s", strings.Join(cmd.Args, " "), n.Name, err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

// cleanEnv drops what would configure the daemon behind the lab's back.
func cleanEnv(env []string) []string {
	var kept []string
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "FLANNEL") || name == "NOTIFY_SOCKET" || name == "WATCHDOG_USEC" || name == "LISTEN_FDS" {
			continue
		}
		kept = append(kept, kv)
	}
	return kept
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal; a process that has ended is no failure.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", p.PID(), err)
	}
	return nil
}

// ExitCode waits for the process to end and returns its exit status, -1 when a
// signal ended it.
func (p *Process) ExitCode(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for process %d: %w", p.PID(), context.Cause(ctx))
	}
}

// Stop asks the process to end, and makes it when ctx ends first.
func (p *Process) Stop(ctx context.Context) error {
	// One that was paused cannot hear until it goes on.
	if err := errors.Join(p.Signal(syscall.SIGTERM), p.Signal(syscall.SIGCONT)); err != nil {
		return err
	}
	if _, err := p.ExitCode(ctx); err != nil {
		return errors.Join(fmt.Errorf("stop %s: %w", filepath.Base(p.Spec.Path), err), p.Kill())
	}
	return nil
}

// Kill ends the process with SIGKILL and waits for that.
func (p *Process) Kill() error {
	err := p.Signal(syscall.SIGKILL)
	<-p.done
	return err
}

// exited is the error of waiting for something from a process that has ended.
func (p *Process) exited() error {
	how := "exit status 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("%s ended (%s); the end of %s:\n%s", filepath.Base(p.Spec.Path), how, p.Spec.Log, p.Tail(tailLines))
}

// tailLines is how much of a log is shown with an error.
const tailLines = 12

// Tail returns the last lines of the log, indented; what cannot be read is said
// in its place.
func (p *Process) Tail(lines int) string {
	text, err := readEnd(p.Spec.Log, 64<<10)
	if err != nil {
		return "    " + err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return "    " + strings.Join(all[max(0, len(all)-lines):], "\n    ")
}

// Log returns everything that the process and its predecessors wrote.
func (p *Process) Log() (string, error) {
	text, err := os.ReadFile(p.Spec.Log)
	return string(text), err
}

// readEnd returns the last bytes of a file, from the beginning of a line.
func readEnd(path string, size int64) (_ []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	skip := max(0, info.Size()-size)
	text, err := io.ReadAll(io.NewSectionReader(f, skip, size))
	if err != nil || skip == 0 {
		return text, err
	}
	_, text, _ = bytes.Cut(text, []byte("\n"))
	return text, nil
}
