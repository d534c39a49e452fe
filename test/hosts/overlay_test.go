package hosts

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// overlay is a site of two machines with our daemon at work and a container on
// each.
type overlay struct {
	*site
	setup
	version string
	apps    []*app
}

// app is a container and its network namespace.
type app struct {
	*lab.Node
	machine *Machine
	addr    netip.Addr
}

// newOverlay boots a site and goes through what a user does.
func newOverlay(ctx context.Context, t *testing.T, set setup) *overlay {
	t.Helper()
	o := &overlay{site: newSite(ctx, t, set.recipe, set.variant, 2), setup: set}
	o.closeFirewall(ctx, t)
	// With the config in place nobody waits for it.
	if _, err := o.Client().Put(ctx, prefix+"/config", set.config()); err != nil {
		t.Fatal(err)
	}
	o.startService(ctx, t)
	o.waitReady(ctx, t)
	o.each(t, func(m *Machine) error { return m.Service(ctx, dockerService, "restart") })
	version, err := o.machines[0].Run(ctx, "docker", "version", "--format={{.Server.Version}}")
	if err != nil {
		t.Fatal(err)
	}
	o.version = strings.TrimSpace(version)
	o.apps = make([]*app, len(o.machines))
	t.Cleanup(o.closeApps)
	o.each(t, func(m *Machine) error {
		_, err := m.Run(ctx, "docker", "run", "-d", "--restart=always", "--stop-signal=KILL", "--name=app", "-p", "8080:80", "busybox", "sleep", "86400")
		return err
	})
	if err := o.openApps(ctx); err != nil {
		t.Fatal(err)
	}
	return o
}

// choose makes the variant the machine's before it boots: rules that Docker wrote
// to the other would stay there.
func (v variant) choose(ctx context.Context, m *Machine) error {
	for _, family := range []string{"iptables", "ip6tables"} {
		path := "/usr/sbin/" + strings.Replace(v.iptables, "iptables", family, 1)
		if err := command(ctx, "chroot", m.Root, "update-alternatives", "--set", family, path); err != nil {
			return err
		}
	}
	return nil
}

// openApps finds the containers, when they run.
func (o *overlay) openApps(ctx context.Context) error {
	o.closeApps()
	for i, m := range o.machines {
		a, err := m.openApp(ctx, "app")
		if err != nil {
			return err
		}
		o.apps[i] = a
	}
	return nil
}

func (o *overlay) closeApps() {
	for i, a := range o.apps {
		if a != nil {
			_ = a.Close() // descriptors only
			o.apps[i] = nil
		}
	}
}

// openApp opens a running container of the machine, by its name.
func (m *Machine) openApp(ctx context.Context, name string) (a *app, err error) {
	err = m.poll(ctx, "container "+name, func() (bool, error) {
		out, err := m.Run(ctx, "docker", "inspect", "--format={{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)
		if err != nil {
			return false, nil // dockerd may still be starting
		}
		pid, addr, _ := strings.Cut(strings.TrimSpace(out), " ")
		if n, err := strconv.Atoi(pid); err != nil || n == 0 || addr == "" {
			return false, nil
		}
		a = &app{machine: m}
		if a.addr, err = netip.ParseAddr(addr); err != nil {
			return false, err
		}
		a.Node, err = lab.OpenNode(m.Name+"/"+name, fmt.Sprintf("/proc/%d/root/proc/%s/ns/net", m.init, pid))
		return err == nil, err
	})
	return a, err
}

// wantPing wants every one of some pings answered, once the first was.
func wantPing(ctx context.Context, from, to *app) error {
	if err := from.WaitPing(ctx, to.addr); err != nil {
		return err
	}
	r, err := from.Ping(ctx, lab.PingOptions{To: to.addr, Count: 100})
	if err != nil {
		return err
	}
	if r.Lost() > 0 {
		return fmt.Errorf("%s to %s: %s", from.Name, to.Name, r)
	}
	return nil
}

// bothWays runs f from each container to the other.
func (o *overlay) bothWays(f func(from, to *app) error) error {
	return errors.Join(f(o.apps[0], o.apps[1]), f(o.apps[1], o.apps[0]))
}

// waitPeers waits until both machines have so many peers.
func (o *overlay) waitPeers(ctx context.Context, peers int) error {
	for _, m := range o.machines {
		if err := m.waitPeers(ctx, peers); err != nil {
			return err
		}
	}
	return nil
}

// processes are Docker's and the containers', by machine.
func (o *overlay) processes(ctx context.Context) (string, error) {
	var all strings.Builder
	for _, m := range o.machines {
		out, err := m.Run(ctx, "sh", "-c", "pidof dockerd; docker inspect --format={{.State.Pid}} app")
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "%s: dockerd, app: %s\n", m.Name, strings.Join(strings.Fields(out), ", "))
	}
	return all.String(), nil
}
