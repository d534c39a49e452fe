package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// SubnetEnv is what the daemon hands to Docker in subnet.env.
type SubnetEnv struct {
	// Subnets are docker0's addresses, one per family.
	Subnets []netip.Prefix
	MTU     int
	IPMasq  bool
}

// ReadSubnet reads subnet.env as it is now.
func (h *Host) ReadSubnet() (SubnetEnv, error) {
	text, err := os.ReadFile(h.SubnetFile())
	if err != nil {
		return SubnetEnv{}, err
	}
	env, err := parseSubnetEnv(string(text))
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("read %s: %w", h.SubnetFile(), err)
	}
	return env, nil
}

// WaitSubnet waits for subnet.env.
func (h *Host) WaitSubnet(ctx context.Context) (SubnetEnv, error) {
	var env SubnetEnv
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

func parseSubnetEnv(text string) (SubnetEnv, error) {
	vars := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			return SubnetEnv{}, fmt.Errorf("%q: must be NAME=value", strings.TrimSpace(line))
		}
		vars[name] = value
	}
	var env SubnetEnv
	for _, name := range []string{"FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"} {
		value, ok := vars[name]
		if !ok {
			continue
		}
		p, err := netip.ParsePrefix(value)
		if err != nil {
			return SubnetEnv{}, fmt.Errorf("%s: %w", name, err)
		}
		env.Subnets = append(env.Subnets, p)
	}
	var err error
	if env.MTU, err = strconv.Atoi(vars["FLANNEL_MTU"]); err != nil {
		return SubnetEnv{}, fmt.Errorf("FLANNEL_MTU: %w", err)
	}
	if env.IPMasq, err = strconv.ParseBool(vars["FLANNEL_IPMASQ"]); err != nil {
		return SubnetEnv{}, fmt.Errorf("FLANNEL_IPMASQ: %w", err)
	}
	if len(env.Subnets) == 0 {
		return SubnetEnv{}, errors.New("FLANNEL_SUBNET: missing")
	}
	return env, nil
}

// Container is a namespace behind docker0 of its host.
type Container struct {
	*Node
	// Addrs are in the order of SubnetEnv.Subnets.
	Addrs []netip.Prefix
}

// Addr is the container's first address.
func (c *Container) Addr() netip.Addr { return c.Addrs[0].Addr() }

// StartContainer does what dockerd and `docker run` do with subnet.env: docker0
// with the subnet's first address and the MTU, and a container that has the
// next address and its default route there.
func (h *Host) StartContainer(env SubnetEnv) error {
	docker0, err := h.addBridge("docker0", env.MTU, env.Subnets)
	if err != nil {
		return err
	}
	node, err := h.lab.addNode(fmt.Sprintf("c%d", h.Number))
	if err != nil {
		return err
	}
	c := &Container{Node: node}
	var gateways []netip.Addr
	for _, p := range env.Subnets {
		c.Addrs = append(c.Addrs, netip.PrefixFrom(p.Addr().Next(), p.Bits()))
		gateways = append(gateways, p.Addr())
	}
	if err := docker0.plug("vethc", node, c.Addrs, gateways); err != nil {
		return err
	}
	h.Container = c
	return nil
}
