package native

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// The chains; those without a comment are base chains.
const (
	chainPrerouting  = "prerouting"
	chainTunnel      = "from_tunnel"    // of prerouting
	chainElsewhere   = "from_elsewhere" // of prerouting
	chainUplink      = "from_uplink"    // of from_elsewhere
	chainInput       = "input"
	chainEnvelope    = "envelope" // of input
	chainInner       = "inner_"   // of envelope; plus 4 or 6
	chainMark        = "accept_mark"
	chainPostrouting = "postrouting"
)

// The sets. The length of the prefixes in it is added to the name of each but
// the first.
const (
	setMACs   = "macs"    // of hosts whose plain packets we know
	setDirect = "direct_" // MAC and subnet that go together
	setOwned  = "owned_"  // the subnets of setDirect
	setSender = "sender"  // plus 4 or 6 and _: outer source and inner subnet that go together
	setVTEP   = "vtep"    // the same, in VXLAN
)

// Where base chains stand. Forgeries are dropped before connection tracking
// remembers them, and counted before anybody drops them in a raw table, as Docker
// does from 28 on: of chains of one priority the kernel asks the youngest first.
// Fragments are whole by then, since -400. NAT comes before that of Docker, at 100, and firewalld, at 110.
const (
	priorityDrops = -310
	priorityNAT   = 90
)

// compiler collects one family's table.
type compiler struct {
	Desired
	f    subnet.Family
	lost lacks
	out  table
	err  error
}

// compile says what one family's table should hold, as far as the kernel can.
func compile(d Desired, f subnet.Family, lost lacks) (table, error) {
	c := &compiler{Desired: d, f: f, lost: lost}
	c.prerouting()
	c.marks()
	c.input()
	if !lost.has(f, FeatureNAT) {
		c.postrouting()
	}
	if len(c.out.chains) > 0 {
		c.out.counters = reasons()
	} else {
		c.out.sets = nil
	}
	c.out.normalize()
	return c.out, c.err
}

// on reports whether a family has an overlay.
func (c *compiler) on(f subnet.Family) bool { return c.Networks[f].IsValid() && c.Own[f].IsValid() }

// draft is a chain that is being written.
type draft struct {
	c *compiler
	chain
}

func (c *compiler) draft(name string, h hook) *draft { return &draft{c, chain{name: name, hook: h}} }

// say adds a rule: what is done, and when. The comment may be empty.
func (d *draft) say(comment string, action []expr.Any, conditions ...match) {
	r, err := newRule(d.c.f, comment, action, conditions...)
	if err != nil {
		d.c.err = err
	}
	d.rules = append(d.rules, r)
}

// done puts the chain into the table, unless it says nothing.
func (d *draft) done() bool {
	if len(d.rules) == 0 {
		return false
	}
	d.c.out.chains = append(d.c.out.chains, d.chain)
	return true
}

func filterHook(number *nftables.ChainHook) hook {
	return hook{kind: nftables.ChainTypeFilter, number: *number, priority: priorityDrops}
}

// prerouting looks at every packet that comes in: at what a tunnel device
// delivers, and at sources of the network that come otherwise.
func (c *compiler) prerouting() {
	base := c.draft(chainPrerouting, filterHook(nftables.ChainHookPrerouting))
	for _, device := range c.Tunnel.Devices {
		base.say("", gone(chainTunnel), comesBy(device))
	}
	if len(c.Tunnel.Devices) > 0 {
		c.fromTunnel()
	}
	if c.on(c.f) && c.fromElsewhere() {
		base.say("", returned(), comesBy("lo"))
		base.say("", gone(chainElsewhere), source(c.f).in(c.Networks[c.f]))
	}
	base.done()
}

func (c *compiler) fromTunnel() {
	d := c.draft(chainTunnel, hook{})
	if c.on(c.f) {
		d.say("", dropAs(ForeignSource), source(c.f).notIn(c.Networks[c.f]))
		d.say("", dropAs(OwnSource), source(c.f).in(c.Own[c.f]))
	} else {
		d.say("this family has no overlay", dropAs(ForeignSource))
	}
	d.done()
}

// fromElsewhere judges packets with a source in the network that came by another
// interface than a tunnel.
func (c *compiler) fromElsewhere() bool {
	d := c.draft(chainElsewhere, hook{})
	switch {
	case c.Uplink == "":
	case c.plain():
		c.fromUplink()
		for _, name := range c.uplinks() {
			d.say("", gone(chainUplink), comesBy(name))
		}
	case !slices.ContainsFunc(c.Segments, c.Networks[c.f].Overlaps):
		for _, name := range c.uplinks() {
			d.say("", dropAs(OutsideSource), comesBy(name))
		}
	}
	if !c.lost.has(c.f, FeatureFIB) {
		d.say("", dropAs(OutsideSource), noWayBack())
	}
	return d.done()
}

// plain reports whether peers' packets come plainly.
func (c *compiler) plain() bool { return c.on(c.f) && c.Uplink != "" && c.Tunnel.Direct }

// fromUplink judges plain packets: only MACs tell hosts of a segment apart.
func (c *compiler) fromUplink() {
	d := c.draft(chainUplink, hook{})
	d.say("", dropAs(OwnSource), source(c.f).in(c.Own[c.f]))
	if sets := c.directSets(); len(sets) > 0 {
		c.out.sets = append(c.out.sets, sets...)
		mac := part{field: field{link, 6, 6}}
		of := func(bits int) part { return part{source(c.f), netip.PrefixFrom(zero(c.f), bits)} }
		d.say("", returned(), isNotEthernet())
		d.say("a host that we know nothing of", returned(), isEthernet(), not(lookedUp(setMACs, mac)))
		for _, bits := range lengths(c.Peers, c.f) {
			if find(sets, set.id, sized(setDirect, bits)) != nil {
				d.say("", returned(), isEthernet(), lookedUp(sized(setDirect, bits), mac, of(bits)))
				d.say("", dropAs(PeerSource), lookedUp(sized(setOwned, bits), of(bits)))
			}
		}
	}
	d.done()
}

func (c *compiler) directSets() []set {
	w := setWriter{}
	for _, p := range c.Peers {
		s, mac := p.Subnet[c.f], p.MAC[c.f]
		if !s.IsValid() || mac == (kernel.MAC{}) {
			continue
		}
		w.add(setMACs, macKey(), mac[:])
		w.add(sized(setDirect, s.Bits()), concat(macKey(), addressKey(c.f)), mac[:], prefixKey(s))
		w.add(sized(setOwned, s.Bits()), addressKey(c.f), prefixKey(s))
	}
	return w.sets()
}

func zero(f subnet.Family) netip.Addr {
	if f == subnet.IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// postrouting holds the rules on source addresses, first match wins; those of
// package firewall say the same in iptables. Who keeps its source is bound to it
// by a translation into itself: a connection that has a binding is not shown to
// the chains behind ours, while an accept would only end our chain.
func (c *compiler) postrouting() {
	if !c.on(c.f) {
		return
	}
	d := c.draft(chainPostrouting, hook{
		kind: nftables.ChainTypeNAT, number: *nftables.ChainHookPostrouting, priority: priorityNAT,
	})
	from, to := source(c.f), destination(c.f)
	overlay, own := c.Networks[c.f], c.Own[c.f]
	d.say("into our own subnet is not ours to rewrite", returned(), to.in(own))
	d.say("keep sources inside the network", translate(c.f, from.load(reg1), false), from.in(own), to.in(overlay))
	if c.NAT {
		c.translations(d)
	}
	d.done()
}

// translations are the rules that iptables has where it does the NAT.
func (c *compiler) translations(d *draft) {
	from, to := source(c.f), destination(c.f)
	overlay, own := c.Networks[c.f], c.Own[c.f]
	for _, name := range c.Interfaces() {
		when := []match{leavesBy(name), from.notIn(overlay), to.in(overlay)}
		if !c.Masquerade {
			// Others' packets (of the LAN, of other bridges) are translated
			// only if we were told to masquerade.
			if c.lost.has(c.f, FeatureFIB) {
				continue
			}
			when = append(when, sourceIsLocal())
		}
		first := &expr.Immediate{Register: reg1, Data: own.Addr().Next().AsSlice()}
		d.say("enter the network as this host", translate(c.f, first, c.RandomFully), when...)
	}
	if c.Masquerade {
		d.say("masquerade to the outside", []expr.Any{&expr.Masq{FullyRandom: c.RandomFully}},
			from.in(own), to.notIn(multicast(c.f)))
	}
}

// multicast is 224.0.0.0/4 (RFC 5771) or ff00::/8 (RFC 4291).
func multicast(f subnet.Family) netip.Prefix {
	if f == subnet.IPv6 {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
}
