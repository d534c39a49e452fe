package dockerd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
)

func TestParseFlags(t *testing.T) {
	tests := []struct {
		line string
		want []dockerd.Flag
	}{
		{"dockerd", nil},
		{"dockerd -H fd:// --containerd=/run/c.sock", []dockerd.Flag{{"host", "fd://"}, {"containerd", "/run/c.sock"}}},
		{"dockerd --bip 10.5.72.1/24 --ip-masq=false --mtu=1450", []dockerd.Flag{{"bip", "10.5.72.1/24"}, {"ip-masq", "false"}, {"mtu", "1450"}}},
		{"dockerd --live-restore -D -bbr0 -H=unix:///x", []dockerd.Flag{{"live-restore", ""}, {"debug", ""}, {"bridge", "br0"}, {"host", "unix:///x"}}},
		{"dockerd --label a=b=c -- --bip=1", []dockerd.Flag{{"label", "a=b=c"}}},
		{"dockerd - x", nil},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, dockerd.ParseFlags(strings.Fields(tt.line))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.line, diff)
		}
	}
	if got := dockerd.ParseFlags(nil); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}

// files writes some and returns their paths.
func files(t *testing.T, texts ...string) []string {
	t.Helper()
	dir := t.TempDir()
	var paths []string
	for i, text := range texts {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func TestConflicts(t *testing.T) {
	f := files(t,
		"[Service]\nExecStart=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS\n",
		"[Service]\nEnvironment=\"EXTRA=--mtu 1400\"\nExecStart=\nExecStart=/usr/sbin/dockerd --default-network-opt=bridge=a=b $DOCKER_OPTS\n",
		"# Docker\nDOCKER_OPTS=\"--bip=10.0.0.1/24 --dns \\\n8.8.8.8\"\n;X=1\nnothing\n",
		"DOCKER_OPTS='--ip-masq=false'\n",
	)
	unit, dropIn, first, second := f[0], f[1], f[2], f[3]
	keys := []string{"bip", "mtu", "ip-masq", "default-network-opts"}
	tests := []struct {
		name string
		unit dockerd.Unit
		keys []string
		want []string
	}{
		{"none", dockerd.Unit{Argv: []string{"/usr/sbin/dockerd", "-H", "fd://"}, Files: []string{unit}}, keys, nil},
		{
			"in the unit",
			dockerd.Unit{Argv: []string{"dockerd", "--default-network-opt=bridge=a=b"}, Files: []string{unit, dropIn}},
			keys,
			[]string{"--default-network-opt=bridge=a=b in " + dropIn},
		},
		{
			"a variable of a file",
			dockerd.Unit{Argv: []string{"dockerd", "-H", "fd://", "$DOCKER_OPTS"}, EnvironmentFiles: []string{"/nonexistent", first}, Files: []string{unit}},
			keys,
			[]string{"--bip=10.0.0.1/24 in " + first},
		},
		{
			"the last file counts",
			dockerd.Unit{Argv: []string{"dockerd", "$DOCKER_OPTS"}, EnvironmentFiles: []string{first, second}, Files: []string{unit}},
			keys,
			[]string{"--ip-masq=false in " + second},
		},
		{
			"a variable of the unit",
			dockerd.Unit{Argv: []string{"dockerd", "$EXTRA"}, Environment: []string{"EXTRA=--mtu 1400"}, Files: []string{unit, dropIn}},
			keys,
			[]string{"--mtu=1400 in " + dropIn},
		},
		{
			"one word of a variable",
			dockerd.Unit{Argv: []string{"dockerd", "${EXTRA}", "--bip=${IP}/24"}, Environment: []string{"EXTRA=--mtu=1400", "IP=10.0.0.1"}},
			keys,
			[]string{"--mtu=1400 in docker.service", "--bip=10.0.0.1/24 in docker.service"},
		},
		{
			"another bridge",
			dockerd.Unit{Argv: []string{"dockerd", "-b", "br0"}, Files: []string{unit}},
			keys,
			[]string{"--bridge=br0 in " + unit},
		},
		{"keys that we do not write", dockerd.Unit{Argv: []string{"dockerd", "-b", "br0", "--ip-masq=true"}}, []string{"mtu"}, nil},
		{"nothing known", dockerd.Unit{}, keys, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, g := range dockerd.Conflicts(tt.unit.Flags(), tt.keys) {
				got = append(got, g.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("conflicts (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSocket(t *testing.T) {
	given := dockerd.Unit{Argv: []string{"dockerd", "-H", "fd://", "-H", "unix:///run/x.sock"}}.Flags()
	if got := dockerd.Socket(given); got != "/run/x.sock" {
		t.Errorf("socket %s", got)
	}
	if got := dockerd.Socket(given[:1]); got != dockerd.DefaultSocket {
		t.Errorf("socket %s", got)
	}
}

func TestConfigFile(t *testing.T) {
	for line, want := range map[string]string{
		"dockerd -H fd://":                                    "/etc/docker/daemon.json",
		"dockerd --config-file=/etc/x.json":                   "/etc/x.json",
		"dockerd --config-file /a.json --config-file=/b.json": "/b.json",
		"dockerd --config-file":                               "/etc/docker/daemon.json",
	} {
		given := dockerd.Unit{Argv: strings.Fields(line)}.Flags()
		got, flag := dockerd.ConfigFile(given)
		if got != want || (flag != nil) != (want != dockerd.DefaultConfigFile) || flag != nil && flag.Value != want {
			t.Errorf("%s: %s, %v", line, got, flag)
		}
	}
}

// FuzzFlags: no command line and no environment file makes it panic, and what
// is found has a place.
func FuzzFlags(f *testing.F) {
	f.Add("dockerd\x00-H\x00fd://\x00$OPTS\x00${X}\x00-b", "OPTS=\"--bip=1 -\"\nX='\n#\n=\\\n")
	f.Fuzz(func(t *testing.T, line, env string) {
		path := filepath.Join(t.TempDir(), "env")
		if err := os.WriteFile(path, []byte(env), 0o644); err != nil {
			t.Fatal(err)
		}
		given := dockerd.Unit{Argv: strings.Split(line, "\x00"), EnvironmentFiles: []string{path}}.Flags()
		for _, g := range given {
			if g.Where == "" {
				t.Errorf("%q has no place", g.Flag)
			}
		}
		_ = dockerd.Socket(given)
	})
}
