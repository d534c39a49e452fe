package kerneltest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

// Namespace is a fresh network namespace with the Host in it. It has no name,
// and ends with its test.
type Namespace struct {
	*kernel.Netlink
	// Path opens the namespace in this process ("/proc/self/fd/7").
	Path string
	file *os.File
}

// NetNS makes a namespace like those of New: a loopback link that is down. Only
// root can; tests of others are skipped. The options' NetNS is filled in.
func NetNS(t testing.TB, o kernel.Options) *Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	file, err := newNetNS()
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { _ = file.Close() }) // the last reference
	ns := &Namespace{Path: fmt.Sprintf("/proc/self/fd/%d", file.Fd()), file: file}
	o.NetNS = ns.Path
	if ns.Netlink, err = kernel.Open(o); err != nil {
		t.Fatalf("open netlink: %v", err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Errorf("close netlink: %v", err)
		}
	})
	return ns
}

// newNetNS makes a namespace on a thread of its own. The thread is not used
// again: it stays locked to a goroutine that ends.
func newNetNS() (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result, 1)
	go func() {
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			made <- result{nil, err}
			return
		}
		defer func() { _ = home.Close() }() // read-only
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			made <- result{nil, os.NewSyscallError("unshare", err)}
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		made <- result{file, err}
	}()
	r := <-made
	return r.file, r.err
}

// Do runs f on a thread that is in the namespace. What f starts as goroutines
// is not; what it starts as processes, and sockets that it opens, are.
func (ns *Namespace) Do(t testing.TB, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			defer func() { _ = home.Close() }() // read-only
			err = unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer func() { // also when f ends the goroutine by t.FailNow
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			done <- nil
		}()
		f()
	}()
	if err := <-done; err != nil {
		t.Fatalf("enter network namespace: %v", err)
	}
}

// Run runs a command in the namespace and returns what it printed; it must
// succeed. It is how a test plays somebody else: Run(t, "ip", "link", "del", ..).
func (ns *Namespace) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var (
		out []byte
		err error
	)
	ns.Do(t, func() {
		out, err = exec.CommandContext(context.WithoutCancel(t.Context()), name, args...).CombinedOutput()
	})
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
