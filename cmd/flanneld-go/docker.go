package main

import (
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

	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
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
	// Stop ends Docker, or a start of it that hangs.
	Stop(ctx context.Context) error
	// Unit says how a start would be made; without such a unit it is zero.
	Unit(ctx context.Context) (dockerd.Unit, error)
	// Outcome says how it stands, and how it ended, in systemd's words.
	Outcome(ctx context.Context) (systemd.Service, error)
}

// systemdUnits asks systemd.
type systemdUnits struct{}

func (systemdUnits) Active(ctx context.Context) (bool, error) {
	return systemd.UnitActive(ctx, dockerUnit)
}

func (systemdUnits) Restart(ctx context.Context) error { return systemd.RestartUnit(ctx, dockerUnit) }
func (systemdUnits) Start(ctx context.Context) error   { return systemd.StartUnit(ctx, dockerUnit) }
func (systemdUnits) Stop(ctx context.Context) error    { return systemd.StopUnit(ctx, dockerUnit) }

func (systemdUnits) Unit(ctx context.Context) (dockerd.Unit, error) {
	s, err := systemd.InspectService(ctx, dockerUnit)
	return dockerd.Unit{Argv: s.Argv, Environment: s.Environment, EnvironmentFiles: s.EnvironmentFiles, Files: s.Files}, err
}

func (systemdUnits) Outcome(ctx context.Context) (systemd.Service, error) {
	return systemd.InspectService(ctx, dockerUnit)
}

// dockerState is what the loop does to Docker, and what came of it.
type dockerState struct {
	seen dockerSeen
	// problem is what was wrong when it was last looked at.
	problem error
	// restart: a key of ours changed and Docker was not restarted since.
	restart bool
	// marked: the firewall sets the mark that Docker lets through.
	marked bool
	// told is what Docker's file said last; it stays when that is withdrawn.
	told daemonconfig.Env
	// withdrawn: keys of an earlier --docker-config were taken back.
	withdrawn bool
	// change is the last one of Docker's file with which Docker has not started
	// yet. While something is done beside the loop, it is that one's.
	change *statedir.DockerChange
	// warned are what was said of the administrator's own keys.
	warned []string

	// restarting: a restart is under way, beside the loop.
	restarting atomic.Bool
	// attempt is the last one. A second for the same reason would be a loop.
	attempt atomic.Pointer[dockerAttempt]
	// kept is the one that is remembered for later processes.
	kept *dockerAttempt
	// refused is the text that Docker did not start with.
	refused atomic.Pointer[refusedFile]
}

// memoryPath is where daemonconfig remembers which of Docker's keys are ours.
func (d *daemon) memoryPath() string { return filepath.Join(d.opts.stateDir, "docker.json") }

// keepsDocker: Docker is ours to look after.
func (l *loop) keepsDocker() bool {
	return l.opts.dockerConfig != "" || l.opts.dockerOptions != "" || l.opts.dockerNetwork != ""
}

// writeDocker keeps Docker's keys, by the one channel that was chosen, or its
// network. While Docker is restarted, file and containers are Docker's: what was
// wrong before stays wrong until somebody has looked.
func (l *loop) writeDocker(ctx context.Context) error {
	l.files.stale = false
	if l.keepsDocker() && !l.docker.restarting.Load() {
		l.docker.problem = l.keepDocker(ctx)
	}
	return l.docker.problem
}

func (l *loop) keepDocker(ctx context.Context) error {
	l.keepAttempt()
	if busy := l.settleChange(ctx); busy {
		return l.docker.problem
	}
	l.lookAtDocker(ctx)
	if err := l.markNow(ctx); err != nil {
		return err
	}
	if err := l.outOfReach(); err != nil {
		l.showDocker(ctx)
		return err
	}
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
	return joinProblems(err, l.onlyRootless(), l.dockerDrops(), l.overlapping())
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
	swap, err := daemonconfig.PlanSwap(l.opts.dockerOptions, daemonconfig.OptionsFile(l.env()), daemonconfig.WriteOptions{DirPerm: 0o755})
	if err == nil && swap.Changes() {
		err = l.commitOptions(ctx, swap)
	}
	l.setFile(l.opts.dockerOptions, fileWritten, err)
	return errors.Join(err, l.restartDocker(ctx))
}

// commitOptions does what was planned, unless dockerd did not start with it.
func (l *loop) commitOptions(ctx context.Context, swap daemonconfig.Swap) error {
	if err := l.docker.refusedBefore(swap.Undo()); err != nil {
		return err
	}
	unkept := l.noteChange(ctx, swap.Undo(), "now "+lastLine(swap.Text))
	if err := swap.Commit(); err != nil {
		return errors.Join(unkept, err)
	}
	l.log.Info("docker options written", "path", swap.Path)
	l.wrote(ctx)
	return unkept
}

// lastLine of the options file has all of them.
func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

func (l *loop) writeDockerConfig(ctx context.Context) error {
	if err := l.keepConfig(ctx); err != nil {
		return err
	}
	if err := l.unread(); err != nil {
		return err
	}
	return l.restartDocker(ctx)
}

// keepConfig keeps our keys in Docker's file.
func (l *loop) keepConfig(ctx context.Context) error {
	c, plan, err := l.planDocker()
	if err == nil && len(plan.Changes) > 0 {
		err = l.commitDocker(ctx, c, plan)
	}
	l.setFile(c.Path, fileWritten, err)
	if err != nil {
		return err
	}
	l.warnOfKeys(plan.Warnings)
	return nil
}

// commitDocker does what was planned, unless dockerd would not start with it.
func (l *loop) commitDocker(ctx context.Context, c daemonconfig.DockerConfig, plan daemonconfig.Plan) error {
	if err := l.docker.refusedBefore(c.Undo(plan)); err != nil {
		return err
	}
	if err := l.givenTwice(ctx); err != nil {
		return err
	}
	var changes []string
	for _, change := range plan.Changes {
		changes = append(changes, change.String())
	}
	unkept := l.noteChange(ctx, c.Undo(plan), strings.Join(changes, ", "))
	c.Options.Check = l.judgedByDockerd(ctx, c, plan)
	if err := c.Commit(plan); err != nil {
		return errors.Join(unkept, err)
	}
	for _, change := range changes {
		l.log.Info("docker config written", "path", c.Path, "change", change)
	}
	l.wrote(ctx)
	return unkept
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

// wrote takes in a change of Docker's file. After one that Docker did not start
// with, somebody has changed the file since: worth another restart.
func (l *loop) wrote(ctx context.Context) {
	if l.docker.refused.Swap(nil) != nil {
		l.docker.attempt.Store(nil)
	}
	l.wantRestart(ctx)
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
	want := daemonconfig.Docker{AcceptMark: l.wantMark()}
	if l.opts.dockerNetwork != "" {
		return want // docker0 is none of ours
	}
	want.MTU, want.Networks = e.MTU, e.Networks
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

// hostAddr is docker0's address as it should be; invalid: Docker has no part in
// our subnet.
func (l *loop) hostAddr() netip.Prefix {
	own := l.lease.own.Subnet[subnet.IPv4]
	if !own.IsValid() {
		return netip.Prefix{}
	}
	return daemonconfig.HostAddr(own)
}
