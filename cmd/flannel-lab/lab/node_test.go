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

// aloneEnv makes the test binary one that sees no namespace of others.
const aloneEnv = "LAB_TEST_ALONE"

// The first `ip netns add` on a machine is in no lab's way that is there already.
func TestNamesBesideOthers(t *testing.T) {
	needsRoot(t)
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	if os.Getenv(aloneEnv) == "" {
		t.Setenv(aloneEnv, "1")
		run("unshare", "--mount", os.Args[0], "-test.run=^TestNamesBesideOthers$")
		return
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
