package hosts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// recipe is how a root file system is made.
type recipe struct {
	suite string
	// script is what debootstrap makes the suite by, where it is older than
	// the suite; else empty.
	script string
	// include is what debootstrap installs, packages what apt-get does in
	// the root then.
	include, packages []string
	// services is what runs on a machine of it.
	services supervisor
}

// bookworm is Debian 12: systemd 252, dockerd 20.10.
func bookworm() recipe {
	return recipe{
		suite:    "bookworm",
		include:  []string{"systemd", "systemd-sysv", "dbus", "iproute2", "iputils-ping", "iptables", "ca-certificates", "procps"},
		packages: []string{"docker.io", "etcd-client"},
		services: systemd(),
	}
}

// trixie is Debian 13: systemd 257, dockerd 26.1.
func trixie() recipe {
	r := bookworm()
	r.suite = "trixie"
	r.packages = []string{"docker.io", "docker-cli", "docker-compose", "etcd-client"}
	return r
}

// forky is Debian 14 to be: dockerd 28.5. Its systemd boots on a machine with
// cgroups of version 2 alone, so it has none. debootstrap installs everything:
// apt-get refuses a suite in the making whose lists are a week old.
func forky() recipe {
	return recipe{
		suite:    "forky",
		script:   "/usr/share/debootstrap/scripts/sid",
		include:  []string{"iproute2", "iputils-ping", "iptables", "ca-certificates", "procps", "docker.io", "docker-cli", "docker-compose", "etcd-client"},
		services: plain(),
	}
}

// key names the root: another recipe is another root.
func (r recipe) key() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "4 %q", [][]string{{r.suite, r.script}, r.include, r.packages}))
	return r.suite + "-" + hex.EncodeToString(sum[:6])
}

// prepare returns the path of the root, made now if it is not there. It is
// moved into place when it is whole; who comes second waits.
func (r recipe) prepare(ctx context.Context) (string, error) {
	cache := os.Getenv("FLANNEL_TEST_CACHE")
	if cache == "" {
		cache = "/var/cache/flanneld-go-test"
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(cache, r.key()+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("lock cache: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock cache: %w", err)
	}
	root := filepath.Join(cache, r.key())
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	building := root + ".building"
	if err := os.RemoveAll(building); err != nil {
		return "", fmt.Errorf("remove an unfinished root: %w", err)
	}
	if err := r.build(ctx, building); err != nil {
		return "", fmt.Errorf("prepare root %s: %w", r.key(), err)
	}
	if err := os.Rename(building, root); err != nil {
		return "", fmt.Errorf("keep root: %w", err)
	}
	return root, nil
}

func (r recipe) build(ctx context.Context, dir string) error {
	args := []string{"--variant=minbase", "--include=" + strings.Join(r.include, ","), r.suite, dir}
	if r.script != "" {
		args = append(args, "", r.script) // from debootstrap's own mirror
	}
	if err := command(ctx, "debootstrap", args...); err != nil {
		return err
	}
	// Services must not start while they are installed.
	policy := filepath.Join(dir, "usr/sbin/policy-rc.d")
	if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
		return fmt.Errorf("write policy: %w", err)
	}
	install := ":"
	if len(r.packages) > 0 {
		install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends " + strings.Join(r.packages, " ")
	}
	script := install + " && apt-get clean && rm -f /usr/sbin/policy-rc.d /etc/machine-id /var/lib/dbus/machine-id && : >/etc/machine-id" +
		" && if command -v systemctl >/dev/null; then systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer console-getty.service systemd-modules-load.service; fi"
	return command(ctx, "chroot", dir, "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "sh", "-c", script)
}

// command runs a program; its error has the end of what it printed.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, tail(string(out), 10))
	}
	return nil
}

// tail returns the last lines of text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
