package robustness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

const (
	// restartAfter is systemd's RestartSec of our unit.
	restartAfter = 200 * time.Millisecond
	// stopWithin is how long a daemon may take to end when asked: TimeoutStopSec
	// of our unit.
	stopWithin = 15 * time.Second
	// smallDisk is the size of a state directory that can be filled.
	smallDisk = 1 << 20
)

// host is one host and its hands.
type host struct {
	*lab.Host
	plan  hostPlan
	trial *trial
	// name is that of the record.
	name  string
	args  []string
	proxy *lab.Proxy
	clock *clockFile

	// mu guards Daemon and what follows.
	mu sync.Mutex
	// held is how many faults keep the daemon down; it begins with the start.
	held int
}

// prepare gives a host what it has before its daemon starts.
func (t *trial) prepare(l *lab.Host, plan hostPlan) (*host, error) {
	h := &host{Host: l, plan: plan, trial: t, name: fmt.Sprintf("h%d", l.Number), held: 1}
	var err error
	if h.proxy, err = t.lab.NewProxy(l, t.cluster); err != nil {
		return nil, err
	}
	if h.clock, err = newClockFile(filepath.Join(l.Dir, "clock")); err != nil {
		return nil, err
	}
	l.Env = append(l.Env, clockEnv+"="+h.clock.path)
	h.args = []string{
		"--node-id=" + h.node(),
		"--etcd-endpoints=" + strings.Join(h.proxy.Endpoints(), ","),
		"--subnet-lease-ttl=" + t.TTL.String(),
		"--on-conflict=" + plan.Policy.String(),
		"--docker-config=" + dockerConfig(l),
	}
	if plan.Releases {
		h.args = append(h.args, "--release-on-exit")
	}
	if plan.SmallDisk {
		if err := l.LimitState(smallDisk); err != nil {
			return nil, err
		}
	}
	if plan.Foreign.IsValid() {
		return h, h.plant()
	}
	return h, nil
}

// node is the host's --node-id.
func (h *host) node() string {
	if h.plan.NodeID != "" {
		return h.plan.NodeID
	}
	return h.NodeID()
}

// plant gives the host a network of its own inside that of the pool.
func (h *host) plant() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "foreign0"
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := h.Links().LinkAdd(link); err != nil {
		return fmt.Errorf("add %s: %w", attrs.Name, err)
	}
	first := daemonconfig.HostAddr(h.plan.Foreign)
	addr, err := netlink.ParseAddr(first.String())
	if err != nil {
		return err
	}
	if err := errors.Join(h.Links().AddrAdd(link, addr), h.Links().LinkSetUp(link)); err != nil {
		return fmt.Errorf("configure %s: %w", attrs.Name, err)
	}
	return nil
}

// hold ends the daemon by a signal and keeps it down.
func (h *host) hold(ctx context.Context, s syscall.Signal) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held++
	h.trial.rec.killed(h.Host, s)
	if s == syscall.SIGKILL {
		return h.Daemon.Kill()
	}
	ctx, cancel := context.WithTimeout(ctx, stopWithin)
	defer cancel()
	asked := h.trial.rec.now()
	err := h.Daemon.Stop(ctx)
	if errors.Is(err, context.DeadlineExceeded) && h.trial.deaf(asked) {
		return nil // It ended in the meantime, by SIGKILL at the latest.
	}
	return err
}

// deaf reports whether a daemon that was asked to end at a time had less to do so than
// it may take, since the kernel answered nobody.
func (t *trial) deaf(asked time.Duration) bool {
	b := DefaultBounds(t.TTL)
	return stopWithin-t.control.kernel.waited(stretch{asked, asked + stopWithin}) < b.Stop+b.Release
}

// release starts the daemon, unless another fault keeps it down.
func (h *host) release() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held--; h.held > 0 {
		return nil
	}
	return h.launch()
}

// launch starts the daemon and keeps it running. mu is held.
func (h *host) launch() error {
	if err := h.StartDaemon(h.args...); err != nil {
		return err
	}
	p := h.Daemon
	h.trial.rec.began(h.Host, p)
	h.trial.tasks.Go(func() error { return h.restart(h.trial.ctx, p) })
	return nil
}

// restart starts the daemon anew when it has ended though nobody wanted that.
func (h *host) restart(ctx context.Context, p *lab.Process) error {
	select {
	case <-p.Done():
	case <-ctx.Done():
		return nil
	}
	if !after(ctx, restartAfter) {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held > 0 || h.Daemon.Running() {
		return nil
	}
	return h.launch() //nolint:contextcheck // the recorder watches it for longer
}

// signal sends the daemon a signal that does not end it.
func (h *host) signal(s syscall.Signal) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.Daemon.Signal(s)
}

// followSubnet is Docker's hands: when subnet.env names another subnet than the
// container has, docker0 and the container are made anew.
func (h *host) followSubnet(ctx context.Context, has daemonconfig.Env) error {
	for {
		var next daemonconfig.Env
		changed := func() bool {
			env, err := h.ReadSubnet()
			// A host that withdrew has no file, and its containers stay.
			next = env
			return err == nil && env.Subnets != has.Subnets
		}
		if poll(ctx, changed) != nil {
			return nil //nolint:nilerr // the trial is over
		}
		if err := h.replaceContainer(ctx, next); err != nil {
			return fmt.Errorf("replace container of %s: %w", h.name, err)
		}
		h.trial.log("%s: container moves to %s", h.name, h.Container.Addrs[0])
		has = next
	}
}

func (h *host) replaceContainer(ctx context.Context, env daemonconfig.Env) error {
	h.trial.docker.Lock()
	defer h.trial.docker.Unlock()
	if err := h.StopContainer(); err != nil {
		return err
	}
	if err := h.StartContainer(env); err != nil {
		return err
	}
	return h.trial.rec.retarget(ctx, h.Host)
}

// settled reports whether the daemon is ready with the subnet that the container
// has.
func (h *host) settled(ctx context.Context) bool {
	env, err := h.ReadSubnet()
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return false
	}
	s, err := h.Status(ctx)
	if err != nil || !s.Ready || s.Lease.State != "valid" {
		return false
	}
	h.trial.docker.Lock()
	defer h.trial.docker.Unlock()
	inside := h.Container.Addr()
	return env.Subnets[0].Contains(inside) && s.Lease.Subnet == env.Subnets[0].Masked().String()
}
