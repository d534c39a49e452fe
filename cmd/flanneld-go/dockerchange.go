package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/systemd"
)

// A change of Docker's file is on probation until Docker has started with it:
//
//	noted -> written -> asked for -> Docker starts ----------------> forgotten
//	                        |                                            ^
//	                        `-> Docker fails -> taken back -> Docker --> refused
//	                                                starts without it
//
// Each step is kept in docker-change.json before it is taken, so that who comes
// after a process that was killed goes on where that was.

// unknownStart is the last start of a Docker of which systemd does not tell.
const unknownStart = "unknown"

// changeID stands for a change of a file.
func changeID(u daemonconfig.Undo) string {
	return fmt.Sprintf("%x %x", sha256.Sum256(u.Old), sha256.Sum256(u.New))
}

// refusedFile is a change that was taken back.
type refusedFile struct {
	change string
	err    error
}

// refusedBefore returns why a change was taken back; nil: it never was.
func (s *dockerState) refusedBefore(u daemonconfig.Undo) error {
	if r := s.refused.Load(); r != nil && r.change == changeID(u) {
		return r.err
	}
	return nil
}

// noteChange keeps the way back from a change that is about to be made.
func (l *loop) noteChange(ctx context.Context, u daemonconfig.Undo, changes string) error {
	if earlier := l.docker.change; earlier != nil {
		u = u.Over(earlier.Undo) // Docker has not started with that either
	}
	if u.Empty() {
		l.forgetChange()
		return nil
	}
	c := &statedir.DockerChange{Undo: u, Changes: changes, Start: unknownStart}
	if unit := l.outcome(ctx); unit.Loaded {
		c.Start = unit.Invocation
	}
	l.docker.change = c
	return l.dir.SaveDockerChange(*c)
}

// keepChange keeps how far a change has come. Without that it comes as far, unless
// we are killed.
func (l *loop) keepChange(c *statedir.DockerChange) {
	if err := l.dir.SaveDockerChange(*c); err != nil {
		l.log.Warn("change of docker's file is not kept for a later process", "path", c.Undo.Path, "error", err)
	}
}

// forgetChange ends the probation.
func (l *loop) forgetChange() {
	l.docker.change = nil
	if err := l.dir.DropDockerChange(); err != nil {
		l.log.Warn("change of docker's file is kept although it is settled", "error", err)
	}
}

// settleChange finds out what came of a change that no restart of this process
// has proved: an earlier process was killed over it, or others start Docker. It
// reports whether something is done about it beside the loop.
func (l *loop) settleChange(ctx context.Context) (busy bool) {
	c := l.docker.change
	switch {
	case c == nil:
		return false
	case l.docker.refusedBefore(c.Undo) != nil:
		if !l.unsaved { // it is remembered as refused from now on
			l.forgetChange()
		}
		return false
	case c.Failed != "" && l.startedSince(ctx, c):
		l.forgetChange()
		return false
	case c.Failed != "":
		l.beside(ctx, func() error { return l.rollBack(ctx, c, errors.New(c.Failed)) })
		return true
	}
	if stands, err := c.Undo.Stands(); err != nil || !stands {
		if err == nil { // it was never made, or somebody else has written since
			l.forgetChange()
		}
		return false
	}
	return l.settleStart(ctx, c)
}

// startedSince reports whether Docker runs by a change with which it had failed: of
// something else, then, that is over.
func (l *loop) startedSince(ctx context.Context, c *statedir.DockerChange) bool {
	if stands, err := c.Undo.Stands(); err != nil || !stands || c.Start == unknownStart {
		return false
	}
	unit := l.outcome(ctx)
	return unit.Loaded && unit.State == "active" && unit.Invocation != c.Start
}

// settleStart looks whether Docker has started with a change.
func (l *loop) settleStart(ctx context.Context, c *statedir.DockerChange) (busy bool) {
	unit := l.outcome(ctx)
	if !unit.Loaded || c.Start == unknownStart {
		return false
	}
	if unit.Invocation == c.Start {
		if c.Asked && unit.State == "active" { // whoever was to ask was killed before
			c.Asked = false
			l.docker.attempt.Store(nil)
		}
		return false
	}
	limit := unit.State == "failed" && unit.Result == systemd.StartLimitHit // which says nothing about the file
	switch {
	case unit.State == "active":
		l.forgetChange()
		return false
	case c.Asked && (limit || unit.State == "activating"):
		l.beside(ctx, func() error { return l.restartUnit(ctx, c, l.units.Start) })
		return true
	case unit.State == "failed" && !limit:
		why := fmt.Errorf("%s has failed: %s", dockerUnit, unit.Result)
		l.beside(ctx, func() error { return l.rollBack(ctx, c, why) })
		return true
	}
	return false // it stands still, or is on its way
}

// beside runs a job on Docker beside the loop: docker.service is ordered behind
// ours, so its start waits until we are ready, which the loop has yet to say.
// What the job is about is its own until it ends.
func (l *loop) beside(ctx context.Context, job func() error) {
	why := l.restartReason()
	l.docker.restarting.Store(true)
	l.group.Go(func() error {
		defer l.docker.restarting.Store(false)
		err := job()
		if ctx.Err() != nil {
			return nil // we end, and the job goes on without us
		}
		l.docker.attempt.Store(&dockerAttempt{why, err}) // the next round reports it
		return nil
	})
}

// rollBack puts back the file that Docker ran with and starts it once more. why
// is how it failed; what comes back says what stands now. The same change is not
// tried again as long as the file is what it was.
func (l *loop) rollBack(ctx context.Context, c *statedir.DockerChange, why error) error {
	path := c.Undo.Path
	what := fmt.Errorf("docker does not start with our change of %s (%s): %w", path, c.Changes, why)
	c.Failed = why.Error()
	l.keepChange(c)
	if err := c.Undo.Revert(); err != nil {
		if errors.Is(err, daemonconfig.ErrChanged) {
			l.forgetChange() // the way back leads nowhere any more
		}
		return withHint(fmt.Errorf("%w; the former file could not be put back: %w", what, err), journalOfDocker)
	}
	l.log.Warn("docker config put back: docker did not start", "path", path, "error", why)
	err := patiently(ctx, l.units.Start)
	if ctx.Err() != nil {
		return err // whoever comes next goes on from what is kept
	}
	if err != nil {
		what = fmt.Errorf("%w; the former file is back, and docker does not start with that either: %w", what, err)
	} else {
		what = fmt.Errorf("%w; the former file is back, and docker runs by it: its containers have other addresses than this host's subnet", what)
	}
	l.docker.refused.Store(&refusedFile{changeID(c.Undo), withHint(what, "%s; after a change of %s it is tried again", journalOfDocker, path)})
	return withHint(what, journalOfDocker)
}
