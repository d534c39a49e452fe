package udp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

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
