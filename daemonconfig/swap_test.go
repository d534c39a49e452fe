package daemonconfig_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

func TestSwap(t *testing.T) {
	const absent = "(absent)"
	for _, old := range []string{absent, "", "A=1\n", "A=2\n"} {
		t.Run(old, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "run", "docker")
			put := func(text string) {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			expect := func(when, want string) {
				t.Helper()
				got, err := os.ReadFile(path)
				if errors.Is(err, os.ErrNotExist) {
					got, err = []byte(absent), nil
				}
				if err != nil || string(got) != want {
					t.Errorf("%s: %q, %v, want %q", when, got, err, want)
				}
			}
			if old != absent {
				put(old)
			}
			s, err := daemonconfig.PlanSwap(path, []byte("A=2\n"), daemonconfig.WriteOptions{DirPerm: 0o755})
			if err != nil || s.Changes() != (old != "A=2\n") {
				t.Fatalf("changes %t, %v", s.Changes(), err)
			}
			expect("planned", old)
			if err := s.Commit(); err != nil {
				t.Fatal(err)
			}
			expect("committed", "A=2\n")
			if err := s.Revert(); err != nil {
				t.Fatal(err)
			}
			expect("reverted", old)
			put("theirs")
			if err := s.Revert(); !errors.Is(err, daemonconfig.ErrChanged) {
				t.Errorf("error %v, want ErrChanged", err)
			}
			expect("after somebody else", "theirs")
		})
	}
	if _, err := daemonconfig.PlanSwap(t.TempDir(), nil, daemonconfig.WriteOptions{}); err == nil {
		t.Error("a folder is no file")
	}
}

func TestGet(t *testing.T) {
	for _, tt := range []struct{ text, key, want, err string }{
		{`{"a": true, "b": {"c": 1}}`, "a", "true", ""},
		{`{"a": true, "b": {"c": 1}}`, "b", `{"c": 1}`, ""},
		{`{"a": true}`, "c", "", ""},
		{"", "a", "", ""},
		{"{", "a", "", "line 1, column 2: is not JSON: unexpected end of JSON input"},
	} {
		c := daemonconfig.DockerConfig{Path: filepath.Join(t.TempDir(), "daemon.json")}
		if tt.text != "" {
			if err := os.WriteFile(c.Path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := c.Get(tt.key)
		if want := "docker config " + c.Path + ": " + tt.err; got != tt.want || (err != nil) != (tt.err != "") || err != nil && err.Error() != want {
			t.Errorf("%s of %s: %q, %v", tt.key, tt.text, got, err)
		}
	}
}
