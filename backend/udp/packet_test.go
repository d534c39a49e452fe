package udp

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// flow is what tests build packets from.
type flow struct {
	src, dst string
	hops     uint8
	whole    bool
	proto    byte
	fragment uint16 // offset in units of 8 bytes
	options  int    // bytes of IPv4 options
	payload  []byte
}

// packet builds the IP packet of f, with a right checksum.
func (f flow) packet() []byte {
	src, dst := netip.MustParseAddr(f.src), netip.MustParseAddr(f.dst)
	if src.Is6() {
		b := make([]byte, ipv6Header, ipv6Header+len(f.payload))
		b[0], b[6], b[7] = 0x60, f.proto, f.hops
		binary.BigEndian.PutUint16(b[4:], uint16(len(f.payload)))
		copy(b[8:], src.AsSlice())
		copy(b[24:], dst.AsSlice())
		return append(b, f.payload...)
	}
	size := ipv4Header + f.options
	b := make([]byte, size, size+len(f.payload))
	b[0], b[8], b[9] = 0x40|byte(size/4), f.hops, f.proto
	for i := ipv4Header; i < size; i++ {
		b[i] = 1 // no operation
	}
	binary.BigEndian.PutUint16(b[2:], uint16(size+len(f.payload)))
	binary.BigEndian.PutUint16(b[6:], f.fragment)
	if f.whole {
		b[6] |= 0x40
	}
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(b[10:], slowChecksum(b[:size]))
	return append(b, f.payload...)
}

// slowChecksum is RFC 1071 as its text says it: add all 16-bit words, the
// checksum's own taken as zero, in one's complement arithmetic.
func slowChecksum(header []byte) uint16 {
	h := slices.Clone(header)
	h[10], h[11] = 0, 0
	return onesComplement(h)
}

func onesComplement(b []byte) uint16 {
	if len(b)%2 == 1 {
		b = append(slices.Clone(b), 0)
	}
	var total uint64
	for i := 0; i < len(b); i += 2 {
		total += uint64(b[i])*256 + uint64(b[i+1])
		if total > 0xffff {
			total -= 0xffff
		}
	}
	return ^uint16(total)
}

func v4(s string) address { return addressOf(netip.MustParseAddr(s)) }

func TestParse(t *testing.T) {
	good := flow{src: "10.5.1.2", dst: "10.5.2.3", hops: 64, whole: true, proto: 17, payload: make([]byte, 12)}
	v6 := flow{src: "fd05::1", dst: "fd05:1::2", hops: 63, proto: 17, payload: make([]byte, 8)}
	change := func(b []byte, at int, to byte) []byte { b[at] = to; return b }
	with := header{family: subnet.IPv4, hops: 64, whole: true, src: v4("10.5.1.2"), dst: v4("10.5.2.3")}
	options := good
	options.options = 8
	for name, tc := range map[string]struct {
		in   []byte
		want header
		ok   bool
	}{
		"ipv4":                    {good.packet(), with, true},
		"ipv4 with options":       {options.packet(), with, true},
		"ipv4 without payload":    {flow{src: "10.5.1.2", dst: "10.5.2.3", hops: 64, whole: true}.packet(), with, true},
		"ipv6":                    {v6.packet(), header{family: subnet.IPv6, hops: 63, whole: true, src: v4("fd05::1"), dst: v4("fd05:1::2")}, true},
		"empty":                   {nil, header{}, false},
		"19 bytes":                {good.packet()[:19], header{}, false},
		"claims less than it has": {append(good.packet(), 0), header{}, false},
		"claims more than it has": {good.packet()[:31], header{}, false},
		"header below 20 bytes":   {change(good.packet(), 0, 0x44), header{}, false},
		"header beyond the end":   {change(good.packet(), 0, 0x4f), header{}, false},
		"version 5":               {change(good.packet(), 0, 0x55), header{}, false},
		"ipv6 of 39 bytes":        {v6.packet()[:39], header{}, false},
		"ipv6 claims less":        {append(v6.packet(), 0), header{}, false},
		"ipv6 claims more":        {v6.packet()[:47], header{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := parse(tc.in)
			if ok != tc.ok || (ok && got != tc.want) {
				t.Errorf("parse(%x) = %+v, %v; want %+v, %v", tc.in, got, ok, tc.want, tc.ok)
			}
		})
	}
}

// FuzzPacketPath feeds any bytes to everything that reads a packet.
func FuzzPacketPath(f *testing.F) {
	w := &world{table: newTable([]peer{
		peerAt("0.0.0.0/0", "198.18.0.2:8285"),
		peerAt("::/0", "198.18.0.2:8285"),
	})}
	f.Add(flow{src: "10.5.1.2", dst: "10.5.2.3", hops: 2, options: 40, payload: []byte("x")}.packet())
	f.Add(flow{src: "10.5.1.2", dst: "10.5.2.3", hops: 1, proto: protoICMP, payload: []byte{8, 0}}.packet())
	f.Add(flow{src: "fd05::1", dst: "fd05:1::2", hops: 9, proto: protoFragment, payload: make([]byte, 16)}.packet())
	f.Fuzz(func(t *testing.T, b []byte) {
		before := slices.Clone(b)
		q := w.about(b, destination)
		h, out := q.header, q.outbound(b, len(b), 1472)
		if out != Malformed {
			flowHash(b, h)
		}
		switch out {
		case Forwarded:
			checkLowered(t, before, b, h.family)
		default:
			if !slices.Equal(before, b) {
				t.Errorf("%v, but the packet was changed:\n%x\n%x", out, before, b)
			}
		}
		c := slices.Clone(before)
		in := w.about(c, source).inbound(c, netip.MustParseAddr("198.18.0.2"))
		if (in == Malformed) != (out == Malformed) {
			t.Errorf("outbound says %v, inbound %v", out, in)
		}
		if out == Malformed || !answerable(before, h) {
			return
		}
		checkError(t, before, h)
	})
}

// checkLowered compares a packet before and after one hop with the slow way.
func checkLowered(t *testing.T, before, after []byte, f subnet.Family) {
	t.Helper()
	want := slices.Clone(before)
	if f == subnet.IPv6 {
		want[7]--
	} else {
		size := int(before[0]&0xf) * 4
		right := slowChecksum(before[:size]) == binary.BigEndian.Uint16(before[10:])
		if !right { // stays wrong by as much: compare as if it had been right
			if onesComplement(before[:size]) != onesComplement(after[:size]) {
				t.Errorf("damage changed:\n%x\n%x", before[:size], after[:size])
			}
			return
		}
		want[8]--
		binary.BigEndian.PutUint16(want[10:], slowChecksum(want[:size]))
	}
	if diff := cmp.Diff(want, after); diff != "" {
		t.Errorf("after one hop (-want +got):\n%s", diff)
	}
}

func TestLowerHopsEveryChecksum(t *testing.T) {
	t.Parallel()
	b := flow{src: "10.5.1.2", dst: "10.5.2.3", hops: 64}.packet()
	for id := range 1 << 16 { // steers the checksum through all its values
		binary.BigEndian.PutUint16(b[4:], uint16(id))
		for _, hops := range []byte{1, 2, 64, 128, 255} {
			b[8] = hops
			binary.BigEndian.PutUint16(b[10:], slowChecksum(b))
			after := slices.Clone(b)
			lowerHops(after, subnet.IPv4)
			if after[8] != hops-1 || binary.BigEndian.Uint16(after[10:]) != slowChecksum(after) {
				t.Fatalf("id %d, ttl %d: got %x, want checksum %x", id, hops, after, slowChecksum(after))
			}
		}
	}
}

func TestSumIsOnesComplement(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 1500).Draw(t, "bytes")
		if got, want := ^fold(sum(b, 0)), onesComplement(b); got != want && len(b) > 0 {
			t.Fatalf("checksum of %x: got %x, want %x", b, got, want)
		}
	})
}

func TestMulticast(t *testing.T) {
	for in, want := range map[string]bool{
		"224.0.0.1": true, "239.255.255.255": true, "255.255.255.255": true, "ff02::2": true,
		"223.255.255.255": false, "240.0.0.1": false, "10.5.0.255": false, "fe80::1": false,
	} {
		a := netip.MustParseAddr(in)
		if got := addressOf(a).multicast(subnet.FamilyOf(a)); got != want {
			t.Errorf("multicast(%s) = %v, want %v", in, got, want)
		}
	}
}
