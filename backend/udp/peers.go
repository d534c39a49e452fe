package udp

import (
	"net/netip"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// world is all that the packet path knows, as one immutable value.
type world struct {
	table *table
	// own are the tunnel's addresses, the source of our ICMP errors; invalid
	// where the family is off.
	own subnet.ByFamily[netip.Addr]
}
