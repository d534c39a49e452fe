package udp

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// TestPutErrorGolden compares with errors laid out by hand from RFC 792, 1191
// and 4443; their checksums were worked out by a program in another language.
func TestPutErrorGolden(t *testing.T) {
	v4packet := flow{src: "10.5.1.2", dst: "10.5.9.9", hops: 64, proto: 17, payload: []byte("12345678")}.packet()
	v6packet := flow{src: "fd05::1", dst: "fd05::2", hops: 64, proto: 17}.packet()
	for name, tc := range map[string]struct {
		v      Verdict
		packet []byte
		mtu    uint32
		want   string
	}{
		"net unreachable": {NoPeer, v4packet, 0, `
			45c0 0038 0000 0000 4001 63fa 0a050100 0a050102
			0300 2c2b 00000000
			4500 001c 0000 0000 4011 5cbd 0a050102 0a050909 31323334 35363738`},
		"fragmentation needed": {TooBig, v4packet, 1472, `
			45c0 0038 0000 0000 4001 63fa 0a050100 0a050102
			0304 2667 000005c0
			4500 001c 0000 0000 4011 5cbd 0a050102 0a050909 31323334 35363738`},
		"time exceeded": {Expired, v4packet, 0, `
			45c0 0038 0000 0000 4001 63fa 0a050100 0a050102
			0b00 242b 00000000
			4500 001c 0000 0000 4011 5cbd 0a050102 0a050909 31323334 35363738`},
		"ipv6 packet too big": {TooBig, v6packet, 1452, `
			60000000 0030 3a40 fd05000000000000 0000000000000099 fd05000000000000 0000000000000001
			0200 91f4 000005ac
			60000000 0000 1140 fd05000000000000 0000000000000001 fd05000000000000 0000000000000002`},
	} {
		t.Run(name, func(t *testing.T) {
			h, ok := parse(tc.packet)
			if !ok {
				t.Fatal("bad packet")
			}
			own := []string{"10.5.1.0", "fd05::99"}[h.family]
			typ, ok := errorFor(tc.v, h.family)
			if !ok {
				t.Fatalf("%v is not told", tc.v)
			}
			got := make([]byte, 1280)
			got = got[:putError(got, typ, netip.MustParseAddr(own), tc.packet, h, tc.mtu)]
			want, err := hex.DecodeString(strings.Join(strings.Fields(tc.want), ""))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("error about %x (-want +got):\n%s\n%x", tc.packet, diff, got)
			}
		})
	}
}

// checkError builds every error about b and checks what must hold for any.
func checkError(t *testing.T, b []byte, h header) {
	t.Helper()
	own := [...]netip.Addr{netip.MustParseAddr("10.5.1.0"), netip.MustParseAddr("fd05::99")}[h.family]
	for _, v := range []Verdict{NoPeer, TooBig, Expired} {
		typ, _ := errorFor(v, h.family)
		buf := make([]byte, 1280)
		e := buf[:putError(buf, typ, own, b, h, 1472)]
		got, ok := parse(e)
		if !ok || got.src != addressOf(own) || got.dst != h.src {
			t.Fatalf("error %x: parsed as %+v, %v", e, got, ok)
		}
		if len(e) > longestError(h.family) {
			t.Errorf("error has %d bytes", len(e))
		}
		proto, icmp, first := upper(e, h.family)
		if !first || proto != [...]byte{protoICMP, protoICMPv6}[h.family] {
			t.Errorf("error %x: protocol %d", e, proto)
		}
		var pseudo []byte
		if h.family == subnet.IPv4 {
			if onesComplement(e[:ipv4Header]) != 0 {
				t.Errorf("error %x: bad header checksum", e)
			}
		} else {
			pseudo = slices.Concat(e[8:40], []byte{0, 0, 0, 0, 0, 0, 0, protoICMPv6})
			binary.BigEndian.PutUint32(pseudo[32:], uint32(len(icmp)))
		}
		if c := onesComplement(slices.Concat(pseudo, icmp)); c != 0 {
			t.Errorf("error %x: bad ICMP checksum, off by %x", e, c)
		}
		if quoted := icmp[8:]; !slices.Equal(quoted, b[:len(quoted)]) || len(quoted) < min(len(b), 28) {
			t.Errorf("error %x: quotes %x of %x", e, quoted, b)
		}
		if answerable(e, got) {
			t.Errorf("error %x: would itself be answered", e)
		}
	}
}

func TestAnswerable(t *testing.T) {
	udp := flow{src: "10.5.1.2", dst: "10.5.9.9", proto: 17, payload: make([]byte, 8)}
	udp6 := flow{src: "fd05::1", dst: "fd05::2", proto: 17, payload: make([]byte, 8)}
	from := func(f flow, src string) flow { f.src = src; return f }
	to := func(f flow, dst string) flow { f.dst = dst; return f }
	with := func(f flow, proto byte, payload ...byte) flow { f.proto, f.payload = proto, payload; return f }
	fragment := func(offset uint16) flow { f := udp; f.fragment = offset; return f }
	for name, tc := range map[string]struct {
		in   flow
		want bool
	}{
		"udp":                          {udp, true},
		"first fragment":               {fragment(0x2000), true},
		"second fragment":              {fragment(0x2001), false},
		"last fragment":                {fragment(185), false},
		"ping":                         {with(udp, protoICMP, 8, 0), true},
		"pong":                         {with(udp, protoICMP, 0, 0), true},
		"unreachable":                  {with(udp, protoICMP, 3, 0), false},
		"source quench":                {with(udp, protoICMP, 4, 0), false},
		"redirect":                     {with(udp, protoICMP, 5, 0), false},
		"time exceeded":                {with(udp, protoICMP, 11, 0), false},
		"parameter problem":            {with(udp, protoICMP, 12, 0), false},
		"icmp of nobody's":             {with(udp, protoICMP, 77, 0), false},
		"icmp without a type":          {with(udp, protoICMP), false},
		"to a multicast group":         {to(udp, "224.0.0.1"), false},
		"to broadcast":                 {to(udp, "255.255.255.255"), false},
		"from nobody":                  {from(udp, "0.0.0.0"), false},
		"from this network":            {from(udp, "0.1.2.3"), false},
		"from a loopback":              {from(udp, "127.0.0.1"), false},
		"from a multicast group":       {from(udp, "224.0.0.1"), false},
		"from a reserved address":      {from(udp, "240.0.0.1"), false},
		"from broadcast":               {from(udp, "255.255.255.255"), false},
		"ipv6 udp":                     {udp6, true},
		"ipv6 ping":                    {with(udp6, protoICMPv6, 128, 0), true},
		"ipv6 unreachable":             {with(udp6, protoICMPv6, 1, 0), false},
		"ipv6 from nobody":             {from(udp6, "::"), false},
		"ipv6 from loopback":           {from(udp6, "::1"), false},
		"ipv6 to a group":              {to(udp6, "ff02::1"), false},
		"ipv6 first fragment":          {with(udp6, protoFragment, 17, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8), true},
		"ipv6 second fragment":         {with(udp6, protoFragment, 17, 0, 0, 9, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8), false},
		"ipv6 error behind extensions": {with(udp6, protoHopByHop, 60, 0, 1, 4, 0, 0, 0, 0, 58, 0, 1, 4, 0, 0, 0, 0, 1, 0), false},
		"ipv6 extension beyond end":    {with(udp6, protoHopByHop, 58, 200, 1, 4, 0, 0, 0, 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			b := tc.in.packet()
			h, ok := parse(b)
			if !ok {
				t.Fatal("bad packet")
			}
			if got := answerable(b, h); got != tc.want {
				t.Errorf("answerable(%x) = %v, want %v", b, got, tc.want)
			}
		})
	}
}

func TestBucket(t *testing.T) {
	var k bucket
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	take := func() (n int) {
		for k.take(now) {
			if n++; n > answersBurst {
				break
			}
		}
		return n
	}
	got := []int{take()}
	for _, pause := range []time.Duration{0, 10 * time.Millisecond, time.Hour} {
		now = now.Add(pause)
		got = append(got, take())
	}
	if diff := cmp.Diff([]int{50, 0, 10, 50}, got); diff != "" {
		t.Errorf("taken at 0, at once again, 10 ms and an hour later (-want +got):\n%s", diff)
	}
}
