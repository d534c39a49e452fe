package udp

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPrecede: all threads come before other programs', and those that are started later;
// what somebody has chosen stays.
func TestPrecede(t *testing.T) {
	if nice := os.Getenv("TEST_PRECEDE"); nice != "" {
		precedeFrom(t, nice)
		return
	}
	var allowed error
	onThread(func() { allowed = unix.Setpriority(unix.PRIO_PROCESS, 0, niceness) })
	if errors.Is(allowed, os.ErrPermission) {
		t.Skip("needs CAP_SYS_NICE: niceness")
	}
	for _, nice := range []string{"0", "3", "-7"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPrecede$", "-test.v") // by itself, for it does not go back
		cmd.Env = append(os.Environ(), "TEST_PRECEDE="+nice)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("from niceness %s: %v\n%s", nice, err, out)
		}
	}
}

func precedeFrom(t *testing.T, chosen string) {
	nice, err := strconv.Atoi(chosen)
	if err != nil {
		t.Fatal(err)
	}
	want := nice
	if nice == 0 {
		want = niceness
	}
	setAll(t, nice)
	if err := precede(); err != nil {
		t.Fatal(err)
	}
	// Threads that there were not before: each goroutine keeps one.
	var wg, locked sync.WaitGroup
	locked.Add(20)
	for range 20 {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			locked.Done()
			locked.Wait()
			if got, err := niceOf(0); err != nil || got != want {
				t.Errorf("a thread has niceness %d, %v; want %d", got, err, want)
			}
		})
	}
	wg.Wait()
	for _, id := range threads(t) {
		if got, err := niceOf(id); err != nil || got != want {
			t.Errorf("thread %d has niceness %d, %v; want %d", id, got, err, want)
		}
	}
	if nice != 0 {
		return
	}
	// Without the right to do it, it says so.
	setAll(t, 0)
	onThread(func() {
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3} // of this thread alone
		var caps [2]unix.CapUserData
		err := unix.Capget(&head, &caps[0])
		caps[0].Effective &^= 1 << unix.CAP_SYS_NICE
		if err = errors.Join(err, unix.Capset(&head, &caps[0])); err != nil {
			t.Error(err)
		}
		if err := precede(); !errors.Is(err, unix.EACCES) {
			t.Errorf("without CAP_SYS_NICE: %v, want that it is not permitted", err)
		}
	})
}

// setAll gives all threads a niceness.
func setAll(t *testing.T, nice int) {
	t.Helper()
	for range 2 { // one may have started another
		for _, id := range threads(t) {
			if err := unix.Setpriority(unix.PRIO_PROCESS, id, nice); err != nil && !errors.Is(err, unix.ESRCH) {
				t.Fatal(err)
			}
		}
	}
}

// threads are this process's.
func threads(t *testing.T) (ids []int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}
