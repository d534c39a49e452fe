package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
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

// units is what is asked of the service manager about Docker.
type units interface {
	// Active reports whether Docker is up.
	Active(ctx context.Context) (bool, error)
	// Restart and Start return when that is done, with a [*systemd.JobError]
	// if Docker did not come up.
	Restart(ctx context.Context) error
	Start(ctx context.Context) error
	// Unit says how a start would be made; without such a unit it is zero.
	Unit(ctx context.Context) (dockerd.Unit, error)
}

// systemdUnits asks systemd.
type systemdUnits struct{}

func (systemdUnits) Active(ctx context.Context) (bool, error) {
	return systemd.UnitActive(ctx, dockerUnit)
}

func (systemdUnits) Restart(ctx context.Context) error { return systemd.RestartUnit(ctx, dockerUnit) }
func (systemdUnits) Start(ctx context.Context) error   { return systemd.StartUnit(ctx, dockerUnit) }

func (systemdUnits) Unit(ctx context.Context) (dockerd.Unit, error) {
	s, err := systemd.InspectService(ctx, dockerUnit)
	return dockerd.Unit{Argv: s.Argv, Environment: s.Environment, EnvironmentFiles: s.EnvironmentFiles, Files: s.Files}, err
}

// dockerState is what the loop does to Docker, and what came of it.
type dockerState struct {
	seen dockerSeen
	// restart: a key of ours changed and Docker was not restarted since.
	restart bool
	// told is what Docker's file said last; it stays when that is withdrawn.
	told daemonconfig.Env
	// withdrawn: keys of an earlier --docker-config were taken back.
	withdrawn bool
	// written is the last change of Docker's file by this process that no
	// restart has proved yet.
	written *writtenConfig
	// warned are what was said of the administrator's own keys.
	warned []string

	// restarting: a restart is under way, beside the loop.
	restarting atomic.Bool
	// attempt is the last one. A second for the same reason would be a loop.
	attempt atomic.Pointer[dockerAttempt]
	// refused is the text that Docker did not start with.
	refused atomic.Pointer[refusedConfig]
}

// writtenConfig is a change of daemon.json.
type writtenConfig struct {
	config daemonconfig.DockerConfig
	plan   daemonconfig.Plan
}

// dockerAttempt is a restart of Docker.
type dockerAttempt struct {
	env daemonconfig.Env
	// err is why it is not as it should be since.
	err error
}

// refusedConfig is a change that was taken back: from old to text.
type refusedConfig struct {
	old, text []byte
	err       error
}

// memoryPath is where daemonconfig remembers which of Docker's keys are ours.
func (d *daemon) memoryPath() string { return filepath.Join(d.opts.stateDir, "docker.json") }

// writeDocker keeps Docker's keys, by the one channel that was chosen, or its
// network.
func (l *loop) writeDocker(ctx context.Context) error {
	l.files.stale = false
	if l.opts.dockerConfig == "" && l.opts.dockerOptions == "" && l.opts.dockerNetwork == "" {
		return nil
	}
	if l.docker.restarting.Load() {
		return nil // until it is over, file and containers are Docker's
	}
	l.lookAtDocker(ctx)
	var err error
	switch {
	case l.opts.dockerNetwork != "":
		err = l.writeDockerNetwork(ctx)
	case l.opts.dockerOptions != "":
		err = l.writeDockerOptions(ctx)
	default:
		err = l.writeDockerConfig(ctx)
	}
	l.showDocker(ctx)
	return err
}

func (l *loop) writeDockerOptions(ctx context.Context) error {
	if !l.docker.withdrawn {
		changes, err := daemonconfig.Withdraw(l.memoryPath())
		if err != nil {
			return err
		}
		for _, c := range changes {
			l.log.Info("docker config key taken back: its options file says it now", "change", c.String())
		}
		l.docker.withdrawn = true
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
		err = l.commitDocker(ctx, c, plan)
	}
	l.setFile(c.Path, fileWritten, err)
	if err != nil {
		return err
	}
	l.warnOfKeys(plan.Warnings)
	return l.restartDocker(ctx)
}

// commitDocker does what was planned, unless dockerd would not start with it.
func (l *loop) commitDocker(ctx context.Context, c daemonconfig.DockerConfig, plan daemonconfig.Plan) error {
	if r := l.docker.refused.Load(); r != nil && bytes.Equal(r.old, plan.Old) && bytes.Equal(r.text, plan.Text) {
		return r.err
	}
	if err := l.givenTwice(ctx); err != nil {
		return err
	}
	c.Options.Check = l.judgedByDockerd(ctx, c, plan)
	if err := c.Commit(plan); err != nil {
		return err
	}
	for _, change := range plan.Changes {
		l.log.Info("docker config written", "path", c.Path, "change", change.String())
	}
	l.docker.written = &writtenConfig{c, plan}
	l.wantRestart(ctx)
	return nil
}

// judgedByDockerd returns a check of the new file by the program itself; nil:
// it cannot judge. What it says of the present file as well is not about ours:
// it looks for other programs, too.
func (l *loop) judgedByDockerd(ctx context.Context, c daemonconfig.DockerConfig, plan daemonconfig.Plan) func(string) error {
	binary, err := exec.LookPath("dockerd")
	if err != nil || !l.docker.seen.capabilities.Validate {
		return nil
	}
	present := c.Path
	if plan.Old == nil {
		present = os.DevNull
	}
	return func(path string) error {
		err := dockerd.Validate(ctx, binary, path)
		var refused, anyway *dockerd.RefusedError
		if errors.As(err, &refused) && errors.As(dockerd.Validate(ctx, binary, present), &anyway) && refused.Said == anyway.Said {
			l.log.Warn("dockerd refuses its config file, with our keys and without", "path", c.Path, "error", refused)
			return nil
		}
		if err != nil && refused == nil {
			l.log.Warn("docker config not checked before it is written", "path", c.Path, "error", err)
			return nil
		}
		return err
	}
}

// warnOfKeys says once what the administrator's own keys mean for ours.
func (l *loop) warnOfKeys(warnings []string) {
	for _, w := range warnings {
		if !slices.Contains(l.docker.warned, w) {
			l.log.Warn("docker config needs a look", "path", l.opts.dockerConfig, "warning", w)
		}
	}
	l.docker.warned = append(l.docker.warned, warnings...)
	slices.Sort(l.docker.warned)
	l.docker.warned = slices.Compact(l.docker.warned)
}

// givenTwice says which of our keys dockerd's command line has, too: it would
// not start.
func (l *loop) givenTwice(ctx context.Context) error {
	conflicts := dockerd.Conflicts(l.docker.seen.given, l.wantDocker().Keys())
	if len(conflicts) == 0 {
		return nil
	}
	// A process knows its words; which file they stand in, the unit knows.
	ctx, cancel := context.WithTimeout(ctx, dockerAnswer)
	defer cancel()
	unit, err := l.units.Unit(ctx)
	if err != nil {
		unit = dockerd.Unit{} // then the process is what we name
	}
	var named []string
	for _, c := range conflicts {
		for _, g := range unit.Flags() {
			if g.Flag == c.Flag {
				c = g
			}
		}
		named = append(named, c.String())
	}
	return withHint(fmt.Errorf("dockerd is given %s: it would not start with the same key in %s, so nothing is written there", strings.Join(named, " and "), l.opts.dockerConfig),
		"remove the flag, systemctl daemon-reload && systemctl restart docker; or run with --docker-config=none")
}

// wantRestart takes in that Docker's file changed. A file that is back after it
// was withdrawn, with what it said before, is no news to a Docker that runs by it.
func (l *loop) wantRestart(ctx context.Context) {
	e := l.env()
	if differs, err := l.dockerDiffers(ctx); e != l.docker.told || err != nil || len(differs) > 0 {
		l.docker.restart = true
	}
	l.docker.told = e
}

// wantDocker is what Docker is to be told.
func (l *loop) wantDocker() daemonconfig.Docker {
	e := l.env()
	want := daemonconfig.Docker{MTU: e.MTU, Networks: e.Networks}
	if own := e.Subnets[subnet.IPv4]; own.IsValid() {
		want.BIP = daemonconfig.HostAddr(own)
	}
	if l.opts.ipMasq {
		off := false
		want.IPMasq = &off
	}
	if l.knowsNetworkOpts() {
		want.NetworkMTU = e.MTU
	}
	return want
}

// planDocker says what Docker's config file must become.
func (l *loop) planDocker() (daemonconfig.DockerConfig, daemonconfig.Plan, error) {
	return l.planDockerFor(l.wantDocker())
}

func (l *loop) planDockerFor(want daemonconfig.Docker) (daemonconfig.DockerConfig, daemonconfig.Plan, error) {
	c := daemonconfig.DockerConfig{Path: l.opts.dockerConfig, MemoryPath: l.memoryPath(), Options: daemonconfig.WriteOptions{DirPerm: 0o755}}
	plan, err := c.Plan(want)
	return c, plan, err
}

// restartDocker restarts Docker once if what it has differs from what its file
// says, where that is allowed. A Docker that does not run reads the file when it
// starts.
func (l *loop) restartDocker(ctx context.Context) error {
	differs, err := l.dockerDiffers(ctx)
	if err != nil {
		return err
	}
	// A Docker that does not say what it has is judged by its file.
	unknown := !l.docker.seen.up && l.docker.restart
	if len(differs) == 0 && !unknown {
		return nil
	}
	problem := l.differsProblem(differs)
	if l.opts.dockerRestart != "on-change" {
		return problem
	}
	if l.docker.seen.held() && len(differs) > 0 {
		return problem // a restart would change nothing
	}
	if last := l.docker.attempt.Load(); last != nil && last.env == l.env() {
		return errors.Join(last.err, problem)
	}
	return l.startRestart(ctx, problem)
}

// differsProblem is how Docker differs, and what to type; nil: it does not.
func (l *loop) differsProblem(differs []string) error {
	if len(differs) == 0 {
		return nil
	}
	err := fmt.Errorf("%s: Docker must be restarted for its containers to be reached", strings.Join(differs, "; "))
	if l.docker.seen.held() {
		return withHint(fmt.Errorf("%w; \"live-restore\" is on, and docker0 keeps its address as long as any of the %d containers runs", err, l.docker.seen.engine.Info.ContainersRunning),
			"docker stop $(docker ps -q), then systemctl restart docker")
	}
	return withHint(err, "systemctl restart docker")
}

// startRestart restarts a Docker that runs.
//
// The restart runs beside the loop: docker.service is ordered behind ours, so
// its start waits until we are ready, which the loop has yet to say.
func (l *loop) startRestart(ctx context.Context, problem error) error {
	// Asked before we say that we are ready: a Docker that waits for us to be
	// is not up yet and reads the file when it starts.
	held, release := l.whileHeld(ctx)
	defer release()
	held, cancel := context.WithTimeout(held, dockerAnswer)
	defer cancel()
	active, err := l.units.Active(held)
	if err != nil {
		if cause := context.Cause(held); errors.Is(cause, errConflict) {
			return cause
		}
		return withHint(fmt.Errorf("look at %s: %w", dockerUnit, err), "systemctl restart docker")
	}
	l.docker.restart = false
	if !active {
		return problem
	}
	env, written := l.env(), l.docker.written
	l.docker.written = nil
	l.docker.restarting.Store(true)
	l.group.Go(func() error {
		defer l.docker.restarting.Store(false)
		ctx, cancel := context.WithTimeout(ctx, dockerStart)
		defer cancel()
		l.log.Info("restarting docker: its subnet or mtu changed", "unit", dockerUnit)
		err := l.units.Restart(ctx)
		if job := (*systemd.JobError)(nil); errors.As(err, &job) && written != nil {
			err = l.rollBack(ctx, *written, err)
		}
		if err != nil {
			err = withHint(err, "journalctl -u docker -n 50")
		}
		l.docker.attempt.Store(&dockerAttempt{env, err}) // the next round reports it
		return nil
	})
	return nil
}

// rollBack puts back the file that Docker ran with and starts it once more. why
// is how it failed; what comes back says what stands now. The same change is not
// tried again as long as the file is what it was.
func (l *loop) rollBack(ctx context.Context, w writtenConfig, why error) error {
	var changed []string
	for _, c := range w.plan.Changes {
		changed = append(changed, c.String())
	}
	what := fmt.Errorf("docker does not start with our change of %s (%s): %w", w.config.Path, strings.Join(changed, ", "), why)
	if err := w.config.Revert(w.plan); err != nil {
		return fmt.Errorf("%w; the former file could not be put back: %w", what, err)
	}
	l.log.Warn("docker config put back: docker did not start", "path", w.config.Path, "error", why)
	err := l.units.Start(ctx)
	if err != nil {
		what = fmt.Errorf("%w; the former file is back, and docker does not start with that either: %w", what, err)
	} else {
		what = fmt.Errorf("%w; the former file is back, and docker runs by it: its containers have other addresses than this host's subnet", what)
	}
	l.docker.refused.Store(&refusedConfig{old: w.plan.Old, text: w.plan.Text, err: withHint(what, "journalctl -u docker -n 50; after a change of %s it is tried again", w.config.Path)})
	return what
}

// hostAddr is docker0's address as it should be; invalid: Docker has no part in
// our subnet.
func (l *loop) hostAddr() netip.Prefix {
	own := l.lease.own.Subnet[subnet.IPv4]
	if !own.IsValid() {
		return netip.Prefix{}
	}
	return daemonconfig.HostAddr(own)
}
