package vxlan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Backend is the VXLAN backend. Apply and Cleanup must not run concurrently;
// the rest may.
type Backend struct {
	params backend.Params
	opts   Options
	kernel kernel.Host
	log    *slog.Logger

	projection projection
	// devices are those of the last Apply.
	devices    subnet.ByFamily[device]
	router     backend.Router
	fdb        subnet.ByFamily[reconcile.Differ[kernel.FDB, kernel.FDBKey]]
	neighbours subnet.ByFamily[reconcile.Differ[kernel.Neighbour, kernel.NeighbourKey]]

	mu sync.Mutex
	// macs are what peers were or will be told; zero: not decided.
	macs subnet.ByFamily[kernel.MAC]
	// rooms are the MTUs that uplinks allowed at the last look.
	rooms subnet.ByFamily[int]
}

var _ backend.Constructor = New

// New checks the options.
func New(p backend.Params) (backend.Backend, error) {
	opts, unknown, err := ParseOptions(p.Config)
	if err != nil {
		return nil, err
	}
	p.WarnUnknown(unknown)
	return &Backend{
		params: p, opts: opts, kernel: p.Kernel, log: p.Logger(),
		projection: projection{params: p, opts: opts},
		router:     p.Router(),
	}, nil
}

// check says why an uplink cannot carry the devices, and warns of what it does not
// let them have.
func (b *Backend) check(u backend.Uplink) error {
	if err := b.params.CheckUplink(u); err != nil {
		return err
	}
	for _, f := range b.params.Families() {
		room := u.Link.MTU - overheads[f]
		if room < minMTU[f] {
			return fmt.Errorf("uplink %s has MTU %d: %s over VXLAN needs at least %d", u.Link.Name, u.Link.MTU, f, minMTU[f]+overheads[f])
		}
		if b.isNews(f, room) && b.opts.MTU > room {
			b.log.Warn("configured mtu is more than the uplink allows", "device", deviceName(f, b.opts.VNI), "configured", b.opts.MTU, "mtu", room)
		}
	}
	return nil
}

// isNews reports whether an uplink allowed another MTU at the last look.
func (b *Backend) isNews(f subnet.Family, room int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.rooms[f]
	b.rooms[f] = room
	return before != room
}

// mtu is that of one family's device. The kernel cuts what the uplink cannot carry
// anyway, so saying it first keeps MTU and device equal.
func (b *Backend) mtu(u backend.Uplink, f subnet.Family) int {
	room := u.Link.MTU - overheads[f]
	if b.opts.MTU == 0 {
		return room
	}
	return min(room, b.opts.MTU)
}

// MTU is that of the smaller device.
func (b *Backend) MTU(u backend.Uplink) int {
	least := 0
	for _, f := range b.params.Families() {
		if mtu := b.mtu(u, f); least == 0 || mtu < least {
			least = mtu
		}
	}
	return least
}

// Tunnel names the devices and the port.
func (b *Backend) Tunnel() backend.Tunnel {
	t := backend.Tunnel{
		Direct: b.opts.DirectRouting, Port: uint16(b.opts.Port), //nolint:gosec // within 1..65535
		Encapsulation: backend.VXLANFrame, VNI: uint32(b.opts.VNI), //nolint:gosec // within 24 bits
	}
	for _, f := range b.params.Families() {
		t.Devices = append(t.Devices, deviceName(f, b.opts.VNI))
	}
	return t
}

// Attrs reads the MACs of devices that are there already, and else derives them.
func (b *Backend) Attrs(u backend.Uplink) (subnet.Attrs, error) {
	if err := b.check(u); err != nil {
		return subnet.Attrs{}, err
	}
	attrs := b.params.Attrs(Type, u)
	links, err := b.kernel.Links(context.Background())
	if err != nil {
		return subnet.Attrs{}, fmt.Errorf("list links: %w", err)
	}
	for _, f := range b.params.Families() {
		if attrs.BackendData[f], err = marshalVTEP(b.opts.VNI, b.mac(f, links)); err != nil {
			return subnet.Attrs{}, err
		}
	}
	return attrs, nil
}

// mac is this host's MAC in a family. Once said it stays, whatever becomes of
// the device: peers were told. A device that must be made anew passes it on.
func (b *Backend) mac(f subnet.Family, links []kernel.Link) kernel.MAC {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.macs[f] == (kernel.MAC{}) {
		b.macs[f] = deriveMAC(b.params.Node, b.opts.VNI, f)
		if l, found := find(links, deviceName(f, b.opts.VNI)); found && b.adoptable(l) && unicast(l.MAC) {
			b.macs[f] = l.MAC
		}
	}
	return b.macs[f]
}

// Apply makes devices, addresses and the peers' entries match d.
func (b *Backend) Apply(ctx context.Context, d backend.Desired) error {
	var (
		total reconcile.Result
		errs  []error
	)
	done := func(r reconcile.Result, err error) {
		total.Put, total.Deleted, total.Failed = total.Put+r.Put, total.Deleted+r.Deleted, total.Failed+r.Failed
		errs = append(errs, err)
	}
	b.devices = subnet.ByFamily[device]{}
	links, err := b.kernel.Links(ctx)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var devices subnet.ByFamily[device]
	for _, f := range b.params.Families() {
		dev, r, err := b.device(ctx, b.wanted(d.Uplink, f, b.mac(f, links)), links)
		devices[f] = dev
		done(r, err)
		if dev.index != 0 {
			done(b.address(ctx, f, dev, d.Own.Subnet[f]))
		}
	}
	b.devices = devices
	done(b.peers(ctx, devices, d))
	if b.params.Observe != nil {
		b.params.Observe(total)
	}
	return errors.Join(errs...)
}

// device brings one family's device up. One that is up but not in everything as
// it should be is used all the same, beside the error.
func (b *Backend) device(ctx context.Context, want kernel.Link, links []kernel.Link) (device, reconcile.Result, error) {
	index, changed, err := b.ensure(ctx, links, want)
	r := reconcile.Result{Put: changed}
	if err != nil {
		r.Failed = 1
	}
	return device{index, want.MAC}, r, err
}

// address puts the first address of our subnet on the device: what the host
// itself sends to containers comes from there. Of others it removes the one
// address of an earlier subnet.
func (b *Backend) address(ctx context.Context, f subnet.Family, dev device, own netip.Prefix) (reconcile.Result, error) {
	var desired []kernel.Addr
	if own.IsValid() {
		desired = []kernel.Addr{{Link: dev.index, Prefix: netip.PrefixFrom(own.Addr(), f.Bits())}}
	}
	rng := b.params.Config.Ranges[f]
	earlier := func(a kernel.Addr) bool {
		return a.Prefix.IsSingleIP() && rng.Network.Contains(a.Prefix.Addr()) &&
			netip.PrefixFrom(a.Prefix.Addr(), rng.SubnetLen).Masked().Addr() == a.Prefix.Addr()
	}
	return reconcile.Apply(ctx, reconcile.NewStep("address", b.kernel.Addrs(dev.index), desired, earlier))
}

// peers makes the entries of all peers match: the FDB first, then neighbours,
// then the routes that lead packets there.
func (b *Backend) peers(ctx context.Context, devices subnet.ByFamily[device], d backend.Desired) (reconcile.Result, error) {
	p := &b.projection
	skipped := p.project(devices, d)
	plan := backend.RoutePlan{Desired: d, Routes: p.routes, Blackhole: b.params.Blackhole}
	var steps []reconcile.Step
	for _, f := range b.params.Families() {
		index := devices[f].index
		if index == 0 {
			plan.Keep[f] = true
			continue
		}
		plan.Devices = append(plan.Devices, index)
		steps = append(steps, b.fdb[f].Step("fdb entry", b.kernel.FDB(index), p.fdb[f], nil))
	}
	for _, f := range b.params.Families() {
		if index := devices[f].index; index != 0 {
			steps = append(steps, b.neighbours[f].Step("neighbour", b.kernel.Neighbours(index), p.neighbours[f], nil))
		}
	}
	step, blocked := b.router.Step(ctx, plan)
	r, err := b.params.ApplyAndSweep(ctx, b.Tunnel().Devices, append(steps, step)...)
	return r, errors.Join(skipped, blocked, backend.Blame(err, p.peerOf(d.Peers)))
}

// Cleanup removes the routes and the devices, flannel's under our name too; the
// other entries go with their device.
func (b *Backend) Cleanup(ctx context.Context) error {
	_, routes := b.router.Sweep(ctx)
	_, ours := b.params.SweepLinks(ctx)
	_, flannels := b.params.DeleteLinks(ctx, func(l kernel.Link) bool {
		return b.adoptable(l) && slices.Contains(b.Tunnel().Devices, l.Name)
	})
	return errors.Join(routes, ours, flannels)
}
