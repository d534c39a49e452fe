package udp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// linkType is rtnetlink's kind of TUN links.
const linkType = "tun"

// Apply makes device, address, peers and route match d, in this order: the route
// comes last, for from then on the kernel sends us packets.
//
// The socket comes before all of it: when the port is taken, most likely by
// flanneld, the device is in use too and is left alone.
func (b *Backend) Apply(ctx context.Context, d backend.Desired) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.check(d.Uplink); err != nil {
		return err
	}
	if err := b.openSockets(ctx, d); err != nil {
		return err
	}
	b.mtu.Store(int64(b.MTU(d.Uplink)))
	peers, own, unfit := b.project(d)
	b.setPeers(peers, own)
	link, linkErr := b.ensureDevice(ctx, b.MTU(d.Uplink))
	if link.Index == 0 {
		return errors.Join(linkErr, unfit)
	}
	addrs, addrErr := reconcile.Apply(ctx, b.addresses(link, d))
	upErr := b.bringUp(ctx, link)
	routes, routeErr := b.applyRoutes(ctx, link, d)
	if b.params.Observe != nil {
		b.params.Observe(reconcile.Result{
			Put:     addrs.Put + routes.Put,
			Deleted: addrs.Deleted + routes.Deleted,
			Failed:  addrs.Failed + routes.Failed,
		})
	}
	return errors.Join(linkErr, addrErr, upErr, routeErr, unfit)
}

// openSockets opens what is not open yet, and closes those of addresses that we have
// left. The new ones come first: there is no moment without any.
func (b *Backend) openSockets(ctx context.Context, d backend.Desired) error {
	f := outer(d.Uplink)
	have := b.outlets.load().sets
	sets := make([]*outletSet, 0, 2)
	for i, addr := range [...]netip.Addr{d.Uplink.Addr[f], d.Also[f]} {
		if !addr.IsValid() || i > 0 && addr == d.Uplink.Addr[f] {
			continue
		}
		at := netip.AddrPortFrom(addr, b.port)
		if n := slices.IndexFunc(have, func(s *outletSet) bool { return s.at == at }); n >= 0 {
			sets = append(sets, have[n])
			continue
		}
		set, err := b.openSet(ctx, at)
		switch {
		case err == nil:
			sets = append(sets, set)
		case i == 0:
			return err
		default:
			// Then nothing comes there, and what we send by does not suffer.
			b.log.Warn("not receiving at another address of ours", "address", addr, "error", err)
		}
	}
	if err := b.outlets.put(sets...); err != nil {
		return err
	}
	if b.raw == nil {
		raw, err := openRaw(ctx, b.params.Families())
		if err != nil {
			b.log.Warn("undeliverable packets are not answered with icmp errors, which needs CAP_NET_RAW", "error", err)
		}
		b.raw = raw
		b.answers.setOut(raw)
	}
	return nil
}

// openSet opens all sockets at an address.
func (b *Backend) openSet(ctx context.Context, at netip.AddrPort) (*outletSet, error) {
	conns, err := openSockets(ctx, at, b.socketOptions())
	if err != nil {
		return nil, err
	}
	return newOutletSet(at, conns, b.openMore(ctx, at.Addr())), nil
}

// openMore opens the sockets by which flows leave from ports of their own, for each
// queue. Without them everything passes, too.
func (b *Backend) openMore(ctx context.Context, at netip.Addr) [][]Sender {
	if b.fixed {
		return nil
	}
	var more [][]Sender
	for range b.queues {
		senders, err := openSenders(ctx, at, max(1, sourcesMost/b.queues), b.socketOptions())
		if err != nil {
			err = errors.Join(err, closeSenders(slices.Concat(more...)))
			b.log.Warn("sending from our own port only", "error", err)
			return nil
		}
		more = append(more, senders)
	}
	return more
}

// ensureDevice attaches to the device where we have not, or where it was deleted
// since, and sets what it carries in itself. The link is zero when there is none
// to go on with.
func (b *Backend) ensureDevice(ctx context.Context, mtu int) (kernel.Link, error) {
	if b.tunnel != nil && b.tunnel.attached() {
		link, err := b.params.Kernel.LinkByName(ctx, device)
		if err != nil {
			return kernel.Link{}, fmt.Errorf("find device %s: %w", device, err)
		}
		return link, b.tune(ctx, link, mtu)
	}
	if b.tunnel != nil {
		b.devices.put()
		if err := b.tunnel.Close(); err != nil {
			return kernel.Link{}, err
		}
		b.tunnel = nil
	}
	opened, err := b.attach(ctx)
	if err != nil {
		return kernel.Link{}, err
	}
	link, err := b.params.Kernel.LinkByName(ctx, device)
	if err == nil {
		err = b.tune(ctx, link, mtu)
	}
	if err == nil {
		// Last: until here a failure leaves no device that nobody marked.
		err = opened.persist()
	}
	if err != nil {
		return kernel.Link{}, errors.Join(fmt.Errorf("set up device %s: %w", device, err), opened.Close())
	}
	b.tunnel = opened
	b.devices.put(opened.queues()...)
	level := b.level(opened)
	b.log.Info("attached to tunnel device", "device", device, "mtu", mtu,
		"queues", level.Queues, "offloads", listOn(level.Offloads))
	return link, nil
}

// attach opens the device, adopting one of an earlier run that is free and can have
// as many queues as we want.
func (b *Backend) attach(ctx context.Context) (tunnel, error) {
	o := tunOptions{Queues: b.queues, MultiQueue: b.queues > 1, Whole: b.whole}
	link, err := b.params.Kernel.LinkByName(ctx, device)
	switch {
	case errors.Is(err, kernel.ErrNotFound):
	case err != nil:
		return nil, fmt.Errorf("find device %s: %w", device, err)
	case link.Type != linkType:
		return nil, foreignError(device, "type "+link.Type)
	case link.Tun.Queues > 0:
		// The kernel would let us attach, and share the packets out.
		return nil, busyError(device)
	case link.Tun.MultiQueue:
		o.MultiQueue = true // also for one queue
	case o.MultiQueue:
		if err := b.remove(ctx, link); err != nil {
			return nil, err
		}
	}
	return b.open(device, o)
}

// remove deletes a device of one queue, flannel's or that of a run with other
// options: it can never have more. Whoever still holds it keeps it.
func (b *Backend) remove(ctx context.Context, link kernel.Link) error {
	held, err := b.open(device, tunOptions{Queues: 1, Whole: b.whole})
	if err != nil {
		return err
	}
	b.log.Info("replacing tunnel device that has a single queue", "device", device)
	if err = b.params.Kernel.DeleteLink(ctx, link.Index); err != nil {
		err = fmt.Errorf("replace device %s: %w", device, err)
	}
	return errors.Join(err, held.Close())
}

// tune sets mark, MTU and queue length where they differ.
func (b *Backend) tune(ctx context.Context, link kernel.Link, mtu int) error {
	var c kernel.LinkChange
	if link.Alias != kernel.Alias {
		c.Alias = kernel.Alias
	}
	if link.MTU != mtu {
		c.MTU = mtu
	}
	if link.TxQueueLen < queueLen {
		c.TxQueueLen = queueLen
	}
	if c == (kernel.LinkChange{}) {
		return nil
	}
	return b.params.Kernel.SetLink(ctx, link.Index, c)
}

// bringUp sets the device up if it is down.
func (b *Backend) bringUp(ctx context.Context, link kernel.Link) error {
	if link.Up {
		return nil
	}
	up := true
	if err := b.params.Kernel.SetLink(ctx, link.Index, kernel.LinkChange{Up: &up}); err != nil {
		return fmt.Errorf("bring up device %s: %w", device, err)
	}
	return nil
}

// addresses gives the device the first address of each own subnet, as a /32 or
// /128. Of others it removes those of an earlier subnet.
func (b *Backend) addresses(link kernel.Link, d backend.Desired) reconcile.Step {
	var want []kernel.Addr
	for _, p := range d.Own.Subnet {
		if p.IsValid() {
			a := p.Masked().Addr()
			want = append(want, kernel.Addr{Link: link.Index, Prefix: netip.PrefixFrom(a, a.BitLen())})
		}
	}
	return reconcile.NewStep("address", b.params.Kernel.Addrs(link.Index), want, func(a kernel.Addr) bool {
		network := d.Config.Ranges[subnet.FamilyOf(a.Prefix.Addr())].Network
		return a.Prefix.IsSingleIP() && network.IsValid() && network.Contains(a.Prefix.Addr())
	})
}

// applyRoutes leads the whole network into the device. What other routes are ours
// and which are not touched is [backend.Router]'s policy.
func (b *Backend) applyRoutes(ctx context.Context, link kernel.Link, d backend.Desired) (reconcile.Result, error) {
	plan := backend.RoutePlan{
		Desired:   d,
		Devices:   []int{link.Index},
		Blackhole: b.params.Blackhole,
	}
	for f, r := range d.Config.Ranges {
		if r.Network.IsValid() && d.Own.Subnet[f].IsValid() {
			plan.Routes = append(plan.Routes, backend.PeerRoute{Route: kernel.Route{
				Dst: r.Network, Link: link.Index, Protocol: kernel.Protocol,
			}})
		}
	}
	step, blocked := b.router.Step(ctx, plan)
	r, err := reconcile.Apply(ctx, step)
	return r, errors.Join(blocked, err)
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
	former := b.former(d)
	for i := range d.Peers {
		lease := &d.Peers[i]
		to, err := b.endpoint(d, lease.Attrs)
		if err != nil {
			errs = append(errs, backend.NewPeerError(lease, outer(d.Uplink), err))
			continue
		}
		to.former = former[lease.Subnet]
		for _, p := range lease.Subnet {
			if p.IsValid() {
				peers = append(peers, peer{prefix: p.Masked(), endpoint: to})
			}
		}
	}
	return peers, own, errors.Join(errs...)
}

// former are the addresses that peers had a moment ago.
func (b *Backend) former(d backend.Desired) map[subnet.Subnet]netip.Addr {
	addrs := make(map[subnet.Subnet]netip.Addr, len(d.Former))
	for i := range d.Former {
		addrs[d.Former[i].Subnet] = d.Former[i].Attrs.PublicIP[outer(d.Uplink)].Unmap()
	}
	return addrs
}

// endpoint returns where a peer receives datagrams.
func (b *Backend) endpoint(d backend.Desired, a subnet.Attrs) (endpoint, error) {
	f := outer(d.Uplink)
	if err := d.Uplink.CheckPeer("", f, a); err != nil {
		return endpoint{}, err
	}
	addr := a.PublicIP[f].Unmap()
	if n := d.Config.Ranges[f].Network; n.IsValid() && n.Contains(addr) {
		return endpoint{}, fmt.Errorf("its public address is inside the network %s, which the tunnel itself carries", n)
	}
	port, published, err := b.peerPort(a.BackendData[f])
	if err != nil {
		return endpoint{}, err
	}
	return endpoint{to: netip.AddrPortFrom(addr, port), vary: published}, nil
}

// backendData is what hosts of ours publish beside their address.
type backendData struct {
	// Port is where the host receives datagrams; nil: it does not say.
	Port *uint16
}

// peerPort is the port in a peer's backend data, or else the configured one.
// Published tells whether it is the first: then the peer is a host of ours, for
// flannel publishes none.
func (b *Backend) peerPort(data subnet.RawJSON) (port uint16, published bool, _ error) {
	if data == "" {
		return b.port, false, nil
	}
	var fields backendData
	if err := json.Unmarshal([]byte(data), &fields); err != nil {
		return 0, false, fmt.Errorf("read its backend data %s: %w", data, err)
	}
	switch {
	case fields.Port == nil:
		return b.port, false, nil
	case *fields.Port == 0:
		return 0, false, fmt.Errorf("read its backend data %s: Port is 0", data)
	}
	return *fields.Port, true, nil
}
