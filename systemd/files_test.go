package systemd_test

import (
	"os"
	"path/filepath"
	"slices"
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

// TestUnitVerifies has systemd read our unit and Docker's with our drop-in, each
// example in turn: unknown keys, bad values, ordering cycles between the two.
func TestUnitVerifies(t *testing.T) {
	examples, err := filepath.Glob("examples/*.conf")
	if err != nil || len(examples) == 0 {
		t.Fatalf("examples: %v, %v", examples, err)
	}
	docker, err := os.ReadFile("testdata/docker.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, example := range examples {
		t.Run(filepath.Base(example), func(t *testing.T) {
			units := installUnits(t)
			text, err := os.ReadFile(example)
			if err != nil {
				t.Fatal(err)
			}
			here := strings.ReplaceAll(string(text), "/usr/bin/dockerd", "/bin/true") // verify wants programs that exist
			for path, text := range map[string]string{"docker.service": string(docker), "docker.service.d/options.conf": here} {
				if err := os.WriteFile(filepath.Join(units, path), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			out, err := run("systemd-analyze", "verify", "--man=no",
				filepath.Join(units, "docker.service"), filepath.Join(units, "flanneld-go.service"))
			if complaints := aboutUs(out); err != nil || len(complaints) > 0 {
				t.Errorf("systemd-analyze verify: %v\n%s", err, out)
			}
		})
	}
}

// TestTemplateUnit: the unit of further instances is that of the first, but for their
// number, which stands behind each name that must be their own. It verifies.
func TestTemplateUnit(t *testing.T) {
	units := installUnits(t)
	var want []string
	for _, line := range settings(t, filepath.Join(units, "flanneld-go.service")) {
		for _, own := range [][2]string{
			{"Unit.Description=flanneld-go,", "Unit.Description=flanneld-go@%i,"},
			{"/sysconfig/flanneld", "/sysconfig/flanneld%i"},
			{"/default/flanneld-go", "/default/flanneld-go%i"},
			{"/default/flanneld", "/default/flanneld%i"},
			{"/flanneld-go $FLANNEL_OPTIONS", "/flanneld-go --instance=%i $FLANNEL_OPTIONS"},
			{"StateDirectory=flanneld-go", "StateDirectory=flanneld-go%i"},
		} {
			if strings.Contains(line, own[0]) {
				line = strings.Replace(line, own[0], own[1], 1)
				break
			}
		}
		want = append(want, line)
	}
	if diff := cmp.Diff(want, settings(t, filepath.Join(units, "flanneld-go@.service"))); diff != "" {
		t.Errorf("the template (-want +got):\n%s", diff)
	}
	out, err := run("systemd-analyze", "verify", "--man=no", filepath.Join(units, "flanneld-go@1.service"))
	if complaints := aboutUs(out); err != nil || len(complaints) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestCredentialVerifies: the line that gives us the password of etcd's user is
// ready to be used.
func TestCredentialVerifies(t *testing.T) {
	unit := filepath.Join(installUnits(t), "flanneld-go.service")
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	const line = "\n#LoadCredential=etcd-password:/etc/flanneld-go/etcd-password\n"
	if strings.Count(string(text), line) != 1 {
		t.Fatalf("the unit has not %q", line)
	}
	enabled := strings.Replace(string(text), "\n#LoadCredential=", "\nLoadCredential=", 1)
	if err := os.WriteFile(unit, []byte(enabled), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := run("systemd-analyze", "verify", "--man=no", unit)
	if complaints := aboutUs(out); err != nil || len(complaints) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// aboutUs are the lines of verify's output that concern the units under test:
// it also reads what they depend on, and complains about that.
func aboutUs(out string) (lines []string) {
	for line := range strings.Lines(out) {
		if strings.Contains(line, "flannel") || strings.Contains(line, "docker") || strings.Contains(line, "cycle") {
			lines = append(lines, line)
		}
	}
	return lines
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

// TestDefaultsSetNothing: the settings file comes last, so what it set would
// override those of a flannel that was here before.
func TestDefaultsSetNothing(t *testing.T) {
	if got := settings(t, "flanneld-go.default"); len(got) > 0 {
		t.Errorf("flanneld-go.default sets %q", got)
	}
}

// TestDevicesMatch: both files must know the name of every device of ours.
func TestDevicesMatch(t *testing.T) {
	patterns := map[string]string{
		"network/10-flannel.link":        "Match.OriginalName=",
		"network/10-flannel.network":     "Match.Name=",
		"NetworkManager/10-flannel.conf": "keyfile.unmanaged-devices+=interface-name:",
	}
	for path, key := range patterns {
		first, ok := strings.CutPrefix(settings(t, path)[0], key)
		if !ok {
			t.Errorf("%s does not begin with %s", path, key)
		}
		globs := strings.FieldsFunc(first, func(r rune) bool { return r == ' ' || r == ';' })
		for device, ours := range map[string]bool{
			"flannel0": true, "flannel.1": true, "flannel-v6.4096": true, "flannel.ipip": true, "flannel-wg": true,
			"fl.16777215": true, "fl6.10000": true, "eth0": false, "flash0": false,
		} {
			matched := slices.ContainsFunc(globs, func(glob string) bool {
				match, err := filepath.Match(strings.TrimPrefix(glob, "interface-name:"), device)
				return match && err == nil
			})
			if matched != ours {
				t.Errorf("%s: %q matches %s: %t, want %t", path, globs, device, matched, ours)
			}
		}
	}
}
