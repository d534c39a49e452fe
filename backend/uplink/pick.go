package uplink

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// byNameOrAddr is --iface.
func byNameOrAddr(arg string) func(Inventory) (choice, error) {
	return func(inv Inventory) (choice, error) {
		if addr, err := netip.ParseAddr(arg); err == nil {
			for _, a := range inv.Addrs {
				if a.Prefix.Addr() == addr.Unmap() {
					return choice{a.Link, addr.Unmap(), true}, nil
				}
			}
			return choice{}, errors.New("no interface has this address")
		}
		for _, l := range inv.Links {
			if l.Name == arg {
				return choice{link: l.Index}, nil
			}
		}
		return choice{}, errors.New("no such interface")
	}
}

// byRegex is --iface-regex: addresses first, then names, as in flannel. What may
// not be chosen is passed over, for a pattern such as "10\." would match our own
// tunnel from the second start on.
func byRegex(pattern string) func(Inventory) (choice, error) {
	return func(inv Inventory) (choice, error) {
		re, err := regexp.Compile(pattern)
		if err != nil {
			return choice{}, err
		}
		for _, l := range inv.Links {
			if unfit(l) != nil {
				continue
			}
			for _, a := range inv.Addrs {
				if addr := a.Prefix.Addr(); a.Link == l.Index && refuse(addr) == nil && re.MatchString(addr.String()) {
					return choice{link: l.Index, addr: addr}, nil
				}
			}
		}
		for _, l := range inv.Links {
			if unfit(l) == nil && re.MatchString(l.Name) {
				return choice{link: l.Index}, nil
			}
		}
		return choice{}, errors.New("matches no usable interface, neither by address nor by name")
	}
}

// byReach is --iface-can-reach: the kernel also says from which address.
func byReach(inv Inventory) (choice, error) {
	if inv.Reach.Link == 0 {
		return choice{}, errors.New("no route there")
	}
	return choice{link: inv.Reach.Link, addr: inv.Reach.Src}, nil
}

// byDefault takes the default route of the first family that is needed and has
// one.
func byDefault(need []subnet.Family) func(Inventory) (choice, error) {
	return func(inv Inventory) (choice, error) {
		for _, f := range need {
			if inv.Defaults[f].Link != 0 {
				return choice{link: inv.Defaults[f].Link}, nil
			}
		}
		return choice{}, fmt.Errorf("there is no %s default route", need[0])
	}
}

// selection is one run of Select.
type selection struct {
	inv    Inventory
	need   []subnet.Family
	prefer subnet.ByFamily[netip.Addr]
	tried  []string
}

// use makes an uplink of a choice, if it can be one.
func (s *selection) use(c choice, err error) (backend.Uplink, error) {
	if err != nil {
		return backend.Uplink{}, err
	}
	link, found := s.link(c.link)
	if !found {
		return backend.Uplink{}, fmt.Errorf("interface %d is gone", c.link)
	}
	if err := unfit(link); err != nil {
		return backend.Uplink{}, err
	}
	up := backend.Uplink{Link: link, Segments: segments(link, s.inv.Addrs)}
	if c.addr.IsValid() {
		if err := refuse(c.addr); err != nil {
			return backend.Uplink{}, err
		}
		up.Addr[subnet.FamilyOf(c.addr)] = c.addr
	}
	for _, a := range s.inv.Addrs {
		addr := a.Prefix.Addr()
		if a.Link != link.Index || refuse(addr) != nil {
			continue
		}
		f := subnet.FamilyOf(addr)
		named := c.named && f == subnet.FamilyOf(c.addr)
		if !up.Addr[f].IsValid() || addr == s.prefer[f] && !named {
			up.Addr[f] = addr
		}
	}
	for _, f := range s.need {
		if !up.Addr[f].IsValid() {
			return backend.Uplink{}, fmt.Errorf("%s has no usable %s address", link.Name, f)
		}
	}
	return up, nil
}

// segments are the on-link prefixes of a link.
func segments(link kernel.Link, addrs []kernel.Addr) []netip.Prefix {
	var all []netip.Prefix
	for _, a := range addrs {
		if p := a.Prefix.Masked(); a.Link == link.Index && refuse(a.Prefix.Addr()) == nil && !p.IsSingleIP() {
			all = insert(all, p)
		}
	}
	return all
}

// Again is up as its interface is by now, of which link and addrs were read: name,
// MTU and segments follow, the addresses stay. Missing are those that it has lost.
func Again(up backend.Uplink, link kernel.Link, addrs []kernel.Addr) (now backend.Uplink, missing []netip.Addr) {
	up.Link, up.Segments = link, segments(link, addrs)
	for _, addr := range up.Addr {
		there := func(a kernel.Addr) bool { return a.Link == link.Index && a.Prefix.Addr() == addr }
		if addr.IsValid() && !slices.ContainsFunc(addrs, there) {
			missing = append(missing, addr)
		}
	}
	return up, missing
}

// insert keeps prefixes sorted and distinct, so that equal uplinks are equal.
func insert(all []netip.Prefix, p netip.Prefix) []netip.Prefix {
	i := 0
	for ; i < len(all); i++ {
		c := all[i].Addr().Compare(p.Addr())
		if c == 0 && all[i] == p {
			return all
		}
		if c > 0 || c == 0 && all[i].Bits() > p.Bits() {
			break
		}
	}
	all = append(all, netip.Prefix{})
	copy(all[i+1:], all[i:])
	all[i] = p
	return all
}

func (s *selection) link(index int) (kernel.Link, bool) {
	for _, l := range s.inv.Links {
		if l.Index == index {
			return l, true
		}
	}
	return kernel.Link{}, false
}

// unfit says why an interface cannot carry the tunnel now.
func unfit(l kernel.Link) error {
	if err := never(l); err != nil {
		return err
	}
	if !l.Up {
		return fmt.Errorf("%s is down (ip link set %s up)", l.Name, l.Name)
	}
	return nil
}

// never says why an interface cannot ever carry the tunnel.
func never(l kernel.Link) error {
	if l.Type == "loopback" {
		return fmt.Errorf("%s is loopback, which reaches no other host", l.Name)
	}
	if backend.IsTunnel(l) {
		return fmt.Errorf("%s is the overlay's own tunnel", l.Name)
	}
	return nil
}

// refuse says why an address cannot be told to peers.
func refuse(a netip.Addr) error {
	switch {
	case !a.IsValid() || a.IsUnspecified() || a.IsMulticast():
		return fmt.Errorf("%s is no host's address", a)
	case a.IsLoopback():
		return fmt.Errorf("%s is a loopback address, which no other host reaches", a)
	case a.IsLinkLocalUnicast():
		return fmt.Errorf("%s is link-local", a)
	}
	return nil
}
