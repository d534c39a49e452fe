package robustness

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// jumpSource is the clock that can be told to jump; see jump.go for how.
//
//go:embed testdata/jump.go
var jumpSource []byte

// edit is one change of the product's source, made while it is built.
type edit struct {
	// file is relative to the module's root.
	file string
	// old must occur exactly once: source that has moved on must not leave an
	// edit without effect.
	old, new string
}

// errEdit: the source is not what an edit expects.
var errEdit = errors.New("edit does not fit the source")

// jumping are the edits that let the daemon's clock jump.
func jumping() []edit {
	const clock = "subnet/clock_linux.go"
	return []edit{
		{clock, "return time.Now()", "return time.Now().Add(jumped().wall)"},
		{clock, "return time.Duration(ts.Nano())", "return time.Duration(ts.Nano()) + jumped().boot"},
	}
}

// jumpFile is where the build finds jumpSource.
const jumpFile = "subnet/clock_jump_linux.go"

// builder builds commands of the module, edited.
type builder struct {
	// root is the module's, dir where the results go.
	root, dir string
}

// build builds one package into a file called name. Nothing in the module is
// written: the compiler reads the edited files in place of the others.
func (b builder) build(ctx context.Context, name, pkg string, edits ...edit) (string, error) {
	out := filepath.Join(b.dir, name)
	overlay, err := b.overlay(out+".overlay", edits)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-overlay", overlay, "-o", out, "./"+pkg)
	cmd.Dir = b.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, text)
	}
	return out, nil
}

// overlay writes the edited files and the list of them that the compiler reads.
func (b builder) overlay(dir string, edits []edit) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	files := map[string][]byte{jumpFile: jumpSource}
	for _, e := range append(jumping(), edits...) {
		text, known := files[e.file]
		if !known {
			var err error
			if text, err = os.ReadFile(filepath.Join(b.root, e.file)); err != nil {
				return "", err
			}
		}
		changed, err := e.apply(string(text))
		if err != nil {
			return "", err
		}
		files[e.file] = []byte(changed)
	}
	replace := map[string]string{}
	for file, text := range files {
		path := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(b.root, file)] = path
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, list, 0o644)
}

func (e edit) apply(text string) (string, error) {
	if n := strings.Count(text, e.old); n != 1 {
		return "", fmt.Errorf("%w: %s: %q occurs %d times, must occur once", errEdit, e.file, e.old, n)
	}
	return strings.Replace(text, e.old, e.new, 1), nil
}
