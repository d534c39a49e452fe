package udp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
)

// largeTCP is a TCP packet from 10.5.1.2 to dst with a partial sum, as a device
// hands it over to be cut into segments of size bytes each.
func largeTCP(dst string, payload []byte, size int) (offload.Header, []byte) {
	be := binary.BigEndian
	tcp := make([]byte, 20, 20+len(payload))
	be.PutUint16(tcp, 5001)
	be.PutUint16(tcp[2:], 80)
	be.PutUint32(tcp[4:], 1<<32-1000) // wraps
	tcp[12], tcp[13] = 5<<4, 0x10
	f := flow{src: "10.5.1.2", dst: dst, hops: 64, whole: true, proto: 6, payload: append(tcp, payload...)}
	b := f.packet()
	h := offload.Header{
		Flags: offload.NeedsSum, GSO: offload.TCP4, HeaderLen: 40, SegmentSize: uint16(size),
		SumStart: ipv4Header, SumOffset: 16,
	}
	sum := offload.Sum(0).Add(b[12:20]).Add16(6).Add16(uint16(len(b) - ipv4Header))
	be.PutUint16(b[ipv4Header+16:], sum.Fold())
	return h, b
}

// drawFrame draws a packet, large or not.
func drawFrame(t *rapid.T) (offload.Header, []byte) {
	dst := fmt.Sprintf("10.5.%d.9", rapid.IntRange(2, 6).Draw(t, "receiver"))
	if rapid.Bool().Draw(t, "large") {
		size := rapid.SampledFrom([]int{1, 8, 536, 1420, 8948}).Draw(t, "segment")
		n := rapid.OneOf(rapid.IntRange(1, 5*size), rapid.IntRange(1, min(300*size, maxPacket-40))).Draw(t, "length")
		return largeTCP(dst, bytes.Repeat([]byte{byte(n)}, n), size)
	}
	n := rapid.SampledFrom([]int{0, 8, 9, 100, 1444, 65000}).Draw(t, "length")
	return offload.Header{}, flow{src: "10.5.1.2", dst: dst, hops: 64, proto: 17, payload: make([]byte, n)}.packet()
}

// wirePackets cuts one frame, one packet after the other.
func wirePackets(t *rapid.T, f Frame) (list [][]byte) {
	cut, err := offload.Plan(f.Header, f.Data)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Clone(f.Data)
	if cut.Count == 1 {
		cut.Complete(data)
		return [][]byte{data}
	}
	for i := range cut.Count {
		head := cut.Heads(data, make([]byte, cut.Head), i)
		list = append(list, append(head, cut.Payload(data, i)...))
	}
	return list
}

// TestPacker: each receiver gets every wire packet once and in order, in messages
// that the kernel takes.
func TestPacker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, got := map[string][][]byte{}, map[string][][]byte{}
		p := newPacker(func(messages []Message) {
			if !slices.IsSortedFunc(messages, func(a, b Message) int { return a.Source - b.Source }) {
				t.Fatal("what leaves by one socket does not stand together")
			}
			for _, m := range messages {
				checkMessage(t, m)
				to := fmt.Sprint(m.To, m.Source)
				for b := bytes.Join(m.Parts, nil); len(b) > 0; {
					n := min(m.Size, len(b))
					got[to] = append(got[to], b[:n:n])
					b = b[n:]
				}
			}
		})
		frames, receivers := newFrames(), map[byte]*endpoint{}
		for range rapid.IntRange(1, 3).Draw(t, "reads") { // a packer is used again
			frames.Reset()
			for range rapid.IntRange(1, 20).Draw(t, "packets") {
				h, b := drawFrame(t)
				if !frames.put(h, b) {
					break
				}
			}
			for i, f := range frames.List {
				cut, err := offload.Plan(f.Header, f.Data)
				if err != nil {
					t.Fatal(err)
				}
				to := receivers[f.Data[18]]
				if to == nil {
					to = &endpoint{to: netip.AddrPortFrom(netip.AddrFrom4([4]byte(f.Data[16:20])), 8285)}
					receivers[f.Data[18]] = to
				}
				source := rapid.IntRange(0, 3).Draw(t, "source")
				key := fmt.Sprint(to.to, source)
				want[key] = append(want[key], wirePackets(t, f)...)
				p.add(i, to, source, cut)
			}
			p.pack(frames.List)
		}
		for to, packets := range want {
			if !slices.EqualFunc(packets, got[to], bytes.Equal) {
				t.Errorf("to %s: %d packets sent, not the %d that were to be", to, len(got[to]), len(packets))
			}
		}
		if len(got) != len(want) {
			t.Errorf("sent to %d receivers, want %d", len(got), len(want))
		}
	})
}

func checkMessage(t *rapid.T, m Message) {
	total := 0
	for _, b := range m.Parts {
		total += len(b)
	}
	switch {
	case total != m.Bytes || m.Packets != (total+m.Size-1)/m.Size:
		t.Fatalf("%d bytes in parts, but %d bytes, %d packets of %d", total, m.Bytes, m.Packets, m.Size)
	case m.Packets > maxSegments || m.Bytes > maxDatagram:
		t.Fatalf("%d packets, %d bytes in one message", m.Packets, m.Bytes)
	}
}

// TestPackerFillsMessages: a stream costs as few calls as it can.
func TestPackerFillsMessages(t *testing.T) {
	var sizes []int
	p := newPacker(func(messages []Message) {
		for _, m := range messages {
			sizes = append(sizes, m.Packets)
		}
	})
	frames := newFrames()
	for range 2 {
		if !frames.put(largeTCP("10.5.2.9", make([]byte, 45*1420), 1420)) {
			t.Fatal("no room for two large packets")
		}
	}
	to := &endpoint{to: netip.MustParseAddrPort("198.18.0.2:8285")}
	for i, f := range frames.List {
		cut, err := offload.Plan(f.Header, f.Data)
		if err != nil {
			t.Fatal(err)
		}
		p.add(i, to, 0, cut)
	}
	p.pack(frames.List)
	if diff := cmp.Diff([]int{44, 44, 2}, sizes); diff != "" {
		t.Errorf("packets of messages (-want +got):\n%s", diff)
	}
}

// TestPackerKeepsChainsApart: as many receivers and ports of ours as a batch has frames,
// in any order and time after time. With many ports of few receivers, a receiver's chains
// meet while they are looked for.
func TestPackerKeepsChainsApart(t *testing.T) {
	type chain struct {
		to     netip.AddrPort
		source int
	}
	var got []chain
	p := newPacker(func(messages []Message) {
		for _, m := range messages {
			got = append(got, chain{m.To, m.Source})
		}
	})
	receivers := make([]endpoint, 50*framesMost)
	for i := range receivers {
		receivers[i].to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 8285)
	}
	for round := range 200 {
		got = got[:0]
		var want []chain
		at := round * 7 % 40 * framesMost
		sources := [...]int{4, 1 + sourcesMost}[round%2]
		frames := newFrames()
		for i := range framesMost {
			if !frames.put(offload.Header{}, out("10.5.2.9", byte(i)).packet()) {
				t.Fatal("no room")
			}
			cut, err := offload.Plan(frames.List[i].Header, frames.List[i].Data)
			if err != nil {
				t.Fatal(err)
			}
			n := (5*i + round) % framesMost
			to, source := &receivers[at+n/sources*(1+round%31)], n%sources
			want = append(want, chain{to.to, source})
			p.add(i, to, source, cut)
		}
		p.pack(frames.List)
		slices.SortStableFunc(want, func(a, b chain) int { return a.source - b.source })
		if !slices.Equal(got, want) {
			t.Fatalf("round %d: sent to %v, want %v", round, got, want)
		}
	}
}

// TestPackerTellsPortsApart: where a chain is looked for stand chains of its receiver from
// another port. All receivers begin at one place, and 13 ports further is a few places on.
func TestPackerTellsPortsApart(t *testing.T) {
	home := func(e *endpoint) uint64 { return uint64(uintptr(unsafe.Pointer(e))) * golden >> (64 - placesBits) }
	all := make([]endpoint, 4000)
	var receivers []*endpoint
	for i := range all {
		if e := &all[i]; home(e) == home(&all[0]) && len(receivers) < 10 {
			e.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 8285)
			receivers = append(receivers, e)
		}
	}
	got := map[string]int{}
	p := newPacker(func(messages []Message) {
		for _, m := range messages {
			got[fmt.Sprint(m.To, m.Source)] += m.Packets
		}
	})
	frames, want, n := newFrames(), map[string]int{}, 0
	for _, source := range []int{0, 13} {
		for _, to := range receivers {
			if !frames.put(offload.Header{}, out("10.5.2.9", byte(n)).packet()) {
				t.Fatal("no room")
			}
			cut, err := offload.Plan(frames.List[n].Header, frames.List[n].Data)
			if err != nil {
				t.Fatal(err)
			}
			p.add(n, to, source, cut)
			want[fmt.Sprint(to.to, source)]++
			n++
		}
	}
	p.pack(frames.List)
	if diff := cmp.Diff(want, got); diff != "" || len(receivers) != 10 {
		t.Errorf("to %d receivers (-want +got):\n%s", len(receivers), diff)
	}
}
