package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
)

// runNetworkCreate makes a network on this host's subnet, which the daemon
// knows. It may be run again.
func runNetworkCreate(ctx context.Context, inv *invocation) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	name := inv.args[0]
	if err := dockerd.CheckName(name); err != nil {
		return cli.Usagef("%w", err)
	}
	s, err := inv.fetchStatus(ctx)
	if err != nil {
		return err
	}
	client := dockerd.NewClient(inv.docker)
	engine, err := client.Ask(ctx)
	if err != nil {
		return err
	}
	spec, err := networkSpec(name, s, dockerd.CapabilitiesOf(engine.Version, engine.Info))
	if err != nil {
		return err
	}
	kept, err := client.Keep(ctx, spec)
	if err != nil {
		return explainNetwork(ctx, client, spec, err)
	}
	did := map[dockerd.Kept]string{dockerd.Unchanged: "is there already", dockerd.Created: "created", dockerd.Recreated: "made anew"}[kept]
	fmt.Fprintf(inv.out, "docker network %s %s: bridge %s, subnet %s, mtu %d\n", name, did, spec.Bridge(), s.Lease.Subnet, spec.MTU)
	if s.Docker == nil || s.Docker.Network != name {
		fmt.Fprintf(inv.out, "It stays as it is when subnet or MTU change; run the daemon with --docker-network=%s to have it kept.\n", name)
	}
	return nil
}

// networkSpec is the network that fits what the daemon says.
func networkSpec(name string, s status.Status, c dockerd.Capabilities) (dockerd.Spec, error) {
	if s.Lease.Subnet == "" || s.Backend.MTU == 0 {
		return dockerd.Spec{}, fmt.Errorf("the daemon has no subnet yet (%s): flannelctl status", s.State)
	}
	spec := dockerd.Spec{Name: name, MTU: s.Backend.MTU, NoMasquerade: s.IPMasq}
	for text := range strings.SplitSeq(s.Lease.Subnet, ",") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return dockerd.Spec{}, fmt.Errorf("read the daemon's subnet: %w", err)
		}
		spec.Addrs = append(spec.Addrs, daemonconfig.HostAddr(p))
	}
	if c.TrustedInterfaces {
		spec.Trusted = slices.Clone(s.Backend.Devices)
		if s.Backend.Direct || len(spec.Trusted) == 0 {
			spec.Trusted = append(spec.Trusted, s.Uplink.Name)
		}
		slices.Sort(spec.Trusted)
		spec.Trusted = slices.Compact(spec.Trusted)
	}
	return spec, nil
}

// explainNetwork says what is in the way of a network.
func explainNetwork(ctx context.Context, client *dockerd.Client, spec dockerd.Spec, err error) error {
	var refusal *dockerd.APIError
	if !errors.As(err, &refusal) {
		return err
	}
	networks, lerr := client.Networks(ctx)
	if lerr != nil {
		return err // the first error is the one to tell
	}
	for _, n := range networks {
		for _, theirs := range n.Subnets {
			for _, ours := range spec.Addrs {
				switch {
				case !theirs.Overlaps(ours):
				case n.Name == "bridge":
					return fmt.Errorf("%w: docker0 has this host's subnet: run the daemon with --docker-network=%s and restart Docker once", err, spec.Name)
				default:
					return fmt.Errorf("%w: network %s has %s: docker network rm %s", err, n.Name, theirs.Masked(), n.Name)
				}
			}
		}
	}
	return err
}
