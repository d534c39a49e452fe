package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// descriptorStore is a service manager's, which keeps what it is given as systemd does: several
// under one name if it is asked to, and no more than most.
type descriptorStore struct {
	conn  *net.UnixConn
	ended chan struct{}
	// settled is told when it comes to the end of what was sent.
	settled chan struct{}

	mu    sync.Mutex
	files []*os.File
	most  int
}

// newStore listens where the process is told to.
func newStore(t *testing.T) *descriptorStore {
	t.Helper()
	conn := listenForNotes(t)
	s := &descriptorStore{conn: conn, ended: make(chan struct{}), settled: make(chan struct{}), most: 512}
	go s.serve()
	t.Cleanup(func() {
		conn.Close()
		<-s.ended
		s.remove(func(*os.File) bool { return true })
	})
	return s
}

func (s *descriptorStore) serve() {
	defer close(s.ended)
	for text, control := make([]byte, 4096), make([]byte, 256); ; {
		n, c, _, _, err := s.conn.ReadMsgUnix(text, control)
		if err != nil {
			return
		}
		if string(text[:n]) == over {
			s.settled <- struct{}{}
			continue
		}
		said := map[string]string{}
		for line := range strings.Lines(string(text[:n])) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			said[key] = value
		}
		if said["FDSTOREREMOVE"] == "1" {
			s.remove(func(f *os.File) bool { return f.Name() == said["FDNAME"] })
		}
		if said["FDSTORE"] == "1" && s.add(said["FDNAME"], control[:c]) {
			continue
		}
		closeAll(control[:c])
	}
}

// settle returns when all that it was sent is kept or closed: nobody waits for an answer
// to what it has no room for.
func (s *descriptorStore) settle(t *rapid.T) {
	if _, err := s.conn.WriteToUnix([]byte(over), s.conn.LocalAddr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	<-s.settled
}

// add takes in what came with a message, if there is room.
func (s *descriptorStore) add(name string, control []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.files) >= s.most {
		return false
	}
	list, _ := syscall.ParseSocketControlMessage(control)
	for i := range list {
		fds, _ := syscall.ParseUnixRights(&list[i])
		for _, fd := range fds {
			s.files = append(s.files, os.NewFile(uintptr(fd), name))
		}
	}
	return true
}

// remove closes those that are the ones.
func (s *descriptorStore) remove(one func(*os.File) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = slices.DeleteFunc(s.files, func(f *os.File) bool { return one(f) && f.Close() == nil })
}

func (s *descriptorStore) has() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.files)
}

// names are sorted.
func (s *descriptorStore) names() (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		list = append(list, f.Name())
	}
	slices.Sort(list)
	return list
}

// handOver is what the next process gets.
func (s *descriptorStore) handOver(t *rapid.T) (files []*os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		files = append(files, again(t, f, f.Name()))
	}
	return files
}

// again is a duplicate of f under a name.
func again(t *rapid.T, f *os.File, name string) *os.File {
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if controlErr := raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); controlErr != nil || err != nil {
		t.Fatal(controlErr, err)
	}
	return os.NewFile(uintptr(fd), name)
}

// keptHost is a host of udp's in the namespace of the test's thread. Its peer is the
// test, at another address of the same namespace.
//
//	askers 10.5.1.0 -- flannel0 -- the process -- 198.18.0.1   198.18.0.2 -- the test
type keptHost struct {
	*rapid.T
	outer  *testing.T
	kernel kernel.Host
	store  *descriptorStore
	// port is that of the config, and of the one that the process before had.
	port, former int
	// closed: one of the files is, which no service manager does.
	closed bool
}

// newKeptHost has no device, and nothing in the store, which has room again.
func newKeptHost(t *rapid.T, outer *testing.T, k kernel.Host, s *descriptorStore) *keptHost {
	h := &keptHost{T: t, outer: outer, kernel: k, store: s, port: 8285, former: 8285}
	s.remove(func(*os.File) bool { return true })
	s.limit(512)
	h.removeDevices()
	return h
}

func (h *keptHost) removeDevices() {
	for _, name := range []string{"flannel0", "old0"} {
		_ = exec.Command("ip", "link", "del", name).Run() // if it is there
	}
}

// ip runs ip commands, one per line.
func (h *keptHost) ip(commands string) {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.Fatalf("ip: %v: %s in:\n%s", err, out, commands)
	}
}

// live is a process from its start to its end: whatever files are, its data path works,
// and the store has what is open.
func (h *keptHost) live(files []*os.File) {
	l, log := heirLoop(h.outer)
	l.host = h.kernel
	network := func(port int) string {
		return fmt.Sprintf(`{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Queues":2,"Port":%d}}`, port)
	}
	cfg, was := testConfig(h, network(h.port)), testConfig(h, network(h.former))
	own, other := testLease("10.5.1.0/24", "198.18.0.1", 1), testLease("10.5.2.0/24", "198.18.0.2", 1)
	l.cache = statedir.Cache{
		Identity: "x", Config: subnet.Document{Text: network(h.former), Modified: 1}, Own: own, Peers: []*subnet.Lease{&other},
	}
	l.saved.BackendType, l.saved.Backend, l.saved.Ranges = was.BackendType, backendObject(was), ranges(was)
	if h.closed && len(files) > 0 {
		files[rapid.IntRange(0, len(files)-1).Draw(h.T, "closed")].Close()
	}
	h.closed = false
	l.inherited = files
	defer l.endDataPath()
	l.resume(h.Context())
	if l.heir.backend != nil {
		h.wantKept(l.heir.backend) // the process may end before it comes to a round
		h.wantResumed(l)
	}
	b, err := l.heirOf(h.Context(), cfg)
	if b == nil && err == nil {
		b, err = l.newBackend(cfg)
	}
	if err != nil {
		h.Fatal(err)
	}
	up, err := l.chooseUplink(h.Context(), cfg)
	if err != nil {
		h.Fatal(err)
	}
	l.keepDescriptors(h.Context(), b)
	if err := b.Apply(h.Context(), backend.Desired{Config: cfg, Uplink: up, Own: own, Peers: []*subnet.Lease{&other}}); err != nil {
		h.Errorf("%v; log:\n%s", err, log.buf.String())
	}
	l.keepDescriptors(h.Context(), b)
	l.startDataPath(h.Context(), b)
	h.wantTraffic()
	h.wantKept(b)
	if log.count("component=data_path") != 0 {
		h.Errorf("the data path was started before it was whole:\n%s", log.buf.String())
	}
	h.former = h.port
}

// heirPatience is for what takes a moment, on a busy machine a longer one.
const heirPatience = time.Minute

// formerAddr is one more address of the host's, by which nothing is sent.
const formerAddr = "198.18.0.3"

// wantResumed wants the data path to run if it is whole, and the former address to count
// if packets are received there.
func (h *keptHost) wantResumed(l *loop) {
	open, also := 0, 0
	for _, d := range l.heir.backend.Descriptors() {
		if strings.HasSuffix(d.Name, "."+formerAddr) {
			also++
		} else {
			open++
		}
	}
	if whole := open == 4; whole != (l.path.stop != nil) {
		h.Errorf("all is open: %t, and forwarding goes on: %t", whole, !whole)
	}
	if ups := l.heir.also; (also == 2) != (len(ups) == 1 && ups[0].Link.Name == "eth0" && ups[0].Addr[subnet.IPv4].String() == formerAddr) || also%2 != 0 {
		h.Errorf("%d sockets are open at %s, and what counts is %+v", also, formerAddr, ups)
	}
	if also == 2 && l.path.stop != nil && h.port == h.former && hasDevice() {
		h.wantTrafficAt(formerAddr)
	}
}

// hasDevice reports whether nobody has done anything to the device that needs an Apply.
func hasDevice() bool {
	link, err := net.InterfaceByName("flannel0")
	if err != nil || link.Flags&net.FlagUp == 0 {
		return false
	}
	addrs, err := link.Addrs()
	return err == nil && slices.ContainsFunc(addrs, func(a net.Addr) bool { return a.String() == "10.5.1.0/32" })
}

// wantTraffic is wantTrafficAt the uplink's address.
func (h *keptHost) wantTraffic() { h.wantTrafficAt("198.18.0.1") }

// wantTrafficAt sends as many flows as find every queue, and every socket, but once in
// millions, and wants an answer to each, which comes to the address at.
func (h *keptHost) wantTrafficAt(at string) {
	const flows = 40
	listen := func(at string) net.PacketConn {
		c, err := net.ListenPacket("udp4", at)
		if err != nil {
			h.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(heirPatience))
		return c
	}
	peer := listen(fmt.Sprintf("198.18.0.2:%d", h.port))
	defer peer.Close()
	target := &net.UDPAddr{IP: net.IPv4(10, 5, 2, 2), Port: 5000}
	var askers []net.PacketConn
	for range flows {
		c := listen("10.5.1.0:0")
		defer c.Close()
		if _, err := c.WriteTo([]byte("hello"), target); err != nil {
			h.Fatal(err)
		}
		askers = append(askers, c)
	}
	for asked, b := 0, make([]byte, 2000); asked < flows; {
		n, _, err := peer.ReadFrom(b)
		if err != nil {
			h.Fatalf("%d of %d packets came: %v", asked, flows, err)
		}
		if p := b[:n]; n == 33 && binary.BigEndian.Uint16(p[22:]) == 5000 {
			asked++
			h.answer(p, at)
		}
	}
	for i, c := range askers {
		if _, _, err := c.ReadFrom(make([]byte, 100)); err != nil {
			h.Fatalf("flow %d of %d has no answer: %v", i, flows, err)
		}
	}
}

// answer sends a packet back where it came from: to exchange addresses and ports leaves
// its checksums right. Each answer is sent from a port of its own.
func (h *keptHost) answer(p []byte, at string) {
	turned := slices.Concat(p[:12], p[16:20], p[12:16], p[22:24], p[20:22], p[24:])
	c, err := net.ListenPacket("udp4", "198.18.0.2:0")
	if err != nil {
		h.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteTo(turned, &net.UDPAddr{IP: net.ParseIP(at), Port: h.port}); err != nil {
		h.Fatal(err)
	}
}

// wantKept waits until the store has each of b's descriptors once, and nothing else.
func (h *keptHost) wantKept(b any) {
	var want, got []string
	for _, d := range b.(backend.Heir).Descriptors() {
		want = append(want, d.Name)
	}
	slices.Sort(want)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(heirPatience); time.Now().Before(end); <-tick.C {
		if got = h.store.names(); slices.Equal(got, want) || len(got) == h.store.most && len(got) < len(want) {
			break
		}
	}
	if diff := cmp.Diff(want, got); diff != "" && len(got) != h.store.most {
		h.Errorf("kept (-want +got):\n%s", diff)
	}
}
