package udp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// tunType is the kind of TUN links in rtnetlink.
const tunType = "tun"

// Apply makes device, address, peers and route match d, in this order: the route
// comes last, for from then on the kernel sends us packets.
//
// The socket comes before all of it: when the port is taken, most likely by
// flanneld, the device is in use too and is left alone.
func (b *Backend) Apply(ctx context.Context, d backend.Desired) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.openSockets(ctx); err != nil {
		return err
	}
	peers, own, unfit := b.project(d)
	b.setPeers(peers, own)
	link, err := b.ensureDevice(ctx)
	if err != nil {
		return errors.Join(err, unfit)
	}
	addrs, addrErr := reconcile.Apply(ctx, b.addresses(link, d))
	upErr := b.bringUp(ctx, link)
	routes, routeErr := b.applyRoutes(ctx, link, d)
	if b.observe != nil {
		b.observe(reconcile.Result{
			Put:     addrs.Put + routes.Put,
			Deleted: addrs.Deleted + routes.Deleted,
			Failed:  addrs.Failed + routes.Failed,
		})
	}
	return errors.Join(addrErr, upErr, routeErr, unfit)
}

// openSockets opens what is not open yet.
func (b *Backend) openSockets(ctx context.Context) error {
	if b.conn == nil {
		conn, err := openSocket(ctx, netip.AddrPortFrom(b.uplink.Addr[b.outer], b.port))
		if err != nil {
			return err
		}
		b.conn = conn
	}
	if b.raw == nil {
		raw, err := openRaw(ctx)
		if err != nil {
			b.log.Warn("cannot answer all undeliverable packets with icmp errors, which needs CAP_NET_RAW", "error", err)
		}
		b.raw = raw
		b.answers.setOut(raw)
	}
	return nil
}

// ensureDevice attaches to the device where we have not, or where it was deleted
// since, and sets what it carries in itself.
func (b *Backend) ensureDevice(ctx context.Context) (kernel.Link, error) {
	if b.tun != nil && b.tun.attached() {
		link, err := b.host.LinkByName(ctx, device)
		if err != nil {
			return link, fmt.Errorf("find device %s: %w", device, err)
		}
		return link, b.tune(ctx, link)
	}
	if b.tun != nil {
		b.devices.put(nil)
		b.tun.Close()
		b.tun = nil
	}
	opened, err := b.attach(ctx)
	if err != nil {
		return kernel.Link{}, err
	}
	link, err := b.host.LinkByName(ctx, device)
	if err == nil {
		err = b.tune(ctx, link)
	}
	if err == nil {
		// Last: until here a failure leaves no device that nobody marked.
		err = opened.persist()
	}
	if err != nil {
		opened.Close()
		return link, fmt.Errorf("set up device %s: %w", device, err)
	}
	b.tun = opened
	b.devices.put(opened)
	b.log.Info("attached to tunnel device", "device", device, "mtu", b.MTU())
	return link, nil
}

// attach opens the device, adopting one that is free: ours of an earlier run, or
// flannel's, which has the same shape.
func (b *Backend) attach(ctx context.Context) (*tun, error) {
	link, err := b.host.LinkByName(ctx, device)
	switch {
	case errors.Is(err, kernel.ErrNotFound):
	case err != nil:
		return nil, fmt.Errorf("find device %s: %w", device, err)
	case link.Type != tunType:
		return nil, foreignError(device, "type "+link.Type)
	}
	return openTUN(device, link.Tun.MultiQueue)
}

// tune sets mark, MTU and queue length where they differ.
func (b *Backend) tune(ctx context.Context, link kernel.Link) error {
	var c kernel.LinkChange
	if link.Alias != kernel.Alias {
		c.Alias = kernel.Alias
	}
	if link.MTU != b.MTU() {
		c.MTU = b.MTU()
	}
	if link.TxQueueLen < queueLen {
		c.TxQueueLen = queueLen
	}
	if c == (kernel.LinkChange{}) {
		return nil
	}
	return b.host.SetLink(ctx, link.Index, c)
}

// bringUp sets the device up if it is down.
func (b *Backend) bringUp(ctx context.Context, link kernel.Link) error {
	if link.Up {
		return nil
	}
	up := true
	if err := b.host.SetLink(ctx, link.Index, kernel.LinkChange{Up: &up}); err != nil {
		return fmt.Errorf("bring up device %s: %w", device, err)
	}
	return nil
}

// addresses gives the device the first address of each own subnet, alone: a /32
// or /128. All addresses of the device are ours.
func (b *Backend) addresses(link kernel.Link, d backend.Desired) reconcile.Step {
	var want []kernel.Addr
	for _, p := range d.Own.Subnet {
		if p.IsValid() {
			a := p.Masked().Addr()
			want = append(want, kernel.Addr{Link: link.Index, Prefix: netip.PrefixFrom(a, a.BitLen())})
		}
	}
	return reconcile.NewStep("address", b.host.Addrs(link.Index), want, nil)
}

// applyRoutes leads the whole network into the device. All routes on the device
// are ours. A route for the network that somebody else put elsewhere is not
// replaced.
func (b *Backend) applyRoutes(ctx context.Context, link kernel.Link, d backend.Desired) (reconcile.Result, error) {
	table := b.host.Routes()
	present, err := table.List(ctx)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list route: %w", err)
	}
	owned := func(r kernel.Route) bool { return r.Link == link.Index && !r.Blackhole }
	taken := make(map[kernel.RouteKey]kernel.Route)
	for _, r := range present {
		if !owned(r) && r.Protocol != kernel.Protocol {
			taken[r.Key()] = r
		}
	}
	var (
		want []kernel.Route
		errs []error
	)
	for f, r := range d.Config.Ranges {
		if !r.Network.IsValid() || !d.Own.Subnet[f].IsValid() {
			continue
		}
		route := kernel.Route{Dst: r.Network, Link: link.Index, Protocol: kernel.Protocol}
		if other, ok := taken[route.Key()]; ok {
			errs = append(errs, fmt.Errorf("route %s: another program leads it to link %d (protocol %d): delete that route", r.Network, other.Link, other.Protocol))
			continue
		}
		want = append(want, route)
	}
	result, err := reconcile.Apply(ctx, reconcile.NewStep("route", table, want, owned))
	result.Failed += len(errs)
	return result, errors.Join(append(errs, err)...)
}

// project turns leases into peers of the packet path. Peers that cannot be
// reached are left out and named in the error.
func (b *Backend) project(d backend.Desired) ([]peer, subnet.ByFamily[netip.Addr], error) {
	var (
		peers []peer
		errs  []error
		own   subnet.ByFamily[netip.Addr]
	)
	for f, p := range d.Own.Subnet {
		if p.IsValid() {
			own[f] = p.Masked().Addr()
		}
	}
	for _, lease := range d.Peers {
		to, err := b.endpoint(d.Config, lease.Attrs)
		if err != nil {
			errs = append(errs, &backend.PeerError{Subnet: lease.Subnet, PublicIP: lease.Attrs.PublicIP[b.outer], Err: err})
			continue
		}
		for _, p := range lease.Subnet {
			if p.IsValid() {
				peers = append(peers, peer{prefix: p.Masked(), endpoint: to})
			}
		}
	}
	return peers, own, errors.Join(errs...)
}

// endpoint returns where a peer receives datagrams.
func (b *Backend) endpoint(c *subnet.Config, a subnet.Attrs) (netip.AddrPort, error) {
	if a.BackendType != "" && !strings.EqualFold(a.BackendType, "udp") {
		return netip.AddrPort{}, fmt.Errorf("its backend is %s, ours is udp", a.BackendType)
	}
	addr := a.PublicIP[b.outer].Unmap()
	if !addr.IsValid() {
		return netip.AddrPort{}, fmt.Errorf("it has no public %s address", b.outer)
	}
	if n := c.Ranges[b.outer].Network; n.IsValid() && n.Contains(addr) {
		return netip.AddrPort{}, fmt.Errorf("its public address is inside the network %s, which the tunnel itself carries", n)
	}
	port, err := b.peerPort(a.BackendData[b.outer])
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addr, port), nil
}

// peerPort is the port in a peer's backend data, or else the configured one:
// flannel publishes none.
func (b *Backend) peerPort(data subnet.RawJSON) (uint16, error) {
	if data == "" {
		return b.port, nil
	}
	fields := struct{ Port uint16 }{b.port}
	if err := json.Unmarshal([]byte(data), &fields); err != nil {
		return 0, fmt.Errorf("read its backend data %s: %w", data, err)
	}
	if fields.Port == 0 {
		return 0, fmt.Errorf("read its backend data %s: Port is 0", data)
	}
	return fields.Port, nil
}
