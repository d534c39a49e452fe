package udp

import (
	"slices"
	"unsafe"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
)

// packer turns the frames of one read into messages: what goes to one receiver from
// one port stands together and in its order, and runs of equal length share a
// message. What leaves by one socket stands together, too.
//
//	frames:    A1 B1 A2(large) A3 B2       letters are receivers, and a port of ours
//	chains:    A: A1 -> A2 -> A3    B: B1 -> B2
//	messages:  [A1] [A2a A2b A2c] [A3] [B1 B2]
//
// Packets are not copied: a message's parts lie in the frames, and the heads of a
// cut packet in the packer's scratch space.
type packer struct {
	// send takes messages, whose memory is the packer's again when it returns.
	send func([]Message)

	chains []chain
	links  [framesMost]link
	// places find the chain of a receiver and source: numbers from 1 on, looked at from
	// a hash on until there is the chain or 0.
	places [1 << placesBits]uint8

	// mixed: the chains are not in the order of their sources.
	mixed bool

	messages []Message
	parts    [][]byte
	heads    []byte
	used     int  // of heads
	open     bool // whether the last message may grow
}

// chain is the frames for one receiver from one port, by their numbers.
type chain struct {
	to          *endpoint
	source      int // as in a Message
	first, last int
}

// link is what a chain knows of one frame.
type link struct {
	cut  offload.Cut
	next int // in the chain; 0: none, for nothing is followed by the first frame
}

const (
	placesBits   = 7 // twice as many places as there may be frames
	messagesMost = 64
	partsMost    = 512
	headsSize    = 2 * maxSegments * offload.MaxHead
)

func newPacker(send func([]Message)) *packer {
	return &packer{
		send:     send,
		chains:   make([]chain, 0, framesMost),
		messages: make([]Message, 0, messagesMost),
		parts:    make([][]byte, 0, partsMost),
		heads:    make([]byte, headsSize),
	}
}

// add puts frame number i on the chain of its receiver and source.
func (p *packer) add(i int, to *endpoint, source int, cut offload.Cut) {
	p.links[i] = link{cut: cut}
	at := (uint64(uintptr(unsafe.Pointer(to))) + uint64(source)) * golden >> (64 - placesBits)
	for ; p.places[at] != 0; at = (at + 1) % uint64(len(p.places)) {
		if c := &p.chains[p.places[at]-1]; c.to == to && c.source == source {
			p.links[c.last].next = i
			c.last = i
			return
		}
	}
	p.mixed = p.mixed || len(p.chains) > 0 && source < p.chains[len(p.chains)-1].source
	p.chains = append(p.chains, chain{to: to, source: source, first: i, last: i})
	p.places[at] = uint8(len(p.chains)) //nolint:gosec // at most framesMost
}

// pack sends what was added, and forgets it.
func (p *packer) pack(frames []Frame) {
	if p.mixed { // seldom, and sorting what is sorted costs as much as a lookup of each
		slices.SortStableFunc(p.chains, func(a, b chain) int { return a.source - b.source })
	}
	for n := range p.chains {
		c := &p.chains[n]
		p.open = false
		for i := c.first; ; i = p.links[i].next {
			p.cut(c, frames[i].Data, p.links[i].cut)
			if p.links[i].next == 0 {
				break
			}
		}
	}
	p.flush()
	p.chains, p.places, p.mixed = p.chains[:0], [len(p.places)]uint8{}, false
}

// cut puts the wire packets of one frame into messages.
func (p *packer) cut(c *chain, data []byte, cut offload.Cut) {
	if cut.Count == 1 {
		cut.Complete(data)
		p.need(1, 1, 0)
		p.put(c, data, nil)
		return
	}
	for from := 0; from < cut.Count; from += maxSegments {
		end := min(cut.Count, from+maxSegments)
		size := (end - from) * cut.Head
		// Without their heads they are less than maxDatagram together, so
		// a few messages hold them.
		p.need(2+(end-from)*cut.WireSize()/maxDatagram, 2*(end-from), size)
		heads := cut.Heads(data, p.heads[p.used:p.used+size], from)
		p.used += size
		for i := from; i < end; i++ {
			p.put(c, heads[:cut.Head:cut.Head], cut.Payload(data, i))
			heads = heads[cut.Head:]
		}
	}
}

// need makes room for so many messages, parts and bytes of heads, by sending what
// there is.
func (p *packer) need(messages, parts, heads int) {
	if len(p.messages)+messages > cap(p.messages) || len(p.parts)+parts > cap(p.parts) || p.used+heads > len(p.heads) {
		p.flush()
	}
}

func (p *packer) flush() {
	if len(p.messages) > 0 {
		p.send(p.messages)
	}
	p.messages, p.parts, p.used, p.open = p.messages[:0], p.parts[:0], 0, false
}

// put adds one wire packet, to the last message if it fits there.
func (p *packer) put(c *chain, head, payload []byte) {
	n, at := len(head)+len(payload), len(p.parts)
	p.parts = append(p.parts, head)
	if payload != nil {
		p.parts = append(p.parts, payload)
	}
	if p.open {
		m := &p.messages[len(p.messages)-1]
		full := m.Packets*m.Size == m.Bytes // nothing may follow a shorter one
		if full && n <= m.Size && m.Packets < maxSegments && m.Bytes+n <= maxDatagram {
			m.Parts = p.parts[at-len(m.Parts) : len(p.parts)]
			m.Packets++
			m.Bytes += n
			return
		}
	}
	p.open = true
	p.messages = append(p.messages, Message{To: c.to.to, Source: c.source, Parts: p.parts[at:], Size: n, Packets: 1, Bytes: n})
}
