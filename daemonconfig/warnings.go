package daemonconfig

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
)

// warnings are what keys of the administrator's mean for ours. None of them
// keeps dockerd from starting.
func (o *object) warnings(want Docker, changes []Change) []string {
	var list []string
	for _, pool := range o.pools() {
		for _, network := range want.Networks {
			if network.IsValid() && pool.Overlaps(network) {
				list = append(list, fmt.Sprintf("\"default-address-pools\": %s overlaps the network %s: a network that Docker makes there hides other hosts' containers; "+
					"give it pools outside of that", pool, network))
			}
		}
	}
	if want.BIP.IsValid() {
		list = append(list, o.outside(want.BIP.Masked())...)
	}
	moved := slices.ContainsFunc(changes, func(c Change) bool { return c.Key == "bip" && c.New != "" })
	if o.get("live-restore") == "true" && moved {
		list = append(list, `"live-restore" is on: while containers run, docker0 keeps its former address over a restart of Docker; stop them before it`)
	}
	return list
}

// outside names addresses for docker0 that bip's subnet does not contain.
func (o *object) outside(subnet netip.Prefix) []string {
	var list []string
	for _, key := range []string{"fixed-cidr", "default-gateway"} {
		var text string
		if json.Unmarshal([]byte(o.get(key)), &text) != nil || text == "" {
			continue // absent, or not for us to judge
		}
		addr, err := netip.ParseAddr(text)
		if p, perr := netip.ParsePrefix(text); perr == nil {
			addr, err = p.Addr(), nil
			if p.Bits() < subnet.Bits() {
				addr = netip.Addr{} // larger than the subnet
			}
		}
		if err == nil && !subnet.Contains(addr) {
			list = append(list, fmt.Sprintf("%q: %s is not inside %s, where \"bip\" puts docker0: remove it", key, text, subnet))
		}
	}
	return list
}

// pools are the ranges from which Docker makes networks by itself, as far as
// the file names them.
func (o *object) pools() []netip.Prefix {
	var raw []struct {
		Base string `json:"base"`
	}
	if json.Unmarshal([]byte(o.get("default-address-pools")), &raw) != nil {
		return nil // absent, or not for us to judge
	}
	var pools []netip.Prefix
	for _, p := range raw {
		if prefix, err := netip.ParsePrefix(p.Base); err == nil {
			pools = append(pools, prefix)
		}
	}
	return pools
}
