package systemd

import (
	"context"
	"errors"
	"fmt"

	"github.com/coreos/go-systemd/v22/dbus"
)

// ErrNoSystemd: the service manager cannot be reached; most likely this
// machine's is not systemd.
var ErrNoSystemd = errors.New("cannot reach systemd")

// JobError is a job that systemd took and did not finish well.
type JobError struct {
	Unit string
	// Result is systemd's word: "canceled", "timeout", "failed", "dependency"
	// or "skipped".
	Result string
}

// Error reads as "job of docker.service: failed".
func (e *JobError) Error() string { return "job of " + e.Unit + ": " + e.Result }

// UnitActive reports whether a unit is up. One that does not exist is not.
func UnitActive(ctx context.Context, unit string) (bool, error) {
	conn, err := dial(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	units, err := conn.ListUnitsByNamesContext(ctx, []string{unit})
	if err != nil {
		return false, fmt.Errorf("inspect %s: %w", unit, err)
	}
	if len(units) != 1 {
		return false, fmt.Errorf("inspect %s: got %d answers, want 1", unit, len(units))
	}
	return units[0].ActiveState == "active" || units[0].ActiveState == "reloading", nil
}

// RestartUnit restarts a unit that is up and returns when that is done. A unit
// that is down stays down: who stopped it meant it. A [*JobError] says how else
// the job ended; when ctx ends first, it goes on without us.
//
// A job of a unit that is ordered after us waits until we are ready: call it
// after [Notifier.Ready] only.
func RestartUnit(ctx context.Context, unit string) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return runJob(ctx, unit, "restart", conn.TryRestartUnitContext)
}

// dial connects to systemd by the system bus, or straight to it where there is
// no bus. The connection lives as long as ctx at most.
func dial(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSystemd, err)
	}
	return conn, nil
}
