package udp

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

var _ backend.Recaller = (*Backend)(nil)

// backendData is what hosts of ours publish beside their address.
type backendData struct {
	// Port is where the host receives datagrams; nil: it does not say.
	Port *uint16
	// DirectRouting: the host also takes packets that come plainly. Flannel's do
	// not: to a kernel that looks for the way back such a packet is a stray one.
	DirectRouting bool `json:",omitempty"`
}

// publish writes our own.
func (b *Backend) publish() (subnet.RawJSON, error) {
	data, err := json.Marshal(backendData{Port: &b.port, DirectRouting: b.direct})
	if err != nil {
		return "", fmt.Errorf("write backend data: %w", err)
	}
	return subnet.RawJSON(data), nil
}

// readData reads a peer's, which may publish none.
func readData(data subnet.RawJSON) (fields backendData, _ error) {
	if data == "" {
		return fields, nil
	}
	if err := json.Unmarshal([]byte(data), &fields); err != nil {
		return fields, fmt.Errorf("read its backend data %s: %w", data, err)
	}
	if fields.Port != nil && *fields.Port == 0 {
		return fields, fmt.Errorf("read its backend data %s: Port is 0", data)
	}
	return fields, nil
}

// directRoute leads to a peer on our own segment without the tunnel, if both of us
// want that; false: it does not. Only the family of the uplink's addresses has
// gateways; packets of the other go through the tunnel. So may the peer's packets
// at any time: it stays one of the packet path's.
func (b *Backend) directRoute(u backend.Uplink, peer *subnet.Lease, to endpoint) (kernel.Route, bool) {
	dst := peer.Subnet[outer(u)]
	if !to.direct || !dst.IsValid() || !u.OnSegment(to.to.Addr()) {
		return kernel.Route{}, false
	}
	return kernel.Route{Dst: dst, Gateway: to.to.Addr(), Link: u.Link.Index, Protocol: b.params.Instance.Protocol()}, true
}

// Recall reads from the main table which peers an earlier process had plain routes
// to. Of those in the tunnel alone the kernel knows nothing.
func (b *Backend) Recall(ctx context.Context) ([]subnet.Lease, error) {
	if !b.direct {
		return nil, nil
	}
	routes, err := b.router.Recall(ctx, b.params.Config)
	if err != nil {
		return nil, err
	}
	data, err := b.publish() // what a host must say that a plain route leads to
	leases := make([]subnet.Lease, 0, len(routes))
	for _, r := range routes {
		lease := backend.PeerAt("", r.Dst, r.Gateway)
		lease.Attrs.BackendData[subnet.FamilyOf(r.Dst.Addr())] = data
		leases = append(leases, lease)
	}
	return leases, err
}
