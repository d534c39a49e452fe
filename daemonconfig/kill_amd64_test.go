package daemonconfig_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// changes are the system calls that change files.
func changes() []uint64 {
	const renameat2 = 316 // not in package syscall
	return []uint64{
		syscall.SYS_OPENAT, syscall.SYS_WRITE, syscall.SYS_FSYNC, syscall.SYS_FCHMOD, syscall.SYS_FCHMODAT, syscall.SYS_FCHOWN,
		syscall.SYS_RENAME, syscall.SYS_RENAMEAT, renameat2, syscall.SYS_UNLINK, syscall.SYS_UNLINKAT, syscall.SYS_MKDIRAT,
	}
}

// killAt plays a story and kills it in front of its n-th change. It reports
// whether the story ended before.
func killAt(t *testing.T, dir, story string, n int) (ended bool) {
	t.Helper()
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), storyEnv+"="+story, storyEnv+"_DIR="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, syscall.EPERM) {
			t.Skip("needs a machine that lets root trace a process")
		}
		t.Fatal(err)
	}
	leader := cmd.Process.Pid
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(leader, &status, 0, nil); err != nil { // stopped at its exec
		t.Fatal(err)
	}
	const exitKill = 0x100000
	if err := syscall.PtraceSetOptions(leader, syscall.PTRACE_O_TRACECLONE|syscall.PTRACE_O_TRACESYSGOOD|exitKill); err != nil {
		t.Fatal(err)
	}
	tr := tracer{left: n}
	for pid, signal := leader, 0; ; {
		resume := syscall.PtraceCont
		if pid == tr.thread {
			resume = syscall.PtraceSyscall
		}
		err := resume(pid, signal)
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		if pid, err = syscall.Wait4(-1, &status, syscall.WALL, nil); err != nil {
			t.Fatal(err)
		}
		if pid == leader && (status.Exited() || status.Signaled()) {
			_ = cmd.Process.Release() // waited for here
			if status.Exited() && status.ExitStatus() != 0 {
				t.Fatalf("the story failed: %d", status.ExitStatus())
			}
			return status.Exited()
		}
		if !status.Stopped() {
			continue
		}
		signal = tr.stopped(t, leader, pid, status)
	}
}

// tracer counts the changes of a story.
type tracer struct {
	// thread is the one that plays the story; 0: it has not begun.
	thread int
	// inside: it is in a system call.
	inside bool
	left   int
}

// stopped handles one stop of a thread and returns the signal to hand on.
func (tr *tracer) stopped(t *testing.T, leader, pid int, status syscall.WaitStatus) int {
	t.Helper()
	switch signal := status.StopSignal(); signal {
	case syscall.SIGTRAP | 0x80: // a system call begins or ends
		if tr.inside = !tr.inside; !tr.inside {
			return 0
		}
		var regs syscall.PtraceRegs
		if err := syscall.PtraceGetRegs(pid, &regs); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(changes(), regs.Orig_rax) {
			return 0
		}
		if tr.left--; tr.left == 0 {
			if err := syscall.Kill(leader, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		return 0
	case syscall.SIGWINCH: // the story begins
		tr.thread = pid
		return 0
	case syscall.SIGTRAP, syscall.SIGSTOP: // a thread was made, and starts
		return 0
	default:
		return int(signal)
	}
}

// TestKilledBetweenSteps kills -9 a process in front of each change that it
// makes to any file, in every story. Whatever is left must be a file that
// dockerd accepts, and one from which the next process goes on: to the end of
// the story, and back to the administrator's text.
func TestKilledBetweenSteps(t *testing.T) {
	needRoot(t)
	daemons := dockerds()
	for i, s := range stories() {
		t.Run(s.name, func(t *testing.T) {
			points, texts := 0, map[string]bool{}
			for n := 1; ; n++ {
				dir := t.TempDir()
				c := daemonconfig.DockerConfig{Path: filepath.Join(dir, "daemon.json"), MemoryPath: filepath.Join(dir, "state", "docker.json")}
				put(t, c.Path, userConfig, 0o644)
				for _, earlier := range stories()[:i] {
					if err := earlier.play(c); err != nil {
						t.Fatal(err)
					}
				}
				if killAt(t, dir, s.name, n) {
					break
				}
				points++
				if left := read(t, c.Path); !texts[left] {
					texts[left] = true
					mustAccept(t, c.Path, daemons)
				}
				if err := s.play(c); err != nil {
					t.Fatalf("killed at step %d, the next process fails: %v", n, err)
				}
				if _, err := daemonconfig.Withdraw(c.MemoryPath); err != nil {
					t.Fatal(err)
				}
				if got := read(t, c.Path); got != userConfig {
					t.Fatalf("killed at step %d, withdrawn to %q", n, got)
				}
			}
			if points < 10 || len(texts) != 2 {
				t.Errorf("killed at %d points, which left %d texts: want 10 points or more, and the old and the new text", points, len(texts))
			}
			t.Logf("killed at %d points", points)
		})
	}
}
