package daemonconfig_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// kept is an undo as another process finds it.
func kept(t *testing.T, u daemonconfig.Undo) daemonconfig.Undo {
	t.Helper()
	text, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	var again daemonconfig.Undo
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(u, again); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	return again
}

// Of two changes of which Docker has started with neither, the way back leads to
// what it ran with; what somebody else wrote in between ends it.
func TestUndoOverAnother(t *testing.T) {
	const theirs = "{\n  \"debug\": true\n}\n"
	for _, edited := range []bool{false, true} {
		t.Run(fmt.Sprintf("edited %t", edited), func(t *testing.T) {
			c, want := inDir(t), theirs
			put(t, c.Path, theirs, 0o600)
			first := c.Undo(apply(t, c, vxlan))
			if edited {
				want = strings.Replace(read(t, c.Path), "true", "false", 1)
				put(t, c.Path, want, 0o600)
			}
			second := kept(t, c.Undo(apply(t, c, udp)).Over(first))
			if second.Empty() {
				t.Error("a change of nothing")
			}
			if err := second.Revert(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, read(t, c.Path)); diff != "" {
				t.Errorf("reverted (-want +got):\n%s", diff)
			}
			if back := c.Undo(apply(t, c, vxlan)).Over(first); !edited && back.Empty() {
				t.Error("a change of the former text is one")
			}
			if _, err := daemonconfig.Withdraw(c.MemoryPath); err != nil {
				t.Fatal(err)
			}
			if got, want := read(t, c.Path), strings.Replace(theirs, "true", fmt.Sprint(!edited), 1); got != want {
				t.Errorf("withdrawn to %q, want %q", got, want)
			}
		})
	}
	// There and back again is no change.
	c := inDir(t)
	first := c.Undo(apply(t, c, vxlan))
	second := c.Undo(apply(t, c, udp)).Over(first)
	if third := c.Undo(apply(t, c, daemonconfig.Docker{})).Over(second); !third.Empty() {
		t.Errorf("way back from %q to %q", third.New, third.Old)
	}
}

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
			u := kept(t, s.Undo())
			if stands, err := u.Stands(); !stands || err != nil {
				t.Errorf("stands %t, %v", stands, err)
			}
			for _, when := range []string{"reverted", "reverted again"} {
				if err := u.Revert(); err != nil {
					t.Fatal(err)
				}
				expect(when, old)
			}
			if stands, err := u.Stands(); stands != u.Empty() || err != nil {
				t.Errorf("reverted, stands %t, %v", stands, err)
			}
			put("theirs")
			if err := u.Revert(); !errors.Is(err, daemonconfig.ErrChanged) {
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
