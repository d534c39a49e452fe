package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/systemd"
)

const (
	dockerUnit   = "docker.service"
	dockerBridge = "docker0"
	// dockerStart bounds a restart of Docker, which waits for containers to
	// stop.
	dockerStart = 2 * time.Minute
	// dockerAnswer bounds a question about it.
	dockerAnswer = 5 * time.Second
)

// fileState is what was told to the container daemon.
type fileState struct {
	// restart: a key of ours changed and Docker was not restarted since.
	restart bool
	// restarting: that is under way. failure is how the last one ended.
	restarting atomic.Bool
	// told is what Docker's file said last; it stays when that is withdrawn.
	told    daemonconfig.Env
	failure atomic.Pointer[error]
	// stale: the files are those of another subnet, which this host had.
	stale bool
	// withdrawn: keys of an earlier --docker-config were taken back.
	withdrawn bool
}

// memoryPath is where daemonconfig remembers which of Docker's keys are ours.
func (d *daemon) memoryPath() string { return filepath.Join(d.opts.stateDir, "docker.json") }

// env is the content of subnet.env.
func (l *loop) env() daemonconfig.Env {
	e := daemonconfig.Env{Subnets: l.lease.own.Subnet, MTU: l.backend.MTU(), IPMasq: l.opts.ipMasq}
	for f, r := range l.config.current.Ranges {
		e.Networks[f] = r.Network
	}
	return e
}

// writeFiles keeps subnet.env. It runs after the first whole Apply, so that the
// file says that the data path works.
func (l *loop) writeFiles(context.Context) error {
	e := l.env()
	changed, err := daemonconfig.Write(l.opts.subnetFile, e.Format(), daemonconfig.WriteOptions{DirPerm: 0o755})
	l.setFile(l.opts.subnetFile, fileWritten, err)
	if changed {
		l.log.Info("subnet file written", "path", l.opts.subnetFile, "subnet", l.lease.own.Subnet, "mtu", e.MTU, "ip_masq", e.IPMasq)
	}
	return err
}

// writeDocker keeps Docker's keys, by the one channel that was chosen.
func (l *loop) writeDocker(ctx context.Context) error {
	l.files.stale = false
	switch {
	case l.opts.dockerOptions != "":
		return l.writeDockerOptions(ctx)
	case l.opts.dockerConfig != "":
		return l.writeDockerConfig(ctx)
	}
	return nil
}

func (l *loop) writeDockerOptions(ctx context.Context) error {
	if !l.files.withdrawn {
		changes, err := daemonconfig.Withdraw(l.memoryPath())
		if err != nil {
			return err
		}
		for _, c := range changes {
			l.log.Info("docker config key taken back: its options file says it now", "change", c.String())
		}
		l.files.withdrawn = true
	}
	changed, err := daemonconfig.Write(l.opts.dockerOptions, daemonconfig.OptionsFile(l.env()), daemonconfig.WriteOptions{DirPerm: 0o755})
	l.setFile(l.opts.dockerOptions, fileWritten, err)
	if changed {
		l.log.Info("docker options written", "path", l.opts.dockerOptions)
		l.wantRestart(ctx)
	}
	return errors.Join(err, l.restartDocker(ctx))
}

func (l *loop) writeDockerConfig(ctx context.Context) error {
	c, plan, err := l.planDocker()
	if err == nil && len(plan.Changes) > 0 {
		err = c.Commit(plan)
	}
	l.setFile(c.Path, fileWritten, err)
	if err != nil {
		return err
	}
	for _, change := range plan.Changes {
		l.log.Info("docker config written", "path", c.Path, "change", change.String())
	}
	if len(plan.Changes) > 0 {
		l.wantRestart(ctx)
	}
	return l.restartDocker(ctx)
}

// wantRestart takes in that Docker's file changed. A file that is back after it
// was withdrawn, with what it said before, is no news to a Docker that runs by it.
func (l *loop) wantRestart(ctx context.Context) {
	e := l.env()
	if e != l.files.told || l.dockerDiffers(ctx) != nil {
		l.files.restart = true
	}
	l.files.told = e
}

// planDocker says what Docker's config file must become.
func (l *loop) planDocker() (daemonconfig.DockerConfig, daemonconfig.Plan, error) {
	e := l.env()
	want := daemonconfig.Docker{MTU: e.MTU}
	if own := e.Subnets[subnet.IPv4]; own.IsValid() {
		want.BIP = daemonconfig.HostAddr(own)
	}
	if l.opts.ipMasq {
		off := false
		want.IPMasq = &off
	}
	c := daemonconfig.DockerConfig{Path: l.opts.dockerConfig, MemoryPath: l.memoryPath(), Options: daemonconfig.WriteOptions{DirPerm: 0o755}}
	plan, err := c.Plan(want)
	return c, plan, err
}

// restartDocker restarts Docker once after a key of ours changed, where that is
// allowed. A Docker that does not run reads the file when it starts.
//
// The restart runs beside the loop: docker.service is ordered behind ours, so
// its start waits until we are ready, which the loop has yet to say.
func (l *loop) restartDocker(ctx context.Context) error {
	if l.files.restarting.Load() {
		return nil
	}
	if l.opts.dockerRestart != "on-change" {
		if err := l.dockerDiffers(ctx); err != nil {
			return withHint(err, "systemctl restart docker")
		}
		return nil
	}
	if err := l.files.failure.Load(); err != nil && !l.files.restart {
		return *err
	}
	if !l.files.restart {
		return l.dockerDiffers(ctx)
	}
	// Asked before we say that we are ready: a Docker that waits for us to be
	// is not up yet and reads the file when it starts.
	held, release := l.whileHeld(ctx)
	defer release()
	held, cancel := context.WithTimeout(held, dockerAnswer)
	defer cancel()
	active, err := systemd.UnitActive(held, dockerUnit)
	if err != nil {
		if cause := context.Cause(held); errors.Is(cause, errConflict) {
			return cause
		}
		return withHint(fmt.Errorf("look at %s: %w", dockerUnit, err), "systemctl restart docker")
	}
	l.files.restart = false
	if !active {
		return nil
	}
	l.files.restarting.Store(true)
	l.group.Go(func() error {
		defer l.files.restarting.Store(false)
		ctx, cancel := context.WithTimeout(ctx, dockerStart)
		defer cancel()
		l.log.Info("restarting docker: its subnet or mtu changed", "unit", dockerUnit)
		if err := systemd.RestartUnit(ctx, dockerUnit); err != nil {
			err = withHint(err, "journalctl -u docker -n 50")
			l.files.failure.Store(&err)
			return nil // the next round reports it
		}
		l.files.failure.Store(nil)
		return nil
	})
	return nil
}

// dockerDiffers says how docker0, if there is one, differs from what Docker was
// told.
func (l *loop) dockerDiffers(ctx context.Context) error {
	bridge, err := l.host.LinkByName(ctx, dockerBridge)
	if errors.Is(err, kernel.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", dockerBridge, err)
	}
	list, err := l.host.Addrs(bridge.Index).List(ctx)
	if err != nil {
		return fmt.Errorf("look at %s: %w", dockerBridge, err)
	}
	own := l.lease.own.Subnet[subnet.IPv4]
	if !own.IsValid() {
		return nil
	}
	want := daemonconfig.HostAddr(own)
	for _, a := range list {
		if a.Prefix == want {
			return nil
		}
	}
	return fmt.Errorf("%s has not %s, this host's subnet: Docker must be restarted for its containers to be reached", dockerBridge, want)
}

// What becomes of a file when that succeeds.
const (
	fileWritten   = "written"
	fileWithdrawn = "withdrawn"
)

// setFile puts a file's state on the board.
func (l *loop) setFile(path, state string, err error) {
	file := status.File{Path: path, State: state}
	if err != nil {
		file.State, file.Error = "failed", err.Error()
	}
	l.board.Update(func(s *status.Status) {
		files := make([]status.File, 0, len(s.Files)+1)
		for _, f := range s.Files {
			if f.Path != path {
				files = append(files, f)
			}
		}
		s.Files = append(files, file)
	})
}
