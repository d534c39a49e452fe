package kerneltest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

// Links implements kernel.Host.
func (f *Fake) Links(ctx context.Context) ([]kernel.Link, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	err := f.do(Op{Verb: "list", Kind: "link"}, func() error { return nil })
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return slices.SortedFunc(maps.Values(f.links), func(a, b kernel.Link) int {
		return cmp.Compare(a.Index, b.Index)
	}), nil
}

// LinkByName implements kernel.Host.
func (f *Fake) LinkByName(ctx context.Context, name string) (kernel.Link, error) {
	links, err := f.Links(ctx)
	if err != nil {
		return kernel.Link{}, err
	}
	for _, l := range links {
		if l.Name == name {
			return l, nil
		}
	}
	return kernel.Link{}, fmt.Errorf("link %s: %w", name, refused(syscall.ENODEV, ""))
}

// AddLink implements kernel.Host.
func (f *Fake) AddLink(ctx context.Context, l kernel.Link) (kernel.Link, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.do(Op{Verb: "add", Kind: "link", Entry: l.Name, Value: l}, func() error {
		if err := f.checkLink(ctx, l); err != nil {
			return err
		}
		l.Up, l.Running = false, false
		l = f.insertLink(l)
		f.emit(kernel.TopicLink, l.Index)
		return nil
	})
	if err != nil {
		return kernel.Link{}, fmt.Errorf("add link %s: %w", l.Name, err)
	}
	return l, nil
}

func (f *Fake) checkLink(ctx context.Context, l kernel.Link) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case l.Name == "" || len(l.Name) > 15:
		return refused(syscall.EINVAL, "")
	case l.Type != "vxlan" && l.Type != "bridge":
		return refused(syscall.EOPNOTSUPP, "Unknown device type")
	}
	for _, other := range f.links {
		if other.Name == l.Name {
			return refused(syscall.EEXIST, "")
		}
	}
	if l.Type != "vxlan" {
		return nil
	}
	for _, other := range f.links {
		if other.Type == "vxlan" && other.VXLAN.VNI == l.VXLAN.VNI && other.VXLAN.Port == vxlanPort(l) &&
			other.VXLAN.Local.Is6() == l.VXLAN.Local.Is6() { // the outer families have sockets of their own
			return fmt.Errorf("%w (vni %d is taken by %s)", syscall.EADDRINUSE, l.VXLAN.VNI, other.Name)
		}
	}
	if _, ok := f.links[l.VXLAN.Uplink]; l.VXLAN.Uplink != 0 && !ok {
		return refused(syscall.ENODEV, "Invalid local interface")
	}
	return nil
}

// vxlanPort is the link's port or Linux's own default, which is not IANA's.
func vxlanPort(l kernel.Link) int { return cmp.Or(l.VXLAN.Port, 8472) }

// insertLink gives l what the kernel would give it.
func (f *Fake) insertLink(l kernel.Link) kernel.Link {
	l.Index = f.nextIndex
	f.nextIndex++
	l.TxQueueLen = cmp.Or(l.TxQueueLen, 1000)
	if l.MAC == (kernel.MAC{}) && l.Type != "tun" && l.Type != "loopback" {
		l.MAC = kernel.MAC{0x02, 0xfa, 0xce, 0, byte(l.Index >> 8), byte(l.Index)}
	}
	mtu := 1500
	if l.Type == "vxlan" {
		l.VXLAN.Port = vxlanPort(l)
		if up, ok := f.links[l.VXLAN.Uplink]; ok {
			mtu = up.MTU - 50
			if l.VXLAN.Local.Is6() {
				mtu = up.MTU - 70
			}
		}
	}
	l.MTU = cmp.Or(l.MTU, mtu)
	f.links[l.Index] = l
	f.sysctls[forwarding4(l.Name)] = f.sysctls[forwarding4("default")]
	return l
}

// SetLink implements kernel.Host.
func (f *Fake) SetLink(ctx context.Context, index int, c kernel.LinkChange) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := f.linkName(index)
	err := f.do(Op{Verb: "set", Kind: "link", Entry: name, Value: c}, func() error {
		l, ok := f.links[index]
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !ok:
			return refused(syscall.ENODEV, "")
		}
		if err := f.rewire(&l, c); err != nil {
			return err
		}
		l.MTU = cmp.Or(c.MTU, l.MTU)
		l.Alias = cmp.Or(c.Alias, l.Alias)
		l.TxQueueLen = cmp.Or(c.TxQueueLen, l.TxQueueLen)
		if c.MAC != (kernel.MAC{}) {
			l.MAC = c.MAC
		}
		if c.Up != nil && l.Up && !*c.Up {
			f.dropOnDown(index)
		}
		if c.Up != nil {
			l.Up, l.Running = *c.Up, *c.Up
		}
		f.links[index] = l
		f.emit(kernel.TopicLink, index)
		return nil
	})
	if err != nil {
		return fmt.Errorf("set link %s: %w", name, err)
	}
	return nil
}

// rewire changes what a VXLAN link sends by.
func (f *Fake) rewire(l *kernel.Link, c kernel.LinkChange) error {
	switch _, there := f.links[c.Uplink]; {
	case !c.Local.IsValid() && c.Uplink == 0:
		return nil
	case l.Type != "vxlan":
		return refused(syscall.EOPNOTSUPP, "")
	case c.Local.IsValid() && c.Local.Is6() != l.VXLAN.Local.Is6():
		return refused(syscall.EOPNOTSUPP, "New local address family does not match old")
	case c.Uplink != 0 && !there:
		return refused(syscall.ENODEV, "Invalid local interface")
	}
	if c.Local.IsValid() {
		l.VXLAN.Local = c.Local
	}
	l.VXLAN.Uplink = cmp.Or(c.Uplink, l.VXLAN.Uplink)
	return nil
}

// DeleteLink implements kernel.Host.
func (f *Fake) DeleteLink(ctx context.Context, index int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := f.linkName(index)
	if _, ok := f.links[index]; !ok {
		return nil
	}
	err := f.do(Op{Verb: "delete", Kind: "link", Entry: name}, func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, l := range f.links {
			if l.Type == "vxlan" && l.VXLAN.Uplink == index {
				f.removeLink(l.Index)
			}
		}
		f.removeLink(index)
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

func (f *Fake) removeLink(index int) {
	f.dropOnDown(index)
	for a := range f.addrs {
		if a.Link == index {
			f.removeAddr(a)
		}
	}
	maps.DeleteFunc(f.fdb, func(k kernel.FDBKey, _ kernel.FDB) bool { return k.Link == index })
	delete(f.sysctls, forwarding4(f.links[index].Name))
	delete(f.links, index)
	f.emit(kernel.TopicLink, index)
}

// dropOnDown removes what does not outlive its link going down: routes,
// neighbours and IPv6 addresses. IPv4 addresses and permanent FDB entries stay.
func (f *Fake) dropOnDown(index int) {
	maps.DeleteFunc(f.routes, func(_ kernel.RouteKey, r kernel.Route) bool { return r.Link == index })
	f.dropNeighbours(func(k kernel.NeighbourKey) bool { return k.Link == index })
	maps.DeleteFunc(f.addrs, func(a kernel.Addr, _ struct{}) bool {
		return a.Link == index && a.Prefix.Addr().Is6()
	})
}

func (f *Fake) linkName(index int) string {
	if l, ok := f.links[index]; ok {
		return l.Name
	}
	return fmt.Sprintf("if%d", index)
}
