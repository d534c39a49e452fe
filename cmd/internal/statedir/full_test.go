package statedir

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// onSmallDisk runs f with a file system of so many bytes at dir, which only f's
// thread sees: it ends with that.
func onSmallDisk(t *testing.T, dir, size string, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a small file system in a mount namespace of its own")
	}
	done := make(chan error)
	go func() {
		// Never unlocked: the thread cannot leave its namespace, and is thrown
		// away with the goroutine.
		runtime.LockOSThread()
		err := syscall.Unshare(syscall.CLONE_NEWNS)
		if err == nil {
			err = syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
		}
		if err == nil {
			err = syscall.Mount("small", dir, "tmpfs", 0, "size="+size)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
}

// A full disk costs the news, never what was kept.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	d := Dir(dir)
	onSmallDisk(t, dir, "64k", func() {
		kept := full()
		if err := d.SaveCache(kept); err != nil {
			t.Error(err)
			return
		}
		ballast := filepath.Join(dir, "ballast")
		if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("fill the disk: %v, want ENOSPC", err)
		}
		next := full()
		next.Revision++
		err := d.SaveCache(next)
		// The same text every time: the log says a problem once.
		if want := "save state: write " + filepath.Join(dir, "cache.json") + ": write: no space left on device"; !errors.Is(err, syscall.ENOSPC) || err.Error() != want {
			t.Errorf("save on a full disk: %v; want %s", err, want)
		}
		got, err := d.LoadCache()
		if diff := cmp.Diff(kept, got, netips()); err != nil || diff != "" {
			t.Errorf("the old cache: %v (-want +got):\n%s", err, diff)
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) != 2 {
			t.Errorf("left in the directory: %v, %v; want the cache and the ballast", list, err)
		}
		if err := os.Remove(ballast); err != nil {
			t.Error(err)
		}
		if err := d.SaveCache(next); err != nil {
			t.Errorf("with room again: %v", err)
		}
		if got, err = d.LoadCache(); err != nil || got.Revision != next.Revision {
			t.Errorf("revision %d, %v; want %d", got.Revision, err, next.Revision)
		}
	})
}
