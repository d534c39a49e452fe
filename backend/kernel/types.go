package kernel

import (
	"context"
	"errors"
	"net/netip"

	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// Protocol marks the routes and nexthops that the first [Instance] installs
// (rtnetlink's RTPROT_*; see /etc/iproute2/rt_protos, where it is unassigned). It is
// how we prove that an entry is ours.
const Protocol = 158

// Alias marks the links that the first [Instance] creates (IFLA_IFALIAS).
const Alias = "flanneld-go"

// Errors that callers decide on.
var (
	// ErrNotFound: there is no such link, route or sysctl.
	ErrNotFound = errors.New("not found")
	// ErrExists: a link of that name exists.
	ErrExists = errors.New("exists")
	// ErrPermission: the process lacks CAP_NET_ADMIN or the file is read-only.
	ErrPermission = errors.New("operation not permitted")
)

// MAC is an Ethernet address; the zero MAC means none.
type MAC [6]byte

// Link is a network interface.
type Link struct {
	Index int
	Name  string
	// Type is rtnetlink's kind: "vxlan", "tun", "bridge", "veth"; empty for
	// physical devices and "loopback" for lo.
	Type  string
	Alias string
	MTU   int
	MAC   MAC
	// Up is the administrative state, Running the operational one.
	Up, Running bool
	// TxQueueLen is in packets; 0 on create: the kernel's default.
	TxQueueLen int
	// VXLAN is set on links of that type.
	VXLAN VXLAN
	// Tun is set on links of that type.
	Tun Tun
}

// VXLAN are the attributes of a VXLAN link that cannot be changed later, but for
// Local and Uplink.
type VXLAN struct {
	VNI  int
	Port int
	// Local is the outer source address.
	Local netip.Addr
	// Uplink is the index of the interface that carries it.
	Uplink   int
	Learning bool
	GBP      bool
}

// Tun are the attributes of a TUN link.
type Tun struct {
	Persist    bool
	MultiQueue bool
	VnetHdr    bool
	// Queues is how many descriptors are attached. It is told of multi-queue
	// links only.
	Queues int
}

// LinkChange is what SetLink changes: nil and zero fields stay as they are.
type LinkChange struct {
	MTU        int
	MAC        MAC
	Alias      string
	TxQueueLen int
	// Local and Uplink are those of a VXLAN link. All its entries stay. An address
	// of the other family is refused.
	Local  netip.Addr
	Uplink int
	// Up, when set, brings the link up or down.
	Up *bool
}

// Addr is an address of a link.
type Addr struct {
	Link   int
	Prefix netip.Prefix
}

// Key is the address itself: every field identifies it.
func (a Addr) Key() Addr { return a }

// Route is a unicast route of the main table.
type Route struct {
	Dst netip.Prefix
	// Gateway is invalid for a route straight to a link.
	Gateway netip.Addr
	Link    int
	// OnLink: the gateway is on the link although no address says so.
	OnLink bool
	// Blackhole routes have neither Gateway nor Link.
	Blackhole bool
	// Src is the preferred source address; invalid: none.
	Src netip.Addr
	// Metric is the priority; 0 is the kernel's default of the family, and
	// listed so (IPv6: 1024).
	Metric int
	// Protocol says who installed it; 0 on Put means [Protocol], which is what
	// is listed then: desired entries should name it.
	Protocol int
}

// RouteKey is what two routes that replace each other have in common.
type RouteKey struct {
	Dst    netip.Prefix
	Metric int
}

// Key returns destination and metric.
func (r Route) Key() RouteKey { return RouteKey{r.Dst, r.Metric} }

// Neighbour is an entry of a link's ARP or NDP table.
type Neighbour struct {
	Link int
	Addr netip.Addr
	MAC  MAC
}

// NeighbourKey identifies a Neighbour.
type NeighbourKey struct {
	Link int
	Addr netip.Addr
}

// Key returns link and address.
func (n Neighbour) Key() NeighbourKey { return NeighbourKey{n.Link, n.Addr} }

// FDB is a permanent entry of a VXLAN link's forwarding database: frames to MAC
// go to the VTEP at Dst.
type FDB struct {
	Link int
	MAC  MAC
	Dst  netip.Addr
}

// FDBKey identifies an FDB entry.
type FDBKey struct {
	Link int
	MAC  MAC
}

// Key returns link and MAC.
func (f FDB) Key() FDBKey { return FDBKey{f.Link, f.MAC} }

// Topic is a kind of kernel state that can drift.
type Topic uint8

// The topics of an Event.
const (
	TopicLink Topic = 1 << iota
	TopicAddr
	TopicRoute
	TopicNeighbour
	TopicFDB
	// TopicResolved: an address has got, changed or lost its MAC by ARP or NDP.
	TopicResolved
	// TopicForwarding: the kernel forwards a family from now on, or no more; with a
	// link: no more what comes in by that.
	TopicForwarding
	// TopicOverrun: events were lost, anything may have changed.
	TopicOverrun
)

// Event says that something changed, not what all is now: read it again.
type Event struct {
	Topic Topic
	// Link is the index of the interface concerned; 0: not known.
	Link int
	// Addr is the address concerned, and MAC what it has now; only with
	// TopicResolved.
	Addr netip.Addr
	MAC  MAC
}

// Host is one network stack. The methods are safe for concurrent use; they
// block for as long as the kernel takes and honour ctx between messages. A wait
// for a message's answer ends without ctx: the kernel has answered before it
// returns from the request, and if it ever does not the wait ends after 10 s, with an
// error that says so.
type Host interface {
	// Links lists all interfaces.
	Links(ctx context.Context) ([]Link, error)
	// LinkByName returns one interface; ErrNotFound.
	LinkByName(ctx context.Context, name string) (Link, error)
	// AddLink creates a VXLAN or bridge link down, with the given Name, Type,
	// MTU, MAC (zero: the kernel's choice) and Alias, and returns it as it is
	// then; ErrExists. What fails half-way is undone. TUN links are made by
	// who opens them.
	AddLink(ctx context.Context, l Link) (Link, error)
	// SetLink changes a link; ErrNotFound.
	SetLink(ctx context.Context, index int, c LinkChange) error
	// DeleteLink removes a link; one that is gone is no failure.
	DeleteLink(ctx context.Context, index int) error

	// Addrs are the addresses of one link, those the kernel derives by itself
	// (link-local, scope link) left out; link 0: of all links.
	Addrs(link int) reconcile.Table[Addr]
	// Routes are the unicast and blackhole routes of the main table, both
	// families, whoever installed them, except those of protocol "kernel" and
	// those for a source or type of service. A route with several gateways is
	// listed with neither Gateway nor Link. Put and Delete, also of nothing,
	// sweep nexthop objects of ours that no route uses.
	Routes() reconcile.Table[Route]
	// Neighbours are the permanent neighbours of one link.
	Neighbours(link int) reconcile.Table[Neighbour]
	// Resolved lists the addresses on one link whose MAC the kernel knows now,
	// by ARP, by NDP or because somebody set it; link 0: on all links.
	Resolved(ctx context.Context, link int) ([]Neighbour, error)
	// Confirm has the kernel ask those of addrs on one link whose MAC it has
	// heard of long ago whether they have it still. Who has another, or does not
	// answer for some seconds, is an event of TopicResolved.
	Confirm(ctx context.Context, link int, addrs []netip.Addr) error
	// FDB are the permanent entries of one VXLAN link.
	FDB(link int) reconcile.Table[FDB]

	// RouteTo asks the kernel how it would send to dst; ErrNotFound.
	RouteTo(ctx context.Context, dst netip.Addr) (Route, error)

	// Sysctl reads a value by its path below /proc/sys ("net/ipv4/ip_forward");
	// ErrNotFound.
	Sysctl(name string) (string, error)
	// SetSysctl writes one; ErrNotFound, ErrPermission.
	SetSysctl(name, value string) error

	// Events yields changes until ctx ends; the channel is closed then. It
	// never blocks the kernel: what cannot be delivered becomes TopicOverrun.
	Events(ctx context.Context) (<-chan Event, error)
}
