package udp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"unique"

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
	b.applied = nil
	if err := b.check(d.Uplink); err != nil {
		return err
	}
	if err := b.openSockets(ctx, d); err != nil {
		return err
	}
	b.mtu.Store(int64(b.MTU(d.Uplink)))
	p := b.project(d)
	b.setPeers(p.peers, p.own)
	link, linkErr := b.ensureDevice(ctx, b.MTU(d.Uplink))
	if link.Index == 0 {
		return errors.Join(linkErr, p.unfit)
	}
	addrs, addrErr := reconcile.Apply(ctx, b.addresses(link, d))
	upErr := b.bringUp(ctx, link)
	routes, routeErr := b.applyRoutes(ctx, link, d, p.routes)
	if b.params.Observe != nil {
		b.params.Observe(reconcile.Result{
			Put:     addrs.Put + routes.Put,
			Deleted: addrs.Deleted + routes.Deleted,
			Failed:  addrs.Failed + routes.Failed,
		})
	}
	d.Peers, d.Former = nil, nil
	b.applied = &d
	return errors.Join(linkErr, addrErr, upErr, routeErr, p.unfit)
}

// openSockets opens what is not open yet, and closes those of addresses that we have
// left. The new ones come first: there is no moment without any.
func (b *Backend) openSockets(ctx context.Context, d backend.Desired) error {
	have := b.outlets.load().sets
	sets := make([]*outletSet, 0, 1+len(d.Also))
	deaf := map[netip.AddrPort]string{}
	for i, at := range b.receiveAt(d) {
		if n := slices.IndexFunc(have, func(s *outletSet) bool { return s.at == at }); n >= 0 {
			sets = append(sets, have[n])
			continue
		}
		set, err := b.openSet(at)
		switch {
		case err == nil:
			sets = append(sets, set)
		case i == 0:
			return err
		default:
			// Then nothing comes there, and what we send by does not suffer.
			if deaf[at] = err.Error(); deaf[at] != b.deaf[at] {
				b.log.Warn("not receiving at another address of ours", "address", at.Addr(), "error", err)
			}
		}
	}
	b.deaf = deaf
	if err := b.outlets.put(sets...); err != nil {
		return err
	}
	b.openAnswers(ctx)
	return nil
}

// openAnswers opens the way out for answers to what cannot be delivered, once. It must
// be there before the first packet is read.
func (b *Backend) openAnswers(ctx context.Context) {
	if b.raw != nil {
		return
	}
	raw, err := openRaw(ctx, b.params.Families())
	if err != nil {
		b.log.Warn("undeliverable packets are not answered with icmp errors, which needs CAP_NET_RAW", "error", err)
	}
	b.raw = raw
	b.answers.setOut(raw)
}

// openSet opens all sockets at an address.
func (b *Backend) openSet(at netip.AddrPort) (*outletSet, error) {
	conns, err := openSockets(at, b.socketOptions())
	if err != nil {
		return nil, err
	}
	return newOutletSet(at, conns, b.openMore(at.Addr())), nil
}

// openMore opens the sockets by which flows leave from ports of their own, for each
// queue. Without them everything passes, too.
func (b *Backend) openMore(at netip.Addr) [][]Sender {
	if b.fixed {
		return nil
	}
	more, err := openSenders(at, sourcesMost, b.socketOptions())
	if err != nil {
		b.log.Warn("sending from our own port only", "error", err)
		return nil
	}
	return more
}

// ensureDevice attaches to the device where we have not, or where it was deleted
// since, and sets what it carries in itself. The link is zero when there is none
// to go on with.
func (b *Backend) ensureDevice(ctx context.Context, mtu int) (kernel.Link, error) {
	if b.tunnel != nil && b.tunnel.attached() {
		link, err := b.params.Kernel.LinkByName(ctx, b.device)
		if err != nil {
			return kernel.Link{}, fmt.Errorf("find device %s: %w", b.device, err)
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
	link, err := b.params.Kernel.LinkByName(ctx, b.device)
	if err == nil {
		err = b.tune(ctx, link, mtu)
	}
	if err == nil {
		// Last: until here a failure leaves no device that nobody marked.
		err = opened.persist()
	}
	if err != nil {
		return kernel.Link{}, errors.Join(fmt.Errorf("set up device %s: %w", b.device, err), opened.Close())
	}
	b.tunnel = opened
	b.devices.put(opened.queues()...)
	b.leveled().Info("attached to tunnel device")
	return link, nil
}

// attach opens the device, adopting one of an earlier run that is free and can have
// as many queues as we want. One that has a single queue and can never have more is
// adopted only if it is ours and one is what we want; flannel's is replaced.
func (b *Backend) attach(ctx context.Context) (tunnel, error) {
	o := tunOptions{Queues: b.queues, MultiQueue: b.queues > 1, Whole: b.whole}
	link, err := b.params.Kernel.LinkByName(ctx, b.device)
	switch {
	case errors.Is(err, kernel.ErrNotFound):
	case err != nil:
		return nil, fmt.Errorf("find device %s: %w", b.device, err)
	case link.Type != linkType:
		return nil, foreignError(b.device, "type "+link.Type)
	case link.Tun.Queues > 0:
		// The kernel would let us attach, and share the packets out.
		return nil, busyError(b.device)
	case link.Tun.MultiQueue:
		o.MultiQueue = true // also for one queue
	case o.MultiQueue || link.Alias != b.params.Instance.Alias():
		if err := b.remove(ctx, link); err != nil {
			return nil, err
		}
	}
	return b.open(b.device, o)
}

// remove deletes a device of one queue, flannel's or that of a run with other
// options. Whoever still holds it keeps it.
func (b *Backend) remove(ctx context.Context, link kernel.Link) error {
	held, err := b.open(b.device, tunOptions{Queues: 1, Whole: b.whole})
	if err != nil {
		return err
	}
	b.log.Info("replacing tunnel device that has a single queue", "device", b.device)
	if err = b.params.Kernel.DeleteLink(ctx, link.Index); err != nil {
		err = fmt.Errorf("replace device %s: %w", b.device, err)
	}
	return errors.Join(err, held.Close())
}

// tune sets mark, MTU and queue length where they differ.
func (b *Backend) tune(ctx context.Context, link kernel.Link, mtu int) error {
	var c kernel.LinkChange
	if link.Alias != b.params.Instance.Alias() {
		c.Alias = b.params.Instance.Alias()
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
		return fmt.Errorf("bring up device %s: %w", b.device, err)
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

// applyRoutes leads the whole network into the device, but for what the direct
// routes lead elsewhere. What other routes are ours and which are not touched is
// [backend.Router]'s policy.
func (b *Backend) applyRoutes(ctx context.Context, link kernel.Link, d backend.Desired, direct []kernel.Route) (reconcile.Result, error) {
	plan := backend.RoutePlan{
		Desired:   d,
		Routes:    direct,
		Devices:   []int{link.Index},
		Blackhole: b.params.Blackhole,
	}
	for f, r := range d.Config.Ranges {
		if r.Network.IsValid() && d.Own.Subnet[f].IsValid() {
			plan.Routes = append(plan.Routes, kernel.Route{Dst: r.Network, Link: link.Index, Protocol: b.params.Instance.Protocol()})
		}
	}
	step, blocked := b.router.Step(ctx, plan)
	r, err := reconcile.Apply(ctx, step)
	return r, errors.Join(blocked, backend.Blame(err, backend.PeerOf(d.Peers)))
}

// projection is what the leases mean.
type projection struct {
	// peers and own are what the packet path knows.
	peers []peer
	own   subnet.ByFamily[netip.Addr]
	// routes lead to peers past it.
	routes []kernel.Route
	// unfit names the peers that cannot be reached, which are left out.
	unfit error
}

func (b *Backend) project(d backend.Desired) (p projection) {
	var errs []error
	for f, own := range d.Own.Subnet {
		if own.IsValid() {
			p.own[f] = own.Masked().Addr()
		}
	}
	former, endpoints := b.former(d), make([]endpoint, len(d.Peers))
	for i := range d.Peers {
		lease, to := d.Peers[i], &endpoints[i]
		var err error
		if *to, err = b.endpoint(d, lease.Attrs); err != nil {
			errs = append(errs, backend.NewPeerError(lease, outer(d.Uplink), err))
			continue
		}
		if addrs, moved := former[lease.Subnet]; moved {
			to.former = unique.Make(addrs)
		}
		for _, prefix := range lease.Subnet {
			if prefix.IsValid() {
				p.peers = append(p.peers, peer{prefix: prefix.Masked(), endpoint: to})
			}
		}
		if r, ok := b.directRoute(d.Uplink, lease, *to); ok {
			p.routes = append(p.routes, r)
		}
	}
	p.unfit = errors.Join(errs...)
	return p
}

// former are the addresses that peers had a moment ago.
func (b *Backend) former(d backend.Desired) map[subnet.Subnet]formers {
	all := make(map[subnet.Subnet]formers, len(d.Former))
	for i := range d.Former {
		addrs := all[d.Former[i].Subnet]
		addrs.add(d.Former[i].Attrs.PublicIP[outer(d.Uplink)].Unmap())
		all[d.Former[i].Subnet] = addrs
	}
	return all
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
	data, err := readData(a.BackendData[f])
	if err != nil {
		return endpoint{}, err
	}
	to := endpoint{to: netip.AddrPortFrom(addr, b.port), direct: b.direct && data.DirectRouting}
	if data.Port != nil { // a host of ours, for flannel publishes none
		to.to, to.vary = netip.AddrPortFrom(addr, *data.Port), true
	}
	return to, nil
}
