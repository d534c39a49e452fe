package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// errNotLimited: filling the state directory would fill the machine's disk.
var errNotLimited = errors.New("its size is not limited")

// ballast is the file that fills a state directory.
const ballast = "ballast"

// LimitState gives the daemon a state directory of its own file system, of so
// many bytes in whole pages. It must be called before the daemon starts.
func (h *Host) LimitState(bytes int64) error {
	dir := h.StateDir()
	if err := h.limitState(dir, bytes); err != nil {
		return fmt.Errorf("limit %s: %w", dir, err)
	}
	return nil
}

func (h *Host) limitState(dir string, bytes int64) error {
	if bytes < 1 {
		// To a tmpfs 0 is no limit.
		return fmt.Errorf("size: %d: must be at least 1", bytes)
	}
	switch limited, err := isMount(dir); {
	case err != nil:
		return err
	case limited:
		return errors.New("it is limited already")
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return errors.New("it has files, which would be hidden")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	options := fmt.Sprintf("size=%d,mode=0755", bytes)
	return unix.Mount("flannel-lab", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options)
}

// FillState takes what is left of a limited state directory: writes to it fail
// with ENOSPC.
func (h *Host) FillState() error {
	if err := fill(h.StateDir()); err != nil {
		return fmt.Errorf("fill %s: %w", h.StateDir(), err)
	}
	return nil
}

func fill(dir string) (err error) {
	if limited, err := isMount(dir); err != nil || !limited {
		return errors.Join(err, errNotLimited)
	}
	f, err := os.OpenFile(filepath.Join(dir, ballast), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	page := make([]byte, os.Getpagesize())
	for {
		if _, err := f.Write(page); errors.Is(err, unix.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// FreeState gives back what FillState took.
func (h *Host) FreeState() error {
	err := os.Remove(filepath.Join(h.StateDir(), ballast))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("free %s: %w", h.StateDir(), err)
	}
	return nil
}

// isMount reports whether a file system is mounted exactly there.
func isMount(dir string) (bool, error) {
	mounts, err := mountsBelow(dir)
	return slices.Contains(mounts, dir), err
}

// unmountBelow unmounts whatever is mounted in a folder of the lab's, also while
// somebody still uses it.
func unmountBelow(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	// The last mounted may cover the others.
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	return errors.Join(errs...)
}

// mountsBelow lists the mounts at or below a folder, in the order in which they
// were made (proc_pid_mountinfo(5)). Paths of labs need no escapes there.
func mountsBelow(dir string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var found []string
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			found = append(found, fields[4])
		}
	}
	return found, lines.Err()
}
