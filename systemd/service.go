package systemd

import (
	"context"
	"encoding/hex"
	"fmt"
)

// Service is how systemd would start a service.
type Service struct {
	// Loaded: there is such a unit.
	Loaded bool
	// Argv is the last ExecStart, the program first, with variables as they
	// stand there.
	Argv []string
	// Environment are assignments, EnvironmentFiles files with more, in their
	// order.
	Environment, EnvironmentFiles []string
	// Files are the unit's own file and its drop-ins, in their order.
	Files []string
	// State is systemd's ActiveState: "active", "reloading", "inactive", "failed",
	// "activating" or "deactivating".
	State string
	// Result is how the last start or run ended: "success", "exit-code",
	// [StartLimitHit] and others.
	Result string
	// Invocation stands for the last start, as systemd.exec(5) has it in
	// $INVOCATION_ID; empty: there was none since the boot.
	Invocation string
}

// StartLimitHit is the Result of a service that systemd refused to start, since it
// had been started too often in a short time, by whomever: StartLimitBurst= in
// StartLimitIntervalSec= of systemd.unit(5). The job fails, and a restart has
// stopped the service by then.
const StartLimitHit = "start-limit-hit"

// InspectService returns how a service would be started. One that does not
// exist is not loaded.
func InspectService(ctx context.Context, unit string) (Service, error) {
	conn, err := dial(ctx)
	if err != nil {
		return Service{}, err
	}
	defer conn.Close()
	general, err := conn.GetUnitPropertiesContext(ctx, unit)
	if err != nil {
		return Service{}, fmt.Errorf("inspect %s: %w", unit, err)
	}
	var s Service
	if s.Loaded = general["LoadState"] == "loaded"; !s.Loaded {
		return s, nil
	}
	s.State, _ = general["ActiveState"].(string)
	if id, ok := general["InvocationID"].([]byte); ok {
		s.Invocation = hex.EncodeToString(id)
	}
	if file, ok := general["FragmentPath"].(string); ok && file != "" {
		s.Files = append(s.Files, file)
	}
	if dropIns, ok := general["DropInPaths"].([]string); ok {
		s.Files = append(s.Files, dropIns...)
	}
	service, err := conn.GetUnitTypePropertiesContext(ctx, unit, "Service")
	if err != nil {
		return Service{}, fmt.Errorf("inspect %s: %w", unit, err)
	}
	// The types are those of org.freedesktop.systemd1(5): ExecStart is
	// a(sasbttttuii), of which the second is the argv; EnvironmentFiles a(sb).
	if commands, ok := service["ExecStart"].([][]any); ok {
		for _, c := range commands {
			if len(c) > 1 {
				s.Argv, _ = c[1].([]string)
			}
		}
	}
	s.Result, _ = service["Result"].(string)
	s.Environment, _ = service["Environment"].([]string)
	if files, ok := service["EnvironmentFiles"].([][]any); ok {
		for _, f := range files {
			if path, ok := first(f).(string); ok {
				s.EnvironmentFiles = append(s.EnvironmentFiles, path)
			}
		}
	}
	return s, nil
}

// StartUnit starts a unit, also one that has failed too often to be started
// again, and returns when that is done. A [*JobError] says how else the job
// ended; when ctx ends first, it goes on without us.
func StartUnit(ctx context.Context, unit string) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// What has not failed has nothing to reset; the start says the rest.
	_ = conn.ResetFailedUnitContext(ctx, unit)
	return runJob(ctx, unit, "start", conn.StartUnitContext)
}

// StopUnit stops a unit, or a start of it that hangs, and returns when that is
// done. A [*JobError] says how else the job ended; when ctx ends first, it goes on
// without us.
func StopUnit(ctx context.Context, unit string) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return runJob(ctx, unit, "stop", conn.StopUnitContext)
}

// runJob asks for a job and waits for its end.
func runJob(ctx context.Context, unit, verb string, ask func(context.Context, string, string, chan<- string) (int, error)) error {
	done := make(chan string, 1) // go-systemd's reader must never wait for us
	if _, err := ask(ctx, unit, "replace", done); err != nil {
		return fmt.Errorf("%s %s: %w", verb, unit, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("%s %s: %w", verb, unit, &JobError{Unit: unit, Result: result})
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s %s: wait for the job: %w", verb, unit, context.Cause(ctx))
	}
}

// first is the first field of a structure of D-Bus.
func first(fields []any) any {
	if len(fields) == 0 {
		return nil
	}
	return fields[0]
}
