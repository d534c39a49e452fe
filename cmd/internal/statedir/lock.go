package statedir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lockPoll is between two looks at a lock that another has.
const lockPoll = 10 * time.Millisecond

// folder is the one in which all instances have their directories.
func (d Dir) folder() string { return filepath.Dir(filepath.Clean(string(d))) }

// MakeFolder makes the folder that is locked, where there is none: of two instances that
// start there for the first time each would find nothing of the other.
func (d Dir) MakeFolder() error {
	if err := os.MkdirAll(d.folder(), 0o700); err != nil {
		return fmt.Errorf("lock state: %w", err)
	}
	return nil
}

// Lock keeps the other instances on this host from what needs it, until unlock: what all
// of them have changed is read then, and acted upon, without one that does the same at
// that moment. It waits until ctx ends. Where there is no folder there is nothing to keep
// from anybody, unless one is about to be made: see MakeFolder.
func (d Dir) Lock(ctx context.Context) (unlock func(), err error) {
	// The daemon need not be able to write to the folder, and a lock wants no file of
	// its own there.
	folder, err := os.Open(d.folder())
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock state: %w", err)
	}
	unlock = func() { _ = folder.Close() }
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for {
		err := syscall.Flock(int(folder.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return unlock, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			unlock()
			return nil, fmt.Errorf("lock state: %s: %w", folder.Name(), err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			unlock()
			return nil, fmt.Errorf("lock state: another instance on this host is being started or cleaned up: %w", context.Cause(ctx))
		}
	}
}
