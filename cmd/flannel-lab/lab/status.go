package lab

import (
	"context"
	"fmt"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
)

// Status is the daemon's state as its socket serves it, Problem a part of it.
type (
	Status  = status.Status
	Problem = status.Problem
)

// Status asks the daemon for its state.
func (h *Host) Status(ctx context.Context) (Status, error) {
	s, err := status.Fetch(ctx, h.Socket())
	if err != nil {
		return s, fmt.Errorf("%s: %w", h.Name, err)
	}
	return s, nil
}

// WaitStatus waits until the running daemon's state is as wanted; what is the
// want in words.
func (h *Host) WaitStatus(ctx context.Context, what string, wanted func(Status) bool) (Status, error) {
	var s Status
	err := h.waitDaemon(ctx, what, func() (bool, error) {
		var err error
		s, err = h.Status(ctx)
		// Until it listens, or while an earlier process's answer is read.
		if err != nil || s.PID != h.Daemon.PID() {
			return false, nil
		}
		return wanted(s), nil
	})
	return s, err
}

// WaitReady waits until the daemon says that traffic flows, to a number of peers.
func (h *Host) WaitReady(ctx context.Context, peers int) (Status, error) {
	return h.WaitStatus(ctx, fmt.Sprintf("readiness with %d peers", peers), func(s Status) bool {
		return s.Ready && len(s.Peers) == peers
	})
}

// WaitProblem waits until the daemon reports a problem of a component whose
// message contains a text.
func (h *Host) WaitProblem(ctx context.Context, component, text string) (Problem, error) {
	var found Problem
	_, err := h.WaitStatus(ctx, fmt.Sprintf("the %s problem %q", component, text), func(s Status) bool {
		for _, p := range s.Problems {
			if p.Component == component && strings.Contains(p.Message, text) {
				found = p
				return true
			}
		}
		return false
	})
	return found, err
}
