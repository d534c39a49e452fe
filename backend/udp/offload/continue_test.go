package offload

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// higher is b with one hop more, as it came: what is wrong with its sum stays so.
func higher(b []byte) []byte {
	b = slices.Clone(b)
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		be := binary.BigEndian
		before := be.Uint16(b[8:])
		b[8]++
		after := be.Uint16(b[8:])
		// RFC 1624, equation 3.
		sum := uint32(^be.Uint16(b[10:])) + uint32(^before) + uint32(after)
		sum = sum>>16 + sum&0xffff
		sum = sum>>16 + sum&0xffff
		be.PutUint16(b[10:], ^uint16(sum))
	case len(b) >= 40 && b[0]>>4 == 6:
		b[7]++
	}
	return b
}

// trains are packets as a socket brings them: of one size each but for a shorter last one.
func trains(packets [][]byte) (all [][][]byte) {
	for i, b := range packets {
		if i > 0 {
			if last := all[len(all)-1]; len(b) <= len(last[0]) && len(last[len(last)-1]) == len(last[0]) {
				all[len(all)-1] = append(last, b)
				continue
			}
		}
		all = append(all, [][]byte{b})
	}
	return all
}

// plain are what m holds, with their bytes.
func plain(m *Merger) (out []emission) {
	for j := range m.Flush {
		out = append(out, emission{header: j.Header, packet: bytes.Join(j.Parts, nil)})
	}
	return out
}

// takeTrain adds a train, by Continue as far as that goes. It returns how many packets
// Continue took, and whether all was added: otherwise m is full.
func takeTrain(m *Merger, train [][]byte) (taken int, all bool) {
	var raw []byte
	for _, b := range train {
		raw = append(raw, higher(b)...)
	}
	size := len(train[0])
	for len(train) > 0 {
		n := len(train[0])
		copy(raw[:n], train[0]) // its hop is taken
		if !m.Add(raw[:n:n]) {
			return taken, false
		}
		raw, train = raw[n:], train[1:]
		left := len(raw)
		raw = raw[m.Continue(raw, size):]
		for left > len(raw) {
			left -= len(train[0])
			train = train[1:]
			taken++
		}
	}
	return taken, true
}

// checkContinue demands that what comes out is the same, whichever way packets were taken. It
// returns how many Continue took, and how many it was offered.
func checkContinue(t rapid.TB, o Options, packets [][]byte) (taken, offered int) {
	t.Helper()
	one, other := NewMerger(o), NewMerger(o)
	for _, train := range trains(packets) {
		n, all := takeTrain(one, train)
		taken += n
		offered += len(train) - 1
		for _, b := range cloneAll(train) {
			if !other.Add(b) && all {
				t.Fatal("Continue took more than there is room for")
			}
		}
		if !all {
			break
		}
	}
	want, got := plain(other), plain(one)
	if !slices.EqualFunc(want, got, func(a, b emission) bool { return a.header == b.header && bytes.Equal(a.packet, b.packet) }) {
		t.Errorf("joined (-by Add +by Continue):\n%s", cmp.Diff(want, got, cmp.AllowUnexported(emission{})))
	}
	return taken, offered
}

func TestContinueIsAdd(t *testing.T) {
	taken, offered := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		packets := drawTraffic(t)
		room := rapid.SampledFrom([]int{0, len(packets), len(packets) / 2}).Draw(t, "room")
		n, of := checkContinue(t, Options{Protocols: drawProtocols(t), Packets: room}, packets)
		taken, offered = taken+n, offered+of
	})
	if taken*20 < offered {
		t.Errorf("Continue took only %d of %d packets: the test says little", taken, offered)
	}
}

// TestContinue: a train is taken up to the packet that is not like the others.
func TestContinue(t *testing.T) {
	tcp, udp := small(tcp4()), small(udp4())
	all := []spec{tcp, udp, with(tcp, six), with(udp, six)}
	for _, tt := range []struct {
		name   string
		specs  []spec
		change func(s *spec)
		spoil  func(b []byte, s spec) // after the sums
	}{
		{"a hop more", all, func(s *spec) { s.hops++ }, nil},
		{"a hop less", all, func(s *spec) { s.hops-- }, nil},
		{"from another", all, func(s *spec) { s.src++ }, nil},
		{"to another", all, func(s *spec) { s.dst++ }, nil},
		{"from another port", all, func(s *spec) { s.sport++ }, nil},
		{"to another port", all, func(s *spec) { s.dport++ }, nil},
		{"of another class", all, func(s *spec) { s.tos++ }, nil},
		{"after a gap", []spec{tcp, with(tcp, six)}, func(s *spec) { s.seq++ }, nil},
		{"a wrong sum", all, nil, func(b []byte, _ spec) { b[len(b)-1] ^= 1 }},
		{"a wrong sum of the header", []spec{tcp, udp}, nil, func(b []byte, _ spec) { b[10] ^= 1 }},
		{"another protocol", []spec{with(tcp, six), with(udp, six)}, nil, func(b []byte, _ spec) { b[6] = 7 }},
		{"a length that lies", []spec{tcp, udp}, nil, func(b []byte, s spec) { b[3]++; resum(b, s) }},
		{"a length that lies, ipv6", []spec{with(tcp, six), with(udp, six)}, nil, func(b []byte, _ spec) { b[5]++ }},
		{"a udp length that lies", []spec{udp}, nil, func(b []byte, s spec) {
			binary.BigEndian.PutUint16(b[24:], 1007)
			resum(b, s)
		}},
		{"no sum", []spec{udp, with(udp, six)}, nil, func(b []byte, s spec) {
			at := len(b) - len(s.payload) - udpHeader + udpSum
			sum := binary.BigEndian.Uint16(b[at:])
			binary.BigEndian.PutUint16(b[at:], 0) // and what was there goes into the payload
			was := binary.BigEndian.Uint16(b[at+2:])
			binary.BigEndian.PutUint16(b[at+2:], ^slowSum([]byte{byte(^sum >> 8), byte(^sum), byte(^was >> 8), byte(^was)}))
		}},
	} {
		for _, first := range tt.specs {
			specs := run(first, 5)
			if tt.change != nil {
				tt.change(&specs[2])
			}
			raw := packets(specs...)
			if tt.spoil != nil {
				tt.spoil(raw[2], specs[2])
			}
			n := len(raw[0])
			m := NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}})
			m.Add(raw[0])
			for i := range raw {
				raw[i] = higher(raw[i])
			}
			if got := m.Continue(slices.Concat(raw[1:]...), n); got != n {
				t.Errorf("%s, udp %v, ipv6 %v: took %d bytes, want %d", tt.name, first.udp, first.v6, got, n)
			}
		}
	}
}

// TestContinueGoesOn: all of a train is taken, and all of the next one, whose first packet
// Add took.
func TestContinueGoesOn(t *testing.T) {
	for _, first := range []spec{tcp4(), udp4(), with(tcp4(), six), with(udp4(), six)} {
		all := packets(run(small(first), 20)...)
		m := NewMerger(Options{Protocols: Protocols{TCP: true, UDP: true}})
		for _, train := range [][][]byte{all[:9], all[9:]} {
			if n, _ := takeTrain(m, train); n != len(train)-1 {
				t.Errorf("udp %v, ipv6 %v: Continue took %d packets of %d", first.udp, first.v6, n, len(train)-1)
			}
		}
		if got := plain(m); len(got) != 1 {
			t.Errorf("udp %v, ipv6 %v: joined to %d packets", first.udp, first.v6, len(got))
		}
	}
}

// TestContinueEnds: the last packet of a train may be shorter, and nothing follows it.
func TestContinueEnds(t *testing.T) {
	specs := run(small(tcp4()), 3)
	specs[2].payload = specs[2].payload[1:]
	all := packets(specs...)
	train := bytes.Join([][]byte{higher(all[1]), higher(all[2])}, nil)
	m := NewMerger(Options{Protocols: Protocols{TCP: true}})
	m.Add(all[0])
	if n := m.Continue(train, len(all[1])); n != len(train) {
		t.Errorf("took %d bytes, want %d", n, len(train))
	}
	after := higher(next(specs[2]).packet())
	if n := m.Continue(after, len(after)); n != 0 {
		t.Errorf("took %d bytes after the last", n)
	}
}

// TestContinueNothing: there may be nothing that a packet could continue.
func TestContinueNothing(t *testing.T) {
	both := Options{Protocols: Protocols{TCP: true, UDP: true}}
	follows := higher(next(small(tcp4())).packet())
	for name, m := range map[string]*Merger{
		"nothing added": NewMerger(both),
		"one that ends its join": func() *Merger {
			m := NewMerger(both)
			m.Add(with(small(tcp4()), func(s *spec) { s.flags |= flagPSH }).packet())
			return m
		}(),
		"flushed": func() *Merger {
			m := NewMerger(both)
			m.Add(small(tcp4()).packet())
			plain(m)
			return m
		}(),
		"another added last": func() *Merger {
			m := NewMerger(both)
			m.Add(small(tcp4()).packet())
			m.Add(with(small(tcp4()), func(s *spec) { s.payload = nil; s.sport++ }).packet())
			return m
		}(),
		"full": func() *Merger {
			m := NewMerger(Options{Protocols: both.Protocols, Packets: 1})
			m.Add(small(tcp4()).packet())
			return m
		}(),
		"not joined": func() *Merger {
			m := NewMerger(Options{})
			m.Add(small(tcp4()).packet())
			return m
		}(),
	} {
		if n := m.Continue(follows, len(follows)); n != 0 {
			t.Errorf("%s: took %d bytes", name, n)
		}
	}
}
