package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ifinfo is the fixed header of link messages (struct ifinfomsg).
func ifinfo(index int, flags, change uint32) (b [unix.SizeofIfInfomsg]byte) {
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

// beginLink begins a link message.
func (e *encoder) beginLink(typ, msgFlags uint16, index int, flags, change uint32) {
	fixed := ifinfo(index, flags, change)
	e.begin(typ, msgFlags, fixed[:])
}

// extSkipStats leaves counters out of link messages (RTEXT_FILTER_SKIP_STATS).
const extSkipStats = 8

func encodeLinkDump(e *encoder) {
	e.beginLink(unix.RTM_GETLINK, 0, 0, 0, 0)
	e.u32(unix.IFLA_EXT_MASK, extSkipStats)
}

// Links implements Host.
func (n *Netlink) Links(ctx context.Context) ([]Link, error) {
	var out []Link
	err := n.use(ctx, func(c *conn) (err error) {
		out, err = list(ctx, c, nil, []dump{{encode: encodeLinkDump}}, parseLink)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return out, nil
}

// LinkByName implements Host.
func (n *Netlink) LinkByName(ctx context.Context, name string) (l Link, err error) {
	err = n.use(ctx, func(c *conn) error {
		l, err = linkByName(ctx, c, name)
		return err
	})
	if err != nil {
		return Link{}, fmt.Errorf("link %s: %w", name, err)
	}
	return l, nil
}

func linkByName(ctx context.Context, c *conn, name string) (l Link, err error) {
	if !validName(name) {
		return l, ErrNotFound // the kernel would say EINVAL, or look for a part of it
	}
	var bad error
	err = c.one(ctx, func(e *encoder) {
		e.beginLink(unix.RTM_GETLINK, 0, 0, 0, 0)
		e.str(unix.IFLA_IFNAME, name)
		e.u32(unix.IFLA_EXT_MASK, extSkipStats)
	}, func(m message) { l, _, bad = parseLink(m) })
	return l, errors.Join(err, bad)
}

func validName(name string) bool { return name != "" && len(name) < unix.IFNAMSIZ }

// AddLink implements Host.
func (n *Netlink) AddLink(ctx context.Context, l Link) (_ Link, err error) {
	switch {
	case !validName(l.Name):
		return Link{}, fmt.Errorf("add link %q: %w", l.Name, &Error{Code: unix.EINVAL})
	case l.Type != "vxlan" && l.Type != "bridge":
		return Link{}, fmt.Errorf("add link %s: %w", l.Name, &Error{Code: unix.EOPNOTSUPP, Message: "Unknown device type"})
	}
	var made Link
	err = n.use(ctx, func(c *conn) error {
		made, err = addLink(ctx, c, l)
		return err
	})
	if err != nil {
		return Link{}, fmt.Errorf("add link %s: %w", l.Name, err)
	}
	return made, nil
}

func addLink(ctx context.Context, c *conn, l Link) (made Link, err error) {
	err = c.one(ctx, func(e *encoder) { encodeNewLink(e, l) }, nil)
	if code(err) == unix.EEXIST {
		// The kernel also says so of another VXLAN link with the same VNI.
		if _, nameErr := linkByName(ctx, c, l.Name); nameErr != nil {
			return made, fmt.Errorf("%w (%s)", unix.EADDRINUSE, err.Error())
		}
	}
	if err != nil {
		return made, err
	}
	made, err = linkByName(ctx, c, l.Name)
	if err != nil {
		return made, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, deleteLink(context.WithoutCancel(ctx), c, made.Index))
		}
	}()
	if l.Alias == "" {
		return made, nil
	}
	// RTM_NEWLINK ignores an alias when it creates.
	if err := setLink(ctx, c, made.Index, LinkChange{Alias: l.Alias}); err != nil {
		return made, err
	}
	made.Alias = l.Alias
	return made, nil
}

func encodeNewLink(e *encoder, l Link) {
	e.beginLink(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0, 0, 0)
	e.str(unix.IFLA_IFNAME, l.Name)
	if l.MTU != 0 {
		e.u32(unix.IFLA_MTU, l.MTU)
	}
	if l.MAC != (MAC{}) {
		e.bytes(unix.IFLA_ADDRESS, l.MAC[:])
	}
	if l.TxQueueLen != 0 {
		e.u32(unix.IFLA_TXQLEN, l.TxQueueLen)
	}
	info := e.nest(unix.IFLA_LINKINFO)
	e.str(unix.IFLA_INFO_KIND, l.Type)
	if l.Type == "vxlan" {
		encodeVXLAN(e, l.VXLAN)
	}
	e.endNest(info)
}

func encodeVXLAN(e *encoder, v VXLAN) {
	data := e.nest(unix.IFLA_INFO_DATA)
	e.u32(unix.IFLA_VXLAN_ID, v.VNI)
	encodeOuter(e, v.Local, v.Uplink)
	learning := uint8(0)
	if v.Learning {
		learning = 1
	}
	e.u8(unix.IFLA_VXLAN_LEARNING, learning)
	if v.Port != 0 {
		e.bytes(unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, uint16(v.Port)))
	}
	if v.GBP {
		e.bytes(unix.IFLA_VXLAN_GBP, nil)
	}
	e.endNest(data)
}

// encodeOuter says where a VXLAN link sends from; zero: not said.
func encodeOuter(e *encoder, local netip.Addr, uplink int) {
	if uplink != 0 {
		e.u32(unix.IFLA_VXLAN_LINK, uplink)
	}
	switch {
	case local.Is4():
		e.addr(unix.IFLA_VXLAN_LOCAL, local)
	case local.Is6():
		e.addr(unix.IFLA_VXLAN_LOCAL6, local)
	}
}

// SetLink implements Host.
func (n *Netlink) SetLink(ctx context.Context, index int, change LinkChange) error {
	err := n.use(ctx, func(c *conn) error { return setLink(ctx, c, index, change) })
	if err != nil {
		return fmt.Errorf("set link %s: %w", n.nameOf(ctx, index), err)
	}
	return nil
}

func setLink(ctx context.Context, c *conn, index int, change LinkChange) error {
	if change.Local.IsValid() || change.Uplink != 0 {
		// RTM_SETLINK does not look at what is inside of IFLA_LINKINFO.
		err := c.one(ctx, func(e *encoder) {
			e.beginLink(unix.RTM_NEWLINK, 0, index, 0, 0)
			info := e.nest(unix.IFLA_LINKINFO)
			e.str(unix.IFLA_INFO_KIND, "vxlan")
			data := e.nest(unix.IFLA_INFO_DATA)
			encodeOuter(e, change.Local, change.Uplink)
			e.endNest(data)
			e.endNest(info)
		}, nil)
		if err != nil {
			return err
		}
		change.Local, change.Uplink = netip.Addr{}, 0
		if change == (LinkChange{}) {
			return nil
		}
	}
	return c.one(ctx, func(e *encoder) {
		var flags, mask uint32
		if change.Up != nil {
			mask = unix.IFF_UP
			if *change.Up {
				flags = unix.IFF_UP
			}
		}
		e.beginLink(unix.RTM_SETLINK, 0, index, flags, mask)
		if change.MTU != 0 {
			e.u32(unix.IFLA_MTU, change.MTU)
		}
		if change.MAC != (MAC{}) {
			e.bytes(unix.IFLA_ADDRESS, change.MAC[:])
		}
		if change.Alias != "" {
			e.bytes(unix.IFLA_IFALIAS, []byte(change.Alias))
		}
		if change.TxQueueLen != 0 {
			e.u32(unix.IFLA_TXQLEN, change.TxQueueLen)
		}
	}, nil)
}

// DeleteLink implements Host.
func (n *Netlink) DeleteLink(ctx context.Context, index int) error {
	err := n.use(ctx, func(c *conn) error { return deleteLink(ctx, c, index) })
	if err != nil {
		return fmt.Errorf("delete link %s: %w", n.nameOf(ctx, index), err)
	}
	return nil
}

func deleteLink(ctx context.Context, c *conn, index int) error {
	err := c.one(ctx, func(e *encoder) { e.beginLink(unix.RTM_DELLINK, 0, index, 0, 0) }, nil)
	if gone(code(err)) {
		return nil
	}
	return err
}

// nameOf is for messages.
func (n *Netlink) nameOf(ctx context.Context, index int) string {
	if name, ok := n.linkNames(ctx)[index]; ok {
		return name
	}
	return linkName(index)
}

// parseLink reads an RTM_NEWLINK.
func parseLink(m message) (l Link, ok bool, err error) {
	if m.typ != unix.RTM_NEWLINK {
		return l, false, nil
	}
	if len(m.data) < unix.SizeofIfInfomsg {
		return l, false, fmt.Errorf("%w: short link", errMalformed)
	}
	if m.data[0] != unix.AF_UNSPEC { // a bridge port's message, not a link's
		return l, false, nil
	}
	l.Index = u32(m.data[4:])
	flags := u32(m.data[8:])
	l.Up, l.Running = flags&unix.IFF_UP != 0, flags&unix.IFF_RUNNING != 0
	var info []byte
	err = eachAttr(m.data[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = str(v)
		case unix.IFLA_IFALIAS:
			l.Alias = str(v)
		case unix.IFLA_MTU:
			l.MTU = u32(v)
		case unix.IFLA_ADDRESS:
			l.MAC = mac(v)
		case unix.IFLA_TXQLEN:
			l.TxQueueLen = u32(v)
		case unix.IFLA_LINKINFO:
			info = v
		}
	})
	if err == nil {
		err = parseLinkInfo(&l, info)
	}
	if flags&unix.IFF_LOOPBACK != 0 {
		l.Type = "loopback"
	}
	return l, err == nil, err
}

func parseLinkInfo(l *Link, info []byte) error {
	var data []byte
	err := eachAttr(info, func(typ uint16, v []byte) {
		switch typ {
		case unix.IFLA_INFO_KIND:
			l.Type = str(v)
		case unix.IFLA_INFO_DATA:
			data = v
		}
	})
	if err != nil {
		return err
	}
	switch l.Type {
	case "vxlan":
		return parseVXLAN(&l.VXLAN, data)
	case "tun":
		return eachAttr(data, func(typ uint16, v []byte) {
			switch typ {
			case unix.IFLA_TUN_PERSIST:
				l.Tun.Persist = u8(v) != 0
			case unix.IFLA_TUN_MULTI_QUEUE:
				l.Tun.MultiQueue = u8(v) != 0
			case unix.IFLA_TUN_NUM_QUEUES, unix.IFLA_TUN_NUM_DISABLED_QUEUES:
				l.Tun.Queues += u32(v)
			case unix.IFLA_TUN_VNET_HDR:
				l.Tun.VnetHdr = u8(v) != 0
			}
		})
	default:
		return nil
	}
}

func parseVXLAN(x *VXLAN, data []byte) error {
	return eachAttr(data, func(typ uint16, v []byte) {
		switch typ {
		case unix.IFLA_VXLAN_ID:
			x.VNI = u32(v)
		case unix.IFLA_VXLAN_LINK:
			x.Uplink = u32(v)
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			x.Local = specified(ip(v))
		case unix.IFLA_VXLAN_PORT:
			x.Port = u16be(v)
		case unix.IFLA_VXLAN_LEARNING:
			x.Learning = u8(v) != 0
		case unix.IFLA_VXLAN_GBP:
			x.GBP = true
		}
	})
}

// specified turns 0.0.0.0 and :: into the invalid address.
func specified(a netip.Addr) netip.Addr {
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
