package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/systemd"
)

// settings are what systemd-networkd is told of the overlay.
type settings uint8

const (
	// fullSettings: the installed files, and what the documents advise beside them.
	fullSettings settings = iota
	// installedFiles: they alone.
	installedFiles
	// noSettings: a host without any.
	noSettings
)

func networkdFaults() []Fault {
	row := func(name, title string, bound Bound, s settings) Fault {
		return Fault{
			Name: name, Title: "systemd-networkd restarted, " + title, bounds: alike(bound), lacks: lacksNetworkd,
			prepare: startNetworkd(s), do: restartNetworkd, undo: stopNetworkd,
		}
	}
	return []Fault{
		row("networkd", "with our settings: the installed files, KeepConfiguration=static", 0, fullSettings),
		row("networkd-files", "with the installed files alone", 500*ms, installedFiles),
		row("networkd-bare", "without any setting of ours", 500*ms, noSettings),
	}
}

// networkdPaths are where distributions have it.
func networkdPaths() []string {
	return []string{"/usr/lib/systemd/systemd-networkd", "/lib/systemd/systemd-networkd"}
}

// findNetworkd returns its path.
func findNetworkd() (string, error) {
	for _, path := range networkdPaths() {
		if err := lab.CheckBinary(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("systemd-networkd is not installed")
}

// lacksNetworkd says why it cannot run here.
func lacksNetworkd(Options) string {
	_, err := findNetworkd()
	if _, missing := exec.LookPath("unshare"); err == nil {
		err = missing
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// enterNetworkd runs networkd, $1, where it sees what it would on a host of its own:
// the namespace's links in /sys, and in /run and /etc/systemd nothing but what is below
// $0. Without /sys for writing it would take the host for a container and remove
// nothing.
const enterNetworkd = `set -e
mount -t sysfs sysfs /sys
mount --bind "$0/etc" /etc/systemd
mount --bind "$0/run" /run
install -d -o systemd-network -g systemd-network /run/systemd/netif
exec "$1"`

// foreign is a route of nobody's, by which it is seen what networkd removes.
const foreign = "203.0.113.0/24"

// networkdWithin bounds its starts and ends.
const networkdWithin = 20 * time.Second

// networkdDir has what belongs to the broken host's networkd.
func (n *network) networkdDir() string { return filepath.Join(n.host().Dir, "networkd") }

// startNetworkd has a real networkd manage the uplink, and makes sure that it and its
// settings count: it removes somebody's route, or leaves it. With the installed files
// alone a networkd that takes its own addresses away loses it, too.
func startNetworkd(s settings) func(context.Context, *network) error {
	return func(ctx context.Context, n *network) error {
		if err := errors.Join(n.writeSettings(s), n.run(ctx, "ip route replace %s dev %s protocol 99", foreign, uplink)); err != nil {
			return err
		}
		if err := n.launchNetworkd(ctx); err != nil {
			return err
		}
		left, err := n.host().Run(ctx, "ip", "route", "show", foreign)
		if err == nil && (s == noSettings && left != "" || s == fullSettings && left == "") {
			err = fmt.Errorf("after networkd's start somebody's route is %q", left)
		}
		return errors.Join(err, n.run(ctx, "ip route flush %s", foreign), n.waitWell(ctx))
	}
}

// writeSettings writes what networkd reads, and that udev knows the links: it waits for
// that. It would also wait for a link-local address, which the kernel makes when a link
// comes up alone: other faults have flushed it.
func (n *network) writeSettings(s settings) error {
	text := "[Match]\nName=" + uplink + "\n[Network]\nIPv6AcceptRA=no\nLinkLocalAddressing=no\n"
	if s == fullSettings {
		text += "KeepConfiguration=static\n"
	}
	for i, a := range n.host().Addrs {
		text += fmt.Sprintf("Address=%s\nGateway=%s\n", a, n.lab.Gateway(subnet.Family(i)).Addr())
	}
	files := map[string]string{"etc/network/20-uplink.network": text}
	if s != noSettings {
		err := fs.WalkDir(systemd.Networkd, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := systemd.Networkd.ReadFile(path)
			files["etc/"+path] = string(text)
			return err
		})
		if err != nil {
			return err
		}
	}
	links, err := n.host().Links().LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		files[fmt.Sprintf("run/udev/data/n%d", l.Attrs().Index)] = "I:1\n"
	}
	if err := os.RemoveAll(n.networkdDir()); err != nil {
		return err
	}
	for path, text := range files {
		path = filepath.Join(n.networkdDir(), path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	return nil
}

// launchNetworkd starts it and waits until it has done with the uplink.
func (n *network) launchNetworkd(ctx context.Context) error {
	path, err := findNetworkd()
	if err != nil {
		return err
	}
	link, err := n.host().Links().LinkByName(uplink)
	if err != nil {
		return fmt.Errorf("find %s: %w", uplink, err)
	}
	// What the one before it said of the link must not count.
	state := filepath.Join(n.networkdDir(), fmt.Sprintf("run/systemd/netif/links/%d", link.Attrs().Index))
	if err := os.Remove(state); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	n.networkd, err = n.lab.Start(n.host().Node, lab.Spec{
		Path: "unshare", Args: []string{"--mount", "sh", "-c", enterNetworkd, n.networkdDir(), path}, Log: filepath.Join(n.networkdDir(), "log"),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, networkdWithin, fmt.Errorf("not within %s", networkdWithin))
	defer cancel()
	for {
		text, err := os.ReadFile(state)
		switch {
		case err == nil && strings.Contains(string(text), "ADMIN_STATE=configured\n"):
			return nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		case !n.networkd.Running():
			return fmt.Errorf("networkd has ended:\n%s", n.networkd.Tail(20))
		}
		if err := lab.Wait(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("wait until networkd has done with %s: %w:\n%s", uplink, err, n.networkd.Tail(20))
		}
	}
}

// restartNetworkd does what systemctl does. All that is lost meanwhile counts.
func restartNetworkd(ctx context.Context, n *network) (time.Time, error) {
	if err := n.endNetworkd(ctx); err != nil {
		return time.Time{}, err
	}
	return time.Time{}, n.launchNetworkd(ctx)
}

// stopNetworkd leaves the uplink to the lab again.
func stopNetworkd(ctx context.Context, n *network) error {
	err := errors.Join(n.endNetworkd(ctx), n.run(ctx, "ip addr replace %s dev %s", n.home(), uplink), n.restoreDefault(ctx))
	n.networkd = nil
	return err
}

func (n *network) endNetworkd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, networkdWithin)
	defer cancel()
	return n.networkd.Stop(ctx)
}
