package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
)

// writeDockerNetwork keeps a network of Docker's on this host's subnet. docker0
// then is none of ours: keys of an earlier start are taken back, and as long as
// docker0 still has the subnet there is no room for the network.
func (l *loop) writeDockerNetwork(ctx context.Context) error {
	if err := l.releaseBridge(ctx); err != nil {
		return err
	}
	var stale error
	if l.isMarkStale() {
		if stale = l.restartOnce(ctx, l.differsProblem([]string{markStale})); l.docker.restarting.Load() {
			return stale
		}
	}
	err := l.keepNetwork(ctx)
	if err == nil && stale == nil && l.docker.seen.up {
		l.forgetAttempt()
	}
	return joinProblems(err, stale)
}

// keepNetwork makes Docker have the network.
func (l *loop) keepNetwork(ctx context.Context) error {
	if !l.docker.seen.up {
		return nil // it is made when Docker is up
	}
	bridge, err := l.lookAtBridge(ctx)
	if err != nil {
		return err
	}
	if bridge != nil && slices.Contains(bridge.addrs, l.hostAddr()) {
		return l.freeSubnet(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, dockerAnswer)
	defer cancel()
	spec := l.dockerSpec()
	kept, err := l.dockerClient().Keep(ctx, spec)
	var busy *dockerd.InUseError
	var foreign *dockerd.ForeignError
	switch {
	case errors.As(err, &busy):
		return withHint(err, "docker rm -f %s (or docker compose down), then it is made anew by itself", strings.Join(busy.Containers, " "))
	case errors.As(err, &foreign):
		return withHint(err, "docker network rm %s", spec.Name)
	case err != nil:
		return withHint(err, "docker network ls")
	}
	if kept != dockerd.Unchanged {
		l.log.Info("docker network made", "network", spec.Name, "bridge", spec.Bridge(), "subnet", l.lease.own.Subnet, "mtu", spec.MTU, "trusted", spec.Trusted)
	}
	return nil
}

// releaseBridge takes our keys back from Docker's file, but for the one by which
// Docker accepts the overlay, where it needs that.
func (l *loop) releaseBridge(ctx context.Context) error {
	if l.opts.dockerConfig != "" && l.wantMark() != (daemonconfig.Mark{}) {
		l.docker.withdrawn = false
		return l.keepConfig(ctx)
	}
	if l.docker.withdrawn {
		return nil
	}
	changes, err := daemonconfig.Withdraw(l.memoryPath())
	if err != nil {
		return err
	}
	for _, c := range changes {
		l.log.Info("docker config key taken back: the network has its own", "change", c.String(), "network", l.opts.dockerNetwork)
	}
	l.docker.withdrawn = true
	return nil
}

// freeSubnet makes Docker take the subnet from docker0, where that is allowed.
func (l *loop) freeSubnet(ctx context.Context) error {
	problem := fmt.Errorf("docker network %s cannot be made yet: %s has %s until Docker is restarted", l.opts.dockerNetwork, dockerBridge, l.hostAddr())
	if l.docker.seen.held() {
		return l.heldProblem(problem)
	}
	return l.restartOnce(ctx, withHint(problem, "systemctl restart docker"))
}

// dockerSpec is the network as it should be.
func (l *loop) dockerSpec() dockerd.Spec {
	spec := dockerd.Spec{Name: l.opts.dockerNetwork, MTU: l.backend.MTU(l.uplink), NoMasquerade: l.opts.ipMasq}
	for _, own := range l.lease.own.Subnet {
		if own.IsValid() {
			spec.Addrs = append(spec.Addrs, daemonconfig.HostAddr(own))
		}
	}
	if l.docker.seen.capabilities.TrustedInterfaces {
		t := l.backend.Tunnel()
		spec.Trusted = slices.Clone(t.Devices)
		if t.Direct || len(t.Devices) == 0 {
			spec.Trusted = append(spec.Trusted, l.uplink.Link.Name)
		}
		slices.Sort(spec.Trusted)
		spec.Trusted = slices.Compact(spec.Trusted)
	}
	return spec
}

// dropDockerNetwork removes the network as far as nobody uses it: containers are
// not ours to stop.
func (l *loop) dropDockerNetwork(ctx context.Context) error {
	if l.opts.dockerNetwork == "" || l.opts.dockerSocket == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dockerAnswer)
	defer cancel()
	_, err := l.dockerClient().Drop(ctx, l.opts.dockerNetwork)
	var busy *dockerd.InUseError
	if errors.As(err, &busy) {
		l.log.Warn("docker network stays: containers belong to it", "network", busy.Network, "containers", busy.Containers)
		return nil
	}
	if errors.Is(err, dockerd.ErrDown) {
		return nil
	}
	return err
}
