package daemonconfig_test

import (
	"errors"
	"flag"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

var update = flag.Bool("update", false, "write the golden files")

// everything is a Docker with all keys that a dockerd of 24.0 takes.
func everything() daemonconfig.Docker {
	d := withMasq(vxlan, false)
	d.NetworkMTU = d.MTU
	d.Networks = [2]netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}
	return d
}

// golden compares text with a file, or writes it. No text is no file.
func golden(t *testing.T, path, text string) {
	t.Helper()
	if *update {
		err := os.Remove(path)
		if text != "" {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// fixtures are the daemon.json files of testdata; nil: the case has none.
func fixtures(t testing.TB) map[string][]byte {
	t.Helper()
	dirs, err := filepath.Glob("testdata/daemon.json/*")
	if err != nil || len(dirs) < 25 {
		t.Fatalf("%d fixtures, %v: want the 25 that were asked for, or more", len(dirs), err)
	}
	all := map[string][]byte{}
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "in.json"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		all[dir] = text
	}
	return all
}

// TestGolden takes every fixture through its life on disk: planned, committed,
// planned again, withdrawn. In a fixture's folder:
//
//	in.json         what was there; no file: nothing
//	out.json        what it becomes, or
//	error.txt       why it is left alone
//	warnings.txt    what the administrator is told
//	withdrawn.json  what is left after us, where that is not in.json
func TestGolden(t *testing.T) {
	for dir, in := range fixtures(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			c := inDir(t)
			if in != nil {
				put(t, c.Path, string(in), 0o644)
			}
			p, err := c.Plan(everything())
			if err != nil {
				golden(t, filepath.Join(dir, "error.txt"), strings.ReplaceAll(err.Error(), c.Path, "daemon.json")+"\n")
				golden(t, filepath.Join(dir, "out.json"), "")
				return
			}
			if err := c.Commit(p); err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join(dir, "error.txt"), "")
			golden(t, filepath.Join(dir, "out.json"), read(t, c.Path))
			warnings := strings.Join(p.Warnings, "\n")
			if warnings != "" {
				warnings += "\n"
			}
			golden(t, filepath.Join(dir, "warnings.txt"), warnings)
			if again := apply(t, c, everything()); len(again.Changes) > 0 {
				t.Errorf("a second commit changed %v", again.Changes)
			}
			if _, err := daemonconfig.Withdraw(c.MemoryPath); err != nil {
				t.Fatal(err)
			}
			withdrawn, err := os.ReadFile(c.Path)
			if gone := errors.Is(err, fs.ErrNotExist); gone != (in == nil) {
				t.Errorf("after withdrawal the file is gone: %t, it was absent at first: %t", gone, in == nil)
			}
			if string(withdrawn) == string(in) {
				withdrawn = nil
			}
			golden(t, filepath.Join(dir, "withdrawn.json"), string(withdrawn))
		})
	}
}

// The places and modes of a daemon.json that text says nothing of.
func TestCommitInPlaces(t *testing.T) {
	big := "{\n  \"labels\": [" + strings.Repeat("\n    \"a=b\",", 1<<17) + "\n    \"c=d\"]\n}\n"
	tests := []struct {
		name, text string
		// place makes dir/daemon.json out of dir/text, and returns the file to
		// look at later.
		place func(t *testing.T, dir string) string
		mode  fs.FileMode
		owner int
	}{
		{name: "one megabyte", text: big, mode: 0o644},
		{name: "other owner and mode", text: userConfig, mode: 0o640, owner: 1234},
		{name: "read-only", text: userConfig, mode: 0o444},
		{name: "behind two links", text: userConfig, mode: 0o600, owner: 42, place: func(t *testing.T, dir string) string {
			t.Helper()
			if err := errors.Join(os.Mkdir(filepath.Join(dir, "etc"), 0o755),
				os.Rename(filepath.Join(dir, "daemon.json"), filepath.Join(dir, "etc", "docker.json")),
				os.Symlink("etc/docker.json", filepath.Join(dir, "second")),
				os.Symlink(filepath.Join(dir, "second"), filepath.Join(dir, "daemon.json"))); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "etc", "docker.json")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			needRoot(t)
			c := inDir(t)
			put(t, c.Path, tt.text, tt.mode)
			if err := os.Chown(c.Path, tt.owner, tt.owner); err != nil {
				t.Fatal(err)
			}
			at := c.Path
			if tt.place != nil {
				at = tt.place(t, filepath.Dir(c.Path))
			}
			p := apply(t, c, everything())
			for range 2 {
				s := stat(t, at)
				if fs.FileMode(s.Mode&0o7777) != tt.mode || int(s.Uid) != tt.owner || int(s.Gid) != tt.owner {
					t.Errorf("mode %o, owner %d:%d, want %o and %d", s.Mode&0o7777, s.Uid, s.Gid, tt.mode, tt.owner)
				}
				if info, err := os.Lstat(c.Path); err != nil || (info.Mode().Type() == fs.ModeSymlink) != (at != c.Path) {
					t.Errorf("%v, %v: a link must stay one", info.Mode(), err)
				}
				if got := read(t, at); got != string(p.Text) {
					t.Errorf("text of %d bytes, want %d", len(got), len(p.Text))
				}
				p.Text = []byte(tt.text)
				if _, err := daemonconfig.Withdraw(c.MemoryPath); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
