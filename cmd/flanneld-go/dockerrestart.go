package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/systemd"
)

// restartReason is what a restart of Docker is for.
func (l *loop) restartReason() string { return fmt.Sprintf("%+v, mark %s", l.env(), l.wantMark()) }

// dockerAttempt is a restart of Docker.
type dockerAttempt struct {
	reason string
	// err is why it is not as it should be since.
	err error
}

// keepAttempt remembers the last restart for later processes: whoever restarts us
// again and again must not restart Docker as often.
func (l *loop) keepAttempt() {
	last := l.docker.attempt.Load()
	if last == l.docker.kept {
		return
	}
	l.docker.kept, l.saved.DockerAttempt = last, nil
	if last != nil {
		l.saved.DockerAttempt = last.remembered(l.docker.refused.Load())
	}
	l.saveHost()
}

func (a *dockerAttempt) remembered(refused *refusedFile) *statedir.DockerAttempt {
	saved, err := &statedir.DockerAttempt{Reason: a.reason}, a.err
	if refused != nil {
		saved.Refused, err = refused.change, refused.err
	}
	if err != nil {
		saved.Problem = err.Error()
	}
	var h *hintError
	if asHint(err, &h) {
		saved.Hint = h.hint
	}
	return saved
}

// recallAttempt takes over what an earlier process remembered.
func (s *dockerState) recallAttempt(saved *statedir.DockerAttempt) {
	if saved == nil {
		return
	}
	var err error
	if saved.Problem != "" {
		err = withHint(errors.New(saved.Problem), "%s", saved.Hint)
	}
	s.kept = &dockerAttempt{saved.Reason, err}
	s.attempt.Store(s.kept)
	if saved.Refused != "" {
		s.refused.Store(&refusedFile{saved.Refused, err})
	}
}

// forgetAttempt lets a later process restart Docker again: Docker is as it should
// be, so what it lacks then has another cause.
func (l *loop) forgetAttempt() {
	if l.saved.DockerAttempt != nil {
		l.saved.DockerAttempt = nil
		l.saveHost()
	}
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
		if bridge, err := l.lookAtBridge(ctx); err == nil && bridge != nil {
			l.forgetAttempt()
		}
		return nil
	}
	problem := l.differsProblem(differs)
	if l.holdsBack(differs) {
		return problem // a restart would change nothing
	}
	return l.restartOnce(ctx, problem)
}

// restartOnce restarts Docker if that is allowed, and was not tried for the same
// reason. problem is what is wrong until then.
func (l *loop) restartOnce(ctx context.Context, problem error) error {
	if l.opts.dockerRestart != "on-change" {
		return problem
	}
	if last := l.docker.attempt.Load(); last != nil && last.reason == l.restartReason() {
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
	if l.holdsBack(differs) {
		return l.heldProblem(err)
	}
	return withHint(err, "systemctl restart docker")
}

// heldProblem is a problem that no restart mends while containers run.
func (l *loop) heldProblem(err error) error {
	return withHint(fmt.Errorf("%w; \"live-restore\" is on, and docker0 keeps its address as long as any of the %d containers runs", err, l.docker.seen.engine.Info.ContainersRunning),
		"docker stop $(docker ps -q), then systemctl restart docker")
}

// holdsBack reports that Docker keeps docker0 as it is over a restart, and docker0
// is how it differs.
func (l *loop) holdsBack(differs []string) bool {
	return l.docker.seen.held() && slices.ContainsFunc(differs, func(d string) bool { return d != markStale })
}

// startRestart restarts a Docker that runs.
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
	change := l.docker.change
	if change != nil {
		change.Asked = true
		l.keepChange(change)
	}
	l.docker.attempt.Store(&dockerAttempt{reason: l.restartReason()})
	l.keepAttempt()
	l.log.Info("restarting docker: what its file says changed", "unit", dockerUnit)
	l.beside(ctx, func() error { return l.restartUnit(ctx, change, l.units.Restart) })
	return nil
}

const journalOfDocker = "journalctl -u docker -n 50"

// restartUnit starts Docker by a job, and puts its file back if it does not start
// with our last change of that; nil: there was none.
func (l *loop) restartUnit(ctx context.Context, change *statedir.DockerChange, job func(context.Context) error) error {
	err := l.restartPatiently(ctx, change, job)
	if ctx.Err() != nil || change == nil {
		return err
	}
	if err == nil {
		l.forgetChange()
		return nil
	}
	if change.Asked = false; change.Failed == "" {
		l.keepChange(change)
	}
	return err
}

// restartPatiently is restartUnit, but for what is kept of the change.
func (l *loop) restartPatiently(ctx context.Context, change *statedir.DockerChange, job func(context.Context) error) error {
	err := patiently(ctx, job)
	if err == nil || ctx.Err() != nil {
		return err
	}
	unit := l.outcome(ctx)
	if isFailure(err) && unit.Result == systemd.StartLimitHit {
		// Systemd has stopped it for us and does not start it, because others
		// restarted it just before: that limit is for loops, and this is none.
		l.log.Warn("docker was restarted too often in a short time for systemd, starting it all the same", "unit", dockerUnit, "error", err)
		if err = patiently(ctx, l.units.Start); err == nil || ctx.Err() != nil {
			return err
		}
		if unit = l.outcome(ctx); isFailure(err) && unit.Result == systemd.StartLimitHit {
			return withHint(fmt.Errorf("docker is down: systemd does not start it, since it is restarted again and again, and not by us (%s): %w", unit.Result, err),
				"%s says who restarts it; then systemctl reset-failed docker && systemctl start docker", journalOfDocker)
		}
	}
	hangs := errors.Is(err, context.DeadlineExceeded)
	switch {
	case hangs && unit.State == "deactivating":
		return withHint(fmt.Errorf("docker has not stopped its containers within %s, and starts when it has: %w", dockerStart, err), journalOfDocker)
	case hangs && unit.State == "activating":
		err = fmt.Errorf("docker has not started within %s: %w", dockerStart, err)
		if change == nil {
			return withHint(err, journalOfDocker)
		}
		// Else the job of the new start would be one with that which hangs.
		if stop := patiently(ctx, l.units.Stop); stop != nil {
			err = fmt.Errorf("%w; it cannot be stopped: %w", err, stop)
		}
	case !isFailure(err) || change == nil:
		return withHint(err, journalOfDocker)
	}
	return l.rollBack(ctx, change, err)
}

// isFailure reports that a start ended badly; not that somebody cancelled it, or
// that it could not be asked for.
func isFailure(err error) bool {
	var job *systemd.JobError
	return errors.As(err, &job) && (job.Result == "failed" || job.Result == "timeout")
}

// patiently gives a job the time that it may take.
func patiently(ctx context.Context, job func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, dockerStart)
	defer cancel()
	return job(ctx)
}

// outcome is how Docker stands and ended; zero: systemd does not say.
func (l *loop) outcome(ctx context.Context) systemd.Service {
	ctx, cancel := context.WithTimeout(ctx, dockerAnswer)
	defer cancel()
	unit, err := l.units.Outcome(ctx)
	if err != nil {
		l.log.Debug("outcome of docker's start is not known", "error", err)
	}
	return unit
}
