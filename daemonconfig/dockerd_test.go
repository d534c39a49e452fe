package daemonconfig_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// dockerds are the daemons at hand that can judge a file (23.0 and later): the
// host's, and those of the root file systems that test/hosts keeps.
func dockerds() []string {
	cache := os.Getenv("FLANNEL_TEST_CACHE")
	if cache == "" {
		cache = "/var/cache/flanneld-go-test"
	}
	found, _ := filepath.Glob(filepath.Join(cache, "*/usr/sbin/dockerd")) // fails for a bad pattern only
	if path, err := exec.LookPath("dockerd"); err == nil {
		found = append(found, path)
	}
	seen := map[string]bool{}
	var able []string
	for _, path := range found {
		if strings.Contains(path, ".building/") {
			continue
		}
		version, err := exec.Command(path, "--version").Output()
		help, herr := exec.Command(path, "--help").Output()
		if err == nil && herr == nil && strings.Contains(string(help), "--validate") && !seen[string(version)] {
			seen[string(version)] = true
			able = append(able, path)
		}
	}
	return able
}

// judge asks one dockerd about a file; empty: accepted.
func judge(dockerd, path string) string {
	cmd := exec.Command(dockerd, "--validate", "--config-file", path)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(dockerd)+":"+os.Getenv("PATH")) // it looks for docker-proxy
	out, err := cmd.CombinedOutput()
	if err == nil {
		return ""
	}
	return strings.TrimSpace(string(out)) + ": " + err.Error()
}

// mustAccept fails unless dockerd would start with the file: every one of daemons
// says so, and it is JSON, which is all that can be told without one.
func mustAccept(t *testing.T, path string, daemons []string) {
	t.Helper()
	var keys map[string]any
	if err := json.Unmarshal([]byte(read(t, path)), &keys); err != nil {
		t.Fatalf("dockerd would not start with %q: %v", read(t, path), err)
	}
	for _, daemon := range daemons {
		if said := judge(daemon, path); said != "" {
			t.Fatalf("%s would not start with %q: %s", daemon, read(t, path), said)
		}
	}
}

// Real dockerds say of all fixtures what we say: what we write is accepted, and
// what we leave alone for its form is refused.
func TestFixturesByDockerd(t *testing.T) {
	daemons := dockerds()
	if len(daemons) == 0 {
		t.Skip("needs dockerd 23.0 or later, on the host or in a root that test/hosts keeps")
	}
	// Accepted by --validate, and refused by us: dockerd takes the later of two,
	// looks at bridge beside bip at its start only, and reads UTF-16 since 23.0.
	lenient := map[string]bool{"utf-16": true, "key-twice": true, "bridge": true, "bridge-none": true, "network-opts-twice": true}
	// Refused for what we neither wrote nor judge.
	theirs := map[string]bool{"unknown-keys": true, "pools-wrong-type": true, "nested-objects": true}
	for _, daemon := range daemons {
		for dir, in := range fixtures(t) {
			name := filepath.Base(dir)
			if theirs[name] {
				continue
			}
			t.Run(name, func(t *testing.T) {
				out := filepath.Join(dir, "out.json")
				if _, err := os.Stat(out); err == nil {
					if said := judge(daemon, out); said != "" {
						t.Errorf("%s refuses what we wrote: %s", daemon, said)
					}
					return
				}
				if said := judge(daemon, filepath.Join(dir, "in.json")); (said == "") != lenient[name] {
					t.Errorf("%s says %q of %q, which we refuse", daemon, said, in)
				}
			})
		}
	}
}
