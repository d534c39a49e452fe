package systemd_test

import (
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// run runs a program and returns what it printed; failing is the caller's
// matter.
func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

// needProgram skips a test whose tool this machine lacks.
func needProgram(t *testing.T, name, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s: package %s is not installed", name, pkg)
	}
}

// site is a place to install to.
type site struct {
	t *testing.T
	// dir holds everything, below it root and bin, the "built" binaries.
	dir, root, bin string
}

func newSite(t *testing.T) site {
	t.Helper()
	needProgram(t, "make", "make")
	dir := t.TempDir()
	s := site{t, dir, filepath.Join(dir, "root"), filepath.Join(dir, "bin")}
	s.put(filepath.Join(s.bin, "flanneld-go"), "#!/bin/sh\n", 0o755)
	s.put(filepath.Join(s.bin, "flannelctl"), "#!/bin/sh\n", 0o755)
	return s
}

// put writes a file with its folders.
func (s site) put(path, text string, mode fs.FileMode) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		s.t.Fatal(err)
	}
}

// read returns the text of a file below root.
func (s site) read(path string) string {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.root, path))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// make runs install.mk with DESTDIR and the built binaries set, unless vars
// say otherwise.
func (s site) make(target string, vars ...string) string {
	s.t.Helper()
	args := append([]string{"-s", "-f", "install.mk", target, "BIN=" + s.bin, "DESTDIR=" + s.root}, vars...)
	out, err := run("make", args...)
	if err != nil {
		s.t.Fatalf("make %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// files lists root: mode and path of each file.
func (s site) files() []string {
	s.t.Helper()
	var all []string
	err := filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all = append(all, info.Mode().String()+" "+strings.TrimPrefix(path, s.root))
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

func TestInstallAndUninstall(t *testing.T) {
	for golden, prefix := range map[string]string{"local": "/usr/local", "package": "/usr", "opt": "/opt/flannel"} {
		t.Run(golden, func(t *testing.T) {
			s := newSite(t)
			vars := []string{"PREFIX=" + prefix}
			if golden == "local" {
				vars = nil // it is the default
			}
			s.make("install", vars...)
			got := strings.Join(s.files(), "\n") + "\n"
			path := filepath.Join("testdata", "installed-"+golden+".txt")
			if *update {
				s.put(path, got, 0o644)
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("installed files (-want +got):\n%s", diff)
			}
			unit := got[strings.LastIndex(got[:strings.Index(got, "/flanneld-go.service\n")], " ")+1:]
			unit, _, _ = strings.Cut(unit, "\n")
			if want := "\nExecStart=" + prefix + "/bin/flanneld-go $FLANNEL_OPTIONS\n"; !strings.Contains(s.read(unit), want) {
				t.Errorf("the unit has no line %q", want)
			}
			s.make("install", vars...) // once more: an upgrade
			s.make("uninstall", vars...)
			if left := s.files(); len(left) > 0 {
				t.Errorf("uninstall left %q", left)
			}
			for _, dir := range []string{"docker.service.d", "networkd.conf.d", "flanneld-go"} {
				if left, _ := run("find", s.root, "-name", dir); left != "" {
					t.Errorf("uninstall left the folder %s", left)
				}
			}
			s.make("uninstall", vars...) // nothing to do is no failure
		})
	}
}

func TestInstallKeepsSettings(t *testing.T) {
	s := newSite(t)
	const settings = "/etc/default/flanneld-go"
	s.put(filepath.Join(s.root, settings), "FLANNELD_IFACE=eth1\n", 0o600)
	neighbour := "/usr/local/lib/systemd/system/docker.service.d/other.conf"
	s.put(filepath.Join(s.root, neighbour), "[Unit]\n", 0o644)
	s.make("install")
	if got := s.read(settings); got != "FLANNELD_IFACE=eth1\n" {
		t.Errorf("install wrote the settings: %q", got)
	}
	out := s.make("uninstall")
	if !strings.Contains(out, "keep "+s.root+settings) {
		t.Errorf("uninstall does not say that it keeps the settings:\n%s", out)
	}
	want := []string{"-rw------- " + settings, "-rw-r--r-- " + neighbour}
	if diff := cmp.Diff(want, s.files()); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestInstallBuildsWhatIsMissing(t *testing.T) {
	s := newSite(t)
	for _, name := range []string{"flanneld-go", "flannelctl"} {
		if err := os.Remove(filepath.Join(s.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	// Stands for the project's Makefile: how it builds, and the include.
	here, err := filepath.Abs("install.mk")
	if err != nil {
		t.Fatal(err)
	}
	makefile := filepath.Join(s.dir, "Makefile")
	s.put(makefile, "SHELL := /bin/bash\n.SHELLFLAGS := -eu -o pipefail -c\n"+
		".PHONY: build\nbuild:\n\ttouch $(BIN)/flanneld-go $(BIN)/flannelctl\ninclude "+here+"\n", 0o644)
	if out, err := run("make", "-C", s.dir, "install", "BIN="+s.bin, "DESTDIR="+s.root); err != nil {
		t.Fatalf("make install: %v\n%s", err, out)
	}
	if got := s.files(); !slices.Contains(got, "-rwxr-xr-x /usr/local/bin/flannelctl") {
		t.Errorf("installed %q", got)
	}
}

// TestInstallTellsSystemd installs to a machine that runs, or so it seems.
func TestInstallTellsSystemd(t *testing.T) {
	s := newSite(t)
	log := filepath.Join(s.dir, "log")
	fake := filepath.Join(s.dir, "fake")
	s.put(fake, "#!/bin/sh\necho \"$@\" >>"+log+"\n", 0o755)
	vars := []string{
		"DESTDIR=", "PREFIX=" + s.root, "SYSCONFDIR=" + s.root + "/etc", "SYSTEMD_BOOTED=" + s.dir,
		"SYSTEMCTL=" + fake, "UDEVADM=" + fake, "TMPFILES=" + fake,
	}
	told := func() string {
		t.Helper()
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(log); err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	s.make("install", vars...)
	want := "--create " + s.root + "/etc/tmpfiles.d/flanneld-go.conf\ndaemon-reload\ncontrol --reload\n"
	if diff := cmp.Diff(want, told()); diff != "" {
		t.Errorf("told at install (-want +got):\n%s", diff)
	}
	s.make("uninstall", vars...)
	if diff := cmp.Diff("disable --now flanneld-go.service\nstop flanneld-go@*.service\ndisable flanneld-go@.service\ndaemon-reload\ncontrol --reload\n", told()); diff != "" {
		t.Errorf("told at uninstall (-want +got):\n%s", diff)
	}
	// Below another root nobody is told.
	s.make("install", append(vars, "DESTDIR="+filepath.Join(s.dir, "other"))...)
	if _, err := os.Stat(log); !os.IsNotExist(err) {
		t.Errorf("told although the files are for another root: %v, %s", err, told())
	}
}
