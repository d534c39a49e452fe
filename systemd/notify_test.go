package systemd_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/systemd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen is a service manager: it sets NOTIFY_SOCKET and returns what the next
// datagram says.
func listen(t *testing.T) (receive func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 4096)
		n, err := conn.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n])
	}
}

// calls are all of Notifier's messages.
func calls() map[string]func(systemd.Notifier) error {
	return map[string]func(systemd.Notifier) error{
		"READY=1\nSTATUS=7 peers":   func(n systemd.Notifier) error { return n.Ready("7 peers") },
		"STOPPING=1\nSTATUS=bye":    func(n systemd.Notifier) error { return n.Stopping("bye") },
		"WATCHDOG=1":                systemd.Notifier.Ping,
		"STATUS=waiting for config": func(n systemd.Notifier) error { return n.Status("waiting for config") },
		"STATUS=one READY=1 é":      func(n systemd.Notifier) error { return n.Status("one\nREADY=1\r\n\x00é\n") },
		"STATUS=":                   func(n systemd.Notifier) error { return n.Status("") },
	}
}

func TestNotifier(t *testing.T) {
	receive := listen(t)
	for want, call := range calls() {
		t.Run(want, func(t *testing.T) {
			if err := call(systemd.Notifier{}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, receive()); diff != "" {
				t.Errorf("datagram (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNotifierWithoutServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	for name, call := range calls() {
		if err := call(systemd.Notifier{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNotifierWithDeadServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	err := systemd.Notifier{}.Ready("")
	if err == nil || !strings.HasPrefix(err.Error(), "notify ready: ") {
		t.Errorf("error %v, want one of notify ready", err)
	}
}

func TestWatchdogInterval(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	tests := []struct {
		name, usec, pid string
		want            time.Duration
		fails           bool
	}{
		{name: "none"},
		{name: "ours", usec: "30000000", pid: self, want: 15 * time.Second},
		{name: "everybody's", usec: "2000000", want: time.Second},
		{name: "another process's", usec: "30000000", pid: "1"},
		{name: "not a number", usec: "soon", pid: self, fails: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("WATCHDOG_USEC", tt.usec)
			t.Setenv("WATCHDOG_PID", tt.pid)
			got, err := systemd.Notifier{}.WatchdogInterval()
			if got != tt.want || (err != nil) != tt.fails {
				t.Errorf("got %v and error %v, want %v and error %t", got, err, tt.want, tt.fails)
			}
		})
	}
}
