package faults

import (
	"context"
	"time"
)

// noDevice is why host-gw misses what is about a device of ours.
const noDevice = "no device of its own"

func deviceFaults() []Fault {
	onDevice := lacking(noDevice, hostGW)
	return []Fault{
		{Name: "device-deleted", Title: "device deleted", bounds: alike(500 * ms), absent: onDevice, do: onTunnel("ip link delete %s")},
		{Name: "device-down", Title: "device set down", bounds: alike(500 * ms), absent: onDevice, do: onTunnel("ip link set %s down")},
		{
			Name: "mac-changed", Title: "device's MAC changed", bounds: alike(300 * ms),
			absent: union(onDevice, lacking("a TUN device has no MAC", udp)),
			do:     onTunnel("ip link set %s address 02:00:00:00:00:99"),
		},
		{Name: "mtu-changed", Title: "device's MTU changed", bounds: alike(300 * ms), absent: onDevice, do: onTunnel("ip link set %s mtu 1000")},
		{Name: "address-removed", Title: "device's address removed", bounds: alike(300 * ms), absent: onDevice, do: onTunnel("ip -4 addr flush dev %s")},
	}
}

// onTunnel runs a command about the device on the broken host.
func onTunnel(command string) func(context.Context, *network) (time.Time, error) {
	return func(ctx context.Context, n *network) (time.Time, error) {
		return time.Time{}, n.run(ctx, command, n.device())
	}
}

func union(reasons ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, r := range reasons {
		for backend, why := range r {
			all[backend] = why
		}
	}
	return all
}
