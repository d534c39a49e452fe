package netns_test

import (
	"net/netip"

	"github.com/google/go-cmp/cmp"
)

// configNetworks is Network of all configs.
var configNetworks = [2]netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}

// cmpAddr compares addresses, whose fields are not exported.
var cmpAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
