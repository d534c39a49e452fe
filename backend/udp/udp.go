package udp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// device is the tunnel's name, flannel's too.
	device = "flannel0"
	// defaultPort is flannel's.
	defaultPort = 8285
	// queueLen is how many packets the device holds while nobody reads, as
	// during a restart of the daemon.
	queueLen = 2000
)

// Backend joins hosts by UDP datagrams that hold one IP packet each. It is a
// [backend.Backend] and a [backend.Runner].
type Backend struct {
	host    kernel.Host
	uplink  backend.Uplink
	outer   subnet.Family // of the datagrams
	port    uint16
	log     *slog.Logger
	observe func(reconcile.Result)

	// What Apply gives to the running data path.
	devices *slot
	world   atomic.Pointer[world]
	answers answers
	out, in counters

	mu   sync.Mutex // guards what follows
	conn *socket
	raw  *rawSockets
	tun  *tun
	// peers are those that world was made of.
	peers []peer
}

// New is a [backend.Constructor]. Option: Port (8285).
func New(p backend.Params) (backend.Backend, error) {
	o, err := subnet.ParseObject("Backend", p.Config.Backend)
	if err != nil {
		return nil, err
	}
	port := o.Int("Port", defaultPort, 1, math.MaxUint16)
	if err := o.Err(); err != nil {
		return nil, err
	}
	outer := subnet.IPv4
	if !p.Uplink.Addr[outer].IsValid() {
		outer = subnet.IPv6
	}
	if !p.Uplink.Addr[outer].IsValid() {
		return nil, fmt.Errorf("uplink %s: has no address to bind the tunnel to", p.Uplink.Link.Name)
	}
	return &Backend{
		host:    p.Kernel,
		uplink:  p.Uplink,
		outer:   outer,
		port:    uint16(port), //nolint:gosec // within its bounds
		log:     p.Log,
		observe: p.Observe,
		devices: newSlot(),
	}, nil
}

// Attrs returns our public address, and as flannel does no BackendType.
func (b *Backend) Attrs() (subnet.Attrs, error) {
	var a subnet.Attrs
	a.PublicIP[b.outer] = b.uplink.Public[b.outer]
	if !a.PublicIP[b.outer].IsValid() {
		a.PublicIP[b.outer] = b.uplink.Addr[b.outer]
	}
	return a, nil
}

// MTU is that of the uplink less the outer headers, 28 bytes over IPv4.
func (b *Backend) MTU() int {
	return b.uplink.Link.MTU - [...]int{ipv4Header, ipv6Header}[b.outer] - udpHeader
}

// Tunnel names the TUN device and the UDP port.
func (b *Backend) Tunnel() backend.Tunnel {
	return backend.Tunnel{Devices: []string{device}, Port: b.port}
}

// Stats returns the counters of the data path.
func (b *Backend) Stats() Stats {
	return Stats{
		Out:        b.out.snapshot(),
		In:         b.in.snapshot(),
		Answers:    b.answers.sent.Load(),
		Unanswered: b.answers.suppressed.Load(),
	}
}

// Run forwards packets until ctx ends. It waits for the first device that Apply
// opens, and follows Apply to a new one when the device was deleted. When it
// returns, device and socket are closed.
func (b *Backend) Run(ctx context.Context) error {
	if _, err := b.devices.next(ctx, nil); err != nil {
		return errors.Join(b.Close())
	}
	b.mu.Lock()
	conn := b.conn
	b.mu.Unlock()
	if conn == nil {
		return fmt.Errorf("run tunnel: %w", errGone)
	}
	p := &path{
		devices: b.devices,
		conn:    conn,
		world:   &b.world,
		answers: &b.answers,
		mtu:     b.MTU(),
		out:     &b.out,
		in:      &b.in,
		log:     b.log.With("device", device),
	}
	return p.run(ctx, b.Close)
}

// Close closes device and sockets; the device itself stays in the kernel, and
// the next Apply opens everything again. It is idempotent. Run closes too, so it
// is only needed where Apply is not followed by a Run.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	if b.tun != nil {
		b.devices.put(nil)
		errs = append(errs, b.tun.Close())
		b.tun = nil
	}
	if b.conn != nil {
		errs = append(errs, b.conn.Close())
		b.conn = nil
	}
	if b.raw != nil {
		errs = append(errs, b.raw.Close())
		b.raw = nil
	}
	return errors.Join(errs...)
}

// Cleanup removes the device, and with it its addresses and routes, if it bears
// our mark. Flannel's own cannot be left over: it is not persistent.
func (b *Backend) Cleanup(ctx context.Context) error {
	closed := b.Close()
	link, err := b.host.LinkByName(ctx, device)
	if errors.Is(err, kernel.ErrNotFound) || err == nil && (link.Type != tunType || link.Alias != kernel.Alias) {
		return closed
	}
	if err == nil {
		err = b.host.DeleteLink(ctx, link.Index)
	}
	if err != nil {
		err = fmt.Errorf("remove device %s: %w", device, err)
	}
	return errors.Join(closed, err)
}

// setPeers makes the packet path see peers and own addresses from the next batch
// on.
func (b *Backend) setPeers(peers []peer, own subnet.ByFamily[netip.Addr]) {
	w := &world{own: own}
	if old := b.world.Load(); old != nil && slices.Equal(b.peers, peers) {
		if old.own == own {
			return
		}
		w.table = old.table
	} else {
		w.table = newTable(peers)
	}
	b.peers = peers
	b.world.Store(w)
}
