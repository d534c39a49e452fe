package systemd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/flanneld-go/flanneld-go/systemd"
)

const (
	busName   = "org.freedesktop.systemd1"
	busObject = dbus.ObjectPath("/org/freedesktop/systemd1")
	manager   = "org.freedesktop.systemd1.Manager"
)

// fakeManager is systemd as far as this package talks to it, on a bus of the
// test's own.
type fakeManager struct {
	conn *dbus.Conn

	mu sync.Mutex
	// units are the active states by name.
	units map[string]string
	// result is how jobs end; empty: they do not.
	result string
	// jobs are the requests so far.
	jobs []string
}

// unitStatus is one row of ListUnitsByNames (org.freedesktop.systemd1(5)).
type unitStatus struct {
	Name, Description, Load, Active, Sub, Followed string
	Path                                           dbus.ObjectPath
	JobID                                          uint32
	JobType                                        string
	JobPath                                        dbus.ObjectPath
}

// ListUnitsByNames is a method of systemd's manager.
func (f *fakeManager) ListUnitsByNames(names []string) ([]unitStatus, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rows := make([]unitStatus, 0, len(names))
	for _, name := range names {
		row := unitStatus{Name: name, Load: "not-found", Active: "inactive", Path: "/u", JobPath: "/"}
		if state, ok := f.units[name]; ok {
			row.Load, row.Active = "loaded", state
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// TryRestartUnit is a method of systemd's manager.
func (f *fakeManager) TryRestartUnit(name, mode string) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.units[name]; !ok {
		return "", dbus.NewError(busName+".NoSuchUnit", []any{"Unit " + name + " not found."})
	}
	f.jobs = append(f.jobs, fmt.Sprintf("try-restart %s %s", name, mode))
	id := uint32(len(f.jobs))
	job := dbus.ObjectPath(fmt.Sprintf("%s/job/%d", busObject, id))
	if f.result != "" {
		// A job of somebody else's ends first, badly; then ours.
		f.emit(99, busObject+"/job/99", "other.service", "failed")
		f.emit(id, job, name, f.result)
	}
	return job, nil
}

// emit sends JobRemoved.
func (f *fakeManager) emit(id uint32, job dbus.ObjectPath, unit, result string) {
	if err := f.conn.Emit(busObject, manager+".JobRemoved", id, job, unit, result); err != nil {
		panic(err)
	}
}

// startBus runs a message bus for the test and makes it the system's.
func startBus(t *testing.T) {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("needs dbus-daemon: package dbus is not installed")
	}
	address := "unix:path=" + filepath.Join(t.TempDir(), "bus")
	bus := exec.Command(program, "--session", "--nofork", "--nopidfile", "--print-address", "--address="+address)
	out, err := bus.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = bus.Process.Kill()
		_ = bus.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, len(address))); err != nil { // it prints when it listens
		t.Fatalf("dbus-daemon did not start: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
}

// startManager puts a fake systemd on a bus of its own.
func startManager(t *testing.T, f *fakeManager) *fakeManager {
	t.Helper()
	startBus(t)
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f.conn = conn
	if err := conn.Export(f, busObject, manager); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(busName, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestUnitActive(t *testing.T) {
	startManager(t, &fakeManager{units: map[string]string{
		"docker.service": "active", "a.service": "reloading", "b.service": "inactive", "c.service": "failed", "d.service": "activating",
	}})
	for unit, want := range map[string]bool{
		"docker.service": true, "a.service": true, "b.service": false, "c.service": false, "d.service": false, "unknown.service": false,
	} {
		got, err := systemd.UnitActive(t.Context(), unit)
		if err != nil || got != want {
			t.Errorf("%s: got %t, error %v; want %t", unit, got, err, want)
		}
	}
}

func TestRestartUnit(t *testing.T) {
	tests := []struct{ name, unit, result, want string }{
		{"done", "docker.service", "done", ""},
		{"failed", "docker.service", "failed", "restart docker.service: job of docker.service: failed"},
		{"timeout", "docker.service", "timeout", "restart docker.service: job of docker.service: timeout"},
		{"unknown", "podman.service", "done", "restart podman.service: Unit podman.service not found."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := startManager(t, &fakeManager{units: map[string]string{"docker.service": "active"}, result: tt.result})
			err := systemd.RestartUnit(t.Context(), tt.unit)
			if got := fmt.Sprint(err); err == nil && tt.want != "" || err != nil && got != tt.want {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			var job *systemd.JobError
			if failed := tt.result != "done"; errors.As(err, &job) != failed || failed && job.Result != tt.result {
				t.Errorf("job error %v, want result %q", job, tt.result)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if want := "try-restart docker.service replace"; tt.unit == "docker.service" && strings.Join(f.jobs, ";") != want {
				t.Errorf("jobs %q, want %q", f.jobs, want)
			}
		})
	}
}

// waited is a context that notes when the end of a job is waited for.
type waited struct {
	context.Context
	begin func()
}

// Done implements context.Context.
func (w waited) Done() <-chan struct{} {
	pc, _, _, _ := runtime.Caller(1)
	if strings.HasSuffix(runtime.FuncForPC(pc).Name(), "/systemd.runJob") {
		w.begin()
	}
	return w.Context.Done()
}

func TestRestartUnitEndsWithItsContext(t *testing.T) {
	within, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	ctx, cancel := context.WithCancelCause(within)
	defer cancel(nil)
	startManager(t, &fakeManager{units: map[string]string{"docker.service": "active"}})
	err := systemd.RestartUnit(waited{ctx, func() { cancel(errors.New("too long")) }}, "docker.service")
	if want := "restart docker.service: wait for the job: too long"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestWithoutManager(t *testing.T) {
	startBus(t) // a bus, and nobody on it who is systemd
	if _, err := systemd.UnitActive(t.Context(), "docker.service"); err == nil || !strings.HasPrefix(err.Error(), "inspect docker.service: ") {
		t.Errorf("error %v, want one of inspect docker.service", err)
	}
}

func TestWithoutBus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := systemd.RestartUnit(ctx, "docker.service"); !errors.Is(err, systemd.ErrNoSystemd) {
		t.Errorf("error %v, want ErrNoSystemd", err)
	}
}
