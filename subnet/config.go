package subnet

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
)

// Range is the part of the config that concerns one family.
type Range struct {
	// Network is the whole overlay, masked; invalid: the family is off.
	Network netip.Prefix
	// SubnetLen is the prefix length of every subnet.
	SubnetLen int
	// Min and Max are the network addresses of the first and the last subnet
	// that may be leased.
	Min, Max netip.Addr
}

// Config is a valid network config.
type Config struct {
	Ranges         ByFamily[Range]
	EnableNFTables bool
	// BackendType is Backend.Type in lower case; "udp" where there is none.
	BackendType string
	// Backend is the whole Backend object, for the backend to decode with
	// [Config.BackendOptions]; empty where there is none.
	Backend RawJSON
	// Unknown are the paths of keys that nobody knows; they are ignored.
	Unknown []string
}

// rangeKeys are the names and limits of one family in the config.
type rangeKeys struct {
	enable, network, length, low, high string

	enabled bool
	// required says when the network must be given.
	required string
	// defaultLen is the usual length of a subnet, maxLen the longest: four
	// addresses.
	defaultLen, maxLen int
}

func keysOf(f Family) rangeKeys {
	if f == IPv6 {
		return rangeKeys{
			enable: "EnableIPv6", network: "IPv6Network", length: "IPv6SubnetLen", low: "IPv6SubnetMin", high: "IPv6SubnetMax",
			enabled: false, required: "is required when EnableIPv6 is true",
			defaultLen: 64, maxLen: 126,
		}
	}
	return rangeKeys{
		enable: "EnableIPv4", network: "Network", length: "SubnetLen", low: "SubnetMin", high: "SubnetMax",
		enabled: true, required: "is required unless EnableIPv4 is false",
		defaultLen: 24, maxLen: 30,
	}
}

// ParseConfig reads a network config as flannel does (keys without regard to
// case, host bits of a network ignored, a SubnetLen of 0 for the default) and
// checks it whole. The error joins every problem, each a *[ConfigError], or is
// the one *[SyntaxError] of text that is not JSON. The backend's options are
// checked by the backend.
func ParseConfig(text string) (*Config, error) {
	o, err := ParseObject("", RawJSON(text))
	if err != nil {
		return nil, err
	}
	var c Config
	for _, f := range Families() {
		c.Ranges[f] = parseRange(o, f)
	}
	if !o.Bool(keysOf(IPv4).enable, true) && !o.Bool(keysOf(IPv6).enable, false) {
		o.Fail(keysOf(IPv4).enable, "leaves no address family: EnableIPv6 must be true then")
	}
	c.EnableNFTables = o.Bool("EnableNFTables", false)
	c.Backend = o.Raw("Backend")
	c.BackendType = o.backendType(c.Backend)
	c.Unknown = o.Unknown()
	if err := o.Err(); err != nil {
		return nil, err
	}
	return &c, nil
}

// backendType reads Backend.Type.
func (o *Object) backendType(raw RawJSON) string {
	if raw == "" {
		return "udp"
	}
	backend, err := ParseObject("Backend", raw)
	if err != nil {
		o.problems = append(o.problems, err)
		return ""
	}
	name := backend.String("Type", "")
	if !backend.Has("Type") || backend.Raw("Type") == `""` {
		backend.Fail("Type", "is required in Backend")
	}
	o.problems = append(o.problems, backend.problems...)
	return strings.ToLower(name)
}

// BackendOptions returns the Backend object with Type already read, for the
// backend to decode its options from.
func (c *Config) BackendOptions() (*Object, error) {
	o, err := ParseObject("Backend", c.Backend)
	if err != nil {
		return nil, err
	}
	_ = o.Has("Type")
	return o, nil
}

// parseRange reads the keys of one family. They are all read in any case: for
// their types when the network is wrong, and to be known when the family is off.
func parseRange(o *Object, f Family) Range {
	k := keysOf(f)
	if !o.Bool(k.enable, k.enabled) {
		for _, key := range []string{k.network, k.length, k.low, k.high} {
			_ = o.Has(key)
		}
		return Range{}
	}
	r := Range{Network: o.Prefix(k.network, f)}
	smallest := k.maxLen - 2
	switch {
	case !o.Has(k.network):
		o.Fail(k.network, k.required)
	case !r.Network.IsValid():
	case r.Network.Bits() == 0:
		o.Fail(k.network, "must not be every address there is")
		r.Network = netip.Prefix{}
	case r.Network.Bits() > smallest:
		o.Fail(k.network, fmt.Sprintf("is too small: must be a /%d or larger to hold four subnets of four addresses", smallest))
		r.Network = netip.Prefix{}
	}
	r.SubnetLen = r.parseLen(o, k)
	r.Min = r.parseBound(o, k.low, f)
	r.Max = r.parseBound(o, k.high, f)
	if !r.Network.IsValid() || r.SubnetLen == 0 {
		return Range{}
	}
	first, last := bounds(r.Network, r.SubnetLen)
	if !o.Has(k.low) {
		r.Min = first
	}
	if !o.Has(k.high) {
		r.Max = last
	}
	if r.Min.IsValid() && r.Max.IsValid() && r.Max.Less(r.Min) {
		rule := fmt.Sprintf("must not be above %s %s", k.high, r.Max)
		if !o.Has(k.low) {
			rule = fmt.Sprintf("is %s then, and %s", r.Min, rule)
		}
		o.Fail(k.low, rule)
	}
	return r
}

// parseLen reads the subnets' length; 0: it is wrong or cannot be known.
func (r Range) parseLen(o *Object, k rangeKeys) int {
	before := len(o.problems)
	n := o.Int(k.length, 0, math.MinInt, math.MaxInt)
	if !r.Network.IsValid() || len(o.problems) > before {
		return 0
	}
	shortest := r.Network.Bits() + 2
	if raw := o.Raw(k.length); raw == "" || raw == "0" {
		return max(k.defaultLen, shortest)
	}
	if n < shortest || n > k.maxLen {
		o.Fail(k.length, fmt.Sprintf("must be between %d and %d, so that %s holds at least four subnets of at least four addresses",
			shortest, k.maxLen, r.Network))
		return 0
	}
	return n
}

// parseBound reads SubnetMin or SubnetMax and checks it as far as the network
// and the length are known; the zero Addr: absent or wrong.
func (r Range) parseBound(o *Object, key string, f Family) netip.Addr {
	a := o.Addr(key, f)
	switch {
	case !a.IsValid() || !r.Network.IsValid():
		return netip.Addr{}
	case !r.Network.Contains(a):
		o.Fail(key, "must be inside "+keysOf(f).network+" "+r.Network.String())
		return netip.Addr{}
	case r.SubnetLen == 0:
		return netip.Addr{}
	}
	if on := netip.PrefixFrom(a, r.SubnetLen).Masked().Addr(); on != a {
		o.Fail(key, fmt.Sprintf("must be the first address of a /%d, such as %s", r.SubnetLen, on))
		return netip.Addr{}
	}
	return a
}

// bounds are the second and the last subnet of a network. The first is left out
// by default: its network address is that of the whole network, and flannel
// never leases it.
func bounds(network netip.Prefix, length int) (first, last netip.Addr) {
	one, n := number{lo: 1}, numberOf(network.Addr())
	shift := uint(network.Addr().BitLen() - length)
	count := one.shl(uint(length - network.Bits()))
	return n.add(one.shl(shift)).addr(network.Addr()), n.add(count.sub(one).shl(shift)).addr(network.Addr())
}
