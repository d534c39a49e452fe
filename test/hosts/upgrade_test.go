package hosts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUpgrade replaces dockerd below running hosts, by each version in turn, on
// the same data and beside the same daemon of ours. Traffic comes back by itself.
func TestUpgrade(t *testing.T) {
	if !whole() {
		t.Skip("long matrix: run make hosts")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	// The machine stays; without systemd its dockerd can be of another root.
	r := bookworm()
	r.services = plain()
	o := newOverlay(ctx, t, setup{r, walks()[1], variants()[0]})
	versions := []string{o.version}
	for _, next := range []recipe{trixie(), forky()} {
		o.each(t, func(m *Machine) error { return m.replaceDocker(ctx, next) })
		version, err := o.machines[0].Run(ctx, "docker", "version", "--format={{.Server.Version}}")
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, strings.TrimSpace(version))
		if err := o.openApps(ctx); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := o.bothWays(func(from, to *app) error { return from.WaitPing(ctx, to.addr) }); err != nil {
			t.Fatalf("beside %s: %v", versions[len(versions)-1], err)
		}
		gap := time.Since(began)
		t.Logf("%s: pings both ways answered %s after the containers ran", versions[len(versions)-1], gap.Round(time.Millisecond))
		if gap > time.Second {
			t.Errorf("beside %s pings were answered after %s, want a second at most", versions[len(versions)-1], gap)
		}
		if err := o.bothWays(func(from, to *app) error { return wantPing(ctx, from, to) }); err != nil {
			t.Fatalf("beside %s: %v", versions[len(versions)-1], err)
		}
	}
	for i, want := range []string{"20.10", "26.", "28."} {
		if !strings.HasPrefix(versions[i], want) {
			t.Errorf("the versions were %v, want 20.10, 26 and 28", versions)
		}
	}
}

// replaceDocker restarts Docker from the root of another recipe. All that a
// package's upgrade keeps stays: data, settings, the host's network.
func (m *Machine) replaceDocker(ctx context.Context, r recipe) error {
	base, err := r.prepare(ctx)
	if err != nil {
		return err
	}
	if err := m.Service(ctx, dockerService, "stop"); err != nil {
		return err
	}
	if err := m.graft(base, "/opt/"+r.suite); err != nil {
		return err
	}
	if _, err := m.Run(ctx, "sh", "-e", "-c", enterNext, r.suite); err != nil {
		return err
	}
	return m.Service(ctx, dockerService, "start")
}

// enterNext gives the root /opt/$0 what belongs to the machine, and lets Docker
// start from there.
const enterNext = `for d in proc sys dev run var/lib/docker etc/docker; do
	mkdir -p "/opt/$0/$d"; mount --rbind "/$d" "/opt/$0/$d"
done
echo "START_OPTIONS='--chroot /opt/$0'" >/etc/default/docker`

// graft mounts an overlay of a root of ours at a path of the machine, whose
// mounts were its own since it booted.
func (m *Machine) graft(base, at string) (err error) {
	dir := m.dir + at
	for _, sub := range []string{dir + "/root", dir + "/upper", dir + "/work", m.Root + at} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", base, dir, dir)
	if err := unix.Mount("overlay", dir+"/root", "overlay", 0, options); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir+"/root", unix.MNT_DETACH)) }()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir+"/root", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(tree)
	mounts, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", m.init))
	if err != nil {
		return err
	}
	defer mounts.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		done <- errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(int(mounts.Fd()), unix.CLONE_NEWNS),
			unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("mount %s in %s: %w", at, m.Name, err)
	}
	return nil
}
