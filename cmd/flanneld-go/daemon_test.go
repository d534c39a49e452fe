package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
	"github.com/flanneld-go/flanneld-go/systemd"
)

// steps tells the service manager, as its status, what a process does: the manager has
// all that it is told in one order.
type steps struct{ systemd.Notifier }

func (s steps) step(did string) { _ = s.Status("step " + did) }

// steppingKernel is a kernel in memory that tells of its end.
type steppingKernel struct {
	kernel.Host
	steps
}

func (k steppingKernel) Close() error { k.step("kernel.Close"); return nil }

// steppingStore is a store in memory.
type steppingStore struct {
	openStore
	steps
}

func (s steppingStore) Load(ctx context.Context) (subnet.World, error) {
	s.step("store.Load")
	return s.openStore.Load(ctx)
}

func (s steppingStore) Release(ctx context.Context, l subnet.Lease) error {
	s.step("store.Release")
	return s.openStore.Release(ctx, l)
}

func (s steppingStore) Close() error { s.step("store.Close"); return nil }

// steppingHeir is a data path that goes on from one descriptor, and opens another when it
// is applied.
type steppingHeir struct {
	steps
	started chan struct{}
	open    []backend.Descriptor
	more    backend.Descriptor
}

func (h *steppingHeir) Attrs(u backend.Uplink) (a subnet.Attrs, _ error) {
	a.PublicIP = u.Public
	return a, nil
}

func (*steppingHeir) MTU(backend.Uplink) int { return 1472 }

func (*steppingHeir) Tunnel() backend.Tunnel { return backend.Tunnel{Devices: []string{"flannel0"}} }

func (h *steppingHeir) Inherit(_ context.Context, _ backend.Desired, files []*os.File) (in backend.Inheritance) {
	h.step("heir.Inherit")
	for _, f := range files {
		conn, err := f.SyscallConn()
		if err != nil {
			in.Refused = append(in.Refused, err)
			continue
		}
		h.open = append(h.open, backend.Descriptor{Name: f.Name(), Conn: conn})
	}
	in.Whole = true
	return in
}

func (h *steppingHeir) Apply(context.Context, backend.Desired) error {
	select {
	case <-h.started:
		h.step("heir.Apply")
	case <-time.After(time.Minute):
		return errors.New("it was never started")
	}
	if len(h.open) < 2 {
		h.open = append(h.open, h.more)
	}
	return nil
}

func (h *steppingHeir) Run(ctx context.Context) error {
	h.step("heir.Run")
	close(h.started)
	<-ctx.Done()
	h.step("heir.ended")
	return nil
}

func (h *steppingHeir) Descriptors() []backend.Descriptor { return slices.Clone(h.open) }

func (h *steppingHeir) Cleanup(context.Context) error { h.step("heir.Cleanup"); return h.Close() }

func (h *steppingHeir) Close() error {
	h.open = nil
	return nil
}

// steppingDaemon is a process that finds a cache and one descriptor of the one before.
func steppingDaemon(t *testing.T) *daemon {
	t.Helper()
	const config = `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`
	dir := statedir.Dir(t.TempDir())
	s, socket := steps{}, t.TempDir()+"/status.sock"
	data := memstore.New(memstore.Options{})
	data.OverwriteConfig(config)
	world, err := data.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own := testLease("10.5.1.0/24", "198.18.0.1", 1)
	cfg := testConfig(t, config)
	err = errors.Join(
		dir.SaveCache(statedir.Cache{Identity: world.Identity, Revision: world.Revision, Config: world.Config, Own: own, Heard: time.Now()}),
		dir.SaveHost(statedir.Host{BackendType: cfg.BackendType, Backend: backendObject(cfg), Ranges: ranges(cfg)}),
	)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	host, _ := (&testHost{t: t}).newKernel("198.18.0.1/24")
	heir := &steppingHeir{steps: s, started: make(chan struct{}), more: descriptor(t, "more")}
	return &daemon{
		opts: options{
			etcd: cli.Etcd{Prefix: "/net"}, socket: socket, subnetFile: t.TempDir() + "/subnet.env", stateDir: string(dir),
			dockerRestart: "never", iptablesResync: 5 * time.Second, leaseTTL: time.Hour,
		},
		log: log, clock: subnet.SystemClock{}, node: "me", instance: "i1", dir: dir, board: status.NewBoard(time.Now, status.Status{}),
		store:     steppingStore{openStore{data, &goneAddrs{}, new(atomic.Bool), func() {}}, s},
		firewall:  firewall.New(firewall.Options{Log: log, Tools: noTools{}, Native: noTable{}}),
		inherited: []*os.File{nullFile(t, "kept")}, units: &fakeUnits{},
		open: func(kernel.Options) (openHost, error) {
			if _, err := os.Stat(socket); err == nil {
				s.step("listens")
			}
			s.step("kernel.Open")
			return steppingKernel{host, s}, nil
		},
		construct: func(backend.Params) (backend.Backend, error) { return heir, nil },
	}
}

// life is what the manager is told by a process until the signal that comes when it is
// ready, each as one word.
func life(t *testing.T, d *daemon) (words []string) {
	t.Helper()
	m := newManager(t)
	said := m.during(func() {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		go func() {
			for tick := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-tick.C {
				if d.board.Snapshot().Ready {
					cancel()
				}
			}
		}()
		if err := d.run(ctx); err != nil {
			t.Error(err)
		}
	})
	for _, line := range said {
		switch fields := strings.Fields(line); {
		case strings.HasPrefix(line, "STATUS=step "):
			words = append(words, fields[1])
		case fields[0] == "FDSTORE=1", fields[0] == "FDSTOREREMOVE=1":
			words = append(words, strings.TrimSuffix(fields[0], "=1")+" "+strings.TrimPrefix(fields[1], "FDNAME="))
		case strings.HasSuffix(fields[0], "=1"):
			words = append(words, strings.TrimSuffix(fields[0], "=1"))
		}
	}
	return words
}

// TestOrderOfRun: what is done before what from the first step of a process to its last,
// where another order loses packets, or lets others lose them.
func TestOrderOfRun(t *testing.T) {
	always := [][2]string{
		// Who is second on this host must not touch it: the socket is what it finds.
		{"listens", "kernel.Open"},
		{"kernel.Open", "heir.Inherit"},
		// Packets wait in what was kept, and etcd may be silent.
		{"heir.Inherit", "heir.Run"},
		{"heir.Inherit", "store.Load"},
		{"store.Load", "heir.Apply"},
		// From then on the process may be killed.
		{"heir.Apply", "FDSTORE more"},
		{"FDSTORE more", "STOPPING"},
		{"STOPPING", "kernel.Close"},
		{"kernel.Close", "store.Close"},
	}
	for name, tc := range map[string]struct {
		release bool
		pairs   [][2]string
		last    string
	}{
		// Packets pass until all else is done.
		"stays": {last: "heir.ended"},
		// Nobody may lease the subnet while anything here uses it.
		"released": {true, [][2]string{
			{"STOPPING", "heir.ended"},
			{"heir.ended", "heir.Cleanup"},
			{"heir.Cleanup", "FDSTOREREMOVE more"},
			{"heir.Cleanup", "FDSTOREREMOVE kept"},
			{"FDSTOREREMOVE more", "store.Release"},
			{"FDSTOREREMOVE kept", "store.Release"},
			{"store.Release", "kernel.Close"},
		}, "store.Close"},
	} {
		t.Run(name, func(t *testing.T) {
			d := steppingDaemon(t)
			d.opts.releaseOnExit = tc.release
			words := life(t, d)
			for _, pair := range slices.Concat(always, tc.pairs) {
				before, after := slices.Index(words, pair[0]), slices.Index(words, pair[1])
				if before < 0 || after < before {
					t.Errorf("%q does not come before %q", pair[0], pair[1])
				}
			}
			rest := words[slices.Index(words, "heir.Apply")+1:]
			if again := slices.Index(rest, "heir.Apply"); again >= 0 && again < slices.Index(rest, "FDSTORE more") {
				t.Error("what an Apply opens is kept with the next one")
			}
			if got := words[len(words)-1]; got != tc.last {
				t.Errorf("the last is %q, want %q", got, tc.last)
			}
			if keeps := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return !strings.HasPrefix(w, "FDSTORE ") }); len(keeps) != 1 {
				t.Errorf("kept are %q, want what was not kept before", keeps)
			}
			if t.Failed() {
				t.Logf("%q", words)
			}
		})
	}
}
