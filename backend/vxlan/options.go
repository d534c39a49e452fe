package vxlan

import (
	"fmt"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// Type is the name in Backend.Type and in the leases of peers.
const Type = "vxlan"

const (
	defaultVNI  = 1
	maxVNI      = 1<<24 - 1
	defaultPort = 8472 // Linux's, from before IANA assigned 4789
	// maxMTU leaves room for the headers in the largest IP packet.
	maxMTU = 65535 - overhead4
)

// minMTU is the least that every host of the family must accept: RFC 791 and
// RFC 8200, section 5.
var minMTU = subnet.ByFamily[int]{576, 1280} //nolint:gochecknoglobals // a constant table

// Options are the keys of the config's Backend object.
type Options struct {
	VNI  int
	Port int
	// MTU is that of the devices; 0: as large as the uplink allows.
	MTU int
	// DirectRouting sends packets for peers on the uplink's own segment
	// without a tunnel.
	DirectRouting bool
	GBP           bool
	Learning      bool
}

// ParseOptions decodes c's Backend object. It returns every problem at once, and
// the paths of the keys that nobody knows.
func ParseOptions(c *subnet.Config) (Options, []string, error) {
	o, err := c.BackendOptions()
	if err != nil {
		return Options{}, nil, err
	}
	opts := Options{
		VNI:           o.Int("VNI", defaultVNI, 1, maxVNI),
		Port:          o.Int("Port", defaultPort, 0, 65535),
		MTU:           o.Int("MTU", 0, 0, maxMTU),
		DirectRouting: o.Bool("DirectRouting", false),
		GBP:           o.Bool("GBP", false),
		Learning:      o.Bool("Learning", false),
	}
	if opts.Port == 0 { // flannel leaves it to the kernel then
		opts.Port = defaultPort
	}
	for _, f := range subnet.Families() {
		if c.Ranges[f].Network.IsValid() && opts.MTU != 0 && opts.MTU < minMTU[f] {
			o.Fail("MTU", fmt.Sprintf("must be 0 or at least %d for %s", minMTU[f], f))
		}
	}
	if err := o.Err(); err != nil {
		return Options{}, nil, err
	}
	return opts, o.Unknown(), nil
}
