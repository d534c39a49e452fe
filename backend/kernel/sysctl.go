package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// sysctls is where the kernel shows its sysctls. What is below net belongs to
// the namespace of the thread that looks.
const sysctls = "/proc/sys"

// Sysctl implements Host.
func (n *Netlink) Sysctl(name string) (string, error) {
	var value []byte
	err := n.sysctl(name, func(path string) (err error) {
		value, err = os.ReadFile(path)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(value)), nil
}

// SetSysctl implements Host.
func (n *Netlink) SetSysctl(name, value string) error {
	err := n.sysctl(name, func(path string) error {
		// Neither created nor truncated: these are no files.
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(value)
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return fmt.Errorf("write sysctl %s: %w", name, err)
	}
	return nil
}

// sysctl runs f in the namespace and says its failure in this package's words.
func (n *Netlink) sysctl(name string, f func(path string) error) error {
	if !filepath.IsLocal(name) {
		return fmt.Errorf("%w: not a path below %s", ErrNotFound, sysctls)
	}
	err := n.inside(func() error { return f(filepath.Join(sysctls, name)) })
	var pathErr *fs.PathError
	var errno syscall.Errno
	if errors.As(err, &pathErr) && errors.As(pathErr.Err, &errno) {
		return &Error{Code: errno}
	}
	return err
}
