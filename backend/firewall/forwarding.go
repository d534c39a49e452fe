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

// EnsureForwarding turns on forwarding of the families where it is off, and
// returns what it changed, complete also with an error: it is said in the log,
// and remembered so that RestoreForwarding can undo it.
//
// A host that forwards IPv6 ignores router advertisements, and with them loses
// its default route, unless the interface accepts them all the same. uplink is
// told so first if it lives on advertisements; it may be empty.
func EnsureForwarding(ctx context.Context, host kernel.Host, families []subnet.Family, uplink string) ([]SysctlChange, error) {
	var changed []SysctlChange
	var errs []error
	for _, family := range families {
		done, err := turnOn(ctx, host, family, uplink)
		changed = append(changed, done...)
		if err != nil {
			errs = append(errs, fmt.Errorf("turn on %s forwarding: %w", family, err))
		}
	}
	return changed, errors.Join(errs...)
}

// turnOn returns what it changed, also when it failed half-way.
func turnOn(ctx context.Context, host kernel.Host, f subnet.Family, uplink string) ([]SysctlChange, error) {
	want := SysctlChange{Name: "net/ipv4/ip_forward", From: "0", To: "1"}
	if f == subnet.IPv6 {
		want.Name = "net/ipv6/conf/all/forwarding"
	}
	value, err := host.Sysctl(want.Name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", want.Name, err)
	}
	if strings.TrimSpace(value) != want.From {
		return nil, nil
	}
	if want.Also, err = followers(ctx, host, f); err != nil {
		return nil, err
	}
	var changed []SysctlChange
	if f == subnet.IPv6 && uplink != "" {
		accept := SysctlChange{Name: "net/ipv6/conf/" + uplink + "/accept_ra", From: "1", To: "2"}
		did, err := changeSysctl(host, accept)
		if err != nil && !errors.Is(err, kernel.ErrNotFound) {
			return nil, err
		}
		if did {
			changed = append(changed, accept)
		}
	}
	if _, err := changeSysctl(host, want); err != nil {
		return changed, err
	}
	return append(changed, want), nil
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
