package offload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// bytesOf is a payload of n bytes that differ.
func bytesOf(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// tcp4 is what most tests start from.
func tcp4() spec {
	return spec{
		src: 2, dst: 3, tos: 2, hops: 63, id: 0xfffe, fragment: dontFragment, sport: 40000, dport: 443,
		seq: 0xfffffff0, ack: 77, flags: 0x18, window: 501, options: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2},
		payload: bytesOf(5000),
	}
}

func udp4() spec {
	return spec{src: 2, dst: 3, hops: 63, id: 9, sport: 53, dport: 4444, udp: true, payload: bytesOf(5000)}
}

func with(s spec, changes ...func(*spec)) spec {
	for _, change := range changes {
		change(&s)
	}
	return s
}

func six(s *spec)      { s.v6, s.label, s.fragment, s.id = true, 0xabcde, 0, 0 }
func allFlags(s *spec) { s.flags = 0xf9 } // CWR ECE URG ACK PSH FIN

// wire is all that c makes of packet, with scratch space for some heads at a
// time.
func wire(c Cut, packet []byte, some int) [][]byte {
	if c.Count == 1 {
		c.Complete(packet)
		return [][]byte{packet}
	}
	var out [][]byte
	for len(out) < c.Count {
		heads := c.Heads(packet, make([]byte, some*c.Head+c.Head/2), len(out))
		for head := range slices.Chunk(heads, c.Head) {
			out = append(out, append(slices.Clone(head), c.Payload(packet, len(out))...))
		}
	}
	return out
}

func TestCut(t *testing.T) {
	tests := []struct {
		name  string
		spec  spec
		size  int
		count int
	}{
		{"tcp", tcp4(), 1448, 4},
		{"tcp, divides evenly", tcp4(), 1000, 5},
		{"tcp, one byte over", tcp4(), 4999, 2},
		{"tcp, every flag", with(tcp4(), allFlags), 1448, 4},
		{"tcp, one byte each", with(tcp4(), func(s *spec) { s.payload = bytesOf(300) }), 1, 300},
		{"tcp, no options", with(tcp4(), func(s *spec) { s.options = nil }), 1460, 4},
		{"tcp, full options", with(tcp4(), func(s *spec) { s.options = bytesOf(40) }), 1460, 4},
		{"tcp, ip options", with(tcp4(), func(s *spec) { s.ipOptions = []byte{148, 4, 0, 0} }), 1444, 4},
		{"tcp, 64 KiB", with(tcp4(), func(s *spec) { s.payload = bytesOf(65535 - 52) }), 1448, 46},
		{"tcp, odd segments", tcp4(), 1447, 4},
		{"tcp over ipv6", with(tcp4(), six, allFlags), 1428, 4},
		{"tcp over ipv6, extension", with(tcp4(), six, func(s *spec) { s.ipOptions = []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0} }), 1420, 4},
		{"udp", udp4(), 1200, 5},
		{"udp, one over", udp4(), 4999, 2},
		{"udp over ipv6", with(udp4(), six), 1200, 5},
		{"whole", tcp4(), 5000, 1},
		{"whole, udp", udp4(), 9000, 1},
	}
	for _, tt := range tests {
		for _, some := range []int{1, 3, 1000} {
			t.Run(fmt.Sprintf("%s, %d at a time", tt.name, some), func(t *testing.T) {
				large := tt.spec.partial()
				c, err := Plan(tt.spec.header(tt.size), large)
				if err != nil {
					t.Fatalf("Plan: %v", err)
				}
				if c.Count != tt.count {
					t.Fatalf("Count = %d, want %d", c.Count, tt.count)
				}
				if diff := differ(tt.spec.cut(tt.size), wire(c, large, some)); diff != "" {
					t.Errorf("cut (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestCutSumZero is about the one case in which TCP and UDP differ: a sum that
// comes out as zero.
func TestCutSumZero(t *testing.T) {
	for _, s := range []spec{tcp4(), udp4(), with(tcp4(), six), with(udp4(), six)} {
		t.Run(fmt.Sprintf("udp %v, ipv6 %v", s.udp, s.v6), func(t *testing.T) {
			const size = 100
			s.payload = make([]byte, 2*size)
			for i, b := range s.cut(size) {
				sum := b[len(b)-size-len(s.transport())+len(s.payload)+s.sumAt():]
				copy(s.payload[i*size:], sum[:2]) // adding the complement leaves minus zero
			}
			want := s.cut(size)
			zeros := 0
			for _, b := range want {
				if v := binary.BigEndian.Uint16(b[len(s.ip(0))+s.sumAt():]); v == 0 || v == 0xffff {
					zeros++
				}
			}
			if zeros != 2 {
				t.Fatalf("%d sums are zero, want 2", zeros)
			}
			large := s.partial()
			c, err := Plan(s.header(size), large)
			if err != nil {
				t.Fatalf("Plan: %v", err)
			}
			if diff := differ(want, wire(c, large, 2)); diff != "" {
				t.Errorf("cut (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanOrdinary(t *testing.T) {
	b := tcp4().packet()
	c, err := Plan(Header{Flags: DataValid, SegmentSize: 9, SumStart: 60000}, b)
	if err != nil || c.Count != 1 || c.WireSize() != len(b) {
		t.Fatalf("Plan = %+v, %v", c, err)
	}
	want := slices.Clone(b)
	if c.Complete(b); string(b) != string(want) {
		t.Error("Complete changed a packet whose sum is complete")
	}
	if got := c.Payload(b, 0); string(got) != string(b) {
		t.Error("Payload is not the whole packet")
	}
	if got := c.Heads(b, make([]byte, 100), 0); len(got) != 0 {
		t.Errorf("Heads = %d bytes, want none", len(got))
	}
}

func TestComplete(t *testing.T) {
	for _, s := range []spec{tcp4(), udp4(), with(tcp4(), six), with(udp4(), six)} {
		for _, kind := range []Kind{None, s.header(1).GSO} {
			b, h := s.partial(), s.header(len(s.payload))
			h.GSO = kind
			c, err := Plan(h, b)
			if err != nil || c.Count != 1 || c.WireSize() != len(b) {
				t.Fatalf("Plan = %+v, %v", c, err)
			}
			if c.Complete(b); string(b) != string(s.packet()) {
				t.Errorf("Complete of udp %v, ipv6 %v, kind %d differs", s.udp, s.v6, kind)
			}
		}
	}
	zero := make([]byte, 24)
	zero[0], zero[20], zero[21] = 0x45, 0xff, 0xff
	c, err := Plan(Header{Flags: NeedsSum, SumStart: 20, SumOffset: 2}, zero)
	if err != nil {
		t.Fatalf("Plan: %v", err)
	}
	if c.Complete(zero); zero[22] != 0xff || zero[23] != 0xff {
		t.Errorf("Complete wrote % x for a sum of zero, want ff ff", zero[22:])
	}
}

func TestPlanRefuses(t *testing.T) {
	type change = func(h *Header, b []byte) []byte
	tests := []struct {
		name   string
		spec   spec
		change change
		want   error
	}{
		{"nothing", tcp4(), func(h *Header, _ []byte) []byte { return nil }, ErrLength},
		{"a short IP header", tcp4(), func(h *Header, b []byte) []byte { return b[:19] }, ErrLength},
		{"a shorter packet than the IP header says", tcp4(), func(h *Header, b []byte) []byte { return b[:len(b)-1] }, ErrLength},
		{"a longer one", tcp4(), func(h *Header, b []byte) []byte { return append(b, 0) }, ErrLength},
		{"a longer one over ipv6", with(tcp4(), six), func(h *Header, b []byte) []byte { return append(b, 0) }, ErrLength},
		{"an ipv6 header cut off", with(tcp4(), six), func(h *Header, b []byte) []byte { return b[:39] }, ErrLength},
		{"another version", tcp4(), func(h *Header, b []byte) []byte { b[0] = 0x55; return b }, ErrLength},
		{"an IP header below 20 bytes", tcp4(), func(h *Header, b []byte) []byte { b[0] = 0x44; return b }, ErrLength},
		{"a fragment", tcp4(), func(h *Header, b []byte) []byte { b[7] = 1; return b }, ErrKind},
		{"a first fragment", tcp4(), func(h *Header, b []byte) []byte { b[6] = 0x20; return b }, ErrKind},
		{"tcp6 kind for ipv4", tcp4(), func(h *Header, b []byte) []byte { h.GSO = TCP6; return b }, ErrKind},
		{"tcp4 kind for ipv6", with(tcp4(), six), func(h *Header, b []byte) []byte { h.GSO = TCP4; return b }, ErrKind},
		{"udp kind for tcp", tcp4(), func(h *Header, b []byte) []byte { h.GSO = UDP; return b }, ErrKind},
		{"tcp kind for udp", udp4(), func(h *Header, b []byte) []byte { h.GSO = TCP4; return b }, ErrKind},
		{"udp fragmentation, which nobody asked for", udp4(), func(h *Header, b []byte) []byte { h.GSO = 3; return b }, ErrKind},
		{"udp with ecn", udp4(), func(h *Header, b []byte) []byte { h.GSO |= ECN; return b }, ErrKind},
		{"only ecn", tcp4(), func(h *Header, b []byte) []byte { h.GSO = ECN; return b }, ErrKind},
		{"segments of nothing", tcp4(), func(h *Header, b []byte) []byte { h.SegmentSize = 0; return b }, ErrSegment},
		{"a sum elsewhere", tcp4(), func(h *Header, b []byte) []byte { h.SumStart++; return b }, ErrSum},
		{"a sum at another offset", tcp4(), func(h *Header, b []byte) []byte { h.SumOffset = 6; return b }, ErrSum},
		{"a sum that nobody vouches for", tcp4(), func(h *Header, b []byte) []byte { h.Flags = 0; return b }, ErrSum},
		{"a short tcp header", tcp4(), func(h *Header, b []byte) []byte { b[32] = 0x40; return b }, ErrLength},
		{"a tcp header beyond the end", with(tcp4(), func(s *spec) { s.payload = nil }), func(h *Header, b []byte) []byte { b[32] = 0xf0; return b }, ErrLength},
		{"a udp length beyond the end", udp4(), func(h *Header, b []byte) []byte { b[25]++; return b }, ErrLength},
		{"half a udp header", udp4(), func(h *Header, b []byte) []byte { b = b[:24]; b[2], b[3] = 0, 24; return b }, ErrLength},
		{"half a tcp header", tcp4(), func(h *Header, b []byte) []byte { b = b[:32]; b[2], b[3] = 0, 32; return b }, ErrLength},
		{"an ipv6 fragment", with(tcp4(), six), func(h *Header, b []byte) []byte { b[6] = 44; return b }, ErrKind},
		{"an unused routing header", with(tcp4(), six), func(h *Header, b []byte) []byte { b[6], b[40], b[41], b[43] = 43, 6, 0, 1; return b }, ErrKind},
		{"an extension beyond the end", with(tcp4(), six, func(s *spec) { s.payload = nil }), func(h *Header, b []byte) []byte { b[6], b[40], b[41] = 60, 6, 200; return b }, ErrLength},
		{"no extension behind a header that names one", with(tcp4(), six), func(h *Header, b []byte) []byte { b[4], b[5], b[6] = 0, 0, 60; return b[:40] }, ErrLength},
		{"half an extension", with(tcp4(), six), func(h *Header, b []byte) []byte { b[4], b[5], b[6] = 0, 7, 43; return b[:47] }, ErrLength},
		{"extensions longer than a head", with(tcp4(), six), func(h *Header, b []byte) []byte {
			b[6], b[40], b[41], b[52] = 60, 6, 31, 0x50
			copy(b[40+256:], tcp4().transport())
			h.SumStart = 40 + 256
			return b
		}, ErrLength},
		{"an ordinary packet's sum at its end", tcp4(), func(h *Header, b []byte) []byte { h.GSO, h.SumOffset = None, uint16(len(b)-21); return b }, ErrSum},
		{"an ordinary packet's sum within the IP header", tcp4(), func(h *Header, b []byte) []byte { h.GSO, h.SumStart = None, 19; return b }, ErrSum},
		{"an ordinary packet's sum within IP options", with(tcp4(), func(s *spec) { s.ipOptions = []byte{1, 1, 1, 1} }), func(h *Header, b []byte) []byte { h.GSO, h.SumStart = None, 20; return b }, ErrSum},
		{"an ordinary packet's sum within the ipv6 header", with(tcp4(), six), func(h *Header, b []byte) []byte { h.GSO, h.SumStart = None, 39; return b }, ErrSum},
		{"a sum of nothing", tcp4(), func(h *Header, b []byte) []byte { *h = Header{Flags: NeedsSum}; return nil }, ErrSum},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, h := tt.spec.partial(), tt.spec.header(1000)
			if _, err := Plan(h, b); err != nil {
				t.Fatalf("Plan before the change: %v", err)
			}
			b = tt.change(&h, b)
			if _, err := Plan(h, b); !errors.Is(err, tt.want) {
				t.Errorf("Plan = %v, want %v", err, tt.want)
			}
		})
	}
}

// drawSpec draws a large packet that a device may hand over.
func drawSpec(t *rapid.T) spec {
	s := spec{
		v6: rapid.Bool().Draw(t, "ipv6"), udp: rapid.Bool().Draw(t, "udp"),
		src: rapid.Byte().Draw(t, "source"), dst: rapid.Byte().Draw(t, "destination"),
		tos: rapid.Byte().Draw(t, "tos"), hops: rapid.Byte().Draw(t, "hops"),
		sport: rapid.Uint16().Draw(t, "source port"), dport: rapid.Uint16().Draw(t, "destination port"),
	}
	if s.v6 {
		s.label = rapid.Uint32Range(0, 1<<20-1).Draw(t, "label")
	} else {
		s.id = rapid.Uint16().Draw(t, "id")
		s.fragment = rapid.SampledFrom([]uint16{0, dontFragment}).Draw(t, "fragment")
		s.ipOptions = make([]byte, 4*rapid.IntRange(0, 10).Draw(t, "ip options"))
	}
	if !s.udp {
		s.seq, s.ack = rapid.Uint32().Draw(t, "seq"), rapid.Uint32().Draw(t, "ack")
		s.flags = rapid.Uint16Range(0, 0xfff).Draw(t, "flags")
		s.window, s.urgent = rapid.Uint16().Draw(t, "window"), rapid.Uint16().Draw(t, "urgent")
		s.options = make([]byte, 4*rapid.IntRange(0, 10).Draw(t, "options"))
	}
	s.payload = make([]byte, rapid.IntRange(1, 9000).Draw(t, "payload"))
	seed := rapid.Uint32().Draw(t, "seed")
	for i := range s.payload {
		seed = seed*1664525 + 1013904223
		s.payload[i] = byte(seed >> 24)
	}
	return s
}

func TestCutProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSpec(t)
		size := rapid.IntRange(max(1, len(s.payload)/100), 9001).Draw(t, "segment size")
		large := s.partial()
		c, err := Plan(s.header(size), large)
		if err != nil {
			t.Fatalf("Plan: %v", err)
		}
		got := wire(c, large, rapid.IntRange(1, 100).Draw(t, "some"))
		want := s.cut(size)
		if c.Count == 1 { // what differs is allowed, see Complete
			at := len(s.ip(0)) + s.sumAt()
			if binary.BigEndian.Uint16(want[0][at:]) == 0 {
				want[0][at], want[0][at+1] = 0xff, 0xff
			}
		}
		if diff := differ(want, got); diff != "" {
			t.Errorf("cut (-want +got):\n%s", diff)
		}
		for i, b := range got {
			if len(b) > c.WireSize() {
				t.Errorf("packet %d has %d bytes, want at most %d", i, len(b), c.WireSize())
			}
		}
	})
}

// FuzzPlan takes any bytes for the header and packet. What Plan accepts must be
// cut as the reference cuts it.
func FuzzPlan(f *testing.F) {
	for _, s := range []spec{tcp4(), udp4(), with(tcp4(), six, allFlags), with(udp4(), six), with(tcp4(), func(s *spec) { s.ipOptions = []byte{1, 1, 1, 1} }), with(tcp4(), six, func(s *spec) { s.ipOptions = []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0} })} {
		s.payload = s.payload[:300]
		h := make([]byte, HeaderSize)
		s.header(100).Put(h)
		f.Add(append(h, s.partial()...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := ParseHeader(b)
		if !ok {
			return
		}
		packet := slices.Clone(b[HeaderSize:])
		before := slices.Clone(packet)
		c, err := Plan(h, packet)
		if err != nil {
			return
		}
		got := wire(c, packet, 7)
		if len(got) != c.Count {
			t.Fatalf("%d packets, want %d", len(got), c.Count)
		}
		var payload []byte
		for i, w := range got {
			if len(w) > c.WireSize() {
				t.Fatalf("packet %d has %d bytes, want at most %d", i, len(w), c.WireSize())
			}
			payload = append(payload, w[c.Head:]...)
		}
		if c.Count == 1 {
			checkCompleted(t, h, before, got[0])
			return
		}
		if string(before) != string(packet) || string(payload) != string(before[c.Head:]) {
			t.Fatal("payload is not what it was")
		}
		checkCut(t, h, before, got)
	})
}

// checkCompleted demands that only the sum changed, and that it is right.
func checkCompleted(t *testing.T, h Header, before, after []byte) {
	t.Helper()
	if h.Flags&NeedsSum == 0 {
		if string(before) != string(after) {
			t.Fatal("a packet without a partial sum changed")
		}
		return
	}
	want := slices.Clone(before)
	sum := ^slowSum(before[h.SumStart:])
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(want[int(h.SumStart)+int(h.SumOffset):], sum)
	if diff := cmp.Diff(want, after); diff != "" {
		t.Fatalf("completed (-want +got):\n%s", diff)
	}
}

// checkCut compares with the reference, unless that cannot read the packet:
// IPv6 extension headers.
func checkCut(t *testing.T, h Header, large []byte, got [][]byte) {
	t.Helper()
	s, err := read(large)
	if s.v6 && large[6] != protoTCP && large[6] != protoUDP {
		return
	}
	if err != nil {
		t.Fatalf("Plan accepted what the reference cannot read: %v", err)
	}
	if diff := differ(s.cut(int(h.SegmentSize)), got); diff != "" {
		t.Fatalf("cut (-want +got):\n%s", diff)
	}
}

func TestCutAllocatesNothing(t *testing.T) {
	s := with(tcp4(), func(s *spec) { s.payload = bytesOf(60000) })
	large, h, scratch := s.partial(), s.header(1448), make([]byte, MaxHead*64)
	short := with(s, func(s *spec) { s.payload = s.payload[:100] }).partial()
	if n := testing.AllocsPerRun(100, func() {
		c, err := Plan(h, large)
		if err != nil || len(c.Heads(large, scratch, 0)) != c.Count*c.Head || len(c.Payload(large, 3)) != 1448 {
			t.Error("not cut")
		}
		if c, err = Plan(h, short); err != nil {
			t.Error(err)
		}
		c.Complete(short)
		if _, err = Plan(h, large[1:]); err == nil {
			t.Error("no error")
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func BenchmarkHeads(b *testing.B) {
	for _, bench := range []struct {
		name string
		spec spec
		size int
	}{
		{"tcp4", with(tcp4(), func(s *spec) { s.payload = bytesOf(65535 - 52) }), 1420 - 52},
		{"tcp6", with(tcp4(), six, func(s *spec) { s.payload = bytesOf(65535 - 72) }), 1420 - 72},
		{"udp4", with(udp4(), func(s *spec) { s.payload = bytesOf(64 * 1000) }), 1000},
	} {
		b.Run(bench.name, func(b *testing.B) {
			large, h, scratch := bench.spec.partial(), bench.spec.header(bench.size), make([]byte, 128*MaxHead)
			b.SetBytes(int64(len(large)))
			for b.Loop() {
				c, err := Plan(h, large)
				if err != nil {
					b.Fatal(err)
				}
				if len(c.Heads(large, scratch, 0)) != c.Count*c.Head {
					b.Fatal("heads are missing")
				}
			}
		})
	}
}

func BenchmarkComplete(b *testing.B) {
	for _, size := range []int{0, 56, 1200} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := with(udp4(), func(s *spec) { s.payload = bytesOf(size) })
			packet, h := s.partial(), s.header(0)
			h.GSO = None
			for b.Loop() {
				c, err := Plan(h, packet)
				if err != nil {
					b.Fatal(err)
				}
				c.Complete(packet)
			}
		})
	}
}
