package dockerd_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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
