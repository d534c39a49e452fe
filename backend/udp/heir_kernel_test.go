package udp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend"
)

// keep duplicates what is open, as a service manager does.
func (m *machine) keep(t testing.TB) []*os.File {
	t.Helper()
	var files []*os.File
	for _, d := range m.Descriptors() {
		if err := d.Conn.Control(func(fd uintptr) {
			kept, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			files = append(files, os.NewFile(uintptr(kept), d.Name))
		}); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// inherit hands files to the new backend.
func (m *machine) inherit(t testing.TB, files []*os.File, peers ...*machine) (in backend.Inheritance) {
	t.Helper()
	m.ns.do(t, func() { in = m.Inherit(context.Background(), m.desired(peers...), files) })
	return in
}

const (
	// streamLength is how many packets a stream has, one per millisecond.
	streamLength = 1500
	// deadFor is how long no process runs in a test of restarts.
	deadFor = 300 * time.Millisecond
)

// numbers are numbered packets from one container to another, a burst of them at a
// time, one per millisecond in the mean.
type numbers struct {
	from, to *machine
	// size is that of the payload in bytes, at least four; burst how many are sent
	// at once. Both are raised to what makes sense.
	size, burst int
	// grace is how long after the last was sent those are waited for that lack; 0, for
	// where none should: patient.
	grace time.Duration
}

// start sends them and returns the numbers of those that came. It ends when all came,
// or when grace is over.
func (s numbers) start(t testing.TB) <-chan []int {
	t.Helper()
	payload, burst := make([]byte, max(4, s.size)), max(1, s.burst)
	if s.grace == 0 {
		s.grace = patient
	}
	var in, out *net.UDPConn
	address := &net.UDPAddr{IP: net.IPv4(10, 5, byte(s.to.n), 2), Port: 4000}
	s.to.container.do(t, func() {
		var err error
		if in, err = net.ListenUDP("udp4", address); err != nil {
			t.Error(err)
		}
	})
	s.from.container.do(t, func() {
		var err error
		if out, err = net.DialUDP("udp4", nil, address); err != nil {
			t.Error(err)
		}
	})
	if in == nil || out == nil {
		t.FailNow()
	}
	raw, err := in.SyscallConn()
	if err == nil { // all that wait while no process runs come at once
		err = control(raw, func(fd int) error { enlarge(fd); return nil })
	}
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		defer out.Close()
		tick := time.NewTicker(time.Duration(burst) * time.Millisecond)
		defer tick.Stop()
		for i := range streamLength {
			if i%burst == 0 {
				<-tick.C
			}
			binary.BigEndian.PutUint32(payload, uint32(i))
			_, _ = out.Write(payload)
		}
		_ = in.SetReadDeadline(time.Now().Add(s.grace))
	}()
	got := make(chan []int, 1)
	go func() {
		var numbers []int
		for b := make([]byte, 2000); len(numbers) < streamLength; {
			if _, err := in.Read(b); err != nil {
				break
			}
			numbers = append(numbers, int(binary.BigEndian.Uint32(b)))
		}
		<-sent // who counts descriptors later finds neither
		in.Close()
		got <- numbers
	}()
	return got
}

// A process that ends and another that goes on with its descriptors lose no packet
// and keep the order, in either direction, with etcd or without: Apply comes last.
// Without the descriptors they do lose packets.
func TestKernelRestartUnnoticed(t *testing.T) {
	for name, kept := range map[string]bool{"kept": true, "control: not kept": false} {
		t.Run(name, func(t *testing.T) {
			a, b := joined(t)
			mustPing(t, a.container, "10.5.2.2")
			grace := time.Duration(0)
			if !kept {
				grace = time.Second
			}
			there, back := numbers{from: a, to: b, grace: grace}.start(t), numbers{from: b, to: a, grace: grace}.start(t)
			pings := a.container.startPing(t, "10.5.2.2")
			for _, m := range []*machine{a, b} {
				<-time.After(100 * time.Millisecond)
				other := map[*machine]*machine{a: b, b: a}[m]
				files := m.keep(t)
				m.stop(t)
				<-time.After(deadFor)
				m.restart(t, files, kept, other)
			}
			lost := 0
			for direction, stream := range map[string]<-chan []int{"there": there, "back": back} {
				got := <-stream
				lost += streamLength - len(got)
				for i := 1; i < len(got); i++ {
					if kept && got[i] <= got[i-1] {
						t.Errorf("%s: packet %d came after %d", direction, got[i], got[i-1])
					}
				}
			}
			if kept { // else some never are
				await(t, "the first pings are answered", func() bool { return answered(pings.text(), 100) })
			}
			out := pings.end()
			noPingLost := answered(out, 100)
			if kept && (lost != 0 || !noPingLost) {
				t.Errorf("%d of %d packets are lost, want none; ping:\n%s", lost, 2*streamLength, out)
			}
			if !kept && (lost == 0 || noPingLost) {
				t.Errorf("%d packets are lost without the descriptors: this test proves nothing; ping:\n%s", lost, out)
			}
		})
	}
}

// answered reports whether the first n of more pings were answered.
func answered(out string, n int) bool {
	for i := range n {
		if !strings.Contains(out, fmt.Sprintf("bytes from 10.5.2.2: icmp_seq=%d ", i+1)) {
			return false
		}
	}
	return true
}

// restart is another process's start.
func (m *machine) restart(t *testing.T, files []*os.File, kept bool, other *machine) {
	t.Helper()
	m.boot(t)
	if !kept {
		for _, f := range files {
			f.Close()
		}
		m.mustApply(t, other)
		m.start(t)
		return
	}
	in := m.inherit(t, files, other)
	if !in.Whole || in.Refused != nil {
		t.Fatalf("inherited: %+v", in)
	}
	m.start(t)
	<-time.After(50 * time.Millisecond) // etcd is asked
	if out := m.container.pingAnswered("-c 1 10.5.99.9"); !strings.Contains(out, "Destination Net Unreachable") {
		t.Errorf("before Apply, a subnet of nobody's:\n%s", out)
	}
	before := m.Descriptors()
	m.mustApply(t, other)
	if after := m.Descriptors(); !slices.Equal(before, after) {
		t.Errorf("Apply opened others than were inherited: %v, before %v", names(after), names(before))
	}
}

func names(list []backend.Descriptor) []string {
	var names []string
	for _, d := range list {
		names = append(names, d.Name)
	}
	return names
}

// The names of what a machine with two queues keeps.
const (
	queue0, queue1   = "udp.tun.0.flannel0", "udp.tun.1.flannel0"
	socket0, socket1 = "udp.socket.0.8285.198.18.0.1", "udp.socket.1.8285.198.18.0.1"
)

// both are the errors of two files that do not fit for one reason.
func both(first, second, why string) []string {
	return []string{first + ": does not fit: " + why, second + ": does not fit: " + why}
}

// Descriptors that do not fit are closed, each with its reason; the next Apply opens
// what lacks.
func TestKernelRefusesHeirlooms(t *testing.T) {
	tests := []struct {
		name string
		// spoil changes what was kept, or the machine, after the first process.
		spoil   func(t *testing.T, m *machine, files []*os.File) []*os.File
		refused []string
	}{
		{name: "all fit"},
		{
			name: "device deleted",
			spoil: func(t *testing.T, m *machine, files []*os.File) []*os.File {
				m.ns.ip(t, "link del flannel0")
				return files
			},
			refused: both(queue0, queue1, "its device was deleted: file descriptor in bad state"),
		},
		{
			name: "device renamed",
			spoil: func(t *testing.T, m *machine, files []*os.File) []*os.File {
				m.ns.ip(t, "link set flannel0 down")
				m.ns.ip(t, "link set flannel0 name old0")
				return files
			},
			refused: both(queue0, queue1, "its device is called old0 now"),
		},
		{
			name: "device in another namespace",
			spoil: func(t *testing.T, m *machine, files []*os.File) []*os.File {
				m.ns.ip(t, "link set flannel0 netns "+string(m.container))
				return files
			},
			refused: both(queue0, queue1, "it is of another network namespace"),
		},
		{
			name: "a queue and a socket are missing",
			spoil: func(_ *testing.T, _ *machine, files []*os.File) []*os.File {
				return drop(drop(files, queue1), socket0)
			},
			refused: []string{queue0 + ": does not fit: number 1 of 2 is missing", socket1 + ": does not fit: number 0 of 2 is missing"},
		},
		{
			name: "socket in another namespace",
			spoil: func(t *testing.T, m *machine, files []*os.File) []*os.File {
				m.container.ip(t, "addr add 198.18.0.1/32 dev lo")
				var f *os.File
				m.container.do(t, func() { f = bound(t, "198.18.0.1:8285", socket0) })
				return append(drop(files, socket0), f)
			},
			refused: both(socket0, socket1, "it is of another network namespace"),
		},
		{
			name: "socket bound elsewhere than its name says",
			spoil: func(t *testing.T, m *machine, files []*os.File) []*os.File {
				var f *os.File
				m.ns.do(t, func() { f = bound(t, "198.18.0.1:9000", socket1) })
				return append(drop(files, socket1), f)
			},
			refused: both(socket0, socket1, "it is bound to 198.18.0.1:9000"),
		},
		{
			name: "made for another port, and for more queues",
			spoil: func(t *testing.T, m *machine, files []*os.File) []*os.File {
				var other, third *os.File
				m.ns.do(t, func() {
					other = bound(t, "198.18.0.1:9000", "udp.socket.0.9000.198.18.0.1")
					third = bound(t, "198.18.0.1:9001", "udp.socket.2.8285.198.18.0.1")
				})
				return append(files, other, third)
			},
			refused: []string{
				"udp.socket.0.9000.198.18.0.1: does not fit: wanted are device flannel0 and sockets at 198.18.0.1:8285",
				"udp.socket.2.8285.198.18.0.1: does not fit: only 2 queues are wanted",
			},
		},
		{
			name: "not ours, and twice",
			spoil: func(t *testing.T, _ *machine, files []*os.File) []*os.File {
				for _, name := range []string{socket0, queue0, "stored"} {
					files = append(files, null(t, name))
				}
				return files
			},
			refused: append(both(socket0, queue0, "there is one already"), "stored: does not fit: not a name of ours"),
		},
		{
			name: "another instance's, and another port's, come first",
			spoil: func(t *testing.T, _ *machine, files []*os.File) []*os.File {
				return append([]*os.File{null(t, "udp.tun.0.flannel1"), null(t, "udp.socket.0.9000.198.18.0.1")}, files...)
			},
			refused: []string{
				"udp.tun.0.flannel1: does not fit: wanted are device flannel0 and sockets at 198.18.0.1:8285",
				"udp.socket.0.9000.198.18.0.1: does not fit: wanted are device flannel0 and sockets at 198.18.0.1:8285",
			},
		},
		{
			name: "no socket and no device",
			spoil: func(t *testing.T, _ *machine, files []*os.File) []*os.File {
				return append(drop(drop(files, socket1), queue1), null(t, socket1), null(t, queue1))
			},
			refused: append(both(queue0, queue1, "its device was deleted: inappropriate ioctl for device"),
				both(socket0, socket1, "getsockopt: socket operation on non-socket")...),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := twoMachines(t)
			a, b := m[0], m[1]
			b.boot(t)
			b.mustApply(t, a)
			b.start(t)
			defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which closes what nobody has
			open := descriptors()
			a.boot(t)
			a.mustApply(t, b)
			files := a.keep(t)
			a.Close()
			if tt.spoil != nil {
				files = tt.spoil(t, a, files)
			}
			a.boot(t)
			in := a.inherit(t, files, b)
			var refused []string
			for _, err := range in.Refused {
				if !errors.Is(err, errNoHeirloom) {
					t.Errorf("error %v is not of its kind", err)
				}
				refused = append(refused, err.Error())
			}
			if diff := cmp.Diff(tt.refused, refused); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
			if want := len(a.Descriptors()) == 4; in.Whole != want {
				t.Errorf("whole: %t with %v", in.Whole, names(a.Descriptors()))
			}
			a.mustApply(t, b)
			if diff := cmp.Diff([]string{queue0, queue1, socket0, socket1}, names(a.Descriptors())); diff != "" {
				t.Errorf("after Apply (-want +got):\n%s", diff)
			}
			a.start(t)
			mustPing(t, a.container, "10.5.2.2")
			a.stop(t)
			if left := descriptors(); left != open {
				t.Errorf("open after the end are %+v, before the first process %+v", left, open)
			}
		})
	}
}

// null is no descriptor of ours under a name.
func null(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return dupAs(t, f, name)
}

// drop closes the file of a name.
func drop(files []*os.File, name string) []*os.File {
	return slices.DeleteFunc(slices.Clone(files), func(f *os.File) bool { return f.Name() == name && f.Close() == nil })
}

// A program of another kind under our names is refused before anything is set.
func TestKernelRefusesOtherKinds(t *testing.T) {
	a := twoMachines(t)[0]
	a.ns.ip(t, "tuntap add mode tap name flannel0")
	var tap *os.File
	a.ns.do(t, func() { tap = openTAP(t, "flannel0") })
	stream, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	f, err := stream.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a.options = `{"Queues":1}`
	a.boot(t)
	in := a.inherit(t, []*os.File{tap, dupAs(t, f, socket0)})
	defer a.Close()
	text := fmt.Sprint(in.Refused)
	if in.Whole || len(in.Refused) != 2 || !strings.Contains(text, "it is a device of flags") || !strings.Contains(text, errNoHeirloom.Error()) {
		t.Errorf("inherited: %+v", in)
	}
}

// openTAP attaches to a device that is no tunnel of ours.
func openTAP(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := unix.Open(tunNode, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Error(err)
	}
	return os.NewFile(uintptr(fd), "udp.tun.0."+name)
}

// bound is a UDP socket under a name.
func bound(t *testing.T, at, name string) *os.File {
	t.Helper()
	conn, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer conn.Close()
	f, err := conn.(*net.UDPConn).File()
	if err != nil {
		t.Error(err)
		return nil
	}
	defer f.Close()
	return dupAs(t, f, name)
}

// dupAs duplicates f under a name.
func dupAs(t *testing.T, f *os.File, name string) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}
