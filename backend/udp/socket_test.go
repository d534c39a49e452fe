package udp

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// wireTap is a socket of ours and one that takes what it sends.
type wireTap struct {
	*socket
	log  bytes.Buffer
	taps *net.UDPConn
	to   netip.AddrPort
}

// newWireTap opens both on loopback, in the network namespace of the calling thread.
func newWireTap(t testing.TB) *wireTap {
	t.Helper()
	w := new(wireTap)
	taps, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	w.taps, w.to = taps, netip.MustParseAddrPort(taps.LocalAddr().String())
	t.Cleanup(func() { taps.Close() })
	level := &socketLevel{log: slog.New(slog.NewTextHandler(&w.log, nil))}
	conns, err := openSockets(netip.AddrPortFrom(w.to.Addr(), 0), socketOptions{Queues: 1, Level: level})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conns[0].Close() })
	w.socket = conns[0].(*socket)
	if !w.level.segment.Load() {
		t.Skip("needs UDP_SEGMENT: Linux 4.18")
	}
	return w
}

// message is n datagrams of 100 bytes, the last of which has 40, that begin with their
// numbers from first on.
func (w *wireTap) message(first byte, n int) Message {
	m := Message{To: w.to, Size: 100, Packets: n, Bytes: 100*n - 60}
	for i := range n {
		size := 100
		if i == n-1 {
			size = 40
		}
		b := bytes.Repeat([]byte{first + byte(i)}, size)
		m.Parts = append(m.Parts, b[:20], b[20:]) // head and payload
	}
	return m
}

// arrived are the first bytes of the next n datagrams, each of which has to be whole.
func (w *wireTap) arrived(t *testing.T, n int) (first []byte) {
	t.Helper()
	_ = w.taps.SetReadDeadline(time.Now().Add(patient))
	for b := make([]byte, 200); len(first) < n; {
		size, err := w.taps.Read(b)
		if err != nil {
			t.Fatalf("%v after %v", err, first)
		}
		if size != 100 && size != 40 || len(bytes.Trim(b[:size], string(b[:1]))) != 0 {
			t.Fatalf("a datagram of %d bytes: %x", size, b[:size])
		}
		first = append(first, b[0])
	}
	return first
}

// count are n numbers.
func count(n int) (all []byte) {
	for i := range n {
		all = append(all, byte(i))
	}
	return all
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good
		f()
	}()
	<-done
}

// refuseCalls makes each sendmmsg of n messages fail with errno on the calling thread.
func refuseCalls(n int, errno unix.Errno) error {
	const nr, third = 0, 16 + 2*8 // of struct seccomp_data: the call, the low half of its third argument
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	ifNot := func(is uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: skip, K: is}
	}
	program := []unix.SockFilter{
		load(nr), ifNot(unix.SYS_SENDMMSG, 3),
		load(third), ifNot(uint32(n), 1),
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&filter)), 0, 0)
}

// TestSegmentRefused: EIO is what a kernel says that cannot cut messages on their way
// out, such as into IPsec. Here a filter says it, of the batch as it is handed over
// first. Nothing is lost, and it is not tried again.
func TestSegmentRefused(t *testing.T) {
	w := newWireTap(t)
	batch := []Message{w.message(0, 6), w.message(6, 1), w.message(7, 4)}
	var (
		n             int
		err, filtered error
	)
	onThread(func() {
		if filtered = refuseCalls(len(batch), unix.EIO); filtered == nil {
			n, err = w.WriteBatch(batch)
		}
	})
	if filtered != nil {
		t.Skipf("needs seccomp: %v", filtered)
	}
	if n != 3 || err != nil {
		t.Errorf("sent %d messages, %v", n, err)
	}
	if diff := cmp.Diff(count(11), w.arrived(t, 11)); diff != "" {
		t.Errorf("arrived (-want +got):\n%s", diff)
	}
	if w.level.segment.Load() {
		t.Error("not given up")
	}
	for range 2 {
		if n, err := w.WriteBatch(batch); n != 3 || err != nil {
			t.Errorf("then sent %d messages, %v", n, err)
		}
		if diff := cmp.Diff(count(11), w.arrived(t, 11)); diff != "" {
			t.Errorf("then arrived (-want +got):\n%s", diff)
		}
	}
	for _, m := range batch {
		if m.Failed != 0 {
			t.Errorf("%d datagrams failed", m.Failed)
		}
	}
	if got := w.log.String(); strings.Count(got, "offload given up") != 1 || !strings.Contains(got, "offload=udp_segment error=\"input/output error\"") {
		t.Errorf("logged:\n%s", got)
	}
}

// TestSegmentRefusedOnce: EINVAL is about one message, as for a way whose MTU is
// smaller; here about all of a socket that sends no sums. The level stays.
func TestSegmentRefusedOnce(t *testing.T) {
	w := newWireTap(t)
	noSums := func(on int) {
		t.Helper()
		if err := control(w.raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, on) }); err != nil {
			t.Fatal(err)
		}
	}
	batch := []Message{w.message(0, 1), w.message(1, 6), w.message(7, 4)}
	for _, on := range []int{1, 0} {
		noSums(on)
		if n, err := w.WriteBatch(batch); n != 3 || err != nil {
			t.Errorf("sent %d messages, %v", n, err)
		}
		if diff := cmp.Diff(count(11), w.arrived(t, 11)); diff != "" {
			t.Errorf("arrived (-want +got):\n%s", diff)
		}
	}
	if !w.level.segment.Load() || w.log.Len() != 0 {
		t.Errorf("given up: %s", &w.log)
	}
}

// TestKernelApartGoesOn: of datagrams that are sent one by one, those that a firewall
// refuses are counted, and all others arrive, whatever their places are.
func TestKernelApartGoesOn(t *testing.T) {
	for _, tc := range []struct {
		name    string
		refused []byte
	}{
		{"first", []byte{1}},
		{"in between", []byte{2, 4, 5}},
		{"last", []byte{6}},
		{"all", []byte{1, 2, 3, 4, 5, 6}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var w *wireTap
			ns := newNetNS(t)
			ns.do(t, func() { w = newWireTap(t) })
			ns.exec(t, "nft add table ip t")
			command(t, "ip", "netns", "exec", string(ns), "nft", "add chain ip t out { type filter hook output priority 0; }")
			for _, n := range tc.refused {
				ns.exec(t, "nft add rule ip t out @th,64,8 "+string('0'+n)+" drop")
			}
			w.level.segment.Store(false)
			batch := []Message{w.message(0, 1), w.message(1, 6), w.message(7, 1)}
			l := newLab()
			s := newSender(&l.path)
			s.by = []Sender{w.socket}
			s.write(batch)
			want := slices.DeleteFunc(count(8), func(n byte) bool { return slices.Contains(tc.refused, n) })
			if diff := cmp.Diff(want, w.arrived(t, len(want))); diff != "" {
				t.Errorf("arrived (-want +got):\n%s", diff)
			}
			lost := 100 * len(tc.refused)
			if slices.Contains(tc.refused, 6) {
				lost -= 60
			}
			counted := Direction{Packets: ByVerdict{Forwarded: uint64(len(want)), SendFailed: uint64(len(tc.refused))}, Bytes: uint64(40 + 540 + 40 - lost)}
			if diff := cmp.Diff(counted, s.count); diff != "" {
				t.Errorf("counted (-want +got):\n%s", diff)
			}
		})
	}
}

// A socket that is closed sends nothing, which is no datagram's fault but counted.
func TestApartOnAClosedSocket(t *testing.T) {
	w := newWireTap(t)
	w.level.segment.Store(false)
	w.Close()
	batch := []Message{w.message(0, 3), w.message(3, 1)}
	n, err := w.WriteBatch(batch)
	if n != 1 || !errors.Is(err, net.ErrClosed) || batch[0].Failed != 3 || batch[0].FailedBytes != batch[0].Bytes {
		t.Errorf("sent %d messages, %v, %+v", n, err, batch)
	}
}
