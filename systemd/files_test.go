package systemd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// installUnits installs to a folder of the test, with ExecStart pointing there,
// and returns the folder of the units.
func installUnits(t *testing.T) string {
	t.Helper()
	needProgram(t, "systemd-analyze", "systemd")
	s := newSite(t)
	s.make("install", "DESTDIR=", "PREFIX="+s.root, "SYSCONFDIR="+s.root+"/etc", "SYSTEMD_BOOTED="+s.dir+"/none")
	return filepath.Join(s.root, "etc", "systemd", "system")
}

func TestUnitVerifies(t *testing.T) {
	units := installUnits(t)
	docker, err := os.ReadFile("testdata/docker.service")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(units, "docker.service"), docker, 0o644); err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("examples/docker-options.conf")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(units, "docker.service.d", "options.conf"), example, 0o644); err != nil {
		t.Fatal(err)
	}
	// Both at once: verify finds ordering cycles between them.
	out, err := run("systemd-analyze", "verify", "--man=no",
		filepath.Join(units, "docker.service"), filepath.Join(units, "flanneld-go.service"))
	var ours []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "flannel") || strings.Contains(line, "docker") || strings.Contains(line, "cycle") {
			ours = append(ours, line)
		}
	}
	if err != nil || len(ours) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestUnitExposure(t *testing.T) {
	units := installUnits(t)
	out, err := run("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=40", filepath.Join(units, "flanneld-go.service"))
	if strings.Contains(out, "unrecognized option") {
		t.Skip("needs systemd 250 or later: systemd-analyze has no --offline")
	}
	if err != nil || !strings.Contains(out, "Overall exposure level") {
		t.Errorf("systemd-analyze security: above 4.0: %v\n%s", err, out)
	}
}

// settings are the assignments of a systemd file, as "Section.Key=value".
func settings(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var section string
	var all []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		default:
			all = append(all, section+"."+line)
		}
	}
	return all
}

// TestDockerIsNeverPulledDown: of the four ways in which a unit can depend on
// another, three stop it with the other.
func TestDockerIsNeverPulledDown(t *testing.T) {
	want := []string{"Unit.Wants=flanneld-go.service", "Unit.After=flanneld-go.service"}
	if diff := cmp.Diff(want, settings(t, "docker.service.d/flanneld-go.conf")); diff != "" {
		t.Errorf("drop-in (-want +got):\n%s", diff)
	}
	for _, line := range settings(t, "flanneld-go.service.in") {
		for _, strong := range []string{"Unit.RequiredBy=", "Unit.PropagatesStopTo=", "Install.RequiredBy="} {
			if strings.HasPrefix(line, strong) {
				t.Errorf("the unit has %s", line)
			}
		}
	}
}
