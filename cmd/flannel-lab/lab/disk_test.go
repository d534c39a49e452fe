package lab

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestStateFills(t *testing.T) {
	l := newTestLab(t, 2, "sleep 60")
	h := l.Hosts[0]
	if err := h.FillState(); !errors.Is(err, errNotLimited) {
		t.Errorf("a state directory on the machine's disk is filled: %v", err)
	}
	const size = 32 << 10
	if err := h.LimitState(size); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(h.StateDir(), "leases.json")
	write := func(size int) error { return os.WriteFile(file, make([]byte, size), 0o600) }
	if err := write(size + 1); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("more than the limit: %v, want ENOSPC", err)
	}
	if err := write(size / 2); err != nil {
		t.Errorf("half of the limit: %v", err)
	}
	for range 2 {
		for range 2 {
			if err := h.FillState(); err != nil {
				t.Fatal(err)
			}
		}
		other := os.WriteFile(filepath.Join(h.StateDir(), "new"), []byte("x"), 0o600)
		if !errors.Is(other, syscall.ENOSPC) {
			t.Errorf("a byte on a full disk: %v, want ENOSPC", other)
		}
		for range 2 {
			if err := h.FreeState(); err != nil {
				t.Fatal(err)
			}
		}
		if err := write(size / 2); err != nil {
			t.Errorf("after it was freed: %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(l.Hosts[1].Dir, "state")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another host's state directory: %v", err)
	}
}

func TestLimitStateRefuses(t *testing.T) {
	l := newTestLab(t, 2, "sleep 60")
	h := l.Hosts[0]
	if err := h.LimitState(0); err == nil {
		t.Error("a limit of nothing, which would be none, is accepted")
	}
	if err := h.LimitState(1); err != nil {
		t.Fatal(err)
	}
	if err := h.LimitState(1); err == nil {
		t.Error("a second limit covers the first")
	}
	used := l.Hosts[1].StateDir()
	if err := os.MkdirAll(filepath.Join(used, "cache"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := l.Hosts[1].LimitState(1); err == nil {
		t.Error("a limit hides what the daemon wrote")
	}
	if limited, err := isMount(used); err != nil || limited {
		t.Errorf("a refused limit is mounted: %v", err)
	}
}

// Logs may be kept, mounts never are; not even those that somebody still uses.
func TestCloseUnmountsState(t *testing.T) {
	needsRoot(t)
	for _, keep := range []bool{false, true} {
		l, err := New(t.Context(), Options{Hosts: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Hosts[0].LimitState(1 << 20); err != nil {
			t.Fatal(err)
		}
		busy, err := os.Create(filepath.Join(l.Hosts[0].StateDir(), "file"))
		if err != nil {
			t.Fatal(err)
		}
		defer busy.Close()
		if keep {
			l.KeepFiles()
		}
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
		mounts, err := mountsBelow(l.Dir)
		if err != nil || len(mounts) > 0 {
			t.Errorf("keep %v: mounts %s are left, %v", keep, mounts, err)
		}
		if err := os.RemoveAll(l.Dir); err != nil {
			t.Error(err)
		}
	}
}
