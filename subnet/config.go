package subnet

import "net/netip"

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
	// Backend is the whole Backend object, for the backend to decode.
	Backend RawJSON
	// Unknown are the paths of keys that nobody knows; they are ignored.
	Unknown []string
}
