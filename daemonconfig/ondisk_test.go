package daemonconfig_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// apply plans and commits.
func apply(t *testing.T, c daemonconfig.DockerConfig, want daemonconfig.Docker) daemonconfig.Plan {
	t.Helper()
	p, err := c.Plan(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(p); err != nil {
		t.Fatal(err)
	}
	return p
}

// inDir returns a config with its memory in a fresh directory.
func inDir(t *testing.T) daemonconfig.DockerConfig {
	t.Helper()
	dir := t.TempDir()
	return daemonconfig.DockerConfig{
		Path: filepath.Join(dir, "daemon.json"), MemoryPath: filepath.Join(dir, "state", "docker.json"),
	}
}

const userConfig = "{\n  \"debug\": true,\n  \"mtu\": 9000\n}\n"

func TestCommitAndWithdraw(t *testing.T) {
	c := inDir(t)
	put(t, c.Path, userConfig, 0o640)
	if p := apply(t, c, vxlan); len(p.Changes) != 2 {
		t.Errorf("changes: %v, want 2", p.Changes)
	}
	want := "{\n  \"debug\": true,\n  \"mtu\": 1450,\n  \"bip\": \"10.5.72.1/24\"\n}\n"
	if diff := cmp.Diff(want, read(t, c.Path)); diff != "" {
		t.Errorf("daemon.json (-want +got):\n%s", diff)
	}
	before := stat(t, c.Path)
	if p := apply(t, c, vxlan); len(p.Changes) != 0 || stat(t, c.Path).Ino != before.Ino {
		t.Errorf("nothing to do, but %v", p.Changes)
	}
	apply(t, c, udp)
	changes, err := daemonconfig.Withdraw(c.MemoryPath)
	if err != nil || len(changes) != 2 {
		t.Fatalf("withdraw: %v, %v", changes, err)
	}
	if diff := cmp.Diff(userConfig, read(t, c.Path)); diff != "" {
		t.Errorf("daemon.json after withdrawal (-want +got):\n%s", diff)
	}
	if s := stat(t, c.Path); s.Mode&0o777 != 0o640 {
		t.Errorf("mode %o, want 640", s.Mode&0o777)
	}
	if _, err := os.Stat(c.MemoryPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the memory is still there: %v", err)
	}
	if changes, err := daemonconfig.Withdraw(c.MemoryPath); changes != nil || err != nil {
		t.Errorf("a second withdrawal: %v, %v", changes, err)
	}
}

func TestWithdrawRemovesOurOwnFile(t *testing.T) {
	c := inDir(t)
	c.Path = filepath.Join(filepath.Dir(c.Path), "docker", "daemon.json")
	c.Options.DirPerm = 0o755
	apply(t, c, vxlan)
	if _, err := daemonconfig.Withdraw(c.MemoryPath); err != nil {
		t.Fatal(err)
	}
	if left := names(t, filepath.Dir(c.Path)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestPlanTouchesNothing(t *testing.T) {
	c := inDir(t)
	p, err := c.Plan(vxlan)
	if err != nil {
		t.Fatal(err)
	}
	if p.Old != nil || len(p.Changes) != 2 {
		t.Errorf("plan %+v", p)
	}
	if left := names(t, filepath.Dir(c.Path)); len(left) != 0 {
		t.Errorf("a plan wrote %v", left)
	}
}

func TestCommitAfterAnEdit(t *testing.T) {
	for name, old := range map[string]string{"created": "", "edited": "{}"} {
		t.Run(name, func(t *testing.T) {
			c := inDir(t)
			if old != "" {
				put(t, c.Path, old, 0o644)
			}
			p, err := c.Plan(vxlan)
			if err != nil {
				t.Fatal(err)
			}
			put(t, c.Path, userConfig, 0o644)
			if err := c.Commit(p); !errors.Is(err, daemonconfig.ErrChanged) {
				t.Errorf("got %v, want ErrChanged", err)
			}
			if got := read(t, c.Path); got != userConfig {
				t.Errorf("overwritten with %q", got)
			}
		})
	}
}

func TestPlanRefusesAndNames(t *testing.T) {
	c := inDir(t)
	put(t, c.Path, "{\n  // mine\n}", 0o644)
	_, err := c.Plan(vxlan)
	want := "docker config " + c.Path + ": line 2, column 3: is not JSON: invalid character '/' looking for beginning of object key string (JSON has no comments)"
	if err == nil || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
	put(t, c.Path, userConfig, 0o644)
	if err := os.Mkdir(filepath.Dir(c.MemoryPath), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, c.MemoryPath, "[", 0o600)
	if _, err := c.Plan(vxlan); err == nil || !strings.Contains(err.Error(), c.MemoryPath) {
		t.Errorf("a broken memory: %v", err)
	}
}

func TestAnotherPathTakesTheKeysAlong(t *testing.T) {
	first := inDir(t)
	second := first
	second.Path += ".other"
	put(t, first.Path, userConfig, 0o644)
	put(t, second.Path, "{}", 0o644)
	apply(t, first, vxlan)
	apply(t, second, vxlan)
	if diff := cmp.Diff(userConfig, read(t, first.Path)); diff != "" {
		t.Errorf("first daemon.json (-want +got):\n%s", diff)
	}
	if _, err := daemonconfig.Withdraw(second.MemoryPath); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("{}", read(t, second.Path)); diff != "" {
		t.Errorf("second daemon.json (-want +got):\n%s", diff)
	}
}

// TestStoppedCommit stops a commit between its steps, by a daemon.json that
// cannot be written, and goes on from there.
func TestStoppedCommit(t *testing.T) {
	tests := []struct {
		name string
		next daemonconfig.Docker // after vxlan; the commit that stops
		then []daemonconfig.Docker
	}{
		{"first step, then withdrawn", udp, nil},
		{"first step, then done", udp, []daemonconfig.Docker{udp}},
		{"first step, then back", udp, []daemonconfig.Docker{vxlan}},
		{"first step, then something else", udp, []daemonconfig.Docker{withMasq(vxlan, false)}},
		{"key dropped", daemonconfig.Docker{BIP: udp.BIP}, nil},
		{"all dropped", daemonconfig.Docker{}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := inDir(t)
			put(t, c.Path, userConfig, 0o644)
			apply(t, c, vxlan)
			p, err := c.Plan(tt.next)
			if err != nil {
				t.Fatal(err)
			}
			stopWrites(t, c.Path, func() {
				if err := c.Commit(p); err == nil {
					t.Fatal("the commit was to be stopped")
				}
			})
			for _, want := range tt.then {
				apply(t, c, want)
			}
			if _, err := daemonconfig.Withdraw(c.MemoryPath); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(userConfig, read(t, c.Path)); diff != "" {
				t.Errorf("daemon.json after withdrawal (-want +got):\n%s", diff)
			}
		})
	}
}

// stopWrites runs f while path cannot be replaced: its name is too long for
// the temporary file beside it.
func stopWrites(t *testing.T, path string, f func()) {
	t.Helper()
	long := filepath.Join(filepath.Dir(path), strings.Repeat("x", 250))
	if err := os.Rename(path, long); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(long, path); err != nil {
		t.Fatal(err)
	}
	f()
	if err := os.Rename(long, path); err != nil {
		t.Fatal(err)
	}
}
