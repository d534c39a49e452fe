package native

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// The firewall mark of what comes in from the overlay, where Desired.AcceptMark
// asks for it: one bit, so that the others stay free for whoever routes or
// filters by marks. It is none of those that Kubernetes (0x4000, 0x8000), Cilium
// (0xf00), Tailscale (0xff0000) and Calico (0xffff0000) use by default.
const (
	AcceptMark uint32 = 0x1000
	AcceptMask uint32 = 0x1000
)

// priorityMangle is where marks are set by custom: behind the drops of ours, and
// before the routing decision and all of the filter chains.
const priorityMangle = -150

// marks sets AcceptMark on exactly the packets that package firewall accepts on
// their way in. An accept of ours ends our chain only; a firewall that takes the
// mark for an accept can do better.
func (c *compiler) marks() {
	if !c.AcceptMark || !c.on(c.f) {
		return
	}
	d := c.draft(chainMark, hook{kind: nftables.ChainTypeFilter, number: *nftables.ChainHookPrerouting, priority: priorityMangle})
	for _, name := range c.Interfaces() {
		d.say("in from the overlay", marked(AcceptMark, AcceptMask),
			comesBy(name), source(c.f).in(c.Networks[c.f]), destination(c.f).in(c.Own[c.f]))
	}
	d.done()
}

// marked sets the bits of mask to value, and leaves the others.
func marked(value, mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, ^mask), Xor: binary.NativeEndian.AppendUint32(nil, value),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg1},
	}
}
