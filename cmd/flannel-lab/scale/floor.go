package scale

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// addDevice makes the tunnel in a namespace without a daemon, with an address: without
// any the kernel refuses every gateway.
func addDevice(ctx context.Context, h *lab.Host) error {
	for _, args := range [][]string{
		{"link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472", "nolearning"},
		{"addr", "add", "10.255.255.0/32", "dev", "flannel.1"},
		{"link", "set", "flannel.1", "up"},
	} {
		if _, err := h.Run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	return nil
}

// measureFloor writes the entries of so many peers by iproute2 alone, with nexthop
// objects: what any program needs at least.
func measureFloor(ctx context.Context, h *lab.Host, count int) (Sample, error) {
	if err := addDevice(ctx, h); err != nil {
		return nil, err
	}
	var fdb, rest bytes.Buffer
	for n := range count {
		p := peer{number: n}
		fmt.Fprintf(&fdb, "fdb replace %s dev flannel.1 dst %s self permanent\n", p.mac(), p.public())
		fmt.Fprintf(&rest, "neigh replace %s lladdr %s dev flannel.1 nud permanent\n", p.subnet().Addr(), p.mac())
	}
	for n := range count {
		p := peer{number: n}
		fmt.Fprintf(&rest, "nexthop add id %d via %s dev flannel.1 onlink proto %d\n", n+1, p.subnet().Addr(), kernel.Protocol)
		fmt.Fprintf(&rest, "route replace %s nhid %d proto %d\n", p.subnet(), n+1, kernel.Protocol)
	}
	took := time.Duration(0)
	for _, batch := range []struct {
		program string
		text    *bytes.Buffer
	}{{"bridge", &fdb}, {"ip", &rest}} {
		path := filepath.Join(h.Dir, batch.program+".batch")
		if err := os.WriteFile(path, batch.text.Bytes(), 0o644); err != nil {
			return nil, fmt.Errorf("write batch: %w", err)
		}
		begin := time.Now()
		if _, err := h.Run(ctx, batch.program, "-batch", path); err != nil {
			return nil, err
		}
		took += time.Since(begin)
	}
	return Sample{keyFloor: took.Seconds()}, nil
}

// measureFallback writes the same entries as the daemon does where the kernel has no
// nexthop objects: with a gateway in each route.
func measureFallback(ctx context.Context, h *lab.Host, count int) (Sample, error) {
	if err := addDevice(ctx, h); err != nil {
		return nil, err
	}
	host, err := kernel.Open(kernel.Options{NetNS: "/run/netns/" + h.Name, Gateways: kernel.GatewayClassic})
	if err != nil {
		return nil, err
	}
	defer host.Close()
	device, err := host.LinkByName(ctx, "flannel.1")
	if err != nil {
		return nil, err
	}
	fdb, neighbours, routes := VXLAN.entries(device.Index, numbered(count))
	begin := time.Now()
	if err := host.FDB(device.Index).Put(ctx, fdb); err != nil {
		return nil, err
	}
	if err := host.Neighbours(device.Index).Put(ctx, neighbours); err != nil {
		return nil, err
	}
	if err := host.Routes().Put(ctx, routes); err != nil {
		return nil, err
	}
	return Sample{keyFallback: time.Since(begin).Seconds()}, nil
}
