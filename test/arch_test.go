// Package test holds what concerns the whole tree. This file keeps the imports
// going one way.
package test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/flanneld-go/flanneld-go/"

// listed is the part of `go list -json` that the rules are about.
type listed struct {
	ImportPath string
	Imports    []string
}

// A rule forbids or confines imports. Paths are prefixes, relative to the
// module where they begin with one of its folders.
type rule struct {
	name string
	// from are the packages that the rule is about; empty: all. except are
	// exempt.
	from, except []string
	// deny are what they must not import; only are the sole things, apart
	// from the standard library, that they may.
	deny, only []string
}

var rules = []rule{
	{
		name: "etcd has one door",
		deny: []string{"go.etcd.io/etcd"}, except: []string{"subnet/etcdstore", "cmd/flannel-lab", "test"},
	},
	{
		name:   "the kernel has one door",
		deny:   []string{"github.com/vishvananda/netlink", "golang.org/x/sys/unix"},
		except: []string{"backend/kernel", "backend/udp", "cmd/flannel-lab", "test"},
	},
	{name: "the domain knows only the standard library", from: []string{"subnet$", "backend/reconcile$"}, only: []string{"subnet$"}},
	{name: "daemonconfig knows only files", from: []string{"daemonconfig"}, only: []string{"github.com/google/renameio"}},
	{name: "backends do not know each other", from: []string{"backend/vxlan"}, deny: []string{"backend/hostgw", "backend/udp", "backend/alloc"}},
	{name: "backends do not know each other", from: []string{"backend/hostgw"}, deny: []string{"backend/vxlan", "backend/udp", "backend/alloc"}},
	{name: "backends do not know each other", from: []string{"backend/udp"}, deny: []string{"backend/vxlan", "backend/hostgw", "backend/alloc"}},
	{name: "imports go down", from: []string{"subnet", "backend", "daemonconfig", "systemd"}, deny: []string{"cmd"}},
	{name: "nobody imports test", from: []string{"subnet", "backend", "daemonconfig", "systemd", "cmd"}, deny: []string{"test"}},
}

func TestImportsGoOneWay(t *testing.T) {
	packages := list(t)
	if len(packages) < 10 {
		t.Fatalf("go list found %d packages, want the whole tree", len(packages))
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, p := range packages {
				for _, imported := range p.Imports {
					if r.forbids(p.ImportPath, imported) {
						t.Errorf("%s imports %s", p.ImportPath, imported)
					}
				}
			}
		})
	}
}

// The daemon must not carry an etcd server: it would double its size.
func TestDaemonHasNoEtcdServer(t *testing.T) {
	for _, command := range []string{"cmd/flanneld-go", "cmd/flannelctl"} {
		out, err := exec.Command("go", "list", "-deps", module+command).Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v", command, err)
		}
		for dep := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(dep, "go.etcd.io/etcd/server") || strings.HasPrefix(dep, module+"cmd/flannel-lab") {
				t.Errorf("%s depends on %s", command, dep)
			}
		}
	}
}

// The daemon's own code compiles for 32 and 64 bits of either byte order, which
// a constant too large for an int, or a field of another width, would break.
func TestBuildsOnEveryArchitecture(t *testing.T) {
	for _, arch := range []string{"386", "arm", "arm64", "mips", "s390x"} {
		t.Run(arch, func(t *testing.T) {
			cmd := exec.Command("go", "build", module+"backend/...", module+"subnet", module+"daemonconfig")
			cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("go build: %v\n%s", err, out)
			}
		})
	}
}

func TestRulesCanFail(t *testing.T) {
	r := rules[0]
	if !r.forbids(module+"backend/vxlan", "go.etcd.io/etcd/client/v3") {
		t.Error("etcd imported by a backend passes")
	}
	if r.forbids(module+"subnet/etcdstore", "go.etcd.io/etcd/client/v3") {
		t.Error("etcd imported by its door fails")
	}
	if r := rules[2]; !r.forbids(module+"subnet", "github.com/google/renameio/v2") || r.forbids(module+"subnet/etcdstore", "go.etcd.io/etcd") || r.forbids(module+"subnet", "net/netip") {
		t.Error("the domain's rule does not tell the standard library from others, or subnet from its folders")
	}
}

func (r rule) forbids(from, imported string) bool {
	if len(r.from) > 0 && !matches(from, r.from) || matches(from, r.except) {
		return false
	}
	if len(r.only) > 0 {
		standard := !strings.Contains(strings.SplitN(imported, "/", 2)[0], ".")
		return !standard && !matches(imported, r.only)
	}
	return matches(imported, r.deny)
}

// matches reports whether path lies at or below one of the prefixes; one that
// ends in "$" stands for itself alone.
func matches(path string, prefixes []string) bool {
	path = strings.TrimPrefix(path, module)
	for _, prefix := range prefixes {
		exact, isExact := strings.CutSuffix(prefix, "$")
		if path == exact || !isExact && strings.HasPrefix(path, prefix+"/") {
			return true
		}
	}
	return false
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, p)
	}
}
