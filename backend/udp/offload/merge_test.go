package offload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// emission is one Joined, as a test keeps it.
type emission struct {
	header  Header
	packet  []byte
	members []int // which of the added packets it stands for
}

// merge adds packets to m and flushes them. The packets change; whoever wants to
// compare clones them before.
func merge(t rapid.TB, m *Merger, packets [][]byte) []emission {
	t.Helper()
	// A part reaches to the end of the packet that it comes from.
	index := map[*byte]int{}
	for i, b := range packets {
		if !m.Add(b) {
			t.Fatalf("Add refuses packet %d", i)
		}
		if len(b) > 0 {
			index[&b[len(b)-1]] = i
		}
	}
	var out []emission
	for j := range m.Flush {
		e := emission{header: j.Header, packet: bytes.Join(j.Parts, nil)}
		for _, part := range j.Parts {
			i, ok := index[&part[len(part)-1]]
			if !ok {
				t.Fatal("a part is of none of the packets")
			}
			e.members = append(e.members, i)
		}
		if j.Packets != len(j.Parts) || j.Bytes != len(e.packet) {
			t.Errorf("Packets, Bytes = %d, %d; want %d, %d", j.Packets, j.Bytes, len(j.Parts), len(e.packet))
		}
		out = append(out, e)
	}
	return out
}

func cloneAll(packets [][]byte) [][]byte {
	var out [][]byte
	for _, b := range packets {
		out = append(out, slices.Clone(b))
	}
	return out
}

// flowOf names the flow of a packet as far as it can be seen: addresses, and
// then protocol and ports, or less where no transport header can be found.
func flowOf(b []byte) (addresses, ports string) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		addresses = string(b[12:20])
		size := int(b[0]&0xf) * 4
		ports = string(b[9:10])
		if (b[9] == protoTCP || b[9] == protoUDP) && size >= 20 && len(b) >= size+8 && binary.BigEndian.Uint16(b[6:])&mayFragment == 0 {
			ports += string(b[size : size+4])
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		addresses = string(b[8:40])
		if (b[6] == protoTCP || b[6] == protoUDP) && len(b) >= 48 {
			ports = string(b[6:7]) + string(b[40:44])
		} else if b[6] == protoICMPv6 {
			ports = string(b[6:7])
		}
	}
	return addresses, ports
}

// sameFlowOrUnclear reports whether b must stay behind a.
func sameFlowOrUnclear(a, b []byte) bool {
	addressesA, portsA := flowOf(a)
	addressesB, portsB := flowOf(b)
	return addressesA == addressesB && (strings.HasPrefix(portsA, portsB) || strings.HasPrefix(portsB, portsA))
}

// check is the Merger's contract: every packet once, each flow in its order, and
// what was joined, cut again, is what was added.
func check(t rapid.TB, added [][]byte, got []emission) {
	t.Helper()
	position := make([]int, len(added))
	for i := range position {
		position[i] = -1
	}
	n := 0
	for _, e := range got {
		for _, i := range e.members {
			if position[i] >= 0 {
				t.Fatalf("packet %d is emitted twice", i)
			}
			position[i] = n
			n++
		}
	}
	for i := range added {
		if position[i] < 0 && len(added[i]) > 0 {
			t.Fatalf("packet %d is lost", i)
		}
		for j := range i {
			if position[j] > position[i] && sameFlowOrUnclear(added[j], added[i]) {
				t.Fatalf("packet %d overtakes packet %d", i, j)
			}
		}
	}
	for _, e := range got {
		checkJoined(t, added, e)
	}
}

// checkJoined cuts e again and compares.
func checkJoined(t rapid.TB, added [][]byte, e emission) {
	t.Helper()
	if len(e.packet) > 65535 || len(e.members) > MaxParts {
		t.Fatalf("a join of %d packets has %d bytes", len(e.members), len(e.packet))
	}
	if len(e.members) == 1 {
		if e.header != (Header{}) || string(e.packet) != string(added[e.members[0]]) {
			t.Fatalf("packet %d is not emitted as it came", e.members[0])
		}
		return
	}
	c, err := Plan(e.header, e.packet)
	if err != nil {
		t.Fatalf("Plan of packets %v joined: %v", e.members, err)
	}
	if c.Count != len(e.members) || int(e.header.HeaderLen) != c.Head {
		t.Fatalf("packets %v joined are cut into %d, heads of %d and %d bytes", e.members, c.Count, c.Head, e.header.HeaderLen)
	}
	if got := binary.BigEndian.Uint16(e.packet[c.sum:]); got != slowPartial(e.packet, c) {
		t.Fatalf("partial sum = %#04x, want %#04x", got, slowPartial(e.packet, c))
	}
	for i, w := range wire(c, e.packet, 1000) {
		want := slices.Clone(added[e.members[i]])
		if want[0]>>4 == 4 && want[6]&0x40 != 0 { // identifications that nobody reads
			copy(want[4:6], w[4:6])
			want[10], want[11] = 0, 0
			binary.BigEndian.PutUint16(want[10:], ^slowSum(want[:20]))
		}
		if diff := differ([][]byte{want}, [][]byte{w}); diff != "" {
			t.Fatalf("packet %d, joined and cut (-want +got):\n%s", e.members[i], diff)
		}
	}
}

// slowPartial is the sum of the pseudo header of packet.
func slowPartial(packet []byte, c Cut) uint16 {
	s, err := read(packet)
	if err != nil {
		return 0
	}
	return slowSum(s.pseudoHeader(len(packet) - c.start))
}

// next is the segment or datagram that follows s.
func next(s spec) spec {
	s.seq += uint32(len(s.payload))
	s.id++
	return s
}

// run is a flow of n packets.
func run(s spec, n int) []spec {
	out := []spec{s}
	for range n - 1 {
		s = next(s)
		out = append(out, s)
	}
	return out
}

func packets(specs ...spec) [][]byte {
	var out [][]byte
	for _, s := range specs {
		out = append(out, s.packet())
	}
	return out
}

func small(s spec) spec {
	s.payload, s.flags = bytesOf(1000), 0x10
	return s
}

// TestMergePairs adds three packets of a flow, the second changed. Groups are
// the packets that each Joined stands for.
func TestMergePairs(t *testing.T) {
	tcp, udp, tcp6, udp6 := small(tcp4()), small(udp4()), with(small(tcp4()), six), with(small(udp4()), six)
	all, apart := [][]int{{0, 1, 2}}, [][]int{{0}, {1}, {2}}
	pair, ends := [][]int{{0}, {1, 2}}, [][]int{{0, 1}, {2}}
	type change = func(s *spec)
	tests := []struct {
		name   string
		first  spec
		change change
		want   [][]int
	}{
		{"tcp", tcp, func(*spec) {}, all},
		{"tcp over ipv6", tcp6, func(*spec) {}, all},
		{"udp", udp, func(*spec) {}, all},
		{"udp over ipv6", udp6, func(*spec) {}, all},

		{"push ends", tcp, func(s *spec) { s.flags |= 0x08 }, ends},
		{"shorter ends", tcp, func(s *spec) { s.payload = s.payload[:999] }, ends},
		{"shorter ends, udp", udp, func(s *spec) { s.payload = s.payload[:1] }, ends},
		{"longer begins", tcp, func(s *spec) { s.payload = bytesOf(1001) }, [][]int{{0}, {1, 2}}},
		{"longer begins, udp", udp, func(s *spec) { s.payload = bytesOf(1001) }, [][]int{{0}, {1, 2}}},

		{"pure acknowledgement", tcp, func(s *spec) { s.payload = nil }, apart},
		{"empty datagram", udp, func(s *spec) { s.payload = nil }, apart},
		{"FIN", tcp, func(s *spec) { s.flags |= 0x01 }, apart},
		{"SYN", tcp, func(s *spec) { s.flags |= 0x02 }, apart},
		{"RST", tcp, func(s *spec) { s.flags |= 0x04 }, apart},
		{"URG", tcp, func(s *spec) { s.flags |= 0x20 }, apart},
		{"ECE", tcp, func(s *spec) { s.flags |= 0x40 }, apart},
		{"CWR", tcp, func(s *spec) { s.flags |= 0x80 }, apart},
		{"AE", tcp, func(s *spec) { s.flags |= 0x100 }, apart},
		{"no ACK", tcp, func(s *spec) { s.flags = 0 }, apart},
		{"udp without a sum", udp, func(s *spec) { s.sumless = true }, apart},
		{"udp over ipv6 without a sum", udp6, func(s *spec) { s.sumless = true }, apart},
		{"first fragment", udp, func(s *spec) { s.fragment = 0x2000 }, apart},
		{"later fragment", udp, func(s *spec) { s.fragment = 1 }, apart},
		{"later fragment of tcp", tcp, func(s *spec) { s.fragment = 1 }, apart},
		{"ip options", tcp, func(s *spec) { s.ipOptions = []byte{1, 1, 1, 1} }, apart},
		{"extension header", tcp6, func(s *spec) { s.ipOptions = []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0} }, apart},

		// What differs here holds for the third packet too: it follows the second.
		{"window", tcp, func(s *spec) { s.window++ }, pair},
		{"upper half of window", tcp, func(s *spec) { s.window += 0x100 }, pair},
		{"urgent pointer", tcp, func(s *spec) { s.urgent++ }, pair},
		{"acknowledgement", tcp, func(s *spec) { s.ack++ }, pair},
		{"timestamp", tcp, func(s *spec) { s.options = append(slices.Clone(s.options[:11]), 3) }, pair},
		{"number of options", tcp, func(s *spec) { s.options = nil; s.payload = s.payload[:900] }, pair},
		{"gap", tcp, func(s *spec) { s.seq++ }, pair},
		{"repetition", tcp, func(s *spec) { s.seq -= 1000 }, pair},
		{"TOS", tcp, func(s *spec) { s.tos++ }, pair},
		{"TTL", tcp, func(s *spec) { s.hops++ }, pair},
		{"DF", udp, func(s *spec) { s.fragment ^= dontFragment }, pair},
		{"DF of tcp", tcp, func(s *spec) { s.fragment ^= dontFragment }, pair},
		{"reserved bit", udp, func(s *spec) { s.fragment ^= 0x8000 }, pair},
		{"traffic class", tcp6, func(s *spec) { s.tos++ }, pair},
		{"flow label", tcp6, func(s *spec) { s.label++ }, pair},
		{"hop limit", tcp6, func(s *spec) { s.hops++ }, pair},
		{"identification jumps", tcp, func(s *spec) { s.id += 5 }, pair},
		{"identification jumps, udp", udp, func(s *spec) { s.id += 5 }, pair},
		{"identification stays, no DF", udp, func(s *spec) { s.id-- }, pair},
		{"identification stays once", tcp, func(s *spec) { s.id-- }, ends},
		{"traffic class of udp", udp6, func(s *spec) { s.tos++ }, pair},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			second := next(tt.first)
			tt.change(&second)
			third := next(second)
			if slices.Equal(tt.want[0], []int{0, 1, 2}) || len(tt.want) == 3 || len(tt.want[0]) == 2 {
				third = next(next(tt.first)) // as if nothing had been
			}
			added := packets(tt.first, second, third)
			got := merge(t, NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}}), cloneAll(added))
			check(t, added, got)
			var groups [][]int
			for _, e := range got {
				groups = append(groups, e.members)
			}
			if diff := cmp.Diff(tt.want, groups); diff != "" {
				t.Errorf("joins (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMergeAlike has packets that differ from others but not from each other,
// with sums that are right: none may be joined.
func TestMergeAlike(t *testing.T) {
	tcp, udp := small(tcp4()), small(udp4())
	put := func(at int, word uint16) func(b []byte) {
		return func(b []byte) { binary.BigEndian.PutUint16(b[at:], word) }
	}
	type test struct {
		name   string
		spec   spec
		change func(b []byte) // before the sums
	}
	tests := []test{
		{"first fragments", udp, put(6, 0x2000)},
		{"later fragments", udp, put(6, 1)},
		{"a total length that lies", udp, put(2, 1027)},
		{"a udp length that lies", udp, put(24, 1007)},
		{"a tcp header of less than 20 bytes", tcp, put(32, 0x4010)},
		{"ip options", with(udp, func(s *spec) { s.ipOptions = []byte{1, 1, 1, 1} }), func([]byte) {}},
	}
	for bit := range 12 {
		if bit != 3 && bit != 4 {
			odd := with(tcp, func(s *spec) { s.flags |= 1 << bit })
			tests = append(tests, test{fmt.Sprintf("tcp flag %#x", 1<<bit), odd, func([]byte) {}})
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			added := packets(run(tt.spec, 3)...)
			for _, b := range added {
				tt.change(b)
				resum(b, tt.spec)
			}
			got := merge(t, NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}}), cloneAll(added))
			if check(t, added, got); len(got) != 3 {
				t.Errorf("%d packets, want 3", len(got))
			}
		})
	}
}

// resum makes the sums of the IPv4 packet b right for what it is, its true
// length included.
func resum(b []byte, s spec) {
	be, start := binary.BigEndian, int(b[0]&0xf)*4
	be.PutUint16(b[10:], 0)
	be.PutUint16(b[10:], ^slowSum(b[:start]))
	at := start + s.sumAt()
	be.PutUint16(b[at:], 0)
	be.PutUint16(b[at:], ^slowSum(s.pseudoHeader(len(b)-start), b[start:]))
}

// TestMergeZeroSum has datagrams whose sum is zero, and written so instead of as
// 0xffff: then they have none, and cannot be joined to others that have one.
func TestMergeZeroSum(t *testing.T) {
	for _, s := range []spec{small(udp4()), with(small(udp4()), six)} {
		var added [][]byte
		for _, one := range run(s, 3) {
			one.payload = make([]byte, 100)
			b := one.packet()
			at := len(b) - 100 - udpHeader + udpSum
			copy(b[at+2:], b[at:at+2])
			b[at], b[at+1] = 0, 0
			if one, err := read(b); err != nil || !slowSound(one, b) {
				t.Fatal("the test's own sums are wrong")
			}
			added = append(added, b)
		}
		got := merge(t, NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}}), cloneAll(added))
		if check(t, added, got); len(got) != 3 {
			t.Errorf("%d packets, want 3", len(got))
		}
	}
}

// TestMergeStreams is about how far joins go.
func TestMergeStreams(t *testing.T) {
	tcp := small(tcp4())
	push := run(tcp, 5)
	push[4].flags |= 0x08
	after := slices.Concat(push[4:], run(with(next(push[4]), func(s *spec) { s.flags = 0x10 }), 2))
	still := run(tcp, 3)
	still[1].id, still[2].id = still[0].id, still[0].id
	mixed := run(tcp, 4)
	mixed[1].id, mixed[2].id, mixed[3].id = mixed[0].id, mixed[0].id+1, mixed[0].id+1
	many := func(s spec, size, n int) []spec {
		s.payload = bytesOf(size)
		return run(s, n)
	}
	tests := []struct {
		name  string
		udp   bool
		specs []spec
		want  []int // packets of each join
	}{
		{"one", true, run(tcp, 1), []int{1}},
		{"push at the end", true, push, []int{5}},
		{"push from the first on", true, after, []int{1, 2}},
		{"one identification with DF", true, still, []int{3}},
		{"identifications stay and grow in turn", true, mixed, []int{2, 2}},
		{"identifications grow, then stay", true, mixed[1:], []int{2, 1}},
		{"64 KiB", true, many(tcp, 1448, 50), []int{45, 5}},
		{"64 KiB over ipv6", true, many(with(tcp, six), 1428, 50), []int{45, 5}},
		{"exactly 65535 bytes", true, many(with(tcp, func(s *spec) { s.options = nil }), 1395, 49), []int{46, 3}},
		{"one byte less than the next would need", true, many(with(tcp, func(s *spec) { s.options = nil }), 2729, 25), []int{23, 2}},
		{"small segments", true, many(tcp, 10, 130), []int{64, 64, 2}},
		{"datagrams", true, many(udp4(), 100, 130), []int{64, 64, 2}},
		{"no USO", false, many(udp4(), 100, 3), []int{1, 1, 1}},
		{"tcp without USO", false, run(tcp, 3), []int{3}},
		{"sequence wraps", true, many(with(tcp, func(s *spec) { s.seq = 0xffffff00 }), 200, 4), []int{4}},
		{"identification wraps", true, many(with(udp4(), func(s *spec) { s.id = 0xfffe }), 200, 4), []int{4}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			added := packets(tt.specs...)
			m := NewMerger(Options{Protocols: Protocols{TCP: true, UDP: tt.udp}})
			for range 2 { // the second time as the first
				got := merge(t, m, cloneAll(added))
				check(t, added, got)
				var counts []int
				for _, e := range got {
					counts = append(counts, len(e.members))
				}
				if diff := cmp.Diff(tt.want, counts); diff != "" {
					t.Errorf("joins (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// TestMergeKinds is about what the device is told.
func TestMergeKinds(t *testing.T) {
	for _, s := range []spec{tcp4(), udp4(), with(tcp4(), six), with(udp4(), six)} {
		s = small(s)
		got := merge(t, NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}}), packets(run(s, 3)...))
		if len(got) != 1 {
			t.Fatalf("%d joins, want 1", len(got))
		}
		joined := s
		joined.payload = slices.Concat(s.payload, s.payload, s.payload)
		if diff := cmp.Diff(joined.header(len(s.payload)), got[0].header); diff != "" {
			t.Errorf("header (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(joined.partial(), got[0].packet); diff != "" {
			t.Errorf("packet (-want +got):\n%s", diff)
		}
	}
}

func TestMergeWrongSums(t *testing.T) {
	for _, s := range []spec{tcp4(), udp4(), with(tcp4(), six), with(udp4(), six)} {
		s = small(s)
		header := len(s.ip(0))
		places := []int{header, header + s.sumAt(), header + s.sumAt() + 1, header + len(s.transport()) - 1}
		if !s.v6 {
			places = append(places, 10, 11, 4)
		}
		for _, at := range places {
			for damaged := range 4 {
				t.Run(fmt.Sprintf("udp %v, ipv6 %v, packet %d, byte %d", s.udp, s.v6, damaged, at), func(t *testing.T) {
					added := packets(run(s, 4)...)
					added[damaged][at] ^= 0x40
					got := merge(t, NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}}), cloneAll(added))
					check(t, added, got)
					for _, e := range got {
						if len(e.members) > 1 && slices.Contains(e.members, damaged) {
							t.Errorf("the damaged packet is in a join: %v", e.members)
						}
					}
				})
			}
		}
	}
}

// TestMergeFlows has more flows than may be open at a time.
func TestMergeFlows(t *testing.T) {
	for _, flows := range []int{2, maxFlows, maxFlows + 1, 40} {
		t.Run(fmt.Sprint(flows), func(t *testing.T) {
			var added [][]byte
			for i := range 5 {
				for f := range flows {
					s := small(tcp4())
					s.sport += uint16(f)
					added = append(added, run(s, 5)[i].packet())
				}
			}
			got := merge(t, NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}}), cloneAll(added))
			check(t, added, got)
			if flows <= maxFlows && len(got) != flows {
				t.Errorf("%d joins of %d flows", len(got), flows)
			}
		})
	}
}

// TestMergeSameHash puts two flows where their hashes are the same.
func TestMergeSameHash(t *testing.T) {
	a := small(tcp4())
	a.options, a.payload = nil, a.payload[:1] // shorter than IPv6 and ports
	b := a
	b.sport++
	for _, s := range []spec{a, b, with(a, six), with(a, func(s *spec) { s.udp = true })} {
		m := NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}})
		m.Add(a.packet())
		var shape shape
		shape.parse(s.packet())
		m.flows[0].hash = shape.hash
		if got := m.find(s.packet(), &shape) == 0; got != (s.sport == a.sport && s.v6 == a.v6 && s.udp == a.udp) {
			t.Errorf("find = %v for %+v", got, s)
		}
	}
}

func TestMergerFull(t *testing.T) {
	m := NewMerger(Options{Protocols: Protocols{TCP: true}, Packets: 3})
	s := small(tcp4())
	for i, p := range packets(run(s, 4)...) {
		if got := m.Add(p); got != (i < 3) {
			t.Errorf("Add of packet %d = %v", i, got)
		}
	}
	n := 0
	for j := range m.Flush {
		n += j.Packets
	}
	if n != 3 || !m.Add(s.packet()) {
		t.Errorf("%d packets before Flush, want 3, and room after it", n)
	}
}

// TestFlushBreaks leaves nothing behind when the loop breaks off.
func TestFlushBreaks(t *testing.T) {
	m := NewMerger(Options{Protocols: Protocols{TCP: true}})
	s := small(tcp4())
	for range 3 {
		m.Add(s.packet())
	}
	for range m.Flush {
		break
	}
	for range m.Flush {
		t.Error("a packet is left")
	}
}

// TestFlushEndsJoins continues a flow behind a Flush.
func TestFlushEndsJoins(t *testing.T) {
	m := NewMerger(Options{Protocols: Protocols{TCP: true}})
	for _, b := range packets(run(small(tcp4()), 3)...) {
		added := [][]byte{b}
		got := merge(t, m, cloneAll(added))
		if check(t, added, got); len(got) != 1 {
			t.Errorf("%d packets, want 1", len(got))
		}
	}
}

// drawTraffic draws packets of few flows, most of them joinable, some not, some
// damaged, some swapped.
func drawTraffic(t *rapid.T) [][]byte {
	flows := make([]spec, rapid.IntRange(1, 4).Draw(t, "flows"))
	for i := range flows {
		s := small([]spec{tcp4(), udp4()}[rapid.IntRange(0, 1).Draw(t, "protocol")])
		if rapid.Bool().Draw(t, "ipv6") {
			six(&s)
		}
		s.dport = uint16(rapid.IntRange(1, 3).Draw(t, "port"))
		s.payload = bytesOf(rapid.SampledFrom([]int{1, 2, 99, 500, 1448, 20000}).Draw(t, "size"))
		flows[i] = s
	}
	var out [][]byte
	for range rapid.IntRange(1, 100).Draw(t, "packets") {
		s := &flows[rapid.IntRange(0, len(flows)-1).Draw(t, "flow")]
		one := *s
		if rapid.IntRange(0, 5).Draw(t, "odd") == 0 {
			change(t, &one)
		}
		*s = next(one)
		s.payload, s.flags, s.fragment, s.ipOptions, s.sumless = bytesOf(len(s.payload)), 0x10, s.fragment&dontFragment, nil, false
		b := one.packet()
		if rapid.IntRange(0, 15).Draw(t, "damage") == 0 {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
		out = append(out, b)
	}
	return out
}

// change alters one thing of a packet.
func change(t *rapid.T, s *spec) {
	switch rapid.IntRange(0, 11).Draw(t, "change") {
	case 0:
		s.flags |= 1 << rapid.IntRange(0, 8).Draw(t, "flag")
	case 1, 2:
		s.flags |= flagPSH
	case 3:
		s.payload = s.payload[:rapid.IntRange(0, len(s.payload)).Draw(t, "shorter")]
	case 4:
		s.payload = bytesOf(len(s.payload) + 1)
	case 5:
		s.hops++
	case 6:
		s.tos++
	case 7:
		s.seq += 7
	case 8:
		s.id += uint16(rapid.IntRange(0, 2).Draw(t, "id"))
	case 9:
		if !s.v6 {
			s.fragment ^= rapid.SampledFrom([]uint16{dontFragment, 0x2000, 3}).Draw(t, "fragment")
		}
	case 10:
		if !s.v6 {
			s.ipOptions = []byte{1, 1, 1, 1}
		}
	case 11:
		s.sumless = s.udp
	}
}

// drawProtocols says what a Merger joins.
func drawProtocols(t *rapid.T) Protocols {
	return rapid.SampledFrom([]Protocols{{TCP: true, UDP: true}, {TCP: true}, {TCP: true, UDP: true}, {TCP: true}, {UDP: true}, {}}).Draw(t, "joined")
}

// TestMergeOnly joins what it is told to, and follows when it is told otherwise.
func TestMergeOnly(t *testing.T) {
	m := NewMerger(Options{})
	for _, only := range []Protocols{{}, {TCP: true}, {UDP: true}, {TCP: true, UDP: true}, {}} {
		m.Join(only)
		var want []int
		for _, joins := range []bool{only.TCP, only.UDP, only.TCP, only.UDP} {
			want = append(want, map[bool][]int{true: {3}, false: {1, 1, 1}}[joins]...)
		}
		var added [][]byte
		for _, s := range []spec{tcp4(), udp4(), with(tcp4(), six), with(udp4(), six)} {
			added = append(added, packets(run(small(s), 3)...)...)
		}
		got := merge(t, m, cloneAll(added))
		check(t, added, got)
		var counts []int
		for _, e := range got {
			counts = append(counts, len(e.members))
		}
		if diff := cmp.Diff(want, counts); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", only, diff)
		}
	}
}

func TestMergeProperties(t *testing.T) {
	joined, packets := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		added := drawTraffic(t)
		m := NewMerger(Options{Protocols: drawProtocols(t)})
		got := merge(t, m, cloneAll(added))
		check(t, added, got)
		checkSound(t, added, got)
		packets += len(added)
		joined += len(added) - len(got)
	})
	if joined*10 < packets {
		t.Errorf("only %d of %d packets were joined to another: the test says little", joined, packets)
	}
}

// checkSound demands that what was joined had right sums.
func checkSound(t rapid.TB, added [][]byte, got []emission) {
	t.Helper()
	for _, e := range got {
		for _, i := range e.members {
			if s, err := read(added[i]); len(e.members) > 1 && (err != nil || !slowSound(s, added[i])) {
				t.Fatalf("packet %d has wrong sums and was joined", i)
			}
		}
	}
}

func slowSound(s spec, b []byte) bool {
	start := len(s.ip(0))
	if !s.v6 && slowSum(b[:start]) != 0xffff {
		return false
	}
	return slowSum(s.pseudoHeader(len(b)-start), b[start:]) == 0xffff
}

// FuzzMerger reads packets of any bytes: each begins with two bytes of length,
// of which the highest bit says to mend its sums and lengths.
func FuzzMerger(f *testing.F) {
	frame := func(specs ...spec) []byte {
		var out []byte
		for _, b := range packets(specs...) {
			out = append(binary.BigEndian.AppendUint16(out, uint16(len(b))|0x8000), b...)
		}
		return out
	}
	for _, s := range []spec{tcp4(), udp4(), with(tcp4(), six), with(udp4(), six)} {
		s.payload, s.flags = bytesOf(20), 0x10
		f.Add(frame(run(s, 4)...))
		odd := run(s, 4)
		odd[1].flags, odd[2].fragment = 0x18, 1
		f.Add(frame(odd...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var added [][]byte
		for len(b) >= 2 && len(added) < 100 {
			word := binary.BigEndian.Uint16(b)
			n := min(int(word&0x7fff), len(b)-2)
			packet := slices.Clone(b[2 : 2+n])
			b = b[2+n:]
			if word&0x8000 != 0 {
				mend(packet)
			}
			added = append(added, packet)
		}
		added = slices.DeleteFunc(added, func(b []byte) bool { return len(b) == 0 })
		checkContinue(t, Options{Protocols: Protocols{TCP: true, UDP: true}}, added)
		got := merge(t, NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}}), cloneAll(added))
		canonical(added, got)
		check(t, added, got)
		checkSound(t, added, got)
	})
}

// mend sets lengths and sums right, where there are any.
func mend(b []byte) {
	be := binary.BigEndian
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		be.PutUint16(b[2:], uint16(len(b)))
	case len(b) >= 40 && b[0]>>4 == 6:
		be.PutUint16(b[4:], uint16(len(b)-40))
	}
	if s, err := read(b); err == nil && len(s.ipOptions) == 0 {
		copy(b, s.packet())
	}
}

// canonical turns the other zero of what was joined into the one that the
// reference has, in added: 0 and 0xffff are the same sum.
func canonical(added [][]byte, got []emission) {
	for _, e := range got {
		for _, i := range e.members {
			if s, err := read(added[i]); err == nil && len(e.members) > 1 && slowSound(s, added[i]) {
				copy(added[i], s.packet())
			}
		}
	}
}

func TestMergerAllocatesNothing(t *testing.T) {
	m := NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}})
	fresh := slices.Concat(packets(run(small(tcp4()), 40)...), packets(run(small(udp4()), 40)...), packets(run(with(small(tcp4()), six), 40)...))
	work, n := cloneAll(fresh), 0
	if got := testing.AllocsPerRun(100, func() {
		for i, p := range work {
			copy(p, fresh[i])
			if !m.Add(p) {
				t.Error("full")
			}
		}
		for j := range m.Flush {
			n += j.Packets
		}
	}); got != 0 {
		t.Errorf("%v allocations, want none", got)
	}
	if n != 101*len(fresh) {
		t.Errorf("%d packets came out, want %d", n, 101*len(fresh))
	}
}

func BenchmarkMerger(b *testing.B) {
	flows := func(n int) []spec {
		var out []spec
		for i := range n {
			s := small(tcp4())
			s.sport += uint16(i)
			out = append(out, s)
		}
		return out
	}
	acks := run(with(small(tcp4()), func(s *spec) { s.payload = nil }), 64)
	for _, bench := range []struct {
		name  string
		specs []spec
	}{
		{"tcp4", run(with(small(tcp4()), func(s *spec) { s.payload = bytesOf(1472 - 52) }), 44)},
		{"tcp6", run(with(small(tcp4()), six, func(s *spec) { s.payload = bytesOf(1472 - 72) }), 44)},
		{"udp4", run(with(small(udp4()), func(s *spec) { s.payload = bytesOf(1472 - 28) }), 44)},
		{"64 flows", flows(64)},
		{"acknowledgements", acks},
	} {
		b.Run(bench.name, func(b *testing.B) {
			m := NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}})
			fresh := packets(bench.specs...)
			work, size := cloneAll(fresh), 0
			for _, p := range work {
				size += len(p)
			}
			b.SetBytes(int64(size))
			for b.Loop() {
				copy(work[0], fresh[0][:60]) // Flush rewrote it
				for _, p := range work {
					m.Add(p)
				}
				for j := range m.Flush {
					size -= j.Bytes
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(work)), "ns/packet")
		})
	}
}
