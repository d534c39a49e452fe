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

// cleanup is one thing to undo.
type cleanup struct {
	what string
	do   func(context.Context) error
}

// runCleanup undoes what the daemon did to this host, as its state directory
// remembers it. It goes on past failures, and may be run again.
func runCleanup(ctx context.Context, inv *invocation) error {
	if s, err := fetchStatus(ctx, inv.socket); err == nil {
		return fmt.Errorf("the daemon is running (pid %d) and would put everything back: systemctl stop flanneld-go", s.PID)
	}
	if os.Geteuid() != 0 {
		return cli.Usagef("cleanup must run as root: it removes network devices, routes and firewall rules")
	}
	dir := statedir.Dir(inv.stateDir)
	saved, err := dir.LoadHost()
	if err != nil {
		return fmt.Errorf("%w: it says what to undo; without it (remove it) only firewall rules and files are cleaned up", err)
	}
	host, err := kernel.Open(kernel.Options{})
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	steps, err := planCleanup(dir, saved, inv.docker, host, slog.New(slog.NewTextHandler(inv.err, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	if !inv.yes {
		fmt.Fprintln(inv.out, "flannelctl cleanup --yes would:")
	}
	return doCleanup(ctx, inv.out, steps, inv.yes)
}

func doCleanup(ctx context.Context, out io.Writer, steps []cleanup, really bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
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

// planCleanup lists the steps: what carries traffic first, the memory last.
func planCleanup(dir statedir.Dir, saved statedir.Host, docker string, host kernel.Host, log *slog.Logger) ([]cleanup, error) {
	steps := []cleanup{{"remove our firewall rules", firewall.New(firewall.Options{Log: log}).Cleanup}}
	if saved.BackendType != "" {
		b, err := formerBackend(dir, saved, host, log)
		if err != nil {
			return nil, err
		}
		steps = append(steps, cleanup{fmt.Sprintf("remove devices and routes of backend %s", saved.BackendType), b.Cleanup})
	}
	for _, c := range slices.Backward(saved.Sysctls) {
		steps = append(steps, cleanup{fmt.Sprintf("set sysctl %s to %s, as it was", c.Name, c.From), func(context.Context) error {
			return firewall.RestoreForwarding(host, []firewall.SysctlChange{c})
		}})
	}
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
		saved.SubnetFile, saved.DockerOptions, filepath.Join(string(dir), "cache.json"), filepath.Join(string(dir), "host.json"),
	}, func(path string) bool { return path == "" })
	for _, path := range files {
		steps = append(steps, cleanup{"remove " + path, func(context.Context) error { return removeFile(path) }})
	}
	return steps, nil
}

// formerBackend makes the backend that ran here, from what is remembered.
func formerBackend(dir statedir.Dir, saved statedir.Host, host kernel.Host, log *slog.Logger) (backend.Backend, error) {
	cfg := &subnet.Config{}
	if cache, err := dir.LoadCache(); err == nil && cache.Config.Text != "" {
		if parsed, err := subnet.ParseConfig(cache.Config.Text); err == nil {
			cfg = parsed
		}
	}
	cfg.BackendType, cfg.Backend = saved.BackendType, saved.Backend
	b, err := catalog.Detached(cfg, host, log)
	if err != nil {
		return nil, fmt.Errorf("find out what backend %s left: %w", saved.BackendType, err)
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
