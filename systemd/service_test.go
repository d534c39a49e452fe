package systemd_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/systemd"
)

// ResetFailedUnit is a method of systemd's manager.
func (f *fakeManager) ResetFailedUnit(name string) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jobs = append(f.jobs, "reset-failed "+name)
	if f.units[name] != "failed" {
		return dbus.NewError(busName+".NoSuchUnit", []any{"Unit " + name + " not loaded."})
	}
	return nil
}

// StartUnit is a method of systemd's manager.
func (f *fakeManager) StartUnit(name, mode string) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jobs = append(f.jobs, "start "+name+" "+mode)
	job := dbus.ObjectPath(busObject + "/job/7")
	f.emit(7, job, name, f.result)
	return job, nil
}

// StopUnit is a method of systemd's manager.
func (f *fakeManager) StopUnit(name, mode string) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jobs = append(f.jobs, "stop "+name+" "+mode)
	job := dbus.ObjectPath(busObject + "/job/8")
	f.emit(8, job, name, f.result)
	return job, nil
}

func TestStopUnit(t *testing.T) {
	for result, want := range map[string]string{"done": "", "failed": "stop docker.service: job of docker.service: failed"} {
		t.Run(result, func(t *testing.T) {
			f := startManager(t, &fakeManager{units: map[string]string{"docker.service": "activating"}, result: result})
			err := systemd.StopUnit(t.Context(), "docker.service")
			if (err == nil) != (want == "") || err != nil && err.Error() != want {
				t.Errorf("error %v, want %q", err, want)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if got := strings.Join(f.jobs, "; "); got != "stop docker.service replace" {
				t.Errorf("asked for %s", got)
			}
		})
	}
}

func TestStartUnit(t *testing.T) {
	for result, want := range map[string]string{"done": "", "failed": "start docker.service: job of docker.service: failed"} {
		for _, state := range []string{"failed", "inactive"} {
			t.Run(result+" from "+state, func(t *testing.T) {
				f := startManager(t, &fakeManager{units: map[string]string{"docker.service": state}, result: result})
				err := systemd.StartUnit(t.Context(), "docker.service")
				if (err == nil) != (want == "") || err != nil && err.Error() != want {
					t.Errorf("error %v, want %q", err, want)
				}
				var job *systemd.JobError
				if errors.As(err, &job) != (want != "") {
					t.Errorf("error %v is a job's: want %t", err, want != "")
				}
				f.mu.Lock()
				defer f.mu.Unlock()
				if got := strings.Join(f.jobs, "; "); got != "reset-failed docker.service; start docker.service replace" {
					t.Errorf("asked for %s", got)
				}
			})
		}
	}
}

// properties are those of one unit, as GetAll of D-Bus gives them.
type properties map[string]map[string]dbus.Variant

// GetAll is a method of org.freedesktop.DBus.Properties.
func (p properties) GetAll(of string) (map[string]dbus.Variant, *dbus.Error) { return p[of], nil }

func TestInspectService(t *testing.T) {
	// command is systemd's a(sasbttttuii).
	type command struct {
		Path               string
		Argv               []string
		Ignore             bool
		T1, T2, T3, T4     uint64
		PID                uint32
		ExitCode, ExitInfo int32
	}
	type envFile struct {
		Path   string
		Ignore bool
	}
	const unit, service = busName + ".Unit", busName + ".Service"
	tests := []struct {
		name string
		p    properties
		want systemd.Service
	}{
		{
			"with drop-ins",
			properties{
				unit: {
					"LoadState": dbus.MakeVariant("loaded"), "FragmentPath": dbus.MakeVariant("/lib/systemd/system/docker.service"),
					"ActiveState": dbus.MakeVariant("failed"), "InvocationID": dbus.MakeVariant([]byte{0x0a, 0xff}),
					"DropInPaths": dbus.MakeVariant([]string{"/etc/systemd/system/docker.service.d/a.conf"}),
				},
				service: {
					"Result":           dbus.MakeVariant("start-limit-hit"),
					"ExecStart":        dbus.MakeVariant([]command{{Path: "/usr/sbin/dockerd", Argv: []string{"/usr/sbin/dockerd", "-H", "fd://", "$DOCKER_OPTS"}}}),
					"Environment":      dbus.MakeVariant([]string{"A=b c"}),
					"EnvironmentFiles": dbus.MakeVariant([]envFile{{"/etc/default/docker", true}, {"/run/x", false}}),
				},
			},
			systemd.Service{
				Loaded: true, Argv: []string{"/usr/sbin/dockerd", "-H", "fd://", "$DOCKER_OPTS"}, Environment: []string{"A=b c"},
				EnvironmentFiles: []string{"/etc/default/docker", "/run/x"},
				Files:            []string{"/lib/systemd/system/docker.service", "/etc/systemd/system/docker.service.d/a.conf"},
				State:            "failed", Result: systemd.StartLimitHit, Invocation: "0aff",
			},
		},
		{
			"bare",
			properties{
				unit:    {"LoadState": dbus.MakeVariant("loaded"), "InvocationID": dbus.MakeVariant([]byte{}), "FragmentPath": dbus.MakeVariant(""), "DropInPaths": dbus.MakeVariant([]string{})},
				service: {"ExecStart": dbus.MakeVariant([]command{}), "Environment": dbus.MakeVariant([]string{}), "EnvironmentFiles": dbus.MakeVariant([]envFile{})},
			},
			systemd.Service{Loaded: true, Environment: []string{}},
		},
		{"none", properties{unit: {"LoadState": dbus.MakeVariant("not-found")}}, systemd.Service{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := startManager(t, &fakeManager{})
			if err := f.conn.Export(tt.p, busObject+"/unit/docker_2eservice", "org.freedesktop.DBus.Properties"); err != nil {
				t.Fatal(err)
			}
			got, err := systemd.InspectService(t.Context(), "docker.service")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("service (-want +got):\n%s", diff)
			}
		})
	}
	startBus(t) // a bus without systemd
	if _, err := systemd.InspectService(t.Context(), "docker.service"); err == nil || !strings.HasPrefix(err.Error(), "inspect docker.service: ") {
		t.Errorf("error %v", err)
	}
}
