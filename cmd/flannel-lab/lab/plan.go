package lab

import (
	"fmt"
	"net/netip"
	"regexp"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// MaxHosts is how many ports a Linux bridge has, less a few to spare.
const MaxHosts = 1000

// MaxMembers is how many members of etcd have addresses of their own.
const MaxMembers = 9

// smallHosts is how many hosts fit the /24 that the small plan uses, beside the
// members and the switch.
const smallHosts = 253 - MaxMembers

// The benchmark range of RFC 2544 and a unique local one: neither is routed
// anywhere.
var (
	smallPlan = plan{
		gateways: [2]netip.Prefix{netip.MustParsePrefix("198.18.0.254/24"), netip.MustParsePrefix("fd00:198:18::fe/64")},
	}
	largePlan = plan{
		gateways: [2]netip.Prefix{netip.MustParsePrefix("198.18.255.254/16"), netip.MustParsePrefix("fd00:198:18::fffe/64")},
	}
)

// plan is the addressing of the switch's segment: hosts from the bottom, members
// of etcd at the top. The gateways are the switch's own addresses, one per family,
// above all of them.
type plan struct {
	gateways [2]netip.Prefix
}

// planFor returns the addressing for a number of hosts: a /24 like that of a
// real rack where it suffices.
func planFor(hosts int) (plan, error) {
	switch {
	case hosts < 1 || hosts > MaxHosts:
		return plan{}, fmt.Errorf("hosts: %d: must be between 1 and %d", hosts, MaxHosts)
	case hosts <= smallHosts:
		return smallPlan, nil
	default:
		return largePlan, nil
	}
}

// host returns the addresses of the host of a number, from 1.
func (p plan) host(number int) []netip.Prefix {
	var addrs []netip.Prefix
	for _, gw := range p.gateways {
		raw := gw.Masked().Addr().AsSlice()
		raw[len(raw)-2] += byte(number >> 8)
		raw[len(raw)-1] += byte(number)
		addr, _ := netip.AddrFromSlice(raw)
		addrs = append(addrs, netip.PrefixFrom(addr, gw.Bits()))
	}
	return addrs
}

// member returns the addresses of the member of a number, from 1: the last of
// them are those below the gateways.
func (p plan) member(number int) []netip.Prefix {
	var addrs []netip.Prefix
	for _, gw := range p.gateways {
		raw := gw.Addr().AsSlice()
		raw[len(raw)-1] -= byte(MaxMembers + 1 - number)
		addr, _ := netip.AddrFromSlice(raw)
		addrs = append(addrs, netip.PrefixFrom(addr, gw.Bits()))
	}
	return addrs
}

// Gateway is the switch's own address of a family, through which the hosts' default
// routes lead: there is nothing behind it.
func (l *Lab) Gateway(f subnet.Family) netip.Prefix { return l.plan.gateways[f] }

// labName is what every name of a lab begins with: short enough for socket
// paths below /run.
var labName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,29}$`)

// checkName returns an error for a name that cannot be part of file names.
func checkName(name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name: %q: must be 1 to 30 of a-z, 0-9 and -, beginning with a letter", name)
	}
	return nil
}

// ownsName reports whether a lab of the given name makes namespaces called so.
func ownsName(lab, namespace string) bool {
	rest, ok := cutLab(lab, namespace)
	return ok && role.MatchString(rest)
}

// role is the last part of a namespace's name: the switch, a host, a container,
// a member of etcd.
var role = regexp.MustCompile(`^(sw|[hce][1-9][0-9]*)$`)

func cutLab(lab, namespace string) (string, bool) {
	prefix := lab + "-"
	if len(namespace) <= len(prefix) || namespace[:len(prefix)] != prefix {
		return "", false
	}
	return namespace[len(prefix):], true
}
