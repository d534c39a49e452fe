package scale

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Backend is how the hosts of a network are joined.
type Backend string

// The backends, in the order of tables. VXLAN has the most entries for a peer, and is
// what everything but a comparison is measured with.
const (
	VXLAN  Backend = "vxlan"
	HostGW Backend = "host-gw"
	UDP    Backend = "udp"
)

// Backends lists them.
func Backends() []Backend { return []Backend{VXLAN, HostGW, UDP} }

// network is the largest there is with a /24 for each host.
var network = netip.MustParsePrefix("10.0.0.0/8") //nolint:gochecknoglobals // a constant

// config is the network's.
func (b Backend) config() string {
	return fmt.Sprintf(`{"Network":%q,"Backend":{"Type":%q}}`, network, b)
}

// device is the one that the last routes lead into.
func (b Backend) device() string {
	switch b {
	case HostGW:
		return "eth0"
	case UDP:
		return "flannel0"
	case VXLAN:
	}
	return "flannel.1"
}

// publish puts what a peer's daemon says of itself into attrs.
func (b Backend) publish(p peer, attrs *subnet.Attrs) {
	switch b {
	case VXLAN:
		attrs.BackendType = string(VXLAN)
		attrs.BackendData[subnet.IPv4] = subnet.RawJSON(fmt.Sprintf(`{"VNI":1,"VtepMAC":%q}`, p.mac()))
	case HostGW:
		attrs.BackendType = string(HostGW)
	case UDP: // which has no type in etcd
		attrs.BackendData[subnet.IPv4] = `{"Port":8285}`
	}
}

// onSegment is an address of a host's beside those of all peers.
const onSegment = "100.127.255.254/10"

// prepare makes of a host one that can have the peers: host-gw needs them on a segment
// of its own.
func (b Backend) prepare(ctx context.Context, h *lab.Host) error {
	if b != HostGW {
		return nil
	}
	_, err := h.Run(ctx, "ip", "addr", "add", onSegment, "dev", b.device())
	return err
}

// leads reports whether a route, which the kernel would take to a peer, is the one for it.
func (b Backend) leads(route kernel.Route, p peer) bool {
	switch b {
	case HostGW:
		return route.Gateway == p.public()
	case UDP:
		return !route.Gateway.IsValid() && route.Link != 0
	case VXLAN:
	}
	return route.Gateway == p.subnet().Addr()
}

// entries are what a host's kernel should hold for peers, on the device of that index.
func (b Backend) entries(link int, peers []peer) (fdb []kernel.FDB, neighbours []kernel.Neighbour, routes []kernel.Route) {
	if b == UDP { // What is known of each peer is in the daemon.
		return nil, nil, []kernel.Route{{Dst: network, Link: link, Protocol: kernel.Protocol}}
	}
	for _, p := range peers {
		if b == HostGW {
			routes = append(routes, kernel.Route{Dst: p.subnet(), Gateway: p.public(), Link: link, Protocol: kernel.Protocol})
			continue
		}
		gateway := p.subnet().Addr()
		fdb = append(fdb, kernel.FDB{Link: link, MAC: p.mac(), Dst: p.public()})
		neighbours = append(neighbours, kernel.Neighbour{Link: link, Addr: gateway, MAC: p.mac()})
		routes = append(routes, kernel.Route{Dst: p.subnet(), Gateway: gateway, Link: link, OnLink: true, Protocol: kernel.Protocol})
	}
	return fdb, neighbours, routes
}
