package kernel

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// The entries print as iproute2 prints and reads them, so that an error message
// can be pasted behind "ip route get" or "bridge fdb del". Notation takes the
// link's name; String, which knows only the index, writes "if4".

// String returns the address in colon notation.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// ParseMAC reads colon notation.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("parse mac %q: not an ethernet address", s)
	}
	return MAC(hw), nil
}

// linkName stands in for the name of a link that is known by index only.
func linkName(index int) string { return "if" + strconv.Itoa(index) }

// Notation reads as "10.5.72.0/32 dev flannel.1".
func (a Addr) Notation(link string) string { return a.Prefix.String() + " dev " + link }

// String is Notation with the link's index.
func (a Addr) String() string { return a.Notation(linkName(a.Link)) }

// Notation reads as "10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink". Link is
// not used by routes without one.
func (r Route) Notation(link string) string {
	var b strings.Builder
	if r.Blackhole {
		b.WriteString("blackhole ")
	}
	if r.Dst.Bits() == 0 {
		b.WriteString("default")
	} else {
		b.WriteString(r.Dst.String())
	}
	if r.Gateway.IsValid() {
		b.WriteString(" via " + r.Gateway.String())
	}
	if r.Link != 0 {
		b.WriteString(" dev " + link)
	}
	if r.Protocol != 0 && r.Protocol != Protocol {
		b.WriteString(" proto " + strconv.Itoa(r.Protocol))
	}
	if r.Src.IsValid() {
		b.WriteString(" src " + r.Src.String())
	}
	if r.Metric != 0 {
		b.WriteString(" metric " + strconv.Itoa(r.Metric))
	}
	if r.OnLink {
		b.WriteString(" onlink")
	}
	return b.String()
}

// String is Notation with the link's index.
func (r Route) String() string { return r.Notation(linkName(r.Link)) }

// Notation reads as "10.5.3.0 dev flannel.1 lladdr 5e:ca:ce:aa:6f:af".
func (n Neighbour) Notation(link string) string {
	return n.Addr.String() + " dev " + link + " lladdr " + n.MAC.String()
}

// String is Notation with the link's index.
func (n Neighbour) String() string { return n.Notation(linkName(n.Link)) }

// Notation reads as "5e:ca:ce:aa:6f:af dev flannel.1 dst 198.18.0.2".
func (f FDB) Notation(link string) string {
	return f.MAC.String() + " dev " + link + " dst " + f.Dst.String()
}

// String is Notation with the link's index.
func (f FDB) String() string { return f.Notation(linkName(f.Link)) }

// String names the topic; several are joined by "+".
func (t Topic) String() string {
	var names []string
	for i, name := range []string{"link", "addr", "route", "neighbour", "fdb", "resolved", "forwarding", "overrun"} {
		if t&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "+")
}
