package kernel

import "strconv"

// Instance is the number of a daemon on this host, for hosts that are in several
// networks at a time. The first, or only one, is 0. What is in the kernel is one
// instance's or another's, and each can tell its own: their names differ in the number,
// and none is the beginning of another with what follows it (a "-", or the end).
type Instance uint8

// MostInstance is the last instance: one digit, and protocol numbers below those that
// /etc/iproute2/rt_protos assigns.
const MostInstance Instance = 9

// Instances are all that there may be.
func Instances() []Instance {
	all := make([]Instance, 0, MostInstance+1)
	for i := range MostInstance + 1 {
		all = append(all, i)
	}
	return all
}

// Protocol marks the routes of i, and bounds the numbers of its nexthop objects.
func (i Instance) Protocol() int { return Protocol + int(i) }

// Alias marks the links of i. Other names of its things begin so, too.
func (i Instance) Alias() string { return Alias + i.Suffix() }

// Suffix is what the names of i have and those of the first instance have not.
func (i Instance) Suffix() string {
	if i == 0 {
		return ""
	}
	return strconv.Itoa(int(i))
}

// IsProtocol reports whether a route with that protocol number is one of any instance.
func IsProtocol(protocol int) bool {
	return protocol >= Protocol && protocol <= MostInstance.Protocol()
}

// IsAlias reports whether a link with that alias is one of any instance.
func IsAlias(alias string) bool {
	for _, i := range Instances() {
		if alias == i.Alias() {
			return true
		}
	}
	return false
}
