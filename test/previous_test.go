package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The build that hosts are upgraded from is the last release before this commit; while
// there is none, the commit that the script names; and when that is not there the
// script says what to do.
func TestPreviousBuild(t *testing.T) {
	script, err := os.ReadFile("previous-build")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("the last release", func(t *testing.T) {
		r := newRepository(t, string(script))
		for _, tag := range []string{"v1", "v2", "v3"} {
			r.commit(tag)
			r.git("tag", tag)
		}
		if got := r.run(true); !strings.HasPrefix(got, "built as v2-0-g") {
			t.Errorf("%q, want v2: v3 is this commit", got)
		}
	})
	t.Run("no release", func(t *testing.T) {
		r := newRepository(t, string(script))
		r.commit("one")
		first := strings.TrimSpace(r.git("rev-parse", "--short=7", "HEAD"))
		_, rest, _ := strings.Cut(string(script), "\nunreleased=")
		name, _, _ := strings.Cut(rest, "\n")
		r.write("test/previous-build", strings.Replace(string(script), "unreleased="+name, "unreleased="+first, 1))
		r.commit("two")
		if got := r.run(true); !strings.HasPrefix(got, "built as "+first) {
			t.Errorf("%q, want %s", got, first)
		}
	})
	t.Run("not in this clone", func(t *testing.T) {
		r := newRepository(t, string(script))
		r.commit("one")
		if got := r.run(false); !strings.Contains(got, "PREVIOUS=") {
			t.Errorf("%q does not say what to do", got)
		}
	})
}

// repository is one with a daemon that prints its version.
type repository struct {
	t   *testing.T
	dir string
}

func newRepository(t *testing.T, script string) *repository {
	r := &repository{t, t.TempDir()}
	r.git("init", "-q")
	r.write("go.mod", "module example.org/m\n")
	r.write("cmd/internal/version/version.go", "package version\n\nvar version = \"devel\"\n\nfunc String() string { return version }\n")
	r.write("cmd/flanneld-go/main.go",
		"package main\n\nimport \"example.org/m/cmd/internal/version\"\n\nfunc main() { println(\"built as \" + version.String()) }\n")
	r.write("test/previous-build", script)
	return r
}

func (r *repository) write(path, text string) {
	r.t.Helper()
	path = filepath.Join(r.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil { //nolint:gosec // a script
		r.t.Fatal(err)
	}
}

func (r *repository) commit(name string) {
	r.t.Helper()
	r.write("name", name)
	r.git("add", ".")
	r.git("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false", "commit", "-q", "-m", name)
}

func (r *repository) git(args ...string) string {
	r.t.Helper()
	out, err := exec.Command("git", append([]string{"-C", r.dir}, args...)...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// run runs the script, which is to succeed or not, and returns what it printed.
func (r *repository) run(succeeds bool) string {
	r.t.Helper()
	cmd := exec.Command(filepath.Join(r.dir, "test/previous-build"), filepath.Join(r.dir, "out"))
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if (err == nil) != succeeds {
		r.t.Fatalf("previous-build: %v: %s", err, out)
	}
	return string(out)
}
