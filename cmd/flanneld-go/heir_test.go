package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/cmd/internal/catalog"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// manager is a service manager's end of the socket for notifications.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	// silent: it keeps what comes with a request.
	silent bool
}

// newManager listens where the process is told to.
func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{t: t, conn: listenForNotes(t)}
	t.Cleanup(func() { m.conn.Close() })
	return m
}

// listenForNotes opens the socket for notifications, and tells the process of it.
func listenForNotes(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

// over is sent behind all that the manager is told.
const over = "over"

// during returns what the manager is asked to keep and to drop while do runs. What
// comes with a request is closed, which is the answer to a barrier.
func (m *manager) during(do func()) []string {
	m.t.Helper()
	asked := make(chan []string, 1)
	go func() {
		var list []string
		for text, control := make([]byte, 4096), make([]byte, 256); ; {
			n, c, _, _, err := m.conn.ReadMsgUnix(text, control)
			if err != nil || string(text[:n]) == over {
				asked <- list
				return
			}
			if m.silent {
				held := slices.Clone(control[:c])
				m.t.Cleanup(func() { closeAll(held) })
			} else {
				closeAll(control[:c])
			}
			line := strings.ReplaceAll(string(text[:n]), "\n", " ")
			if line != "BARRIER=1" {
				list = append(list, line)
			}
		}
	}()
	do()
	// What was sent was sent before do returned, so it is read before this.
	if _, err := m.conn.WriteToUnix([]byte(over), m.conn.LocalAddr().(*net.UnixAddr)); err != nil {
		m.t.Fatal(err)
	}
	return <-asked
}

// closeAll closes the descriptors of a message.
func closeAll(control []byte) {
	list, _ := syscall.ParseSocketControlMessage(control)
	for i := range list {
		fds, _ := syscall.ParseUnixRights(&list[i])
		for _, fd := range fds {
			_ = syscall.Close(fd)
		}
	}
}

// keep and drop are the two requests.
func keep(name string) string { return "FDSTORE=1 FDNAME=" + name + " FDPOLL=0" }
func drop(name string) string { return "FDSTOREREMOVE=1 FDNAME=" + name }

// fakeHeir is a data path with descriptors.
type fakeHeir struct {
	backend.Backend
	open   []backend.Descriptor
	closed int
}

func (f *fakeHeir) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (f *fakeHeir) Inherit(context.Context, backend.Desired, []*os.File) backend.Inheritance {
	return backend.Inheritance{}
}

func (f *fakeHeir) Descriptors() []backend.Descriptor { return f.open }

func (f *fakeHeir) Close() error {
	f.closed++
	f.open = nil
	return nil
}

// descriptor is an open file under a name.
func descriptor(t *testing.T, name string) backend.Descriptor {
	t.Helper()
	conn, err := nullFile(t, name).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return backend.Descriptor{Name: name, Conn: conn}
}

// nullFile is closed when the test ends, if it is not by then: what is left to the
// collector is closed in the middle of another test, which may count descriptors.
func nullFile(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := syscall.Open(os.DevNull, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	return f
}

// heirLoop is a loop that does nothing but what a test asks for.
func heirLoop(t *testing.T) (*loop, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	d := &daemon{
		log: slog.New(slog.NewTextHandler(log, nil)), clock: bubbleClock{time.Now()}, node: "me",
		dir: statedir.Dir(t.TempDir()), board: status.NewBoard(time.Now, status.Status{}), construct: catalog.New,
	}
	return newLoop(d, nil, &errgroup.Group{}), log
}

// The manager keeps what is open, once, and nothing that is closed: a descriptor of
// the same name is dropped before another is kept.
func TestKeepDescriptors(t *testing.T) {
	m := newManager(t)
	l, log := heirLoop(t)
	tun, socket := descriptor(t, "tun"), descriptor(t, "socket")
	again := descriptor(t, "socket")
	l.heir.kept["old"] = nil // came from an earlier process, and nobody took it
	steps := []struct {
		name string
		open []backend.Descriptor
		want []string
	}{
		{"first", []backend.Descriptor{tun, socket}, []string{drop("old"), keep("socket"), keep("tun")}},
		{"again", []backend.Descriptor{tun, socket}, nil},
		{"one is another", []backend.Descriptor{tun, again}, []string{drop("socket"), keep("socket")}},
		{"one is closed", []backend.Descriptor{again}, []string{drop("tun")}},
		{"all are closed", nil, []string{drop("socket")}},
		{"still", nil, nil},
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel() // the end of a process does not keep it from this
	for _, s := range steps {
		got := m.during(func() { l.keepDescriptors(ended, &fakeHeir{open: s.open}) })
		if diff := cmp.Diff(s.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s.name, diff)
		}
	}
	if got := m.during(func() { l.keepDescriptors(t.Context(), backend.Backend(nil)) }); got != nil {
		t.Errorf("a backend of the kernel: asked for %q", got)
	}
	if log.buf.Len() != 0 {
		t.Errorf("logged %s", log.buf.String())
	}
}

// applyingHeir opens another descriptor with each Apply, and tells the manager when.
type applyingHeir struct {
	*fakeHeir
	notify interface{ Status(text string) error }
	next   backend.Descriptor
}

func (a *applyingHeir) Apply(context.Context, backend.Desired) error {
	a.open = []backend.Descriptor{a.next}
	return a.notify.Status("apply")
}

func (a *applyingHeir) Cleanup(context.Context) error { return a.Close() }

// What is closed is dropped before an Apply, in whose way it may be; what that opens is
// kept after it; and who takes all down keeps nothing.
func TestApplyMindsDescriptors(t *testing.T) {
	m := newManager(t)
	l, _ := heirLoop(t)
	l.host, _ = (&testHost{t: t}).newKernel("198.18.0.1/24")
	l.firewall = firewall.New(firewall.Options{Log: l.log, Tools: noTools{}, Native: noTable{}})
	l.config.current, l.snap = testConfig(t, networkConfig), &subnet.Snapshot{}
	l.backend = &applyingHeir{&fakeHeir{}, l.notify, descriptor(t, "new")}
	l.heir.kept["old"] = nil
	asked := m.during(func() {
		if err := l.apply(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if diff := cmp.Diff([]string{drop("old"), "STATUS=apply", keep("new")}, asked); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	asked = m.during(func() { _ = l.takeDown(t.Context()) }) // of the rest there is nothing
	if diff := cmp.Diff([]string{drop("new")}, asked); diff != "" {
		t.Errorf("taken down: asked for (-want +got):\n%s", diff)
	}
}

// A manager that does not answer is complained of once, and asked again.
func TestKeepDescriptorsFails(t *testing.T) {
	l, log := heirLoop(t)
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	h := &fakeHeir{open: []backend.Descriptor{descriptor(t, "tun")}}
	for range 3 {
		l.keepDescriptors(t.Context(), h)
	}
	if n := log.count("keep descriptor tun"); n != 1 {
		t.Errorf("complained %d times:\n%s", n, log.buf.String())
	}
	m := newManager(t)
	if diff := cmp.Diff([]string{keep("tun")}, m.during(func() { l.keepDescriptors(t.Context(), h) })); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
}

// Under a name of which nobody knows whether it is dropped nothing is kept: the manager
// would have two, and we know of one.
func TestKeepWaitsForDrop(t *testing.T) {
	l, _ := heirLoop(t)
	m := newManager(t)
	h := &fakeHeir{open: []backend.Descriptor{descriptor(t, "tun")}}
	l.heir.kept["tun"] = descriptor(t, "tun").Conn
	m.silent = true
	asked := m.during(func() { l.keepDescriptors(t.Context(), h) })
	if diff := cmp.Diff([]string{drop("tun")}, asked); diff != "" {
		t.Errorf("asked for without an answer (-want +got):\n%s", diff)
	}
	m.silent = false
	asked = m.during(func() { l.keepDescriptors(t.Context(), h) })
	if diff := cmp.Diff([]string{drop("tun"), keep("tun")}, asked); diff != "" {
		t.Errorf("asked for then (-want +got):\n%s", diff)
	}
}

// Who has inherited goes on if the config is still what it was made for, and else lets
// go of everything before another is made.
func TestHeirOf(t *testing.T) {
	parse := func(text string) *subnet.Config { return testConfig(t, text) }
	const config = `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`
	tests := []struct {
		name   string
		config string
		same   bool
	}{
		{name: "same", config: config, same: true},
		{name: "another layout of the same", config: `{"Backend": {"Type": "udp"}, "Network": "10.5.0.0/16"}`, same: true},
		{name: "other pool", config: `{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","Backend":{"Type":"udp"}}`, same: true},
		{name: "other port", config: `{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":9000}}`},
		{name: "other network", config: `{"Network":"10.6.0.0/16","Backend":{"Type":"udp"}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newManager(t)
			l, log := heirLoop(t)
			h := &fakeHeir{open: []backend.Descriptor{descriptor(t, "tun")}}
			stopped := 0
			l.heir.backend, l.heir.config = h, parse(config)
			l.heir.kept["tun"] = h.open[0].Conn
			l.path.stop = func() { stopped++ }
			var b backend.Backend
			asked := m.during(func() {
				var err error
				if b, err = l.heirOf(t.Context(), parse(tt.config)); err != nil {
					t.Error(err)
				}
			})
			if tt.same {
				if b != backend.Backend(h) || asked != nil || stopped+h.closed != 0 {
					t.Errorf("got %v, asked for %q, stopped %d, closed %d", b, asked, stopped, h.closed)
				}
				return
			}
			if diff := cmp.Diff([]string{drop("tun")}, asked); b != nil || diff != "" || stopped != 1 || h.closed != 1 || l.path.stop != nil {
				t.Errorf("got %v, stopped %d, closed %d; asked for (-want +got):\n%s", b, stopped, h.closed, diff)
			}
			if log.count("its descriptors are let go") != 1 {
				t.Errorf("logged %s", log.buf.String())
			}
			if b, err := l.heirOf(t.Context(), parse(tt.config)); b != nil || err != nil || h.closed != 1 {
				t.Errorf("the next: %v, %v, closed %d", b, err, h.closed)
			}
		})
	}
}

// Descriptors that nobody can go on with are closed here and dropped there, and the
// log says why.
func TestResumeRefuses(t *testing.T) {
	const config = `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`
	lease := subnet.Lease{Subnet: subnet.Subnet{netip.MustParsePrefix("10.5.1.0/24")}}
	full := statedir.Cache{Identity: "x", Config: subnet.Document{Text: config, Modified: 1}, Own: lease}
	with := func(change func(*statedir.Cache)) statedir.Cache {
		c := full
		change(&c)
		return c
	}
	tests := []struct {
		name, want string
		cache      statedir.Cache
		applied    string
	}{
		{"no cache", "the cache holds no lease of this host's", statedir.Cache{}, config},
		{"released", "the cache holds no lease of this host's", with(func(c *statedir.Cache) { c.Former = "released" }), config},
		{"unreadable config", "network config in the cache", with(func(c *statedir.Cache) { c.Config.Text = "{" }), config},
		{"another was applied", "the backend applied last is not that of the cache", full, `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`},
		{"in the kernel", "backend host-gw forwards in the kernel", with(func(c *statedir.Cache) { c.Config.Text = networkConfig }), networkConfig},
		{"nothing was applied", "the backend applied last is not that of the cache", full, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newManager(t)
			l, log := heirLoop(t)
			l.host, _ = (&testHost{t: t}).newKernel("198.18.0.1/24")
			l.cache = tt.cache
			if tt.applied != "" {
				cfg := testConfig(t, tt.applied)
				l.saved.BackendType, l.saved.Backend, l.saved.Ranges = cfg.BackendType, backendObject(cfg), ranges(cfg)
			}
			files := []*os.File{nullFile(t, "udp.tun.0.flannel0"), nullFile(t, "odd")}
			l.inherited = slices.Clone(files)
			asked := m.during(func() { l.resume(t.Context()) })
			if diff := cmp.Diff([]string{drop("odd"), drop("udp.tun.0.flannel0")}, asked); diff != "" {
				t.Errorf("asked for (-want +got):\n%s", diff)
			}
			for _, f := range files {
				if err := f.Close(); !errors.Is(err, os.ErrClosed) {
					t.Errorf("%s was left open: %v", f.Name(), err)
				}
			}
			if log.count(tt.want) != 1 || l.path.stop != nil || l.inherited != nil {
				t.Errorf("no %q, or a data path, in:\n%s", tt.want, log.buf.String())
			}
		})
	}
}

// Without descriptors nothing is said or done.
func TestResumeWithout(t *testing.T) {
	m := newManager(t)
	l, log := heirLoop(t)
	if asked := m.during(func() { l.resume(t.Context()) }); asked != nil || log.buf.Len() != 0 {
		t.Errorf("asked for %q, logged %s", asked, log.buf.String())
	}
}
