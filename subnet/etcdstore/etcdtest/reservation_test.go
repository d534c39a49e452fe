package etcdtest

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

// Nobody gets a reserved port but who asks for it by its number, as often as he likes.
func TestReserve(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
		t.Run(host, func(t *testing.T) {
			r, err := Reserve(host)
			if host == "::1" && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) {
				t.Skipf("needs IPv6 on loopback: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			at := r.Addr.String()
			for range 3 {
				if conn, err := net.Dial("tcp", at); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("a call while nobody listens: %v, %v, want %v", conn, err, syscall.ECONNREFUSED)
				}
				l, err := net.Listen("tcp", at)
				if err != nil {
					t.Fatal(err)
				}
				conn, err := net.Dial("tcp", at)
				if err := errors.Join(err, l.Close()); err != nil {
					t.Fatal(err)
				}
				conn.Close()
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if r, err := Reserve("localhost"); err == nil {
		t.Errorf("a name is reserved: %s", r.Addr)
	}
}

// The kernel gives a reserved port neither to who asks for any nor to a call. Here it
// has so few that both run out of them.
func TestReservedPortIsNotGivenAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	runtime.LockOSThread() // the thread ends with the test
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const ports = 4
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40003"), 0); err != nil {
		t.Fatal(err)
	}
	r, err := Reserve("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var open []io.Closer
	closeAll := func() {
		for _, c := range open {
			c.Close()
		}
		open = nil
	}
	defer closeAll()
	for range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			break
		}
		open = append(open, l)
		if l.Addr().String() == r.Addr.String() {
			t.Errorf("%s is given to who asks for any", r.Addr)
		}
	}
	if len(open) != ports-1 {
		t.Errorf("%d ports are given to who asks for any, want %d", len(open), ports-1)
	}
	closeAll()
	callee, err := net.Listen("tcp", "127.0.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer callee.Close()
	for range ports {
		conn, err := net.Dial("tcp", callee.Addr().String())
		if err != nil {
			break
		}
		open = append(open, conn)
		if conn.LocalAddr().String() == r.Addr.String() {
			t.Errorf("a call comes from %s", r.Addr)
		}
	}
	if len(open) != ports-1 {
		t.Errorf("%d calls have a port to come from, want %d", len(open), ports-1)
	}
}
