package main

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/cmd/internal/catalog"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

const (
	networkConfig = `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`
	// soon bounds everything that a host does about news of etcd or of the
	// kernel; resync what it finds by itself.
	soon   = 2 * time.Second
	resync = 15 * time.Second
)

// bubbleClock is the clock of a synctest bubble.
type bubbleClock struct{ start time.Time }

func (bubbleClock) Now() time.Time { return time.Now() }

// Uptime is not zero at the start, as on no machine.
func (c bubbleClock) Uptime() time.Duration { return time.Hour + time.Since(c.start) }

func (bubbleClock) Timer(d time.Duration) subnet.Timer {
	t := time.NewTimer(d)
	return subnet.Timer{C: t.C, Stop: func() { t.Stop() }}
}

// openStore is a memory that can be closed, with the addresses that it was told are
// gone. While it is deaf its watches say nothing.
type openStore struct {
	*memstore.Store
	gone *goneAddrs
	deaf *atomic.Bool
	// creating is called before a lease is created.
	creating func()
}

// goneAddrs are addresses that a store was told are gone.
type goneAddrs struct {
	mu    sync.Mutex
	addrs []netip.Addr
}

func (g *goneAddrs) list() []netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.addrs)
}

func (s openStore) Watch(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
	return func(yield func(subnet.Batch, error) bool) {
		for b, err := range s.Store.Watch(ctx, after) {
			if err == nil && s.deaf.Load() {
				continue
			}
			if !yield(b, err) {
				return
			}
		}
	}
}

func (s openStore) Abandon(local netip.Addr) {
	s.gone.mu.Lock()
	defer s.gone.mu.Unlock()
	s.gone.addrs = append(s.gone.addrs, local)
}

func (s openStore) Create(ctx context.Context, l subnet.Lease, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
	s.creating()
	return s.Store.Create(ctx, l, ttl, w)
}

func (openStore) Close() error { return nil }

// Stats counts nothing: there is no wire.
func (openStore) Stats() etcdstore.Stats { return etcdstore.Stats{} }

func (openStore) Endpoints() []string { return []string{"http://192.0.2.10:2379"} }

// noTools is a host without iptables, on which nothing changes.
type noTools struct{ firewall.Tools }

func (noTools) Variants(context.Context, subnet.Family) ([]firewall.Variant, error) {
	return nil, firewall.ErrNoTools
}

func (noTools) HasChain(context.Context, firewall.Variant, string, string) (bool, error) {
	return false, nil
}

func (noTools) Changes(context.Context) (<-chan struct{}, error) {
	ended := make(chan struct{})
	close(ended)
	return ended, nil
}

// noTable is a kernel without nf_tables.
type noTable struct{ firewall.Native }

func (noTable) Apply(context.Context, native.Desired) error { return &native.ErrUnsupported{} }
func (noTable) Cleanup(context.Context) error               { return nil }
func (noTable) Passed(native.Step)                          {}
func (noTable) Wrote() native.Step                          { return native.Step{} }
func (noTable) Undisturbed(context.Context) bool            { return false }
func (noTable) Follow(context.Context, []native.Peer, []native.Peer) error {
	return native.ErrNotFollowed
}

func (noTable) Counters(context.Context) (map[string]uint64, error) {
	return nil, &native.ErrUnsupported{}
}

// logBuffer is a log that many write and the test reads.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) count(part string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.buf.String(), part)
}

// testHost is a daemon's loop at work in a bubble: on a kernel and a store in
// memory, and on real files.
type testHost struct {
	t *testing.T
	// data is the store as others use it; store the daemon's own view.
	data, store *memstore.Store
	kernel      *kerneltest.Fake
	eth0        kernel.Link
	dir         string
	opts        options
	node        subnet.NodeID
	instance    string
	tools       firewall.Tools
	creating    func()
	table       firewall.Native
	units       units
	places      dockerPlaces
	log         *logBuffer
	gone        goneAddrs
	deaf        atomic.Bool
	board       *status.Board
	// also is what the next process inherits: loop.heir.also.
	also   []backend.Uplink
	loop   *loop
	cancel context.CancelFunc
	group  *errgroup.Group
}

// newHost is a host with an uplink and its daemon stopped. It belongs into a
// bubble.
func newHost(t *testing.T) *testHost {
	t.Helper()
	return newHostOn(t, memstore.New(memstore.Options{}), "198.18.0.1/24")
}

// newHostOn is one more host on the same data, at another address.
func newHostOn(t *testing.T, data *memstore.Store, addr string) *testHost {
	t.Helper()
	h := &testHost{t: t, data: data, dir: t.TempDir(), node: "me", instance: "i1", tools: noTools{}, table: noTable{}, units: &fakeUnits{}}
	h.store = h.data.Open(memstore.Options{})
	h.kernel, h.eth0 = h.newKernel(addr)
	h.opts = options{
		etcd:           cli.Etcd{Endpoints: []string{"http://192.0.2.10:2379"}, Prefix: "/coreos.com/network"},
		subnetFile:     h.path("run/subnet.env"),
		stateDir:       h.path("state"),
		dockerConfig:   h.path("docker/daemon.json"),
		dockerRestart:  "never",
		forwardRules:   true,
		iptablesResync: 5 * time.Second,
		leaseTTL:       24 * time.Hour,
	}
	return h
}

// newKernel is a kernel just booted, with an uplink at addr.
func (h *testHost) newKernel(addr string) (*kerneltest.Fake, kernel.Link) {
	h.t.Helper()
	k := kerneltest.New()
	eth0 := k.Plug(kernel.Link{Name: "eth0", MTU: 1500}, netip.MustParsePrefix(addr))
	gateway := kernel.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("198.18.0.254"), Link: eth0.Index, Protocol: 16}
	if err := k.Routes().Put(h.t.Context(), []kernel.Route{gateway}); err != nil {
		h.t.Fatal(err)
	}
	return k, eth0
}

func (h *testHost) path(name string) string { return filepath.Join(h.dir, name) }

// start starts the daemon's loop, as a new process does.
func (h *testHost) start() {
	h.t.Helper()
	d := h.daemon()
	ctx, cancel := context.WithCancel(context.WithoutCancel(h.t.Context()))
	h.cancel = cancel
	h.group, ctx = errgroup.WithContext(ctx)
	h.loop = newLoop(d, h.kernel, h.group)
	h.loop.heir.also = h.also
	h.group.Go(func() error { return h.loop.run(ctx) })
}

// daemon is a new process's, with a log and a status of its own.
func (h *testHost) daemon() *daemon {
	h.log = &logBuffer{}
	log := slog.New(slog.NewTextHandler(h.log, nil))
	clock := bubbleClock{time.Now()}
	h.board = status.NewBoard(clock.Now, initialStatus(h.opts, h.node))
	return &daemon{
		opts: h.opts, log: log, clock: clock, node: h.node, instance: h.instance, dir: statedir.Dir(h.opts.stateDir),
		board: h.board, store: openStore{h.store, &h.gone, &h.deaf, func() {
			if h.creating != nil {
				h.creating()
			}
		}}, firewall: firewall.New(firewall.Options{Log: log, Tools: h.tools, Native: h.table}),
		units: h.units, places: h.places, construct: catalog.New,
	}
}

// stop ends the process, as SIGTERM does.
func (h *testHost) stop() {
	h.t.Helper()
	h.cancel()
	if err := h.end(); err != nil {
		h.t.Errorf("the process ended with %v", err)
	}
}

// end waits for the process to end, and returns why.
func (h *testHost) end() error {
	h.t.Helper()
	// One that goes on would make time pass for ever.
	patience := time.AfterFunc(time.Minute, func() {
		h.t.Error("the process does not end")
		h.cancel()
	})
	err := h.group.Wait()
	patience.Stop()
	h.cancel()
	h.loop.depart(context.WithoutCancel(h.t.Context()), err)
	h.loop.endDataPath()
	return err
}

// eventually waits until cond holds, and fails the test after within.
func (h *testHost) eventually(within time.Duration, what string, cond func() bool) {
	h.t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		synctest.Wait()
		if cond() {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("not within %s: %s\n%s\n%+v\nlog:\n%s", within, what, h.board.Snapshot().Line(), h.board.Snapshot(), h.log.buf.String())
		}
	}
}

// problem returns the problem of a component; the zero one: there is none.
func (h *testHost) problem(component string) status.Problem {
	for _, p := range h.board.Snapshot().Problems {
		if p.Component == component {
			return p
		}
	}
	return status.Problem{}
}

// ready waits for a host that works.
func (h *testHost) ready() {
	h.t.Helper()
	h.eventually(soon, "ready", func() bool { return h.board.Snapshot().Ready })
}

// file returns a file's content, or "" where there is none.
func (h *testHost) file(name string) string {
	h.t.Helper()
	data, err := os.ReadFile(h.path(name))
	if err != nil && !os.IsNotExist(err) {
		h.t.Fatal(err)
	}
	return string(data)
}

func (h *testHost) writeFile(name, text string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(h.path(name), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// routes are the routes that are ours, as text.
func (h *testHost) routes() []string {
	h.t.Helper()
	list, err := h.kernel.Routes().List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	var ours []string
	for _, r := range list {
		if r.Protocol == kernel.Protocol {
			ours = append(ours, r.Dst.String()+" via "+r.Gateway.String())
		}
	}
	slices.Sort(ours)
	return ours
}

// peer puts a lease of another host, as flannel does.
func (h *testHost) peer(key, publicIP string) {
	h.t.Helper()
	h.put(key, `{"PublicIP":"`+publicIP+`","BackendType":"host-gw"}`)
}

// owned puts a lease of another host that runs this daemon.
func (h *testHost) owned(key, publicIP, node string) {
	h.t.Helper()
	h.put(key, `{"PublicIP":"`+publicIP+`","BackendType":"host-gw","Owner":"`+node+`","Instance":"x"}`)
}

func (h *testHost) put(key, value string) {
	h.t.Helper()
	if _, err := h.data.Put(key, value, h.data.Grant(100*time.Hour)); err != nil {
		h.t.Fatal(err)
	}
}

// subnet is this host's, as the status says it, and its key in etcd.
func (h *testHost) subnet() (prefix, key string) {
	prefix = h.board.Snapshot().Lease.Subnet
	return prefix, strings.Replace(prefix, "/", "-", 1)
}

// addrs are the addresses of a device; none: there is no such device.
func (h *testHost) addrs(device string) []string {
	h.t.Helper()
	link, err := h.kernel.LinkByName(h.t.Context(), device)
	if errors.Is(err, kernel.ErrNotFound) {
		return nil
	}
	if err != nil {
		h.t.Fatal(err)
	}
	list, err := h.kernel.Addrs(link.Index).List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	var text []string
	for _, a := range list {
		text = append(text, a.Prefix.String())
	}
	return text
}

// line returns the only line of the log with part in it.
func (h *testHost) line(part string) string {
	h.t.Helper()
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	var found []string
	for line := range strings.Lines(h.log.buf.String()) {
		if strings.Contains(line, part) {
			found = append(found, line)
		}
	}
	if len(found) != 1 {
		h.t.Errorf("%d lines in the log with %s, want 1: %q", len(found), part, found)
		return ""
	}
	return found[0]
}
