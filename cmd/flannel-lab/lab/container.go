package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// ReadSubnet reads subnet.env as it is now.
func (h *Host) ReadSubnet() (daemonconfig.Env, error) {
	text, err := os.ReadFile(h.SubnetFile())
	if err != nil {
		return daemonconfig.Env{}, err
	}
	env, err := daemonconfig.ParseEnv(text)
	if err != nil {
		return daemonconfig.Env{}, fmt.Errorf("read %s: %w", h.SubnetFile(), err)
	}
	return env, nil
}

// WaitSubnet waits for subnet.env.
func (h *Host) WaitSubnet(ctx context.Context) (daemonconfig.Env, error) {
	var env daemonconfig.Env
	err := h.waitDaemon(ctx, "subnet.env", func() (bool, error) {
		var err error
		env, err = h.ReadSubnet()
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	})
	return env, err
}

// Container is a namespace behind docker0 of its host, or behind docker1 of its instance
// 1.
type Container struct {
	*Node
	// Addrs are those of the families that are on, IPv4 first.
	Addrs []netip.Prefix
}

// Addr is the container's first address.
func (c *Container) Addr() netip.Addr { return c.Addrs[0].Addr() }

// StartContainer does what dockerd and `docker run` do with subnet.env: docker0
// with the subnet's first address and the MTU, and a container that has the
// next address and its default route there.
func (h *Host) StartContainer(env daemonconfig.Env) error {
	if h.Container != nil {
		return fmt.Errorf("start container on %s: it has one", h.Name)
	}
	var own, inside []netip.Prefix
	var gateways []netip.Addr
	for _, p := range env.Subnets {
		if !p.IsValid() {
			continue
		}
		gw := daemonconfig.HostAddr(p)
		own = append(own, gw)
		gateways = append(gateways, gw.Addr())
		inside = append(inside, netip.PrefixFrom(gw.Addr().Next(), gw.Bits()))
	}
	if len(own) == 0 {
		return fmt.Errorf("start container on %s: %s names no subnet", h.Name, h.SubnetFile())
	}
	docker0, err := h.addBridge(h.dockerBridge(), env.MTU, own)
	if err != nil {
		return err
	}
	node, err := h.lab.addNode(h.containerName())
	if err != nil {
		return errors.Join(err, h.removeLink(h.dockerBridge()))
	}
	if err := docker0.plug("vethc"+h.instance, node, inside, gateways); err != nil {
		return errors.Join(err, h.lab.removeNode(node), h.removeLink(h.dockerBridge()))
	}
	h.Container = &Container{Node: node, Addrs: inside}
	return nil
}

// containerName is the last part of its namespace's name: c2, or c2i1 of instance 1.
func (h *Host) containerName() string {
	name := fmt.Sprintf("c%d", h.Number)
	if h.instance != "" {
		name += "i" + h.instance
	}
	return name
}

// dockerBridge is what containers of this instance are behind.
func (h *Host) dockerBridge() string { return "docker" + cmp.Or(h.instance, "0") }

// StopContainer removes the container and docker0, as a restart of dockerd with
// another subnet does: StartContainer can make them anew.
func (h *Host) StopContainer() error {
	c := h.Container
	if c == nil {
		return fmt.Errorf("stop container on %s: it has none", h.Name)
	}
	h.Container = nil
	// A namespace's interfaces go some time after it, and who pings from inside
	// keeps it: the link goes first.
	err := errors.Join(h.removeLink("vethc"+h.instance), h.removeLink(h.dockerBridge()), h.lab.removeNode(c.Node))
	if err != nil {
		return fmt.Errorf("stop container on %s: %w", h.Name, err)
	}
	return nil
}
