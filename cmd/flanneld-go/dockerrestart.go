package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/systemd"
)

// writtenFile is a change of Docker's file, and the way back.
type writtenFile struct {
	path string
	// changes are what of it is new, in words.
	changes string
	// old is the former text, text the new one; nil: no file.
	old, text []byte
	revert    func() error
}

// refusedFile is a change that was taken back.
type refusedFile struct {
	change string
	err    error
}

// changeID stands for a change of a file from old to text.
func changeID(old, text []byte) string {
	return fmt.Sprintf("%x %x", sha256.Sum256(old), sha256.Sum256(text))
}

// refusedBefore returns why a change was taken back; nil: it never was.
func (s *dockerState) refusedBefore(old, text []byte) error {
	if r := s.refused.Load(); r != nil && r.change == changeID(old, text) {
		return r.err
	}
	return nil
}

// wrote takes in a change of Docker's file. After one that Docker did not start
// with, somebody has changed the file since: worth another restart.
func (s *dockerState) wrote(w writtenFile) {
	s.written = &w
	if s.refused.Swap(nil) != nil {
		s.attempt.Store(nil)
	}
}

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
		return withHint(fmt.Errorf("%w; \"live-restore\" is on, and docker0 keeps its address as long as any of the %d containers runs", err, l.docker.seen.engine.Info.ContainersRunning),
			"docker stop $(docker ps -q), then systemctl restart docker")
	}
	return withHint(err, "systemctl restart docker")
}

// holdsBack reports that Docker keeps docker0 as it is over a restart, and docker0
// is how it differs.
func (l *loop) holdsBack(differs []string) bool {
	return l.docker.seen.held() && slices.ContainsFunc(differs, func(d string) bool { return d != markStale })
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
	why, written := l.restartReason(), l.docker.written
	l.docker.written = nil
	l.docker.attempt.Store(&dockerAttempt{reason: why})
	l.keepAttempt()
	l.docker.restarting.Store(true)
	l.group.Go(func() error {
		defer l.docker.restarting.Store(false)
		l.log.Info("restarting docker: what its file says changed", "unit", dockerUnit)
		err := l.restartUnit(ctx, written)
		if ctx.Err() != nil {
			return nil // we end, and the job goes on without us
		}
		l.docker.attempt.Store(&dockerAttempt{why, err}) // the next round reports it
		return nil
	})
	return nil
}

const journalOfDocker = "journalctl -u docker -n 50"

// restartUnit restarts Docker, and puts its file back if it does not start with
// what was written into it.
func (l *loop) restartUnit(ctx context.Context, written *writtenFile) error {
	err := patiently(ctx, l.units.Restart)
	if err == nil || ctx.Err() != nil {
		return err
	}
	state, result := l.outcome(ctx)
	if isFailure(err) && result == systemd.StartLimitHit {
		// Systemd has stopped it for us and does not start it, because others
		// restarted it just before: that limit is for loops, and this is none.
		l.log.Warn("docker was restarted too often in a short time for systemd, starting it all the same", "unit", dockerUnit, "error", err)
		if err = patiently(ctx, l.units.Start); err == nil || ctx.Err() != nil {
			return err
		}
		if state, result = l.outcome(ctx); isFailure(err) && result == systemd.StartLimitHit {
			return withHint(fmt.Errorf("docker is down: systemd does not start it, since it is restarted again and again, and not by us (%s): %w", result, err),
				"%s says who restarts it; then systemctl reset-failed docker && systemctl start docker", journalOfDocker)
		}
	}
	hangs := errors.Is(err, context.DeadlineExceeded)
	switch {
	case hangs && state == "deactivating":
		return withHint(fmt.Errorf("docker has not stopped its containers within %s, and starts when it has: %w", dockerStart, err), journalOfDocker)
	case hangs && state == "activating":
		err = fmt.Errorf("docker has not started within %s: %w", dockerStart, err)
		if written == nil {
			return withHint(err, journalOfDocker)
		}
		// Else the job of the new start would be one with that which hangs.
		if stop := patiently(ctx, l.units.Stop); stop != nil {
			err = fmt.Errorf("%w; it cannot be stopped: %w", err, stop)
		}
	case !isFailure(err) || written == nil:
		return withHint(err, journalOfDocker)
	}
	return l.rollBack(ctx, *written, err)
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

// outcome is how Docker stands and ended; empty: systemd does not say.
func (l *loop) outcome(ctx context.Context) (state, result string) {
	ctx, cancel := context.WithTimeout(ctx, dockerAnswer)
	defer cancel()
	state, result, err := l.units.Outcome(ctx)
	if err != nil {
		l.log.Debug("outcome of docker's start is not known", "error", err)
	}
	return state, result
}

// rollBack puts back the file that Docker ran with and starts it once more. why
// is how it failed; what comes back says what stands now. The same change is not
// tried again as long as the file is what it was.
func (l *loop) rollBack(ctx context.Context, w writtenFile, why error) error {
	what := fmt.Errorf("docker does not start with our change of %s (%s): %w", w.path, w.changes, why)
	if err := w.revert(); err != nil {
		return withHint(fmt.Errorf("%w; the former file could not be put back: %w", what, err), journalOfDocker)
	}
	l.log.Warn("docker config put back: docker did not start", "path", w.path, "error", why)
	err := patiently(ctx, l.units.Start)
	if err != nil {
		what = fmt.Errorf("%w; the former file is back, and docker does not start with that either: %w", what, err)
	} else {
		what = fmt.Errorf("%w; the former file is back, and docker runs by it: its containers have other addresses than this host's subnet", what)
	}
	l.docker.refused.Store(&refusedFile{changeID(w.old, w.text), withHint(what, "%s; after a change of %s it is tried again", journalOfDocker, w.path)})
	return withHint(what, journalOfDocker)
}
