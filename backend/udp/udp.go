package udp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// Type is the name in Backend.Type. Leases have none, as flannel's.
	Type = "udp"
	// devicePrefix and the number of the instance are the tunnel's name: that of the
	// first one is flannel's, too.
	devicePrefix = "flannel"
	// defaultPort is flannel's.
	defaultPort = 8285
	// queueLen is how many packets the device holds while nobody reads, as
	// during a restart of the daemon.
	queueLen = 2000
	// sourcesMost is how many ports a host sends from beside its own, all queues
	// together: each may cost a peer and us an entry in a connection table.
	sourcesMost = 16
	// queuesMost is how many queues a device has at most.
	queuesMost = 16
)

// Options are the keys of the config's Backend object.
type Options struct {
	// Port is where we and all peers that publish no other receive.
	Port uint16
	// Whole does without the offloads that a kernel may refuse: Offload is off. Packets
	// are moved as they are on the wire, but for TCP's on their way in, which are
	// joined for the device all the same: see joinable.
	Whole bool
	// FixedSource sends everything from our port: SourcePorts is fixed.
	FixedSource bool
	// Queues is how many queues the device has, each with a socket and two
	// threads of its own; 0: see defaultQueues.
	Queues int
	// DirectRouting sends packets for peers on the uplink's own segment, which have
	// it on too, without the tunnel.
	DirectRouting bool
}

// defaultQueues is one queue for two cores, which its two loops keep busy: a loop
// that finds packets does not stop for another, so there should be a core for each.
func defaultQueues(cores int) int { return min(max(1, cores/2), queuesMost) }

// ParseOptions decodes c's Backend object. It returns every problem at once, and
// the paths of the keys that nobody knows.
func ParseOptions(c *subnet.Config) (Options, []string, error) {
	o, err := subnet.ParseObject("Backend", c.Backend)
	if err != nil {
		return Options{}, nil, fmt.Errorf("parse udp options: %w", err)
	}
	o.Raw("Type")
	port := o.Int("Port", defaultPort, 1, math.MaxUint16)
	whole := o.String("Offload", "auto", "auto", "off") == "off"
	fixed := o.String("SourcePorts", "vary", "vary", "fixed") == "fixed"
	queues := o.Int("Queues", 0, 0, queuesMost)
	direct := o.Bool("DirectRouting", false)
	return Options{
		Port:  uint16(port), //nolint:gosec // within its bounds
		Whole: whole, FixedSource: fixed, Queues: queues, DirectRouting: direct,
	}, o.Unknown(), o.Err()
}

// Backend joins hosts by UDP datagrams that hold one IP packet each. It is a
// [backend.Backend] and a [backend.Runner].
type Backend struct {
	params backend.Params
	port   uint16
	whole  bool
	queues int
	auto   bool // nobody said how many
	fixed  bool // the source port
	direct bool // no tunnel on the segment
	// device is the tunnel's name.
	device string
	log    *slog.Logger
	// open attaches to the TUN device name: openTUN, or a test's.
	open func(name string, o tunOptions) (tunnel, error)

	// What Apply gives to the running data path.
	devices *slot
	outlets *outlets
	mtu     atomic.Int64
	world   atomic.Pointer[world]
	answers answers
	sockets socketLevel
	joins   joinLevel
	traffic []traffic // by queue

	mu     sync.Mutex // guards what follows
	raw    *rawSockets
	tunnel tunnel
	logged bool // see leveled
	// deaf are the other addresses of ours at which nothing can be received, with the
	// reason: the log is told of each change, not at each Apply.
	deaf   map[netip.AddrPort]string
	router backend.Router
	// applied is what the last Apply was told, without the peers; nil: it did not
	// come as far as these.
	applied *backend.Desired
}

// tunnel is a TUN device, part of the kernel's state.
type tunnel interface {
	// queues are all that were asked for.
	queues() []Device
	// Close closes the queues.
	Close() error
	// attached reports whether the kernel still has the device under its name.
	attached() bool
	// persist makes the device outlive its descriptors.
	persist() error
	// offloads reports whether the device hands over and takes TCP packets, and
	// UDP packets, that stand for several.
	offloads() (tso, uso bool)
}

var (
	_ backend.Constructor = New
	_ backend.Runner      = (*Backend)(nil)
	_ backend.Leveler     = (*Backend)(nil)
)

// New checks the options.
func New(p backend.Params) (backend.Backend, error) {
	opts, unknown, err := ParseOptions(p.Config)
	if err != nil {
		return nil, err
	}
	p.WarnUnknown(unknown)
	b := &Backend{
		params:  p,
		port:    opts.Port,
		whole:   opts.Whole,
		fixed:   opts.FixedSource,
		direct:  opts.DirectRouting,
		auto:    opts.Queues == 0,
		device:  devicePrefix + strconv.Itoa(int(p.Instance)),
		queues:  cmp.Or(opts.Queues, defaultQueues(runtime.GOMAXPROCS(0))),
		log:     p.Logger(),
		open:    openTUN,
		devices: newSlot(),
		outlets: newOutlets(),
		router:  p.Router(),
	}
	b.sockets.log, b.joins.log = b.log, b.log
	b.traffic = make([]traffic, b.queues)
	return b, nil
}

// outer is the family of the datagrams.
func outer(u backend.Uplink) subnet.Family {
	if u.Addr[subnet.IPv4].IsValid() {
		return subnet.IPv4
	}
	return subnet.IPv6
}

// check says why an uplink cannot carry the tunnel.
func (b *Backend) check(u backend.Uplink) error {
	if !u.Addr[outer(u)].IsValid() {
		return fmt.Errorf("uplink %s has no address to bind the tunnel to", u.Link.Name)
	}
	for _, f := range b.params.Families() {
		// The least that every host must accept: RFC 791; RFC 8200, section 5.
		if least := [...]int{576, 1280}[f]; b.MTU(u) < least {
			return fmt.Errorf("uplink %s has MTU %d: %s over UDP needs at least %d", u.Link.Name, u.Link.MTU, f, least+overhead(u))
		}
	}
	return nil
}

// Attrs returns our public address and port, and as flannel does no BackendType.
// Flannel looks at no backend data of udp: its hosts send to the port that the
// config names.
func (b *Backend) Attrs(u backend.Uplink) (subnet.Attrs, error) {
	var a subnet.Attrs
	if err := b.check(u); err != nil {
		return a, err
	}
	a.PublicIP[outer(u)] = u.Public[outer(u)]
	var err error
	a.BackendData[outer(u)], err = b.publish()
	return a, err
}

// overhead is the length of the outer headers.
func overhead(u backend.Uplink) int {
	return [...]int{ipv4Header, ipv6Header}[outer(u)] + udpHeader
}

// MTU is that of the uplink less the outer headers: 1472 over IPv4 on Ethernet.
func (b *Backend) MTU(u backend.Uplink) int { return u.Link.MTU - overhead(u) }

// Tunnel names the TUN device and the UDP port.
func (b *Backend) Tunnel() backend.Tunnel {
	return backend.Tunnel{Devices: []string{b.device}, Direct: b.direct, Port: b.port, Encapsulation: backend.PlainPacket}
}

// Counters is Stats by name: backend.Counter.
func (b *Backend) Counters() map[string]uint64 { return b.Stats().Counters() }

// Stats returns the counters of the data path.
func (b *Backend) Stats() Stats {
	s := Stats{Answers: b.answers.sent.Load(), Unanswered: b.answers.suppressed.Load()}
	for i := range b.traffic {
		s.Out.join(b.traffic[i].out.snapshot())
		s.In.join(b.traffic[i].in.snapshot())
	}
	return s
}

// Run forwards packets until ctx ends. It waits for the first device that Apply
// opens, and follows Apply to a new one when the device was deleted, and to other
// sockets when the uplink becomes another. When it returns, all of them are closed.
func (b *Backend) Run(ctx context.Context) error {
	if _, err := b.devices.next(ctx, 0, nil); err != nil {
		return b.Close()
	}
	b.mu.Lock()
	open, can := b.outlets.load().open(), offload.Protocols{}
	if b.tunnel != nil {
		can = joinable(b.tunnel)
		if !b.logged { // Apply has not opened it
			b.leveled().Info("took over tunnel device")
		}
	}
	b.mu.Unlock()
	if !open {
		return fmt.Errorf("run tunnel: %w", errGone)
	}
	paths := make([]*path, b.queues)
	for i := range paths {
		paths[i] = &path{
			queue:    i,
			arrivals: arrivalsOf(b.queues),
			devices:  b.devices,
			outlets:  b.outlets,
			world:    &b.world,
			answers:  &b.answers,
			mtu:      &b.mtu,
			out:      &b.traffic[i].out,
			in:       &b.traffic[i].in,
			log:      b.log.With("device", b.device),
			can:      can,
			joins:    &b.joins,
		}
	}
	if err := precede(); err != nil {
		b.log.Info("packets are moved at the priority of other programs, which takes CAP_SYS_NICE to change", "error", err)
	}
	return run(ctx, paths, b.Close)
}

// Close closes device and sockets; the device itself stays in the kernel, and
// the next Apply opens everything again. It is idempotent. Run closes too, so it
// is only needed where Apply is not followed by a Run.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closeAll()
}

func (b *Backend) closeAll() error {
	var errs []error
	if b.tunnel != nil {
		b.devices.put()
		errs = append(errs, b.tunnel.Close())
		b.tunnel, b.logged = nil, false
	}
	errs = append(errs, b.outlets.put())
	if b.raw != nil {
		errs = append(errs, b.raw.Close())
		b.raw = nil
	}
	return errors.Join(errs...)
}

// Cleanup removes our routes, and the device with its address if it bears our
// mark. Flannel's own device cannot be left over: it is gone with flanneld.
func (b *Backend) Cleanup(ctx context.Context) error {
	errs := []error{b.Close()}
	b.mu.Lock()
	_, err := b.router.Sweep(ctx)
	b.mu.Unlock()
	errs = append(errs, err)
	link, err := b.params.Kernel.LinkByName(ctx, b.device)
	switch {
	case errors.Is(err, kernel.ErrNotFound):
	case err != nil:
		errs = append(errs, fmt.Errorf("find device %s: %w", b.device, err))
	case link.Type == linkType && link.Alias == b.params.Instance.Alias():
		if err := b.params.Kernel.DeleteLink(ctx, link.Index); err != nil {
			errs = append(errs, fmt.Errorf("delete device %s: %w", b.device, err))
		}
	}
	return errors.Join(errs...)
}

// setPeers makes the packet path see peers and own addresses from the next batch
// on.
func (b *Backend) setPeers(peers []peer, own subnet.ByFamily[netip.Addr]) {
	w := &world{own: own}
	if old := b.world.Load(); old != nil && old.table.holds(peers) {
		if old.own == own {
			return
		}
		w.table = old.table
	} else {
		w.table = newTable(peers)
	}
	b.world.Store(w)
}
