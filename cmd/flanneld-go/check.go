package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// checkTimeout bounds what --check waits for etcd, each time that it asks. What the kernel
// takes while others keep it busy is not for etcd to be blamed for.
const checkTimeout = 5 * time.Second

// check plans a start and says what it would come to. It writes nothing, etcd
// included.
func (d *daemon) check(ctx context.Context, out io.Writer) (err error) {
	defer func() { err = errors.Join(err, d.store.Close()) }()
	d.warn()
	host, err := d.open(kernel.Options{Instance: d.opts.instance.Instance})
	if err != nil {
		return err
	}
	defer host.Close()
	loading, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	world, err := d.store.Load(loading)
	if err != nil {
		return err
	}
	l := newLoop(d, host, nil)
	if err := l.remember(); err != nil {
		return err
	}
	if err := l.judge(world.Config); err != nil {
		return err
	}
	if err := l.takeUplink(ctx); err != nil {
		return err
	}
	if l.backend, err = l.newBackend(l.config.current); err != nil {
		return err
	}
	if l.attrs, err = l.backend.Attrs(l.uplink); err != nil {
		return err
	}
	claim, err := l.claim(ctx)
	if err != nil {
		return err
	}
	leasing, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if l.lease.own, err = subnet.Acquire(leasing, dryStore{d.store}, world, claim); err != nil {
		return err
	}
	return l.printPlan(out, world)
}

// printPlan says what a start would do.
func (l *loop) printPlan(out io.Writer, world subnet.World) error {
	l.path.peers, l.path.refused = selectPeers(l.config.current, self{l.node, l.attrs.PublicIP, l.lease.own.Subnet}, subnet.Each(world.Leases))
	fmt.Fprintf(out, "network   %s, backend %s (config revision %d)\n", strings.Join(networks(l.config.current), ", "), l.config.current.BackendType, world.Config.Modified)
	fmt.Fprintf(out, "uplink    %s, %s, mtu %d\n", l.uplink.Link.Name, strings.Join(addrs(l.uplink.Public), ", "), l.uplink.Link.MTU)
	fmt.Fprintf(out, "subnet    %s\n", l.lease.own.Subnet)
	fmt.Fprintf(out, "data path %s, mtu %d\n", strings.Join(l.backend.Tunnel().Devices, ", "), l.backend.MTU(l.uplink))
	fmt.Fprintf(out, "peers     %d\n", len(l.path.peers))
	for _, r := range l.path.refused {
		fmt.Fprintf(out, "          %s at %s %s\n", r.lease.Subnet, publicIP(r.lease), r.why)
	}
	fmt.Fprintf(out, "\n%s:\n%s", l.opts.subnetFile, indent(string(l.env().Format())))
	if l.opts.dockerNetwork != "" {
		fmt.Fprintf(out, "\ndocker network %s:\n  bridge %s, subnet %s, mtu %d\n", l.opts.dockerNetwork, l.dockerSpec().Bridge(), l.lease.own.Subnet, l.backend.MTU(l.uplink))
		return nil
	}
	if l.opts.dockerOptions != "" {
		fmt.Fprintf(out, "\n%s:\n%s", l.opts.dockerOptions, indent(string(daemonconfig.OptionsFile(l.env()))))
		return nil
	}
	if l.opts.dockerConfig == "" {
		return nil
	}
	_, plan, err := l.planDocker()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s:\n", l.opts.dockerConfig)
	if len(plan.Changes) == 0 {
		fmt.Fprintln(out, "  unchanged")
	}
	for _, change := range plan.Changes {
		fmt.Fprintf(out, "  %s\n", change)
	}
	return nil
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ") + "\n"
}

// dryStore agrees to every write and does none.
type dryStore struct{ subnet.Store }

// Create returns the lease that would be created.
func (dryStore) Create(_ context.Context, l subnet.Lease, ttl time.Duration, _ subnet.World) (subnet.Lease, error) {
	l.TTL = ttl
	return l, nil
}

// Update returns the lease as it would be.
func (dryStore) Update(_ context.Context, l subnet.Lease) (subnet.Lease, error) { return l, nil }

// Renew returns the lease as it would be.
func (dryStore) Renew(_ context.Context, l subnet.Lease) (subnet.Lease, error) { return l, nil }

// Release keeps the lease.
func (dryStore) Release(context.Context, subnet.Lease) error { return nil }
