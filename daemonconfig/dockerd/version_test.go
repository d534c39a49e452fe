package dockerd_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
)

func TestParseVersion(t *testing.T) {
	tests := []struct {
		text, want string
		ok         bool
	}{
		{"20.10.24+dfsg1", "20.10.24", true},
		{"26.1.5+dfsg1", "26.1.5", true},
		{"28.5.2", "28.5.2", true},
		{"29.0.0-rc.1", "29.0.0", true},
		{"17.03.0-ce", "17.3.0", true},
		{"v28.0", "28.0.0", true},
		{"28", "unknown", false},
		{"28.5.2.1", "unknown", false},
		{"dev", "unknown", false},
		{"", "unknown", false},
		{"28.-5", "unknown", false},
		{"28.99999", "unknown", false},
	}
	for _, tt := range tests {
		got, err := dockerd.ParseVersion(tt.text)
		if got.String() != tt.want || (err == nil) != tt.ok {
			t.Errorf("%q: %s, %v, want %s", tt.text, got, err, tt.want)
		}
	}
	if (dockerd.Version{}).AtLeast(0, 1) || !(dockerd.Version{Major: 28, Minor: 2}).AtLeast(28, 2) || (dockerd.Version{Major: 28, Minor: 1, Patch: 9}).AtLeast(28, 2) || !(dockerd.Version{Major: 29}).AtLeast(28, 2) {
		t.Error("versions are in the wrong order")
	}
}

func FuzzParseVersion(f *testing.F) {
	for _, seed := range []string{"20.10.24+dfsg1", "29.0.0-rc.1", "v1.2", "1..2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := dockerd.ParseVersion(text)
		if err != nil {
			return
		}
		if again, err := dockerd.ParseVersion(v.String()); v != (dockerd.Version{}) && (err != nil || again != v) {
			t.Errorf("%q is %v, which reads as %v, %v", text, v, again, err)
		}
	})
}

// program writes a stand-in for dockerd.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dockerd")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBinaryVersion(t *testing.T) {
	v, err := dockerd.BinaryVersion(t.Context(), program(t, `[ "$*" = --version ] && echo "Docker version 26.1.5+dfsg1, build 411e817"`))
	if err != nil || v != (dockerd.Version{Major: 26, Minor: 1, Patch: 5}) {
		t.Errorf("%v, %v", v, err)
	}
	for name, path := range map[string]string{"says something else": program(t, "echo podman"), "fails": program(t, "exit 1"), "is none": "/nonexistent"} {
		if v, err := dockerd.BinaryVersion(t.Context(), path); err == nil {
			t.Errorf("%s: %v", name, v)
		}
	}
}

func TestValidate(t *testing.T) {
	path := filepath.Join(t.TempDir(), ".daemon.json123")
	tests := []struct {
		name, script, want string
		refused            bool
	}{
		{name: "accepted", script: `[ "$1 $2 $3" = "--validate --config-file ` + path + `" ] && echo configuration OK`},
		{
			name: "unknown key", script: `echo 'unable to configure the Docker daemon with file '$3": the following directives don't match any configuration option: MTU"; exit 1`,
			want: "dockerd refuses it: the following directives don't match any configuration option: MTU", refused: true,
		},
		{
			name:   "value out of range",
			script: `echo warning: old; echo "unable to configure the Docker daemon with file $3: merged configuration validation from file and command line flags failed: invalid default MTU: -5"; exit 1`,
			want:   "dockerd refuses it: invalid default MTU: -5", refused: true,
		},
		{name: "silent", script: "exit 3", want: "dockerd refuses it: without a reason", refused: true},
		{name: "killed", script: "kill -9 $$", want: "--validate: signal: killed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := dockerd.Validate(t.Context(), program(t, tt.script), path)
			var refused *dockerd.RefusedError
			if errors.As(err, &refused) != tt.refused || (err == nil) != (tt.want == "") || err != nil && !strings.HasSuffix(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// Real dockerds know of what the table of the package says that they do.
func TestTableByDockerd(t *testing.T) {
	cache := os.Getenv("FLANNEL_TEST_CACHE")
	if cache == "" {
		cache = "/var/cache/flanneld-go-test"
	}
	found, err := filepath.Glob(filepath.Join(cache, "*/usr/sbin/dockerd"))
	if err != nil {
		t.Fatal(err)
	}
	if path, err := exec.LookPath("dockerd"); err == nil {
		found = append(found, path)
	}
	asked := map[dockerd.Version]bool{}
	for _, path := range found {
		v, err := dockerd.BinaryVersion(t.Context(), path)
		if err != nil || asked[v] {
			continue // being built, or for another C library
		}
		asked[v] = true
		help, err := exec.Command(path, "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		c := dockerd.CapabilitiesOf(v, dockerd.Info{})
		for flag, want := range map[string]bool{
			"--validate ": c.Validate, "--default-network-opt ": c.NetworkOpts, "--bridge-accept-fwmark ": c.AcceptMark,
			"--allow-direct-routing ": c.TrustedInterfaces, // both came with 28.2
		} {
			if got := strings.Contains(string(help), flag); got != want {
				t.Errorf("dockerd %s has %s: %t, the table says %t", v, flag, got, want)
			}
		}
		t.Logf("asked dockerd %s", v)
	}
	if len(asked) == 0 {
		t.Skip("needs a dockerd, on the host or in a root that test/hosts keeps")
	}
}
