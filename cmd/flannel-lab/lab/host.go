package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
)

// Host is a namespace with an uplink, a daemon and at most one container.
type Host struct {
	*Node
	// Number is from 1.
	Number int
	// Addrs are the uplink's addresses, IPv4 first.
	Addrs []netip.Prefix
	// Dir holds the daemon's files.
	Dir string
	// Env is added to the daemon's environment.
	Env []string
	// Daemon is the daemon started last; nil before that.
	Daemon *Process
	// Container is nil before StartContainer.
	Container *Container

	lab *Lab
	// instance stands behind the names of what a further daemon on the host has for
	// its own; empty: it is the first.
	instance string
	// dropped are the directions of a partition; guarded by lab.partitions.
	dropped Direction
}

// Beside is the host as a further instance of the daemon sees it, which runs beside the
// first: it has files, a bridge and a container of its own.
func (h *Host) Beside(instance int) *Host {
	return &Host{Node: h.Node, Number: h.Number, Addrs: h.Addrs, Dir: h.Dir, Env: h.Env, lab: h.lab, instance: strconv.Itoa(instance)}
}

// port is the host's interface on the switch, and the last part of its name.
func (h *Host) port() string { return fmt.Sprintf("h%d", h.Number) }

// NodeID is what the daemon is given as --node-id: the hosts share one
// /etc/machine-id.
func (h *Host) NodeID() string { return h.Name }

// SubnetFile is the daemon's subnet.env.
func (h *Host) SubnetFile() string { return filepath.Join(h.Dir, "subnet"+h.instance+".env") }

// Socket is the daemon's status socket.
func (h *Host) Socket() string { return filepath.Join(h.Dir, "flanneld-go"+h.instance+".sock") }

// StateDir is where the daemon keeps its cache.
func (h *Host) StateDir() string { return filepath.Join(h.Dir, "state"+h.instance) }

// DaemonArgs are the arguments that the lab gives the daemon: what hosts that
// share /run, /var and /etc must not share, and where etcd is.
func (h *Host) DaemonArgs() []string {
	args := []string{
		"--etcd-endpoints=" + h.lab.EtcdURL(),
		"--etcd-prefix=" + Prefix,
		"--node-id=" + h.NodeID(),
		"--state-dir=" + h.StateDir(),
		"--socket=" + h.Socket(),
		"--subnet-file=" + h.SubnetFile(),
		"--docker-config=none",
	}
	if h.instance != "" {
		args = append(args, "--instance="+h.instance)
	}
	return append(args, h.lab.opts.DaemonArgs...)
}

// StartDaemon starts the daemon, with further arguments that win over the lab's.
func (h *Host) StartDaemon(args ...string) error {
	if h.Daemon != nil && h.Daemon.Running() {
		return fmt.Errorf("start daemon on %s: it is running", h.Name)
	}
	return h.launch(h.lab.opts.Daemon, append(h.DaemonArgs(), args...))
}

// RelaunchDaemon starts the daemon again as it was started last, once it has
// ended.
func (h *Host) RelaunchDaemon() error { return h.ReplaceDaemon("") }

// ReplaceDaemon is RelaunchDaemon with another build of the daemon; empty: the
// same.
func (h *Host) ReplaceDaemon(path string) error {
	if h.Daemon == nil || h.Daemon.Running() {
		return fmt.Errorf("relaunch daemon on %s: it has not ended", h.Name)
	}
	return h.launch(cmp.Or(path, h.Daemon.Spec.Path), h.Daemon.Spec.Args)
}

func (h *Host) launch(path string, args []string) error {
	p, err := h.lab.Start(h.Node, Spec{Path: path, Args: args, Env: h.Env, Log: filepath.Join(h.Dir, "flanneld-go"+h.instance+".log")})
	if err != nil {
		return err
	}
	h.Daemon = p
	return nil
}

// ErrNoDaemon: what was asked of a daemon that was never started.
var ErrNoDaemon = errors.New("no daemon was started")

// waitDaemon looks until look reports true; it ends early when the daemon does.
func (h *Host) waitDaemon(ctx context.Context, what string, look func() (bool, error)) error {
	if h.Daemon == nil {
		return fmt.Errorf("%s: wait for %s: %w", h.Name, what, ErrNoDaemon)
	}
	err := poll(ctx, func() (bool, error) {
		if !h.Daemon.Running() {
			return false, h.Daemon.exited()
		}
		return look()
	})
	if ctx.Err() != nil {
		return fmt.Errorf("%s: wait for %s: %w; the end of %s:\n%s", h.Name, what, err, h.Daemon.Spec.Log, h.Daemon.Tail(tailLines))
	}
	if err != nil {
		return fmt.Errorf("%s: wait for %s: %w", h.Name, what, err)
	}
	return nil
}

// DeviceTo is the interface by which the host sends to an address.
func (h *Host) DeviceTo(addr netip.Addr) (string, error) {
	routes, err := h.links.RouteGet(addr.AsSlice())
	if err != nil || len(routes) == 0 {
		return "", fmt.Errorf("find %s's route to %s: %w", h.Name, addr, err)
	}
	link, err := h.links.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("find %s's route to %s: %w", h.Name, addr, err)
	}
	return link.Attrs().Name, nil
}
