package native

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Places in a datagram to the tunnel's port, from the start of the UDP header.
const (
	udpHeader     = 8
	vxlanHeader   = 8  // RFC 7348, 5
	etherHeader   = 14 // without a VLAN tag
	placePort     = 2
	placeVNI      = udpHeader + 4
	placeEtherTyp = udpHeader + vxlanHeader + 12
)

// Ether types (IEEE 802 numbers of IANA).
func etherIP(f subnet.Family) []byte { return [...][]byte{{0x08, 0x00}, {0x86, 0xdd}}[f] }
func etherARP() []byte               { return []byte{0x08, 0x06} }

// input looks into datagrams to the tunnel's port before they are decapsulated.
// It stands at input and not at prerouting: there IPv4's fragments are one packet
// again, and what is only forwarded, to a tunnel of somebody else, is not ours to
// judge.
func (c *compiler) input() {
	inner := c.inner()
	if c.Tunnel.Port == 0 || len(inner) == 0 {
		return
	}
	base := c.draft(chainInput, filterHook(nftables.ChainHookInput))
	d := c.draft(chainEnvelope, hook{})
	conditions := []match{isUDP(), field{transport, placePort, 2}.is(byte(c.Tunnel.Port>>8), byte(c.Tunnel.Port))}
	if c.vxlan() {
		v := c.Tunnel.VNI
		conditions = append(conditions, field{transport, placeVNI, 3}.is(byte(v>>16), byte(v>>8), byte(v)))
	}
	base.say("", gone(chainEnvelope), conditions...)
	for _, g := range inner {
		d.say("", gone(innerName(g)), c.holds(g))
		c.judge(g)
	}
	if c.vxlan() {
		d.say("", returned(), field{transport, placeEtherTyp, 2}.is(etherARP()...))
		d.say("a VLAN tag, or nothing for this tunnel", dropAs(NotOverlay))
	}
	base.done()
	d.done()
}

func (c *compiler) vxlan() bool { return c.Tunnel.Encapsulation == backend.VXLANFrame }

// inner are the families of packets that honest datagrams of this outer family
// hold.
func (c *compiler) inner() []subnet.Family {
	var out []subnet.Family
	for _, g := range subnet.Families() {
		var carried bool
		switch c.Tunnel.Encapsulation {
		case backend.NoEncapsulation:
		case backend.PlainPacket:
			carried = true
		case backend.VXLANFrame:
			carried = g == c.f
		}
		if carried && c.on(g) {
			out = append(out, g)
		}
	}
	return out
}

// start is where the inner packet begins.
func (c *compiler) start() uint32 {
	if c.vxlan() {
		return udpHeader + vxlanHeader + etherHeader
	}
	return udpHeader
}

// holds tells the inner packet's family: by the frame's type, or by the first
// four bits of the packet.
func (c *compiler) holds(g subnet.Family) match {
	if c.vxlan() {
		return field{transport, placeEtherTyp, 2}.is(etherIP(g)...)
	}
	version := [...]byte{4 << 4, 6 << 4}[g]
	return match{
		field{transport, c.start(), 1}.load(reg1),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 1, Mask: []byte{0xf0}, Xor: []byte{0}},
		compare(expr.CmpOpEq, []byte{version}),
	}
}

func innerName(g subnet.Family) string { return chainInner + digit(g) }

func digit(f subnet.Family) string { return [...]string{"4", "6"}[f] }

// judge writes the chain for inner packets of a family. An honest one leaves it
// by the first rule. One from outside of the network is dropped, and counted as
// such, when it comes out of the tunnel.
func (c *compiler) judge(g subnet.Family) {
	from := c.innerSource(g)
	sets := c.senderSets(g, from)
	c.out.sets = append(c.out.sets, sets...)
	d := c.draft(innerName(g), hook{})
	for _, bits := range lengths(c.Peers, g) {
		if name := senderName(c.Tunnel.Encapsulation, g, bits); find(sets, set.id, name) != nil {
			d.say("", returned(), lookedUp(name, part{field: source(c.f)}, part{from, netip.PrefixFrom(zero(g), bits)}))
		}
	}
	d.say("", returned(), from.notIn(c.Networks[g]))
	d.say("", dropAs(OwnSource), from.in(c.Own[g]))
	d.say("", dropAs(PeerSource), from.in(c.Networks[g]))
	d.say("cut short", dropAs(NotOverlay))
	d.done()
}

// innerSource is where the inner packet has its source address.
func (c *compiler) innerSource(g subnet.Family) field {
	from := source(g)
	from.base, from.offset = transport, from.offset+c.start()
	return from
}

// senderName differs between encapsulations: a set's typeof, which says where the
// inner packet begins, cannot be changed.
func senderName(e backend.Encapsulation, g subnet.Family, bits int) string {
	prefix := setSender
	if e == backend.VXLANFrame {
		prefix = setVTEP
	}
	return sized(prefix+digit(g)+"_", bits)
}

// senderSets are who may send what, in this outer family; from is where the inner
// source address is.
func (c *compiler) senderSets(g subnet.Family, from field) []set {
	w := setWriter{}
	for _, p := range c.Peers {
		if s, public := p.Subnet[g], p.PublicIP[c.f]; s.IsValid() && public.IsValid() {
			w.add(senderName(c.Tunnel.Encapsulation, g, s.Bits()), concat(addressKey(c.f), rawKey(from)), public.AsSlice(), prefixKey(s))
		}
	}
	sets := w.sets()
	for i := range sets {
		sets[i].typeof = typeofSender(c.f, from)
	}
	return sets
}
