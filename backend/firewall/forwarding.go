package firewall

import (
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
}

// EnsureForwarding turns on forwarding of the families where it is off, and
// returns what it changed, complete also with an error: it is said in the log,
// and remembered so that RestoreForwarding can undo it.
//
// A host that forwards IPv6 ignores router advertisements, and with them loses
// its default route, unless the interface accepts them all the same. uplink is
// told so first if it lives on advertisements; it may be empty.
func EnsureForwarding(host kernel.Host, families []subnet.Family, uplink string) ([]SysctlChange, error) {
	var changed []SysctlChange
	var errs []error
	for _, family := range families {
		done, err := turnOn(host, family, uplink)
		changed = append(changed, done...)
		if err != nil {
			errs = append(errs, fmt.Errorf("turn on %s forwarding: %w", family, err))
		}
	}
	return changed, errors.Join(errs...)
}

// turnOn returns what it changed, also when it failed half-way.
func turnOn(host kernel.Host, f subnet.Family, uplink string) ([]SysctlChange, error) {
	want := SysctlChange{"net/ipv4/ip_forward", "0", "1"}
	if f == subnet.IPv6 {
		want = SysctlChange{"net/ipv6/conf/all/forwarding", "0", "1"}
	}
	value, err := host.Sysctl(want.Name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", want.Name, err)
	}
	if strings.TrimSpace(value) != want.From {
		return nil, nil
	}
	var changed []SysctlChange
	if f == subnet.IPv6 && uplink != "" {
		accept := SysctlChange{"net/ipv6/conf/" + uplink + "/accept_ra", "1", "2"}
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

// RestoreForwarding undoes changes, the last one first, where the value is still
// the one we wrote. Others may have come to rely on forwarding since (Docker
// does): the caller decides whether to undo it.
func RestoreForwarding(host kernel.Host, changes []SysctlChange) error {
	var errs []error
	for _, c := range slices.Backward(changes) {
		_, err := changeSysctl(host, SysctlChange{Name: c.Name, From: c.To, To: c.From})
		if err != nil && !errors.Is(err, kernel.ErrNotFound) {
			errs = append(errs, fmt.Errorf("restore forwarding: %w", err))
		}
	}
	return errors.Join(errs...)
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
