package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

// spoilers are what may become of a store, of the device, and of the config, between two
// processes.
func (h *keptHost) spoilers() map[string]func() {
	at := func() string { return fmt.Sprintf("198.18.0.1:%d", h.port) }
	s := h.store
	return map[string]func(){
		"one is missing":            func() { s.replace(h.T, func(*os.File) []*os.File { return nil }) },
		"one is there twice":        func() { s.replace(h.T, func(f *os.File) []*os.File { return []*os.File{f, again(h.T, f, f.Name())} }) },
		"another socket beside one": func() { s.beside(h.T, h.socket(at())) },
		"another queue beside one":  func() { s.beside(h.T, h.queue("flannel0")) },
		"one is another socket": func() {
			s.replace(h.T, func(f *os.File) []*os.File { return instead(h.T, f, h.socket("198.18.0.1:9000")) })
		},
		"one is of another device": func() { s.replace(h.T, func(f *os.File) []*os.File { return instead(h.T, f, h.queue("old0")) }) },
		"one is a file":            func() { s.replace(h.T, func(f *os.File) []*os.File { return instead(h.T, f, h.null()) }) },
		"one is a stream":          func() { s.replace(h.T, func(f *os.File) []*os.File { return instead(h.T, f, h.stream()) }) },
		"a foreign one": func() {
			name := rapid.SampledFrom([]string{"stored", "udp.tun.2.flannel0", "udp.tun.0.flannel1", "udp.socket.0.9000.198.18.0.1", "udp.socket.7.8285.198.18.0.1"}).Draw(h.T, "name")
			s.put(h.T, name, h.socket("198.18.0.1:9000"))
		},
		"moved a moment ago": func() {
			for n := range 2 {
				s.put(h.T, fmt.Sprintf("udp.socket.%d.%d.%s", n, h.former, formerAddr), h.socket(fmt.Sprintf("%s:%d", formerAddr, h.former)))
			}
		},
		"two exchange their names": func() { s.exchange(h.T) },
		"all are lost":             func() { s.remove(func(*os.File) bool { return true }) },
		"little room":              func() { s.limit(rapid.IntRange(0, 3).Draw(h.T, "most")) },
		"device deleted":           func() { h.device("link del flannel0") },
		"device down":              func() { h.device("link set flannel0 down") },
		"device of another MTU":    func() { h.device("link set flannel0 mtu 1300") },
		"device of somebody else":  func() { h.device("link set flannel0 alias mine") },
		"device renamed":           func() { h.device("link set flannel0 down\nlink set flannel0 name old0") },
		"another port":             func() { h.port = 8285 + 8286 - h.port },
		"one is closed":            func() { h.closed = true },
	}
}

// device does something to it, if it is there.
func (h *keptHost) device(commands string) {
	if _, err := net.InterfaceByName("old0"); err == nil {
		h.ip("link del old0")
	}
	if _, err := net.InterfaceByName("flannel0"); err == nil {
		h.ip(commands)
	}
}

// socket is bound at an address that others may have, too.
func (h *keptHost) socket(at string) *os.File {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	}}
	c, err := lc.ListenPacket(context.Background(), "udp4", at)
	if err != nil {
		h.Fatal(err)
	}
	defer c.Close()
	f, err := c.(*net.UDPConn).File()
	if err != nil {
		h.Fatal(err)
	}
	return f
}

// queue is one more of a device, which it makes where there is none.
func (h *keptHost) queue(device string) *os.File {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		h.Fatal(err)
	}
	req, err := unix.NewIfreq(device)
	if err != nil {
		h.Fatal(err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		h.Fatal(err)
	}
	return os.NewFile(uintptr(fd), device)
}

func (h *keptHost) null() *os.File {
	f, err := os.Open(os.DevNull)
	if err != nil {
		h.Fatal(err)
	}
	return f
}

func (h *keptHost) stream() *os.File {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		h.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		h.Fatal(err)
	}
	return f
}

// instead is other under the name of f, both of which it closes.
func instead(t *rapid.T, f, other *os.File) []*os.File {
	defer f.Close()
	defer other.Close()
	return []*os.File{again(t, other, f.Name())}
}

// replace puts what by makes of one of the files into its place.
func (s *descriptorStore) replace(t *rapid.T, by func(*os.File) []*os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.files) == 0 {
		return
	}
	i := rapid.IntRange(0, len(s.files)-1).Draw(t, "file")
	f := s.files[i]
	list := by(f)
	if len(list) == 0 {
		f.Close()
	}
	s.files = append(append(append([]*os.File(nil), s.files[:i]...), list...), s.files[i+1:]...)
}

// beside puts f behind or before one of the files, under its name.
func (s *descriptorStore) beside(t *rapid.T, f *os.File) {
	defer f.Close()
	first := rapid.Bool().Draw(t, "first")
	s.replace(t, func(one *os.File) []*os.File {
		other := again(t, f, one.Name())
		if first {
			return []*os.File{other, one}
		}
		return []*os.File{one, other}
	})
}

// put adds f under a name.
func (s *descriptorStore) put(t *rapid.T, name string, f *os.File) {
	defer f.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = append(s.files, again(t, f, name))
}

// exchange gives two files the names of each other.
func (s *descriptorStore) exchange(t *rapid.T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.files) == 0 {
		return
	}
	i, j := rapid.IntRange(0, len(s.files)-1).Draw(t, "one"), rapid.IntRange(0, len(s.files)-1).Draw(t, "other")
	if i == j {
		return
	}
	a, b := s.files[i], s.files[j]
	s.files[i], s.files[j] = again(t, b, a.Name()), again(t, a, b.Name())
	a.Close()
	b.Close()
}

// limit closes what is too much, too.
func (s *descriptorStore) limit(most int) {
	kept := 0
	s.remove(func(*os.File) bool { kept++; return kept > most })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most = most
}

// TestKernelHeirloomWalk: whatever a process finds in the store, and of the device, packets
// pass both ways in each flow, the store has each descriptor once, and none is left open.
func TestKernelHeirloomWalk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	others := openFiles()
	runtime.LockOSThread() // for good
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	k, err := kernel.Open(kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	s := newStore(t)
	(&keptHost{outer: t}).ip(`link set lo up
link add eth0 type veth peer name other
addr add 198.18.0.1/24 dev eth0
addr add 198.18.0.3/24 dev eth0
addr add 198.18.0.2/32 dev lo
link set eth0 up
link set other up
route add default via 198.18.0.9`)
	rapid.Check(t, func(r *rapid.T) {
		h := newKeptHost(r, t, k, s)
		h.live(nil)
		open := descriptors(r, s, others)
		for range rapid.IntRange(1, 3).Draw(r, "lives") {
			s.limit(512)
			all := h.spoilers()
			for _, what := range rapid.SliceOfN(rapid.SampledFrom(slices.Sorted(maps.Keys(all))), 0, 4).Draw(r, "spoilt") {
				all[what]()
			}
			s.limit(s.most) // whatever was put there after its room was taken
			h.live(s.handOver(r))
			if now := descriptors(r, s, others); now != open {
				r.Errorf("%d descriptors are open after the end, %d after the first", now, open)
			}
		}
	})
}

// descriptors is how many this process has open, but for those in a store and those of
// others: what a test before this one has left may be closed at any time.
func descriptors(t *rapid.T, s *descriptorStore, others map[string]string) int {
	s.settle(t)
	count := -s.has()
	for number, what := range openFiles() {
		if others[number] != what {
			count++
		}
	}
	return count
}

// openFiles is what this process has open, by number.
func openFiles() map[string]string {
	const folder = "/proc/self/fd/"
	list, _ := os.ReadDir(folder)
	files := map[string]string{}
	for _, f := range list {
		if what, err := os.Readlink(folder + f.Name()); err == nil { // else it was this list's own
			files[f.Name()] = what
		}
	}
	return files
}
