package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// Addrs implements Host.
func (n *Netlink) Addrs(link int) reconcile.Table[Addr] {
	ask := func(family byte) dump {
		return dump{family, func(e *encoder) { e.beginAddr(unix.RTM_GETADDR, 0, family, 0, link) }}
	}
	return &table[Addr]{
		n:     n,
		dumps: []dump{ask(unix.AF_INET), ask(unix.AF_INET6)},
		parse: func(m message) (Addr, bool, error) {
			a, ok, err := parseAddr(m)
			return a, ok && (link == 0 || a.Link == link), err
		},
		link: func(a Addr) int { return a.Link },
		encodePut: func(e *encoder, a Addr) {
			encodeAddr(e, unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, a)
			if a.Prefix.Addr().Is6() {
				// Nobody else can have an address out of our own subnet, and
				// a tentative one cannot be used for a second.
				e.u32(unix.IFA_FLAGS, unix.IFA_F_NODAD)
			}
		},
		encodeDelete: func(e *encoder, a Addr) { encodeAddr(e, unix.RTM_DELADDR, 0, a) },
	}
}

// beginAddr begins an address message (struct ifaddrmsg).
func (e *encoder) beginAddr(typ, flags uint16, family byte, bits, link int) {
	fixed := [unix.SizeofIfAddrmsg]byte{family, byte(bits), 0, unix.RT_SCOPE_UNIVERSE}
	binary.NativeEndian.PutUint32(fixed[4:], uint32(link))
	e.begin(typ, flags, fixed[:])
}

func encodeAddr(e *encoder, typ, flags uint16, a Addr) {
	ip := a.Prefix.Addr()
	e.beginAddr(typ, flags, family(ip), a.Prefix.Bits(), a.Link)
	e.addr(unix.IFA_LOCAL, ip)
	e.addr(unix.IFA_ADDRESS, ip)
}

// parseAddr reads an RTM_NEWADDR and leaves out what the kernel derives.
func parseAddr(m message) (a Addr, ok bool, err error) {
	if m.typ != unix.RTM_NEWADDR {
		return a, false, nil
	}
	if len(m.data) < unix.SizeofIfAddrmsg {
		return a, false, fmt.Errorf("%w: short address", errMalformed)
	}
	bits, scope := int(m.data[1]), m.data[3]
	a.Link = u32(m.data[4:])
	var local, address netip.Addr
	err = eachAttr(m.data[unix.SizeofIfAddrmsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.IFA_LOCAL: // with a peer, IFA_ADDRESS is the peer's
			local = ip(v)
		case unix.IFA_ADDRESS:
			address = ip(v)
		}
	})
	if err != nil || scope == unix.RT_SCOPE_LINK {
		return a, false, err
	}
	if !local.IsValid() {
		local = address
	}
	a.Prefix = netip.PrefixFrom(local, bits)
	if !a.Prefix.IsValid() {
		return a, false, fmt.Errorf("%w: address %v/%d", errMalformed, local, bits)
	}
	return a, true, nil
}

// Neighbours implements Host.
func (n *Netlink) Neighbours(link int) reconcile.Table[Neighbour] {
	encode := func(e *encoder, typ, flags uint16, nb Neighbour) {
		e.beginNeighbour(typ, flags, neighbour{family: family(nb.Addr), link: nb.Link, state: unix.NUD_PERMANENT})
		e.addr(unix.NDA_DST, nb.Addr)
	}
	t := &table[Neighbour]{
		n:     n,
		dumps: []dump{{encode: encodeNeighbourDump(unix.AF_UNSPEC, link)}},
		parse: func(m message) (Neighbour, bool, error) {
			nb, ok, err := parseNeighbour(m)
			if err != nil || !ok || nb.link != link || nb.bridge() || !nb.permanent() {
				return Neighbour{}, false, err
			}
			return Neighbour{Link: nb.link, Addr: nb.dst, MAC: nb.mac}, nb.dst.IsValid(), nil
		},
		link: func(nb Neighbour) int { return nb.Link },
		encodePut: func(e *encoder, nb Neighbour) {
			encode(e, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, nb)
			e.bytes(unix.NDA_LLADDR, nb.MAC[:])
		},
		encodeDelete: func(e *encoder, nb Neighbour) { encode(e, unix.RTM_DELNEIGH, 0, nb) },
	}
	if n.own != nil {
		t.known = &n.own.neighbours
	}
	return t
}

// FDB implements Host.
func (n *Netlink) FDB(link int) reconcile.Table[FDB] {
	encode := func(e *encoder, typ, flags uint16, f FDB) {
		e.beginNeighbour(typ, flags, neighbour{
			family: unix.AF_BRIDGE, link: f.Link, state: unix.NUD_PERMANENT, flags: unix.NTF_SELF,
		})
		e.bytes(unix.NDA_LLADDR, f.MAC[:])
		e.addr(unix.NDA_DST, f.Dst)
	}
	t := &table[FDB]{
		n:     n,
		dumps: []dump{{encode: encodeNeighbourDump(unix.AF_BRIDGE, link)}},
		parse: func(m message) (FDB, bool, error) {
			nb, ok, err := parseNeighbour(m)
			if err != nil || !ok || nb.link != link || !nb.bridge() || !nb.permanent() {
				return FDB{}, false, err
			}
			return FDB{Link: nb.link, MAC: nb.mac, Dst: nb.dst}, nb.dst.IsValid(), nil
		},
		link: func(f FDB) int { return f.Link },
		// Replace, not append: a MAC has one VTEP, and appending would send
		// each frame to both.
		encodePut: func(e *encoder, f FDB) {
			encode(e, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, f)
		},
		encodeDelete: func(e *encoder, f FDB) { encode(e, unix.RTM_DELNEIGH, 0, f) },
	}
	if n.own != nil {
		t.known = &n.own.fdb
	}
	return t
}

// beginNeighbour begins a neighbour message (struct ndmsg).
func (e *encoder) beginNeighbour(typ, flags uint16, n neighbour) {
	fixed := [unix.SizeofNdMsg]byte{0: n.family, 10: n.flags}
	binary.NativeEndian.PutUint32(fixed[4:], uint32(n.link))
	binary.NativeEndian.PutUint16(fixed[8:], uint16(n.state))
	e.begin(typ, flags, fixed[:])
}

func encodeNeighbourDump(family byte, link int) func(*encoder) {
	return func(e *encoder) {
		e.beginNeighbour(unix.RTM_GETNEIGH, 0, neighbour{family: family})
		e.u32(unix.NDA_IFINDEX, link)
	}
}

// neighbour is what a neighbour message says, of whatever table.
type neighbour struct {
	family byte
	link   int
	state  int
	flags  byte
	dst    netip.Addr
	mac    MAC
}

func (n neighbour) bridge() bool    { return n.family == unix.AF_BRIDGE }
func (n neighbour) permanent() bool { return n.state&unix.NUD_PERMANENT != 0 }

// parseNeighbour reads an RTM_NEWNEIGH or RTM_DELNEIGH.
func parseNeighbour(m message) (n neighbour, ok bool, err error) {
	if m.typ != unix.RTM_NEWNEIGH && m.typ != unix.RTM_DELNEIGH {
		return n, false, nil
	}
	if len(m.data) < unix.SizeofNdMsg {
		return n, false, fmt.Errorf("%w: short neighbour", errMalformed)
	}
	n.family = m.data[0]
	n.link = u32(m.data[4:])
	n.state = int(binary.NativeEndian.Uint16(m.data[8:]))
	n.flags = m.data[10]
	err = eachAttr(m.data[unix.SizeofNdMsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.NDA_DST:
			n.dst = ip(v)
		case unix.NDA_LLADDR:
			n.mac = mac(v)
		}
	})
	return n, err == nil, err
}
