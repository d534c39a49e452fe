package statedir

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"
)

// The instances of a host lock each other out, those of another folder do not, and a
// lock that is given up can be had.
func TestLock(t *testing.T) {
	root := t.TempDir()
	unlock, err := Dir(filepath.Join(root, "state")).Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second := Dir(filepath.Join(root, "state1") + "/")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := second.Lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock that another instance has: %v, want to wait until the deadline", err)
	}
	other, err := Dir(filepath.Join(t.TempDir(), "state1")).Lock(t.Context())
	if err != nil {
		t.Fatalf("a lock of another folder: %v", err)
	}
	other()
	had := make(chan error)
	go func() {
		unlock, err := second.Lock(t.Context())
		if err == nil {
			unlock()
		}
		had <- err
	}()
	unlock()
	if err := <-had; err != nil {
		t.Errorf("a lock that was given up: %v", err)
	}
	nowhere := Dir(filepath.Join(root, "none", "deeper", "state"))
	unlock, err = nowhere.Lock(t.Context())
	if err != nil {
		t.Fatalf("a lock where nobody has been: %v", err)
	}
	unlock()
	if err := errors.Join(nowhere.MakeFolder(), nowhere.MakeFolder()); err != nil {
		t.Fatal(err)
	}
	if unlock, err = nowhere.Lock(t.Context()); err != nil {
		t.Fatalf("a lock where a folder was made: %v", err)
	}
	defer unlock()
	ctx, cancel = context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := nowhere.Lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock in a folder that was made, which another has: %v, want to wait until the deadline", err)
	}
}
