package robustness

import (
	"fmt"
	"net/netip"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Keys of etcd.
const (
	configKey     = lab.Prefix + "/config"
	subnetsPrefix = lab.Prefix + "/subnets/"
)

// subnetKey is the key of a subnet's lease.
func subnetKey(p netip.Prefix) string {
	return subnetsPrefix + (subnet.Subnet{subnet.IPv4: p}).Key()
}

// The network of all runs: its pool begins in the middle, so that it can be moved
// both ways.
const (
	networkPrefix = "10.5.0.0/16"
	firstSubnet   = 16
	// moved is by how many subnets a changed range is.
	moved = 2
)

// network is the operator's idea of the network.
type network struct {
	// pool are the subnets that may be leased.
	pool []netip.Prefix
}

func networkFor(subnets int) network {
	var n network
	for i := range subnets {
		n.pool = append(n.pool, nth(i))
	}
	return n
}

// nth is a subnet of the network, counted from the pool's first.
func nth(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(firstSubnet + i), 0}), 24)
}

// config is the one that is valid, as the operator puts it.
func (n network) config() string { return n.between(0, "") }

// between is the config with the pool moved by some subnets, and more.
func (n network) between(moved int, more string) string {
	return fmt.Sprintf(`{"Network":%q,"SubnetMin":%q,"SubnetMax":%q,%s"Backend":{"Type":"vxlan"}}`,
		networkPrefix, nth(moved).Addr(), nth(moved+len(n.pool)-1).Addr(), more)
}

// variant is another config.
func (n network) variant(variant string) string {
	switch variant {
	case variantRange:
		return n.between(moved, "")
	case variantInvalid:
		return n.between(0, `"SubnetLen":31,`)
	default: // variantHarmless
		return n.between(0, `"EnableIPv6":false, `)
	}
}
