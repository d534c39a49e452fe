package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// cgroupRoot holds the hierarchies: one each in version 1, itself in version 2.
const cgroupRoot = "/sys/fs/cgroup"

// enterCgroups moves the shell into the cgroups named $0, in every hierarchy,
// and becomes the command. Two machines in one cgroup would be two systemds that
// manage the same slices, and end each other's services.
const enterCgroups = `for procs in ` + cgroupRoot + `/"$0"/cgroup.procs ` + cgroupRoot + `/*/"$0"/cgroup.procs; do
	if [ -e "$procs" ]; then echo $$ >"$procs" || exit 1; fi
done
exec "$@"`

// cgroups are the machine's own, one per hierarchy.
func (m *Machine) cgroups() ([]string, error) {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.procs")); err == nil {
		return []string{filepath.Join(cgroupRoot, m.Name)}, nil
	}
	procs, err := filepath.Glob(filepath.Join(cgroupRoot, "*", "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	var dirs []string
	for _, p := range procs {
		dirs = append(dirs, filepath.Join(filepath.Dir(p), m.Name))
	}
	return dirs, nil
}

// makeCgroups makes them. A new cpuset is empty until it is told what it may
// use.
func (m *Machine) makeCgroups() error {
	dirs, err := m.cgroups()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), value, 0)
			}
			if err != nil {
				return fmt.Errorf("set up cgroup: %w", err)
			}
		}
	}
	return nil
}

// removeCgroups removes them and what the machine made below. The kernel may
// need a moment to forget processes that are dead.
func (m *Machine) removeCgroups() error {
	dirs, err := m.cgroups()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		var tree []string
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				tree = append(tree, path)
			}
			return nil // what is gone needs no removal
		})
		for _, path := range slices.Backward(tree) {
			if err := removeCgroup(path); err != nil {
				return err
			}
		}
	}
	return nil
}

func removeCgroup(path string) error {
	deadline := time.After(time.Minute)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := os.Remove(path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		select {
		case <-ticker.C:
		case <-deadline:
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
}
