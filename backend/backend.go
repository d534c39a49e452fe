package backend

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"syscall"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Uplink is the interface and the addresses that carry encapsulated traffic. It may
// become another while a backend is in use.
type Uplink struct {
	// Link is the interface as it was when the uplink was last looked at.
	Link kernel.Link
	// Addr is our own address on it, per family; invalid where it has none.
	Addr subnet.ByFamily[netip.Addr]
	// Public is the address that peers send to: Addr unless overridden.
	Public subnet.ByFamily[netip.Addr]
	// Segments are the on-link prefixes of the interface: a peer inside one
	// of them is reached without a gateway.
	Segments []netip.Prefix
}

// OnSegment reports whether a is reached on the uplink without a gateway.
func (u Uplink) OnSegment(a netip.Addr) bool {
	for _, p := range u.Segments {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Desired is the state that a host should be in.
type Desired struct {
	Config *subnet.Config
	// Uplink is what packets are sent by.
	Uplink Uplink
	// Also are addresses of ours beside Uplink's by which peers may send to us: while
	// one uplink replaces another that is still there, some send to either. Where one
	// followed another quickly, more than one still counts, but no more than MostFormer
	// that we have left, and the one we are about to go to.
	Also []netip.Addr
	// Own is this host's lease.
	Own subnet.Lease
	// Peers are the other hosts' leases, sorted by subnet, all of them inside
	// the network and none overlapping another or Own. They never change, and may
	// be kept.
	Peers []*subnet.Lease
	// Former are leases of Peers as they were a moment ago, with other addresses:
	// what comes from those is theirs, too. Of one subnet there are MostFormer, the
	// latest last; those before may be missed.
	Former []subnet.Lease
}

// MostFormer is how many addresses that a host has left a moment ago count at most. One
// that moves by itself moves no faster.
const MostFormer = 4

// Tunnel is what the firewall must know of a backend.
type Tunnel struct {
	// Devices carry decapsulated packets, by name.
	Devices []string
	// Direct reports that packets of peers also come in plainly, by the
	// uplink.
	Direct bool
	// Port is the UDP port that peers send to; 0: none.
	Port uint16
	// Encapsulation is what the datagrams to Port hold.
	Encapsulation Encapsulation
	// VNI is VXLAN's network identifier.
	VNI uint32
}

// Encapsulation is how a datagram holds a packet of the overlay.
type Encapsulation uint8

const (
	// NoEncapsulation: there are no datagrams.
	NoEncapsulation Encapsulation = iota
	// PlainPacket: one packet and nothing else, of either family.
	PlainPacket
	// VXLANFrame: a VXLAN header and an Ethernet frame (RFC 7348) with a packet
	// of the outer family.
	VXLANFrame
)

// Params is what every backend is made of.
type Params struct {
	Config *subnet.Config
	Node   subnet.NodeID
	// Instance is who we are among the daemons of this host: which links and routes are
	// ours.
	Instance kernel.Instance
	Kernel   kernel.Host
	Log      *slog.Logger
	// Blackhole asks for a route of last resort that drops packets to
	// addresses of our own subnet that no container has (flannel's
	// --ip-blackhole-route).
	Blackhole bool
	// Observe, when set, is told what every Apply had to change.
	Observe func(reconcile.Result)
	// Unknown, when set, is told the paths of config keys that nobody knows;
	// otherwise they are logged.
	Unknown func(keys []string)
}

// Constructor makes a backend from the config's Backend object. It checks all
// options, returns every problem at once in the form of subnet.ParseConfig, and
// touches nothing.
type Constructor func(Params) (Backend, error)

// Backend joins this host to its peers with one encapsulation.
type Backend interface {
	// Attrs returns what peers must know of a host with uplink u: BackendType,
	// BackendData and PublicIP, without Owner and Instance. An error says why u
	// cannot carry this backend; it must not be desired then.
	Attrs(u Uplink) (subnet.Attrs, error)
	// Apply makes the host match d. It is idempotent, keeps going past single
	// failures, and joins them. Where d has another uplink than before, the data
	// path moves there: paths to peers stay whole where the kernel can do that.
	Apply(ctx context.Context, d Desired) error
	// MTU is the largest packet in bytes that a container may send by u.
	MTU(u Uplink) int
	// Tunnel says what the firewall must let through.
	Tunnel() Tunnel
	// Cleanup removes everything that Apply may have left in the kernel, from
	// this process or an earlier one, and nothing else.
	Cleanup(ctx context.Context) error
}

// Runner is an ability of backends with a data path in user space. Run blocks
// until ctx ends or the data path fails for good. It is started after the first
// Apply.
type Runner interface {
	Run(ctx context.Context) error
}

// Descriptor is an open file of a data path in user space. A service manager can
// keep a duplicate of it, and with it what waits there.
type Descriptor struct {
	// Name says what it is and what for; no other that is open has the same. It
	// is printable ASCII without space and colon.
	Name string
	// Conn is the same for as long as this very file is open.
	Conn syscall.RawConn
}

// Heir is an ability of backends with a data path in user space: it goes on from
// the descriptors of an earlier process, in which packets wait, or from the device that
// one has left.
type Heir interface {
	Runner
	// Inherit takes those of files, by their names, that are what this backend
	// would open itself, makes the packet path see d's peers, and closes the
	// rest. Of d.Also, here all that are ours, those count at which that process
	// received. Without files it opens what it needs, if its device is there as an earlier
	// process left it; else it opens nothing. No device, address or route is created,
	// changed or deleted. If the data path is whole, Run can be started before the first Apply; Apply opens what lacks.
	// It may be called once, before Apply.
	Inherit(ctx context.Context, d Desired, files []*os.File) Inheritance
	// Descriptors are those that are open at present. Those that a later call
	// lacks are closed here and must be dropped where they are kept, before the
	// next Apply: they may be in its way.
	Descriptors() []Descriptor
	// Close closes all that is open, where Run was not started; Apply opens it
	// again.
	Close() error
}

// Inheritance is what came of an Inherit.
type Inheritance struct {
	// Whole: packets can be forwarded.
	Whole bool
	// Also are those of Desired.Also at which packets are received: peers may not know
	// yet that we have left them.
	Also []netip.Addr
	// Refused are the files that were closed, with the reasons.
	Refused []error
}

// Recaller is an ability of backends that leave paths in the kernel. Recall returns
// the peers to which an earlier process made one, as leases: of one family each, and
// without an owner or a revision, for a path tells none. It touches nothing and needs
// no uplink.
type Recaller interface {
	Recall(ctx context.Context) ([]subnet.Lease, error)
}

// Counter is an ability of backends that see packets. Counters returns totals
// since the start of the process by name ("out_forwarded_packets"), among them
// each reason for which packets were dropped; the map is the caller's.
type Counter interface {
	Counters() map[string]uint64
}

// Level is what a data path in user space runs with.
type Level struct {
	// Queues is how many it has; 0: it is not up.
	Queues int
	// Offloads says of those that it knows which are on ("tso"). The others the
	// kernel lacks or has refused, or they are turned off.
	Offloads map[string]bool
}

// Leveler is an ability of backends with a data path in user space. The Level's map
// is the caller's.
type Leveler interface {
	Level() Level
}

// PeerError is what went wrong with one peer.
type PeerError struct {
	Subnet   subnet.Subnet
	PublicIP netip.Addr
	Err      error
}

// Error names the peer by its subnet and address, if it has one.
func (e *PeerError) Error() string {
	if !e.PublicIP.IsValid() {
		return fmt.Sprintf("peer %s: %v", e.Subnet, e.Err)
	}
	return fmt.Sprintf("peer %s at %s: %v", e.Subnet, e.PublicIP, e.Err)
}

// Unwrap returns the cause.
func (e *PeerError) Unwrap() error { return e.Err }
