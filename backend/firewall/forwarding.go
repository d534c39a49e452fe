package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// SysctlChange is a kernel parameter that was changed.
type SysctlChange struct {
	// Name is the path below /proc/sys.
	Name string
	// From is what it was, To what it became.
	From, To string
	// Also are others, which the kernel sets as well when this one is set back:
	// To is what to, From what they were before all.
	Also []SysctlChange `json:",omitempty"`
}

// ForwardingIPv6 is the kernel parameter by which a host forwards IPv6.
const ForwardingIPv6 = "net/ipv6/conf/all/forwarding"

// Forwarding is what a host must forward.
type Forwarding struct {
	Families []subnet.Family
	// Uplink is the interface whose router advertisements must go on to be
	// accepted; empty: none.
	Uplink string
	// Ours: it is for our sake that the host forwards IPv6.
	Ours bool
	// Entries are the interfaces by which packets come in that are to be forwarded.
	// For IPv4 the kernel has a switch for each; one that is not there counts as on.
	Entries []string
}

// Ensure turns on forwarding where it is off, and returns what it changed, complete
// also with an error: it is said in the log, and remembered so that
// [RestoreForwarding] can undo it.
//
// A host that forwards IPv6 ignores router advertisements, and with them loses
// its default route, unless the interface accepts them all the same. Uplink is
// told so, before and for as long as it forwards for our sake, if it lives on
// advertisements.
func (f Forwarding) Ensure(ctx context.Context, host kernel.Host) ([]SysctlChange, error) {
	var changed []SysctlChange
	var errs []error
	for _, family := range f.Families {
		done, err := f.turnOn(ctx, host, family)
		changed = append(changed, done...)
		if err != nil {
			errs = append(errs, fmt.Errorf("turn on %s forwarding: %w", family, err))
		}
	}
	return changed, errors.Join(errs...)
}

// turnOn returns what it changed, also when it failed half-way.
func (f Forwarding) turnOn(ctx context.Context, host kernel.Host, family subnet.Family) ([]SysctlChange, error) {
	all := SysctlChange{Name: "net/ipv4/ip_forward", From: "0", To: "1"}
	if family == subnet.IPv6 {
		all.Name = ForwardingIPv6
	}
	value, err := host.Sysctl(all.Name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", all.Name, err)
	}
	off := strings.TrimSpace(value) == all.From
	if off {
		if all.Also, err = followers(ctx, host, family); err != nil {
			return nil, err
		}
	}
	var changed []SysctlChange
	for _, c := range f.steps(family, all, off) {
		did, err := changeSysctl(host, c)
		if err != nil && (c.Name == all.Name || !errors.Is(err, kernel.ErrNotFound)) {
			return changed, err
		}
		if did {
			changed = append(changed, c)
		}
	}
	return changed, nil
}

// steps are the parameters of a family, in the order in which they are to be set, all
// among them. IPv4's takes the single ones along, which then are on already.
func (f Forwarding) steps(family subnet.Family, all SysctlChange, off bool) []SysctlChange {
	if family == subnet.IPv4 {
		steps := []SysctlChange{all}
		for _, name := range f.Entries {
			steps = append(steps, SysctlChange{Name: "net/ipv4/conf/" + name + "/forwarding", From: "0", To: "1"})
		}
		return steps
	}
	if f.Uplink == "" || !off && !f.Ours {
		return []SysctlChange{all}
	}
	return []SysctlChange{{Name: "net/ipv6/conf/" + f.Uplink + "/accept_ra", From: "1", To: "2"}, all}
}

// followers are the parameters that the kernel sets together with a family's
// forwarding, as far as turning that off would not make them what they are:
// forwarding of each interface, and for IPv4 whether redirects are accepted
// (Documentation/networking/ip-sysctl.rst). Hardened hosts accept none.
func followers(ctx context.Context, host kernel.Host, f subnet.Family) ([]SysctlChange, error) {
	links, err := host.Links(ctx)
	if err != nil {
		return nil, err
	}
	conf := "net/ipv4/conf/"
	candidates := []SysctlChange{{Name: conf + "all/accept_redirects", To: "1"}}
	if f == subnet.IPv6 {
		conf, candidates = "net/ipv6/conf/", nil
	}
	candidates = append(candidates, SysctlChange{Name: conf + "default/forwarding", To: "0"})
	for _, l := range links {
		candidates = append(candidates, SysctlChange{Name: conf + l.Name + "/forwarding", To: "0"})
	}
	var found []SysctlChange
	for _, c := range candidates {
		value, err := host.Sysctl(c.Name)
		if errors.Is(err, kernel.ErrNotFound) {
			continue // an interface without this family, or one that is gone
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", c.Name, err)
		}
		if c.From = strings.TrimSpace(value); c.From != c.To {
			found = append(found, c)
		}
	}
	return found, nil
}

// RestoreForwarding undoes changes, the last one first, where the value is still
// the one we wrote. Others may have come to rely on forwarding since (Docker
// does): the caller decides whether to undo it.
func RestoreForwarding(host kernel.Host, changes []SysctlChange) error {
	var errs []error
	for _, c := range slices.Backward(changes) {
		did, err := changeSysctl(host, c.inverse())
		if err != nil && !errors.Is(err, kernel.ErrNotFound) {
			errs = append(errs, fmt.Errorf("restore forwarding: %w", err))
		}
		if did {
			errs = append(errs, RestoreForwarding(host, c.Also))
		}
	}
	return errors.Join(errs...)
}

func (c SysctlChange) inverse() SysctlChange {
	return SysctlChange{Name: c.Name, From: c.To, To: c.From}
}

// changeSysctl writes c.To where c.From is, and reports whether it did.
func changeSysctl(host kernel.Host, c SysctlChange) (bool, error) {
	value, err := host.Sysctl(c.Name)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", c.Name, err)
	}
	if strings.TrimSpace(value) != c.From {
		return false, nil
	}
	if err := host.SetSysctl(c.Name, c.To); err != nil {
		return false, fmt.Errorf("write %s: %w", c.Name, err)
	}
	return true, nil
}
