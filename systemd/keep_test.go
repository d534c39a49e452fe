package systemd_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/systemd"
)

// message is a datagram with the descriptors that came with it.
type message struct {
	text  string
	files []*os.File
}

// listenFiles is a service manager that takes descriptors. They are the caller's.
func listenFiles(t testing.TB) (receive func(testing.TB) message) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func(t testing.TB) message {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		text, control := make([]byte, 4096), make([]byte, 256)
		n, c, _, _, err := conn.ReadMsgUnix(text, control)
		if err != nil {
			t.Fatal(err)
		}
		m := message{text: string(text[:n])}
		list, err := syscall.ParseSocketControlMessage(control[:c])
		if err != nil {
			t.Fatal(err)
		}
		for i := range list {
			fds, err := syscall.ParseUnixRights(&list[i])
			if err != nil {
				t.Fatal(err)
			}
			for _, fd := range fds {
				m.files = append(m.files, os.NewFile(uintptr(fd), "received"))
			}
		}
		return m
	}
}

// temp is a file with its raw descriptor.
func temp(t testing.TB) (*os.File, syscall.RawConn) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return f, raw
}

// What the manager gets is the very file: an offset set on one side is seen on the
// other.
func TestKeep(t *testing.T) {
	receive := listenFiles(t)
	f, raw := temp(t)
	if err := (systemd.Notifier{}).Keep("tun.0.flannel0", raw); err != nil {
		t.Fatal(err)
	}
	got := receive(t)
	if diff := cmp.Diff("FDSTORE=1\nFDNAME=tun.0.flannel0\nFDPOLL=0", got.text); diff != "" {
		t.Errorf("datagram (-want +got):\n%s", diff)
	}
	if len(got.files) != 1 {
		t.Fatalf("%d descriptors came, want 1", len(got.files))
	}
	defer got.files[0].Close()
	if _, err := f.Seek(4711, 0); err != nil {
		t.Fatal(err)
	}
	if at, err := got.files[0].Seek(0, 1); at != 4711 || err != nil {
		t.Errorf("offset of what came is %d, error %v; want 4711 of the file that was sent", at, err)
	}
}

// A manager that has not read yet what was sent before is waited for: nothing is lost
// because it is busy.
func TestKeepWaitsForRoom(t *testing.T) {
	receive := listenFiles(t)
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	waiting := 0
	for to := (&syscall.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")}); ; waiting++ {
		if err = syscall.Sendto(fd, []byte("STATUS=busy"), 0, to); err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.EAGAIN) || waiting == 0 {
		t.Fatalf("after %d messages: %v, want no room", waiting, err)
	}
	_, raw := temp(t)
	done := make(chan error, 1)
	go func() { done <- systemd.Notifier{}.Keep("a", raw) }()
	select {
	case err := <-done:
		t.Fatalf("returned %v while there was no room", err)
	case <-time.After(50 * time.Millisecond):
	}
	for range waiting {
		if got := receive(t); got.text != "STATUS=busy" {
			t.Errorf("came %q before what was sent first", got.text)
		}
	}
	got := receive(t)
	for _, f := range got.files {
		f.Close()
	}
	if err := <-done; err != nil || !strings.HasPrefix(got.text, "FDSTORE=1\n") || len(got.files) != 1 {
		t.Errorf("keep: %v; came %q with %d descriptors", err, got.text, len(got.files))
	}
}

// Drop does not return before the manager has read what it is to drop.
func TestDropWaits(t *testing.T) {
	receive := listenFiles(t)
	done := make(chan error, 1)
	go func() { done <- systemd.Notifier{}.Drop(t.Context(), "a", "b") }()
	var texts []string
	var last message
	for range 3 {
		last = receive(t)
		texts = append(texts, last.text)
	}
	want := []string{"FDSTOREREMOVE=1\nFDNAME=a", "FDSTOREREMOVE=1\nFDNAME=b", "BARRIER=1"}
	if diff := cmp.Diff(want, texts); diff != "" {
		t.Errorf("datagrams (-want +got):\n%s", diff)
	}
	select {
	case err := <-done:
		t.Fatalf("returned %v before the manager closed the barrier", err)
	case <-time.After(50 * time.Millisecond):
	}
	for _, f := range last.files {
		f.Close()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDropEndsWithItsContext(t *testing.T) {
	listenFiles(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := (systemd.Notifier{}).Drop(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want one of the deadline", err)
	}
}

func TestKeepWithoutServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	_, raw := temp(t)
	if err := (systemd.Notifier{}).Keep("a", raw); err != nil {
		t.Error(err)
	}
	if err := (systemd.Notifier{}).Drop(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if files := (systemd.Notifier{}).Kept(); len(files) != 0 {
		t.Errorf("kept: %v, want none", files)
	}
}

func TestKeepWithDeadServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	_, raw := temp(t)
	for what, err := range map[string]error{
		"keep descriptor a: ":           systemd.Notifier{}.Keep("a", raw),
		"notify drop of descriptor a: ": systemd.Notifier{}.Drop(t.Context(), "a"),
		"drop descriptors: ":            systemd.Notifier{}.Drop(t.Context()),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), what) {
			t.Errorf("error %v, want one of %q", err, what)
		}
	}
}

// A program that systemd starts finds what was kept, by name, once, and its own
// children find nothing.
func TestKept(t *testing.T) {
	if os.Getenv("LISTEN_FDNAMES") != "" {
		keptChild(t)
		return
	}
	var extra []*os.File
	for _, text := range []string{"first", "second"} {
		f, _ := temp(t)
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		extra = append(extra, f)
	}
	// The shell stays the same process, which LISTEN_PID names.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, os.Args[0], "-test.run=^TestKept$", "-test.v")
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=tun.0.x:socket.0")
	cmd.ExtraFiles = extra
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "found first and second") {
		t.Errorf("child: %v\n%s", err, out)
	}
}

func keptChild(t *testing.T) {
	t.Helper()
	files := systemd.Notifier{}.Kept()
	got := map[string]string{}
	for _, f := range files {
		text := make([]byte, 100)
		n, err := f.ReadAt(text, 0)
		if n == 0 {
			t.Error(err)
		}
		got[f.Name()] = string(text[:n])
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_GETFD, 0)
		if errno != 0 || flags&syscall.FD_CLOEXEC == 0 {
			t.Errorf("%s: flags %#x, error %v; want close-on-exec", f.Name(), flags, errno)
		}
		f.Close()
	}
	if diff := cmp.Diff(map[string]string{"tun.0.x": "first", "socket.0": "second"}, got); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	if again := (systemd.Notifier{}).Kept(); len(again) != 0 || os.Getenv("LISTEN_FDS") != "" {
		t.Errorf("again: %v with LISTEN_FDS=%q, want none", again, os.Getenv("LISTEN_FDS"))
	}
	t.Log("found first and second")
}

// No name makes a message of more than its three assignments, and what is refused
// is not sent.
func FuzzKeepName(f *testing.F) {
	for _, name := range []string{"tun.0.flannel0", "", "a:b", "a\nREADY=1", "a b", "é", strings.Repeat("x", 255), strings.Repeat("x", 256), "\x7f"} {
		f.Add(name)
	}
	receive := listenFiles(f)
	_, raw := temp(f)
	f.Fuzz(func(t *testing.T, name string) {
		err := systemd.Notifier{}.Keep(name, raw)
		if dropErr := (systemd.Notifier{}).Drop(canceled(t), name); errors.Is(err, systemd.ErrName) != errors.Is(dropErr, systemd.ErrName) {
			t.Errorf("keep: %v, drop: %v; want the same judgement", err, dropErr)
		}
		if errors.Is(err, systemd.ErrName) {
			return // had it been sent, the next one would find it
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"FDSTORE=1\nFDNAME=" + name + "\nFDPOLL=0", "FDSTOREREMOVE=1\nFDNAME=" + name, "BARRIER=1"} {
			m := receive(t)
			for _, file := range m.files {
				file.Close()
			}
			if m.text != want || strings.Count(m.text, "\n") != strings.Count(want, "\n") {
				t.Errorf("datagram %q, want %q", m.text, want)
			}
		}
		if strings.ContainsAny(name, "\n: ") || name == "" || len(name) > 255 {
			t.Errorf("name %q was sent", name)
		}
	})
}

// canceled is a context that waits for nobody.
func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
