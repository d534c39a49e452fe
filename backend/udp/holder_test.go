package udp

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const holdPort = "UDP_TEST_HOLDS_PORT"

// TestHoldPort is not a test but another process's daemon.
func TestHoldPort(t *testing.T) {
	at := os.Getenv(holdPort)
	if at == "" {
		return // the test that needs it starts it
	}
	held, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	fmt.Println("held")
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
}

// A port that another process has, at our address or at all, is left to it, and the
// error says whose it is. Another port, or another address, is no conflict.
func TestKernelBusyPort(t *testing.T) {
	for _, at := range []string{"198.18.0.1:8285", "0.0.0.0:8285", "[::]:8285"} {
		t.Run(at, func(t *testing.T) {
			a := twoMachines(t)[0]
			// Whoever has the port at other addresses, or another port, holds nothing of ours.
			beside := func(addresses ...string) {
				for _, address := range addresses {
					a.ns.do(t, func() {
						held, err := net.ListenPacket("udp4", address)
						if err != nil {
							t.Error(err)
							return
						}
						t.Cleanup(func() { held.Close() })
					})
				}
			}
			a.ns.ip(t, "addr add 198.18.0.9/24 dev eth0")
			a.ns.ip(t, "addr add 198.18.0.10/24 dev eth0")
			beside("198.18.0.1:8287")
			if at == "198.18.0.1:8285" {
				beside("198.18.0.9:8285")
			}
			other := exec.Command("ip", "netns", "exec", string(a.ns), os.Args[0], "-test.run=^TestHoldPort$")
			other.Env = append(os.Environ(), holdPort+"="+at)
			stdin, err1 := other.StdinPipe()
			stdout, err2 := other.StdoutPipe()
			if err := errors.Join(err1, err2, other.Start()); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "held\n" {
				t.Fatalf("%q, %v", line, err)
			}
			if at == "198.18.0.1:8285" {
				beside("198.18.0.10:8285") // the kernel lists the latest first
			}
			beside("198.18.0.1:8284")
			a.boot(t)
			err := a.apply(t)
			want := fmt.Sprintf("udp port is taken: 198.18.0.1:8285 is held by udp.test (process %d): stop it (`ss -lunp sport = :8285` shows it; "+
				"flanneld uses this port too) or set Backend.Port: address already in use", other.Process.Pid)
			if !errors.Is(err, ErrPortTaken) || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if links := a.ns.ip(t, "link"); strings.Contains(links, device) || len(a.Descriptors()) != 0 {
				t.Errorf("touched:\n%s", links)
			}
			a.options = `{"Queues":2,"Port":8286}`
			a.boot(t)
			a.mustApply(t)
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			stdin.Close()
			if err := other.Wait(); err != nil {
				t.Error(err)
			}
			a.options = ""
			a.boot(t)
			a.mustApply(t)
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

const holdDevice = "UDP_TEST_HOLDS_DEVICE"

// TestHoldDevice is not a test but another process's daemon.
func TestHoldDevice(t *testing.T) {
	name := os.Getenv(holdDevice)
	if name == "" {
		return // the test that needs it starts it
	}
	held, err := openTUN(name, tunOptions{Queues: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	fmt.Println("held")
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
}

// hold starts a process that has the device name in ns until let go is called.
func hold(t *testing.T, ns netns, name string) (pid int, letGo func()) {
	t.Helper()
	other := exec.Command("ip", "netns", "exec", string(ns), os.Args[0], "-test.run=^TestHoldDevice$")
	other.Env = append(os.Environ(), holdDevice+"="+name)
	stdin, err1 := other.StdinPipe()
	stdout, err2 := other.StdoutPipe()
	if err := errors.Join(err1, err2, other.Start()); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return other.Process.Pid, func() {
		stdin.Close()
		if err := other.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestKernelBusyDevice(t *testing.T) {
	for _, options := range []string{`{"Queues":1}`, `{"Queues":2}`} {
		t.Run(options, func(t *testing.T) { testBusyDevice(t, options) })
	}
}

func testBusyDevice(t *testing.T, options string) {
	m := twoMachines(t)
	a := m[0]
	a.options = options
	// Whoever has a device of that name elsewhere, or another one, has not this one,
	// whichever is found first.
	for _, end := range []netns{m[1].ns, a.container} {
		_, letGo := hold(t, end, device)
		defer letGo()
	}
	_, letGo := hold(t, a.ns, device+"1")
	defer letGo()
	pid, letGo := hold(t, a.ns, device)
	for _, other := range []struct {
		ns   netns
		name string
	}{{m[1].container, device}, {a.ns, device + "2"}} {
		_, letGo := hold(t, other.ns, other.name)
		defer letGo()
	}
	a.boot(t)
	err := a.apply(t)
	want := fmt.Sprintf("open device flannel0: device is busy: held by udp.test (process %d); stop it first", pid)
	if !errors.Is(err, ErrDeviceBusy) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	letGo()
	if err := a.apply(t); err != nil {
		t.Errorf("apply once the device is free: %v", err)
	}
	second := &machine{n: 1, ns: a.ns, host: a.host, options: a.options}
	second.boot(t)
	second.port = 9999
	if err := second.apply(t); !errors.Is(err, ErrDeviceBusy) || !strings.Contains(err.Error(), "held by this process") {
		t.Errorf("second backend: %v", err)
	}
	if err := errors.Join(a.Close(), second.Close()); err != nil {
		t.Error(err)
	}
}

func TestParseSockets(t *testing.T) {
	port := int(freePort(t))
	c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback, Port: port})
	if err != nil {
		t.Skipf("needs IPv6 on loopback: %v", err)
	}
	defer c.Close()
	beside, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback}) // no other's concern
	if err != nil {
		t.Fatal(err)
	}
	defer beside.Close()
	four, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port}) // has none of IPv6's addresses
	if err != nil {
		t.Fatal(err)
	}
	defer four.Close()
	text, err := os.ReadFile("/proc/thread-self/net/udp6")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(c.LocalAddr().String())
	found := false
	for _, s := range parseSockets(string(text)) {
		found = found || s.at == at
	}
	if !found || portHolder(at) != "this process" {
		t.Errorf("%s, held by %s, is not found in:\n%s", at, portHolder(at), text)
	}
	c.Close()
	if got := portHolder(at); got != someone {
		t.Errorf("a free port is held by %s", got)
	}
	// An IPv6 socket may be bound to an IPv4 address.
	const mixed = "357: 0000000000000000FFFF0000010012C6:205D 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 23458 2 0 0"
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		want := []boundSocket{{netip.MustParseAddrPort("198.18.0.1:8285"), "23458"}}
		if got := parseSockets(mixed); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	for _, odd := range []string{"", "a b c d e f g h i j", "1: 0100007F:XX a b c d e f g h i", "1: 01007F:2020 a b c d e f g h i", "1: 0100007F a b c d e f g h i"} {
		if got := parseSockets(odd); got != nil {
			t.Errorf("%q is read as %v", odd, got)
		}
	}
}
