package daemonconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
)

// WriteOptions say how a file is written. Modes are for what does not exist
// yet. The zero value is useful.
type WriteOptions struct {
	// Perm is the mode of a new file; 0: 0644. A file that exists keeps its.
	Perm fs.FileMode
	// DirPerm, when set, creates missing directories with that mode.
	DirPerm fs.FileMode
	// Check, when set, judges the new content while the old file is still in
	// place: it gets the path of a complete file in the same directory. With its
	// error nothing is changed.
	Check func(path string) error
}

// Write makes the file at path hold data and reports whether it had to change
// it. The change is one rename of a synced file, so that a reader or a crash
// finds the old or the new content. Mode and owner stay as they are, and what a
// symbolic link points to is written, not the link. Hard links are parted.
//
// Errors name the path, and say what would have to be different where the
// system's own text leaves that open.
func Write(path string, data []byte, opts WriteOptions) (changed bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, explain(err))
		}
	}()
	target, err := followLinks(path)
	if err != nil {
		return false, err
	}
	old, err := readExisting(target)
	if err != nil {
		return false, err
	}
	if old.info != nil && bytes.Equal(old.data, data) {
		return false, nil
	}
	if opts.DirPerm != 0 {
		if err := makeDirs(filepath.Dir(target), opts.DirPerm); err != nil {
			return false, err
		}
	}
	if opts.Perm == 0 {
		opts.Perm = 0o644
	}
	sweep(target)
	if err := replace(target, data, old.info, opts); err != nil {
		return false, err
	}
	return true, nil
}

// Remove deletes the file that path leads to, for good, and reports whether
// there was one.
func Remove(path string) (removed bool, err error) {
	target, err := followLinks(path)
	if err == nil {
		err = os.Remove(target)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = syncDir(filepath.Dir(target))
	}
	if err != nil {
		return false, fmt.Errorf("remove %s: %w", path, explain(err))
	}
	return true, nil
}

// replace puts data in target's place by rename, with the mode and owner of
// old, or with the mode of opts when there is no old file.
func replace(target string, data []byte, old fs.FileInfo, opts WriteOptions) error {
	dir := filepath.Dir(target)
	if old != nil {
		opts.Perm = old.Mode()
	}
	if err := replaceIn(dir, target, data, old, opts); err != nil {
		return anonymous(err)
	}
	return syncDir(dir)
}

// replaceIn writes and renames a temporary file in dir. Its errors name that.
func replaceIn(dir, target string, data []byte, old fs.FileInfo, opts WriteOptions) error {
	file, err := renameio.NewPendingFile(target,
		renameio.WithTempDir(dir), renameio.WithStaticPermissions(opts.Perm))
	if err != nil {
		return err
	}
	defer func() { _ = file.Cleanup() }() // nothing to do after the rename; before it, another error is on its way
	if err := keepOwner(file.File, old); err != nil {
		return err
	}
	if _, err := file.Write(data); err != nil {
		return err
	}
	if opts.Check != nil {
		if err := opts.Check(file.Name()); err != nil {
			return &checkError{err}
		}
	}
	return file.CloseAtomicallyReplace()
}

// checkError is what a Check said: its own words, which [anonymous] keeps.
type checkError struct{ error }

// Unwrap returns the Check's error.
func (e *checkError) Unwrap() error { return e.error }

// anonymous takes the temporary file's name from an error: it says nothing, and
// is another one at every try.
func anonymous(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	var check *checkError
	switch {
	case errors.As(err, &check):
		return check.error
	case errors.As(err, &path):
		return fmt.Errorf("%s: %w", path.Op, path.Err)
	case errors.As(err, &link):
		return fmt.Errorf("%s: %w", link.Op, link.Err)
	}
	return err
}

// keepOwner gives f the owner of old. It runs while f is still empty, so that
// nobody can read from it what he could not read before.
func keepOwner(f *os.File, old fs.FileInfo) error {
	if old == nil {
		return nil
	}
	now, err := f.Stat()
	if err != nil {
		return err
	}
	want, okWant := old.Sys().(*syscall.Stat_t)
	have, okHave := now.Sys().(*syscall.Stat_t)
	if !okWant || !okHave || (want.Uid == have.Uid && want.Gid == have.Gid) {
		return nil
	}
	return f.Chown(int(want.Uid), int(want.Gid))
}

// syncDir makes a rename in dir survive a power failure.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// makeDirs creates dir and its missing parents with exactly perm, whatever the
// umask.
func makeDirs(dir string, perm fs.FileMode) error {
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeDirs(filepath.Dir(dir), perm); err != nil {
		return err
	}
	if err := os.Mkdir(dir, perm); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return os.Chmod(dir, perm)
}

// maxLinks is the kernel's own limit of links in one path (path_resolution(7)).
const maxLinks = 40

// followLinks returns the path that an open of path would end at, whether or
// not a file is there. filepath.EvalSymlinks cannot: it wants one to be there.
func followLinks(path string) (string, error) {
	for range maxLinks {
		link, err := os.Readlink(path)
		switch {
		case errors.Is(err, syscall.EINVAL), errors.Is(err, fs.ErrNotExist):
			return path, nil
		case err != nil:
			return "", err
		case filepath.IsAbs(link):
			path = link
		default:
			// Not filepath.Join: it would resolve ".." without looking at
			// links in front of it.
			path = path[:strings.LastIndexByte(path, '/')+1] + link
		}
	}
	return "", syscall.ELOOP
}

// existing is a regular file, or nothing: info is nil.
type existing struct {
	data []byte
	info fs.FileInfo
}

// readExisting reads the file at path, if there is one.
func readExisting(path string) (existing, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return existing{}, nil
	}
	if err != nil {
		return existing{}, err
	}
	if !info.Mode().IsRegular() {
		return existing{}, fmt.Errorf("is not a regular file but %s", info.Mode().Type())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return existing{}, err
	}
	return existing{data, info}, nil
}

// abandoned is the age at which a temporary file has no living owner: a Write
// takes milliseconds.
const abandoned = time.Hour

// sweep removes temporary files of target that killed processes left behind.
// It is housekeeping: what fails here fails again, and louder, in the write.
func sweep(target string) {
	dir, base := filepath.Split(target)
	entries, err := os.ReadDir(filepath.Clean(dir))
	if err != nil {
		return
	}
	for _, entry := range entries {
		number, ok := strings.CutPrefix(entry.Name(), "."+base) // renameio's form: .base123
		if !ok || number == "" || strings.Trim(number, "0123456789") != "" {
			continue
		}
		info, err := entry.Info()
		if err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > abandoned {
			_ = os.Remove(dir + entry.Name()) // tried again by the next Write
		}
	}
}

// explain adds what would be right to an error of the system that only says
// what is wrong.
func explain(err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EROFS):
		hint = "its directory must be writable: name it in ReadWritePaths= of the unit (systemctl edit flanneld-go), or choose another path"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		hint = "run as root, and look for an immutable attribute (lsattr)"
	case errors.Is(err, syscall.ENOENT):
		hint = "its directory must exist"
	case errors.Is(err, syscall.EBUSY):
		hint = "the file must not be a mount point of its own: mount its directory"
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, hint)
}
