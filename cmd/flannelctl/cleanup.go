package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/catalog"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// cleanupWithin bounds a cleanup, and the wait for another instance's.
const cleanupWithin = time.Minute

// cleanup is one thing to undo.
type cleanup struct {
	what string
	do   func(context.Context) error
}

// runCleanup undoes what the daemon did to this host, as its state directory
// remembers it. It goes on past failures, and may be run again.
func runCleanup(ctx context.Context, inv *invocation) error {
	if s, err := inv.fetchStatus(ctx); err == nil {
		return fmt.Errorf("the daemon is running (pid %d) and would put everything back: systemctl stop %s", s.PID, inv.instance.Unit())
	}
	if os.Geteuid() != 0 {
		return cli.Usagef("cleanup must run as root: it removes network devices, routes and firewall rules")
	}
	dir := statedir.Dir(inv.stateDir)
	if inv.yes {
		// What another instance still needs is looked at, and what it no longer needs
		// is removed: of two cleanups the second finds what the first left.
		lockCtx, cancel := context.WithTimeout(ctx, cleanupWithin)
		defer cancel()
		unlock, err := dir.Lock(lockCtx)
		if err != nil {
			return err
		}
		defer unlock()
	}
	saved, err := dir.LoadHost()
	if err != nil {
		return fmt.Errorf("%w: it says what to undo; without it (remove it) only firewall rules and files are cleaned up", err)
	}
	host, err := kernel.Open(kernel.Options{Instance: inv.instance.Instance})
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	log := slog.New(slog.NewTextHandler(inv.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	steps, err := planner{inv.instance.Instance, dir, saved, host, log}.plan(inv.docker)
	if err != nil {
		return err
	}
	if !inv.yes {
		fmt.Fprintln(inv.out, "flannelctl cleanup --yes would:")
	}
	return doCleanup(ctx, inv.out, steps, inv.yes)
}

func doCleanup(ctx context.Context, out io.Writer, steps []cleanup, really bool) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupWithin)
	defer cancel()
	var errs []error
	for _, step := range steps {
		if !really {
			fmt.Fprintln(out, "  "+step.what)
			continue
		}
		if err := step.do(ctx); err != nil {
			fmt.Fprintf(out, "FAILED  %s: %v\n", step.what, err)
			errs = append(errs, fmt.Errorf("%s: %w", step.what, err))
			continue
		}
		fmt.Fprintf(out, "done    %s\n", step.what)
	}
	return errors.Join(errs...)
}

// planner knows what an instance left on this host.
type planner struct {
	instance kernel.Instance
	dir      statedir.Dir
	saved    statedir.Host
	host     kernel.Host
	log      *slog.Logger
}

// plan lists the steps: what carries traffic first, the memory last.
func (p planner) plan(docker string) ([]cleanup, error) {
	dir, saved := p.dir, p.saved
	steps := []cleanup{{"remove our firewall rules", firewall.New(firewall.Options{Instance: p.instance, Log: p.log}).Cleanup}}
	if saved.BackendType != "" {
		b, err := p.formerBackend()
		if err != nil {
			return nil, err
		}
		steps = append(steps, cleanup{fmt.Sprintf("remove devices and routes of backend %s", saved.BackendType), b.Cleanup})
	}
	sysctls, memoryOfHost := p.planSysctls()
	steps = append(steps, sysctls...)
	if name := saved.DockerNetwork; name != "" {
		steps = append(steps, cleanup{"remove docker network " + name, func(ctx context.Context) error { return dropNetwork(ctx, docker, name) }})
	}
	memory := filepath.Join(string(dir), "docker.json")
	// One that cannot be read fails its step alone.
	if m, err := daemonconfig.LoadMemory(memory); err != nil || m.Path != "" {
		from := cmp.Or(m.Path, "Docker's config file")
		steps = append(steps, cleanup{"take our keys back from " + from, func(context.Context) error {
			_, err := daemonconfig.Withdraw(memory)
			return err
		}})
	}
	if c, err := dir.LoadDockerChange(); err != nil || c != nil {
		steps = append(steps, cleanup{"forget our last change of Docker's file, with which Docker has not started", func(context.Context) error {
			return dir.DropDockerChange()
		}})
	}
	files := slices.DeleteFunc([]string{
		saved.SubnetFile, saved.DockerOptions, filepath.Join(string(dir), "cache.json"),
	}, func(path string) bool { return path == "" })
	for _, path := range files {
		steps = append(steps, removal(path))
	}
	return append(steps, memoryOfHost...), nil
}

func removal(path string) cleanup {
	return cleanup{"remove " + path, func(context.Context) error { return removeFile(path) }}
}

// planSysctls lists the steps that set sysctls back, and those that forget them, which
// come last. While another instance is on this host it needs what we set, and we leave
// it to that one's cleanup: our memory of it stays.
func (p planner) planSysctls() (restore, forget []cleanup) {
	all := p.dir.Neighbours(p.instance)
	i := slices.IndexFunc(all, statedir.Neighbour.Lives)
	switch {
	case i >= 0 && len(p.saved.Sysctls) == 0:
		return nil, []cleanup{removal(p.dir.HostFile())}
	case i >= 0:
		for _, c := range p.saved.Sysctls {
			restore = append(restore, cleanup{fmt.Sprintf("leave sysctl %s, which was %s, to instance %d (%s)", c.Name, c.From, all[i].Instance, all[i].Dir), func(context.Context) error { return nil }})
		}
		return restore, []cleanup{{"forget all but sysctls in " + p.dir.HostFile(), func(context.Context) error {
			return p.dir.SaveHost(statedir.Host{Sysctls: p.saved.Sysctls})
		}}}
	}
	forget = append(forget, removal(p.dir.HostFile()))
	for _, who := range append([]statedir.Neighbour{{Dir: p.dir, Host: p.saved}}, all...) {
		for _, c := range slices.Backward(who.Host.Sysctls) {
			restore = append(restore, cleanup{fmt.Sprintf("set sysctl %s to %s, as it was", c.Name, c.From), func(context.Context) error {
				return firewall.RestoreForwarding(p.host, []firewall.SysctlChange{c})
			}})
		}
		if who.Dir != p.dir {
			forget = append(forget, removal(who.Dir.HostFile()))
		}
	}
	return restore, forget
}

// formerBackend makes the backend that ran here, from what is remembered.
func (p planner) formerBackend() (backend.Backend, error) {
	cfg := &subnet.Config{}
	if cache, err := p.dir.LoadCache(); err == nil && cache.Config.Text != "" {
		if parsed, err := subnet.ParseConfig(cache.Config.Text); err == nil {
			cfg = parsed
		}
	}
	cfg.BackendType, cfg.Backend = p.saved.BackendType, p.saved.Backend
	b, err := catalog.Detached(cfg, p.instance, p.host, p.log)
	if err != nil {
		return nil, fmt.Errorf("find out what backend %s left: %w", p.saved.BackendType, err)
	}
	return b, nil
}

// dropNetwork removes our network from Docker. A Docker that is down is no reason
// to stop, but one to say so.
func dropNetwork(ctx context.Context, socket, name string) error {
	_, err := dockerd.NewClient(socket).Drop(ctx, name)
	if errors.Is(err, dockerd.ErrDown) {
		return fmt.Errorf("%w: start it, then docker network rm %s", err, name)
	}
	return err
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
