package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Where labs leave traces.
const (
	// root holds one folder per lab: sockets, logs, etcd's data.
	root = "/run/flannel-lab"
	// netnsDir is where iproute2 and package netns keep named namespaces.
	netnsDir = "/run/netns"
	// markEnv names the lab in the environment of every process it starts.
	markEnv = "FLANNEL_LAB"
)

// Why a name cannot be had.
var (
	// ErrRunning: another process runs a lab of this name.
	ErrRunning = errors.New("a lab of this name is running")
	// ErrStale: a lab of this name was killed and left something behind.
	ErrStale = errors.New("a lab of this name was killed and left something behind")
	// ErrForeign: there is a namespace of a name that the lab needs, and no
	// lab made it.
	ErrForeign = errors.New("not made by a lab")
)

// claim holds a lab's name: its folder, locked.
type claim struct {
	lab  string
	dir  string
	lock *os.File
}

// claimName takes a name, or says who has it. What a killed lab of the name
// left is removed when replace is set.
func claimName(ctx context.Context, lab string, replace bool) (*claim, error) {
	c := &claim{lab: lab, dir: filepath.Join(root, lab)}
	if err := c.acquire(); err != nil {
		return nil, fmt.Errorf("lab %s: %w", lab, err)
	}
	if err := c.clear(ctx, replace); err != nil {
		// Goes only if it is empty: what a killed lab left stays for a look.
		_ = os.Remove(c.dir)
		return nil, errors.Join(fmt.Errorf("lab %s: %w", lab, err), c.lock.Close())
	}
	return c, nil
}

// acquire locks the folder. The one who had it before may remove it between our
// opening and our locking it; then there is a new one to lock.
func (c *claim) acquire() error {
	for {
		if err := os.MkdirAll(c.dir, 0o700); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
		lock, err := os.Open(c.dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open folder: %w", err)
		}
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errors.Join(ErrRunning, lock.Close())
		}
		if err != nil {
			return errors.Join(fmt.Errorf("lock %s: %w", c.dir, err), lock.Close())
		}
		if sameFile(lock, c.dir) {
			c.lock = lock
			return nil
		}
		if err := lock.Close(); err != nil {
			return fmt.Errorf("close folder: %w", err)
		}
	}
}

func sameFile(f *os.File, path string) bool {
	ours, err := f.Stat()
	if err != nil {
		return false
	}
	theirs, err := os.Stat(path)
	return err == nil && os.SameFile(ours, theirs)
}

// clear removes what an earlier lab of the name left: its files always, its
// namespaces and processes only with leave to replace.
func (c *claim) clear(ctx context.Context, replace bool) error {
	left, err := leftNamespaces(c.lab)
	if err != nil {
		return err
	}
	if len(left) > 0 && !replace {
		return fmt.Errorf("%w: namespaces %s", ErrStale, strings.Join(left, ", "))
	}
	for _, name := range left {
		if err := killMarked(ctx, c.lab, name); err != nil {
			return err
		}
		if err := deleteNamespace(name); err != nil {
			return err
		}
	}
	return c.empty()
}

// empty removes everything in the folder, which nobody but labs of the name puts
// anything into.
func (c *claim) empty() error {
	if err := unmountBelow(c.dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("list folder: %w", err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(c.dir, e.Name())); err != nil {
			return fmt.Errorf("empty folder: %w", err)
		}
	}
	return nil
}

// release gives the name up; the folder goes unless its logs are to be kept.
func (c *claim) release(keepFiles bool) error {
	err := unmountBelow(c.dir)
	if err == nil && !keepFiles {
		err = os.RemoveAll(c.dir)
	}
	return errors.Join(err, c.lock.Close())
}

// leftNamespaces lists the namespaces whose names a lab needs, all of them
// marked as this lab's, or fails.
func leftNamespaces(lab string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var left []string
	for _, e := range entries {
		if !ownsName(lab, e.Name()) {
			continue
		}
		marked, err := isMarked(lab, e.Name())
		if err != nil {
			return nil, err
		}
		if !marked {
			return nil, fmt.Errorf("namespace %s: %w", e.Name(), ErrForeign)
		}
		left = append(left, e.Name())
	}
	return left, nil
}

// isMarked reports whether a namespace carries the lab's mark.
func isMarked(lab, name string) (_ bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("look into namespace %s: %w", name, err)
		}
	}()
	ns, err := netns.GetFromName(name)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	links, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return false, err
	}
	defer links.Close()
	lo, err := links.LinkByName("lo")
	if err != nil {
		return false, err
	}
	return lo.Attrs().Alias == mark(lab), nil
}

// killMarked ends the processes in a namespace that a lab of the name started.
// A shell that somebody opened there stays.
func killMarked(ctx context.Context, lab, namespace string) error {
	want, err := os.Stat(filepath.Join(netnsDir, namespace))
	if err != nil {
		return fmt.Errorf("find namespace: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// A process that ends while we look at it is no concern of ours.
		have, err := os.Stat(filepath.Join("/proc", e.Name(), "ns/net"))
		if err != nil || !os.SameFile(have, want) {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || !bytes.Contains(append([]byte{0}, env...), []byte("\x00"+markEnv+"="+lab+"\x00")) {
			continue
		}
		if err := killAndWait(ctx, pid, want); err != nil {
			return fmt.Errorf("end process %d of an earlier lab: %w", pid, err)
		}
	}
	return nil
}

// killAndWait ends a process that is not our child, and waits until it has left
// its namespace: it may stay a zombie for as long as its parent likes.
func killAndWait(ctx context.Context, pid int, namespace os.FileInfo) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return poll(ctx, func() (bool, error) {
		have, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
		return err != nil || !os.SameFile(have, namespace), nil
	})
}
