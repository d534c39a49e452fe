package lab

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Folders go that are old and nobody's.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	for name, age := range map[string]time.Duration{
		"lab1-a": time.Hour, "lab2-b": 2 * keptFor, "lab3-c": 2 * keptFor, "mine": 2 * keptFor, "lab4-d-mine": 2 * keptFor,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Join(path, "h1"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	running := &claim{lab: "lab3-c", dir: filepath.Join(dir, "lab3-c")}
	if err := running.acquire(); err != nil {
		t.Fatal(err)
	}
	defer running.lock.Close()
	sweep(dir, now.Add(-keptFor))
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if diff := cmp.Diff([]string{"lab1-a", "lab3-c", "lab4-d-mine", "mine"}, left); diff != "" {
		t.Errorf("folders that stay (-want +got):\n%s", diff)
	}
}

// A folder whose lab's namespaces are there stays.
func TestSweepLeavesNamespaces(t *testing.T) {
	needsRoot(t)
	l, err := New(t.Context(), Options{Hosts: 1})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, l.Name)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	sweep(dir, later)
	if _, err := os.Stat(path); err != nil {
		t.Errorf("while its namespaces are there: %v", err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	sweep(dir, later)
	if _, err := os.Stat(path); err == nil {
		t.Error("the folder stays when its namespaces are gone")
	}
}
