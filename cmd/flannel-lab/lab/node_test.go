package lab

import (
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMainThreadStays: no function that may change its namespace runs on the one thread
// that does not end afterwards.
func TestMainThreadStays(t *testing.T) {
	for range 100 {
		runtime.Gosched() // so that another thread takes the next one, too
		err := onOwnThread(func() error {
			if unix.Gettid() == os.Getpid() {
				t.Error("it runs on the main thread")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// aloneEnv names the test that this process is for alone.
const aloneEnv = "LAB_TEST_ALONE"

// alone runs a test once more, in a process with a namespace of its own, of the kind that
// unshare(1) calls so, and reports whether this is that process.
func alone(t *testing.T, kind string) bool {
	t.Helper()
	if os.Getenv(aloneEnv) == t.Name() {
		return true
	}
	cmd := exec.Command("unshare", kind, os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), aloneEnv+"="+t.Name())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", cmd, err, out)
	}
	return false
}

// The first `ip netns add` on a machine is in no lab's way that is there already.
func TestNamesBesideOthers(t *testing.T) {
	needsRoot(t)
	if !alone(t, "--mount") {
		return
	}
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	if err := unix.Mount("run", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	n, err := newNode("ours", "lab")
	if err != nil {
		t.Fatal(err)
	}
	run("ip", "netns", "add", "other")
	if err := n.remove(); err != nil {
		t.Error(err)
	}
	run("ip", "netns", "del", "other")
}
