package dockerd_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
)

func TestRunning(t *testing.T) {
	dir := t.TempDir()
	pidFile, proc := filepath.Join(dir, "docker.pid"), filepath.Join(dir, "proc")
	running := func(pid, cmdline string) (dockerd.Process, error) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(proc, "42"), 0o755); err != nil {
			t.Fatal(err)
		}
		for path, text := range map[string]string{pidFile: pid, filepath.Join(proc, "42", "cmdline"): cmdline} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dockerd.Running(pidFile, proc)
	}
	if _, err := dockerd.Running(pidFile, proc); !errors.Is(err, dockerd.ErrDown) {
		t.Errorf("no pid file: %v", err)
	}
	p, err := running("42", "/usr/sbin/dockerd\x00--bip=10.0.0.1/24\x00--label\x00a b\x00")
	given := p.Given
	if err != nil || p.PID != 42 || !p.Started.IsZero() || len(given) != 2 || given[0].String() != "--bip=10.0.0.1/24 in the command line of dockerd (pid 42)" || given[1].Value != "a b" {
		t.Errorf("%v, %v", given, err)
	}
	for name, in := range map[string][2]string{"another process": {"42", "/bin/sh\x00--bip=1\x00"}, "ended": {"43", ""}, "a zombie": {"42", ""}} {
		if p, err := running(in[0], in[1]); !errors.Is(err, dockerd.ErrDown) || p.PID != 0 {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
	if _, err := running("x", ""); err == nil || errors.Is(err, dockerd.ErrDown) {
		t.Errorf("no number: %v", err)
	}
}

// A real process, by the machine's own procfs.
func TestStarted(t *testing.T) {
	name := filepath.Join(t.TempDir(), "dockerd")
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(sleep, name); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	cmd := exec.Command(name, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	after := time.Now()
	pidFile := filepath.Join(t.TempDir(), "docker.pid")
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	const slack = time.Second // procfs counts hundredths, and the machine may be busy
	<-time.After(2 * slack)   // a time of now would not pass for the start
	p, err := dockerd.Running(pidFile, "/proc")
	if err != nil || p.Started.Before(before.Add(-slack)) || p.Started.After(after.Add(slack)) {
		t.Errorf("started %v, %v, want between %v and %v", p.Started, err, before, after)
	}
}

// A machine that gives us no time between two clocks moves no start.
func TestStartedWithoutTime(t *testing.T) {
	dir := t.TempDir()
	pidFile, proc := filepath.Join(dir, "docker.pid"), filepath.Join(dir, "proc")
	uptime := filepath.Join(proc, "uptime")
	if err := os.MkdirAll(filepath.Join(proc, "42"), 0o755); err != nil {
		t.Fatal(err)
	}
	const start, up = 10 * time.Second, 100 * time.Second // since the boot
	stat := "42 (dockerd) S" + strings.Repeat(" 0", 18) + " 1000 0\n"
	for path, text := range map[string]string{pidFile: "42", filepath.Join(proc, "42", "cmdline"): "dockerd\x00", filepath.Join(proc, "42", "stat"): stat} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(uptime, 0o644); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	var ended atomic.Bool
	var procfs sync.WaitGroup
	procfs.Go(func() {
		for look := 1; ; look++ {
			f, err := os.OpenFile(uptime, os.O_WRONLY, 0) // waits for a reader
			if err != nil || ended.Load() {
				_ = f.Close()
				return
			}
			if look == 1 {
				<-time.After(3 * time.Second)
			}
			fmt.Fprintf(f, "%.2f 0.00\n", (up + time.Since(begin)).Seconds())
			if look == 2 {
				<-time.After(3 * time.Second)
			}
			_ = f.Close()
		}
	})
	p, err := dockerd.Running(pidFile, proc)
	if late := p.Started.Sub(begin.Add(start - up)); err != nil || late.Abs() > time.Second {
		t.Errorf("started %v, %v: %s late", p.Started, err, late)
	}
	ended.Store(true)
	last, err := os.OpenFile(uptime, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	procfs.Wait()
	last.Close()
}
