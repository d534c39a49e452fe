package offload

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// link is a network between a sender and a receiver: it loses packets, brings them
// twice, holds them back behind later ones, and flips bits.
type link struct {
	t *rapid.T
	// flips is how many bits of a damaged packet are wrong at most. A checksum
	// always finds one, and of several only most.
	flips int
	held  [][]byte
	// arrived is what came out, in its order.
	arrived [][]byte
}

// carry takes one packet, which it may keep.
func (l *link) carry(b []byte) {
	const (
		well = iota
		lost
		twice
		late
		damaged
	)
	switch rapid.SampledFrom([]int{well, well, well, well, well, well, well, lost, twice, late, damaged}).Draw(l.t, "fate") {
	case well:
		l.arrived = append(l.arrived, b)
	case twice:
		l.arrived = append(l.arrived, b, slices.Clone(b))
	case late:
		l.held = append(l.held, b)
		return
	case damaged:
		for range rapid.IntRange(1, l.flips).Draw(l.t, "flips") {
			b[rapid.IntRange(0, len(b)-1).Draw(l.t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(l.t, "bit")
		}
		l.arrived = append(l.arrived, b)
	}
	if len(l.held) > 0 && rapid.IntRange(0, 2).Draw(l.t, "release") == 0 {
		l.release()
	}
}

// release lets go of what was held back.
func (l *link) release() {
	l.arrived = append(l.arrived, l.held...)
	l.held = nil
}

// accepted is what a receiver takes of packets: those whose lengths and sums are
// right, by their flows, in the order in which they came.
func accepted(packets [][]byte) map[string][][]byte {
	flows := map[string][][]byte{}
	for _, b := range packets {
		s, err := read(b)
		if err != nil || !slowSound(s, b) {
			continue
		}
		addresses, ports := flowOf(b)
		flows[addresses+ports] = append(flows[addresses+ports], withoutID(b))
	}
	return flows
}

// withoutID is b without the identification that nobody reads: RFC 6864.
func withoutID(b []byte) []byte {
	if b[0]>>4 != 4 || b[6]&0x40 == 0 {
		return b
	}
	b = slices.Clone(b)
	copy(b[4:], []byte{0, 0})
	copy(b[10:], []byte{0, 0})
	return b
}

// apart is what a kernel makes of an emission: the packets that it stands for, with
// the sums that it asks for.
func apart(t rapid.TB, e emission) [][]byte {
	t.Helper()
	if e.header == (Header{}) {
		return [][]byte{e.packet}
	}
	s, err := read(e.packet)
	if err != nil {
		t.Fatalf("a joined packet cannot be read: %v", err)
	}
	return s.cut(int(e.header.SegmentSize))
}

// drawLarge draws what the flows of a host hand over in turn: large packets, each
// to be cut, and what a host without offloads would have sent instead.
func drawLarge(t *rapid.T) (frames []emission, want [][]byte) {
	flows := make([]spec, rapid.IntRange(1, 4).Draw(t, "flows"))
	sizes := make([]int, len(flows))
	for i := range flows {
		flows[i] = small([]spec{tcp4(), udp4()}[rapid.IntRange(0, 1).Draw(t, "protocol")])
		if rapid.Bool().Draw(t, "ipv6") {
			six(&flows[i])
		}
		flows[i].sport = uint16(4000 + i)
		sizes[i] = rapid.SampledFrom([]int{1, 100, 999, 1448}).Draw(t, "size")
	}
	for range rapid.IntRange(1, 8).Draw(t, "large packets") {
		i := rapid.IntRange(0, len(flows)-1).Draw(t, "flow")
		s := &flows[i]
		s.payload = bytesOf(rapid.IntRange(1, 40).Draw(t, "segments")*sizes[i] - rapid.IntRange(0, sizes[i]-1).Draw(t, "short"))
		frames = append(frames, emission{header: s.header(sizes[i]), packet: s.partial()})
		cut := s.cut(sizes[i])
		want = append(want, cut...)
		*s = with(*s, func(s *spec) { s.seq += uint32(len(s.payload)); s.id += uint16(len(cut)) })
	}
	return frames, want
}

// TestLink sends large packets through the whole of it: cut, carried by a network
// that does what networks do, joined, and taken apart by the receiver's kernel. It
// takes then what it would have taken without any of this: every byte that came whole
// once for each time it came, each flow in the order of its arrival, and nothing that
// was damaged.
func TestLink(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		frames, want := drawLarge(t)
		var sent [][]byte
		for _, f := range frames {
			c, err := Plan(f.header, f.packet)
			if err != nil {
				t.Fatal(err)
			}
			sent = append(sent, wire(c, f.packet, 64)...)
		}
		if diff := differ(want, sent); diff != "" {
			t.Fatalf("on the wire (-want +got):\n%s", diff)
		}
		l := &link{t: t, flips: 3}
		for _, b := range sent {
			l.carry(b)
		}
		l.release()
		m := NewMerger(Options{Protocols: drawProtocols(t)})
		var delivered [][]byte
		for left := l.arrived; len(left) > 0; {
			n := min(len(left), rapid.IntRange(1, 200).Draw(t, "batch"))
			for _, e := range merge(t, m, cloneAll(left[:n])) {
				delivered = append(delivered, apart(t, e)...)
			}
			left = left[n:]
		}
		if len(delivered) != len(l.arrived) {
			t.Fatalf("%d packets arrived, %d are delivered", len(l.arrived), len(delivered))
		}
		expected, got := accepted(l.arrived), accepted(delivered)
		if len(got) != len(expected) {
			t.Fatalf("%d flows, want %d", len(got), len(expected))
		}
		for flow, packets := range expected {
			if diff := differ(packets, got[flow]); diff != "" {
				t.Fatalf("taken of flow %x (-want +got):\n%s", flow, diff)
			}
		}
	})
}

// TestLinkTransfers lets a stream pass both ways of such a network, what is lost or
// damaged being sent again in large packets as TCP does, until all of it is there.
func TestLinkTransfers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size, window = 1000, 30
		data := bytesOf(rapid.IntRange(1, 200_000).Draw(t, "bytes"))
		s := small(tcp4())
		if rapid.Bool().Draw(t, "ipv6") {
			six(&s)
		}
		first := s.seq
		m := NewMerger(Options{Protocols: Protocols{TCP: true}})
		var got []byte
		for rounds := 0; len(got) < len(data); rounds++ {
			if rounds > 10_000 {
				t.Fatalf("%d of %d bytes came in %d rounds", len(got), len(data), rounds)
			}
			s.seq, s.payload = first+uint32(len(got)), data[len(got):min(len(data), len(got)+window*size)]
			large := s.partial()
			c, err := Plan(s.header(size), large)
			if err != nil {
				t.Fatal(err)
			}
			l := &link{t: t, flips: 1}
			for _, b := range wire(c, large, 64) {
				l.carry(b)
			}
			l.release()
			for _, e := range merge(t, m, l.arrived) {
				for _, b := range apart(t, e) {
					one, err := read(b)
					if err == nil && slowSound(one, b) && one.seq == first+uint32(len(got)) {
						got = append(got, one.payload...)
					}
				}
			}
			s.id += window
		}
		if !bytes.Equal(got, data) {
			t.Fatal("other bytes came than were sent")
		}
	})
}
