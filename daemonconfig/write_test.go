package daemonconfig_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// put writes a file for a test, with exactly mode.
func put(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// read returns a file's text.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// stat returns the system's view of a file.
func stat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t)
}

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: changes owners and mounts")
	}
}

func TestWriteNewFile(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	tests := []struct {
		name          string
		opts          daemonconfig.WriteOptions
		wantMode      fs.FileMode
		path, wantDir string
	}{
		{"default mode", daemonconfig.WriteOptions{}, 0o644, "f", ""},
		{"own mode", daemonconfig.WriteOptions{Perm: 0o600}, 0o600, "f", ""},
		{"no text", daemonconfig.WriteOptions{}, 0o644, "empty", ""},
		{"directories", daemonconfig.WriteOptions{DirPerm: 0o755}, 0o644, "a/b/f", "a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, tt.path)
			text := strings.TrimPrefix(filepath.Base(path), "empty")
			changed, err := daemonconfig.Write(path, []byte(text), tt.opts)
			if err != nil || !changed {
				t.Fatalf("changed %t, error %v", changed, err)
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != tt.wantMode || read(t, path) != text {
				t.Errorf("mode %v, want %v; text %q", info.Mode(), tt.wantMode, read(t, path))
			}
			if got := names(t, filepath.Dir(path)); len(got) != 1 {
				t.Errorf("left behind: %v", got)
			}
			if tt.wantDir == "" {
				return
			}
			if info, err = os.Stat(filepath.Join(dir, tt.wantDir)); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("directory: %v, %v", info.Mode(), err)
			}
		})
	}
}

func TestWriteOnlyDifferences(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	put(t, path, "same", 0o640)
	before := stat(t, path)
	changed, err := daemonconfig.Write(path, []byte("same"), daemonconfig.WriteOptions{})
	if err != nil || changed {
		t.Fatalf("changed %t, error %v", changed, err)
	}
	if after := stat(t, path); after.Ino != before.Ino || after.Mtim != before.Mtim || after.Mode != before.Mode {
		t.Errorf("the file was touched: %+v, before %+v", after, before)
	}
	changed, err = daemonconfig.Write(path, nil, daemonconfig.WriteOptions{})
	if err != nil || !changed || read(t, path) != "" {
		t.Errorf("emptying: changed %t, error %v, text %q", changed, err, read(t, path))
	}
}

func TestWriteKeepsModeAndOwner(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "daemon.json")
	put(t, path, "old", 0o640)
	if err := os.Chown(path, 1234, 4321); err != nil {
		t.Fatal(err)
	}
	if _, err := daemonconfig.Write(path, []byte("new"), daemonconfig.WriteOptions{Perm: 0o600}); err != nil {
		t.Fatal(err)
	}
	if s := stat(t, path); s.Mode&0o7777 != 0o640 || s.Uid != 1234 || s.Gid != 4321 || read(t, path) != "new" {
		t.Errorf("mode %o, owner %d:%d, text %q", s.Mode, s.Uid, s.Gid, read(t, path))
	}
}

func TestWriteThroughLinks(t *testing.T) {
	tests := []struct {
		name   string
		layout func(dir string) error // makes dir/link
		target string
	}{
		{"absolute", func(dir string) error { return os.Symlink(filepath.Join(dir, "t"), filepath.Join(dir, "link")) }, "t"},
		{"relative", func(dir string) error { return os.Symlink("t", filepath.Join(dir, "link")) }, "t"},
		{"to nothing", func(dir string) error { return os.Symlink("missing", filepath.Join(dir, "link")) }, "missing"},
		{"chain", func(dir string) error {
			return errors.Join(os.Symlink("second", filepath.Join(dir, "link")), os.Symlink("t", filepath.Join(dir, "second")))
		}, "t"},
		{"parent of a linked directory", func(dir string) error {
			// link -> hop/../t, where hop leads two levels down: ".." is
			// that directory's parent, not dir.
			return errors.Join(os.MkdirAll(filepath.Join(dir, "far", "deep"), 0o755),
				os.Symlink("far/deep", filepath.Join(dir, "hop")), os.Symlink("hop/../t", filepath.Join(dir, "link")))
		}, "far/t"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, filepath.Join(dir, "t"), "old", 0o644)
			if err := tt.layout(dir); err != nil {
				t.Fatal(err)
			}
			link := filepath.Join(dir, "link")
			before, err := os.Readlink(link)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := daemonconfig.Write(link, []byte("new"), daemonconfig.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			if after, err := os.Readlink(link); err != nil || after != before {
				t.Errorf("the link became %q (%v), was %q", after, err, before)
			}
			info, err := os.Lstat(filepath.Join(dir, tt.target))
			if err != nil || !info.Mode().IsRegular() || read(t, filepath.Join(dir, tt.target)) != "new" {
				t.Errorf("the target: %v, %v", info, err)
			}
		})
	}
}

func TestWriteProblems(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{
		os.Symlink("loop", filepath.Join(dir, "loop")),
		os.Mkdir(filepath.Join(dir, "d"), 0o755),
		os.WriteFile(filepath.Join(dir, "f"), nil, 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name, path, want string
		is               error
	}{
		{"no directory", "missing/f", "no such file or directory (its directory must exist)", syscall.ENOENT},
		{"loop of links", "loop", "too many levels of symbolic links", syscall.ELOOP},
		{"directory", "d", "is not a regular file but d---------", nil},
		{"file as directory", "f/x", "not a directory", syscall.ENOTDIR},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, tt.path)
			changed, err := daemonconfig.Write(path, []byte("x"), daemonconfig.WriteOptions{})
			if err == nil || changed {
				t.Fatalf("changed %t, error %v", changed, err)
			}
			if !strings.HasPrefix(err.Error(), "write "+path+": ") || !strings.HasSuffix(err.Error(), tt.want) {
				t.Errorf("error %q: want the path, and at the end %q", err, tt.want)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v: want %v in it", err, tt.is)
			}
		})
	}
}

func TestWriteReadOnlyPlaces(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	mount := func(path string, flags uintptr) {
		t.Helper()
		for _, f := range []uintptr{syscall.MS_BIND, syscall.MS_BIND | syscall.MS_REMOUNT | flags} {
			if err := syscall.Mount(path, path, "", f, ""); err != nil {
				t.Skipf("needs a machine that lets root mount: %v", err)
			}
			if f == syscall.MS_BIND {
				t.Cleanup(func() { _ = syscall.Unmount(path, syscall.MNT_DETACH) })
			}
		}
	}
	readOnly, single := filepath.Join(dir, "ro"), filepath.Join(dir, "single")
	if err := os.Mkdir(readOnly, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(readOnly, "f"), "old", 0o644)
	put(t, single, "old", 0o644)
	mount(readOnly, syscall.MS_RDONLY)
	mount(single, 0)

	tests := []struct {
		name, path, hint string
		is               error
	}{
		{"existing", filepath.Join(readOnly, "f"), "ReadWritePaths= of the unit (systemctl edit flanneld-go), or choose another path)", syscall.EROFS},
		{"new", filepath.Join(readOnly, "g"), "ReadWritePaths= of the unit (systemctl edit flanneld-go), or choose another path)", syscall.EROFS},
		{"mount point", single, "(the file must not be a mount point of its own: mount its directory)", syscall.EBUSY},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := daemonconfig.Write(tt.path, []byte("new"), daemonconfig.WriteOptions{})
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.path) || !strings.HasSuffix(err.Error(), tt.hint) {
				t.Errorf("error %v: want %v, the path and %q", err, tt.is, tt.hint)
			}
		})
	}
	if got := names(t, dir); len(got) != 2 || read(t, single) != "old" {
		t.Errorf("a failed write left %v and %q", got, read(t, single))
	}
	if changed, err := daemonconfig.Write(filepath.Join(readOnly, "f"), []byte("old"), daemonconfig.WriteOptions{}); changed || err != nil {
		t.Errorf("nothing to change, but changed %t and error %v", changed, err)
	}
}

func TestWriteSweepsAbandonedFiles(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-2 * time.Hour)
	for name, when := range map[string]time.Time{
		".f12345":  old,        // abandoned
		".f67890":  time.Now(), // perhaps being written
		".f12.bak": old,        // not ours
		".fx1":     old,
		"f1":       old,
	} {
		put(t, filepath.Join(dir, name), "x", 0o600)
		if err := os.Chtimes(filepath.Join(dir, name), when, when); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := daemonconfig.Write(filepath.Join(dir, "f"), []byte("x"), daemonconfig.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	want := []string{".f12.bak", ".f67890", ".fx1", "f", "f1"}
	if diff := cmp.Diff(want, names(t, dir)); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}
}

// writerEnv makes this test binary a process that writes one file over and
// over, until it is killed.
const writerEnv = "DAEMONCONFIG_TEST_WRITER"

// contents are two texts of several blocks that a torn write would mix.
func contents() [2][]byte {
	return [2][]byte{bytes.Repeat([]byte("a"), 1<<20), bytes.Repeat([]byte("b"), 1<<20)}
}

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		for i := 0; ; i++ {
			if _, err := daemonconfig.Write(path, contents()[i%2], daemonconfig.WriteOptions{}); err != nil {
				os.Exit(1)
			}
		}
	}
	if story := os.Getenv(storyEnv); story != "" {
		if err := playStory(os.Getenv(storyEnv+"_DIR"), story); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// awaitWriter returns when the writer has replaced the file once.
func awaitWriter(t *testing.T, writer *exec.Cmd, path string) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for start := stat(t, path).Ino; stat(t, path).Ino == start; {
		if time.Now().After(deadline) {
			_ = writer.Process.Kill()
			t.Fatalf("the writer replaced no file: %v", writer.Wait())
		}
	}
}

// TestKilledWriter kills -9 a process in the middle of writing and looks for
// anything but one of the two whole contents.
func TestKilledWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	put(t, path, string(contents()[0]), 0o644)
	want := contents()
	seen := map[uint64]bool{}
	for round := range 20 {
		writer := exec.Command(os.Args[0])
		writer.Env = append(os.Environ(), writerEnv+"="+path)
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		awaitWriter(t, writer, path)
		<-time.After(time.Duration(round) * 700 * time.Microsecond) // another point of the cycle each time
		if err := writer.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := writer.Wait(); err == nil || writer.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the writer was to be killed, but: %v", err)
		}
		got := read(t, path)
		if got != string(want[0]) && got != string(want[1]) {
			t.Fatalf("round %d: %d bytes that are neither content", round, len(got))
		}
		seen[stat(t, path).Ino] = true
	}
	t.Logf("%d files looked at, left behind: %v", len(seen), names(t, filepath.Dir(path)))
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "link")
	put(t, file, "FLANNEL_MTU=1450\n", 0o644)
	if err := os.Symlink("subnet.env", link); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path string
		removed    bool
		left       []string
		fails      string
	}{
		{name: "what a link leads to", path: link, removed: true, left: []string{"link"}},
		{name: "a link that leads nowhere", path: link, left: []string{"link"}},
		{name: "nothing", path: file, left: []string{"link"}},
		{name: "nothing in no directory", path: filepath.Join(dir, "none", "subnet.env"), left: []string{"link"}},
		{name: "a directory that holds something", path: dir, left: []string{"link"}, fails: "remove " + dir + ": "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			removed, err := daemonconfig.Remove(tt.path)
			if (err != nil) != (tt.fails != "") || err != nil && !strings.HasPrefix(err.Error(), tt.fails) {
				t.Errorf("error %v, want %q", err, tt.fails)
			}
			if removed != tt.removed {
				t.Errorf("removed %t, want %t", removed, tt.removed)
			}
			if diff := cmp.Diff(tt.left, names(t, dir)); diff != "" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
		})
	}
}
