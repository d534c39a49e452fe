package vxlan

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// ErrForeignDevice: a device that is not ours has our device's name, or the
// tunnel that we need.
var ErrForeignDevice = errors.New("device is not ours")

const (
	linkType = "vxlan"
	// Outer Ethernet header excluded, inner included: IP, UDP 8, VXLAN 8,
	// Ethernet 14 (RFC 7348, section 5).
	overhead4 = 20 + 8 + 8 + 14
	overhead6 = 40 + 8 + 8 + 14
	// maxName is IFNAMSIZ without its closing zero.
	maxName = 15
)

// overheads are what the headers take of the uplink's MTU.
var overheads = subnet.ByFamily[int]{overhead4, overhead6} //nolint:gochecknoglobals // a constant table

// deviceName is flannel's name, or a shorter one where Linux allows no name as
// long as that (VNIs of 8 digits, in IPv6 of 5; flannel fails there).
func deviceName(f subnet.Family, vni int) string {
	long, short := "flannel.%d", "fl.%d"
	if f == subnet.IPv6 {
		long, short = "flannel-v6.%d", "fl6.%d"
	}
	if name := fmt.Sprintf(long, vni); len(name) <= maxName {
		return name
	}
	return fmt.Sprintf(short, vni)
}

// adoptable reports whether l may be used or replaced: a VXLAN device that
// carries our alias, or none, as flannel's do.
func (b *Backend) adoptable(l kernel.Link) bool {
	return l.Type == linkType && (l.Alias == b.params.Instance.Alias() || l.Alias == "")
}

// differences lists what of a device cannot be changed and is not as wanted;
// empty: the device can be adopted. See rewire for the rest.
func differences(have, want kernel.VXLAN) string {
	var d []string
	note := func(what string, have, want any) {
		if have != want {
			d = append(d, fmt.Sprintf("%s %v instead of %v", what, have, want))
		}
	}
	note("vni", have.VNI, want.VNI)
	note("port", have.Port, want.Port)
	note("learning", have.Learning, want.Learning)
	note("gbp", have.GBP, want.GBP)
	return strings.Join(d, ", ")
}

// rival finds the link that makes the kernel refuse want: one VNI and port
// belong to one device per outer family.
func rival(links []kernel.Link, want kernel.Link) (kernel.Link, bool) {
	for _, l := range links {
		if l.Type == linkType && l.Name != want.Name && l.VXLAN.VNI == want.VXLAN.VNI &&
			l.VXLAN.Port == want.VXLAN.Port && l.VXLAN.Local.Is6() == want.VXLAN.Local.Is6() {
			return l, true
		}
	}
	return kernel.Link{}, false
}

// portMates names the other VXLAN devices on a port. The kernel shares a socket
// only between devices of the same kind, so one of them may be why ours cannot
// be brought up.
func portMates(links []kernel.Link, want kernel.Link) string {
	var names []string
	for _, l := range links {
		if l.Type == linkType && l.Name != want.Name && l.VXLAN.Port == want.VXLAN.Port {
			names = append(names, l.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf(" (also on UDP port %d: %s)", want.VXLAN.Port, strings.Join(names, ", "))
}

func find(links []kernel.Link, name string) (kernel.Link, bool) {
	for _, l := range links {
		if l.Name == name {
			return l, true
		}
	}
	return kernel.Link{}, false
}

// wanted is the device of one family as it should be.
func (b *Backend) wanted(u backend.Uplink, f subnet.Family, mac kernel.MAC) kernel.Link {
	return kernel.Link{
		Name: deviceName(f, b.opts.VNI), Type: linkType, Alias: b.params.Instance.Alias(), MTU: b.mtu(u, f), MAC: mac, Up: true,
		VXLAN: kernel.VXLAN{
			VNI: b.opts.VNI, Port: b.opts.Port, Local: u.Addr[f], Uplink: u.Link.Index,
			Learning: b.opts.Learning, GBP: b.opts.GBP,
		},
	}
}

// ensure makes one device what is wanted. It returns its index, 0 when it cannot
// carry traffic, and how much it had to change.
func (b *Backend) ensure(ctx context.Context, links []kernel.Link, want kernel.Link) (index, changed int, err error) {
	have, found := find(links, want.Name)
	if found && !b.adoptable(have) {
		return 0, 0, fmt.Errorf("%w: %s exists with type %q and alias %q; "+
			"%schoose another VNI", ErrForeignDevice, have.Name, have.Type, have.Alias, removing(have))
	}
	why := ""
	if found {
		if why = differences(have.VXLAN, want.VXLAN); why == "" {
			changed, why = b.rewire(ctx, have, want)
		}
	}
	if !found || why != "" {
		if have, err = b.create(ctx, links, want, have.Index, why); err != nil {
			return 0, 0, err
		}
		changed++
	}
	n, err := b.settle(ctx, have, want)
	changed += n
	if have.Up {
		return have.Index, changed, err
	}
	if upErr := b.kernel.SetLink(ctx, have.Index, kernel.LinkChange{Up: &want.Up}); upErr != nil {
		return 0, changed, errors.Join(err, fmt.Errorf("bring up device %s%s: %w", have.Name, portMates(links, want), upErr))
	}
	return have.Index, changed + 1, err
}

// removing is what can be done about a device in the way, unless another instance of us
// needs it.
func removing(l kernel.Link) string {
	if kernel.IsAlias(l.Alias) {
		return "it is another instance's on this host: "
	}
	return "remove it (ip link delete " + l.Name + ") or "
}

// rewire makes a device send by the uplink that is wanted, with all its entries. Where
// the kernel refuses, such as from one outer family to the other, it says why.
func (b *Backend) rewire(ctx context.Context, have, want kernel.Link) (changed int, why string) {
	var c kernel.LinkChange
	if have.VXLAN.Local != want.VXLAN.Local {
		c.Local = want.VXLAN.Local
	}
	if have.VXLAN.Uplink != want.VXLAN.Uplink {
		c.Uplink = want.VXLAN.Uplink
	}
	if c == (kernel.LinkChange{}) {
		return 0, ""
	}
	if err := b.kernel.SetLink(ctx, have.Index, c); err != nil {
		return 0, fmt.Sprintf("cannot send from %s by index %d: %v", want.VXLAN.Local, want.VXLAN.Uplink, err)
	}
	b.log.Info("device follows the uplink", "device", have.Name, "address", want.VXLAN.Local.String())
	return 1, ""
}

// create makes a device, in place of the one of index old if that is not 0. One
// name and one tunnel can exist only once, so the old device goes first, with
// its entries; everything that would stop the new one is looked for before.
func (b *Backend) create(ctx context.Context, links []kernel.Link, want kernel.Link, old int, why string) (kernel.Link, error) {
	if r, found := rival(links, want); found {
		if r.Alias != b.params.Instance.Alias() {
			return kernel.Link{}, fmt.Errorf("%w: %s holds VNI %d on UDP port %d; "+
				"%schoose another VNI or Port",
				ErrForeignDevice, r.Name, r.VXLAN.VNI, r.VXLAN.Port, removing(r))
		}
		// Ours, under a name that somebody gave it: the sweep comes too late.
		if err := b.kernel.DeleteLink(ctx, r.Index); err != nil {
			return kernel.Link{}, fmt.Errorf("delete renamed device %s: %w", r.Name, err)
		}
	}
	if old != 0 {
		b.log.Warn("device is made anew, packets are lost until its entries are back", "device", want.Name, "reason", why)
		if err := b.kernel.DeleteLink(ctx, old); err != nil {
			return kernel.Link{}, fmt.Errorf("delete device %s: %w", want.Name, err)
		}
	}
	made, err := b.kernel.AddLink(ctx, want)
	if err != nil {
		return kernel.Link{}, fmt.Errorf("create device %s%s: %w", want.Name, portMates(links, want), err)
	}
	b.log.Info("device created", "device", made.Name, "mac", made.MAC.String(), "mtu", made.MTU)
	return made, nil
}

// settle changes what can be changed. A new MAC makes a device that is up forget
// its neighbours, so all of this comes before the entries.
func (b *Backend) settle(ctx context.Context, have, want kernel.Link) (changed int, err error) {
	var c kernel.LinkChange
	if have.MTU != want.MTU {
		c.MTU = want.MTU
	}
	if have.MAC != want.MAC {
		c.MAC = want.MAC
	}
	if have.Alias != want.Alias {
		c.Alias = want.Alias
	}
	if c != (kernel.LinkChange{}) {
		if err = b.kernel.SetLink(ctx, have.Index, c); err != nil {
			err = fmt.Errorf("change device %s: %w", have.Name, err)
		} else {
			changed = 1
			b.log.Info("device changed", "device", have.Name, "mtu", want.MTU, "mac", want.MAC.String())
		}
	}
	n, tuneErr := b.tune(want)
	return changed + n, errors.Join(err, tuneErr)
}

// tune sets the device's sysctls: there are no routers on the overlay, so what
// advertises itself as one is not believed, and a device of IPv6 has that on whatever
// the host's default is. A kernel without IPv6 has no such sysctls.
func (b *Backend) tune(device kernel.Link) (changed int, err error) {
	wanted := []string{"accept_ra"}
	if device.VXLAN.Local.Is6() {
		wanted = append(wanted, "disable_ipv6")
	}
	for _, name := range wanted {
		path := "net/ipv6/conf/" + device.Name + "/" + name
		value, err := b.kernel.Sysctl(path)
		if err == nil && value != "0" {
			changed++
			err = b.kernel.SetSysctl(path, "0")
		}
		if err != nil && !errors.Is(err, kernel.ErrNotFound) {
			return 0, fmt.Errorf("set sysctl %s: %w", path, err)
		}
	}
	return changed, nil
}
