package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLabsSideBySide(t *testing.T) {
	needsRoot(t)
	first, err := New(t.Context(), Options{Hosts: 2})
	if err != nil {
		t.Fatal(err)
	}
	second, err := New(t.Context(), Options{Name: first.Name + "b", Hosts: 2})
	if err != nil {
		t.Fatal(errors.Join(err, first.Close(t.Context())))
	}
	if err := first.Close(t.Context()); err != nil {
		t.Error(err)
	}
	// Links of a new lab need not transmit yet, so that a single request may be lost.
	if err := second.Hosts[0].WaitPing(within(t, patience), second.Hosts[1].Addrs[0].Addr()); err != nil {
		t.Errorf("after another lab was closed: %v", err)
	}
	if err := second.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if left := append(traces(t, first.Name), traces(t, second.Name)...); len(left) > 0 {
		t.Errorf("left behind: %s", left)
	}
}

func TestNameOfARunningLabIsRefused(t *testing.T) {
	l := newTestLab(t, 1, "sleep 60")
	for _, replace := range []bool{false, true} {
		if _, err := New(t.Context(), Options{Name: l.Name, Hosts: 1, Replace: replace}); !errors.Is(err, ErrRunning) {
			t.Errorf("replace %v: got %v, want ErrRunning", replace, err)
		}
	}
	if got := len(traces(t, l.Name)); got != 3 {
		t.Errorf("%d traces of the running lab, want its 2 namespaces and its folder", got)
	}
}

// abandon leaves a lab as a SIGKILL does: processes and namespaces stay, and
// the name's lock is gone.
func abandon(t *testing.T, l *Lab) {
	t.Helper()
	if err := l.claim.lock.Close(); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.nodes {
		n.links.Close()
		if err := n.ns.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStaleLabIsReplacedOnRequest(t *testing.T) {
	needsRoot(t)
	stale, err := New(t.Context(), Options{Hosts: 2, Daemon: writeScript(t, "exec sleep 600")})
	if err != nil {
		t.Fatal(err)
	}
	if err := stale.Hosts[0].StartDaemon(); err != nil {
		t.Fatal(err)
	}
	name := stale.Name
	// Somebody's own process in a namespace of the lab.
	guest, err := stale.Hosts[1].start("", Spec{Path: "/bin/sleep", Args: []string{"600"}, Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	abandon(t, stale)

	if _, err := New(t.Context(), Options{Name: name, Hosts: 1}); !errors.Is(err, ErrStale) {
		t.Errorf("got %v, want ErrStale", err)
	}
	l, err := New(t.Context(), Options{Name: name, Hosts: 1, Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stale.Hosts[0].Daemon.ExitCode(t.Context()); err != nil {
		t.Errorf("the stale lab's daemon: %v", err)
	}
	select {
	case <-guest.Done():
		t.Error("a process that the lab did not start was ended")
	case <-time.After(20 * time.Millisecond):
	}
	if err := guest.Kill(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(netnsDir, name+"-h2")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stale lab's second host: %v", err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if left := traces(t, name); len(left) > 0 {
		t.Errorf("left behind: %s", left)
	}
}

func TestForeignNamespaceIsLeftAlone(t *testing.T) {
	needsRoot(t)
	name := fmt.Sprintf("lab%d-foreign", os.Getpid())
	// As `ip netns add` would make it, or a lab of another name.
	foreign, err := newNode(name+"-h1", "another")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := foreign.remove(); err != nil {
			t.Error(err)
		}
	}()
	for _, replace := range []bool{false, true} {
		if _, err := New(t.Context(), Options{Name: name, Hosts: 2, Replace: replace}); !errors.Is(err, ErrForeign) {
			t.Errorf("replace %v: got %v, want ErrForeign", replace, err)
		}
	}
	if diff := cmp.Diff([]string{filepath.Join(netnsDir, name+"-h1")}, traces(t, name)); diff != "" {
		t.Errorf("traces after the refusal (-want +got):\n%s", diff)
	}
}

func TestKeptFiles(t *testing.T) {
	needsRoot(t)
	l, err := New(t.Context(), Options{Hosts: 1})
	if err != nil {
		t.Fatal(err)
	}
	name := l.Name
	l.KeepFiles()
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, name, "h1")); err != nil {
		t.Errorf("kept files: %v", err)
	}
	// They are in nobody's way.
	again, err := New(t.Context(), Options{Name: name, Hosts: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if left := traces(t, name); len(left) > 0 {
		t.Errorf("left behind: %s", left)
	}
}
