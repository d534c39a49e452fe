package offload

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseHeader(t *testing.T) {
	for n := range HeaderSize {
		if _, ok := ParseHeader(make([]byte, n)); ok {
			t.Errorf("ParseHeader accepts %d bytes", n)
		}
	}
	// As linux/virtio_net.h has it: flags, gso_type, hdr_len, gso_size,
	// csum_start, csum_offset.
	b := []byte{NeedsSum, byte(TCP6 | ECN)}
	for _, v := range []uint16{0x1234, 1448, 40, 16} {
		b = binary.NativeEndian.AppendUint16(b, v)
	}
	got, ok := ParseHeader(append(b, 0x60))
	want := Header{Flags: 1, GSO: 0x84, HeaderLen: 0x1234, SegmentSize: 1448, SumStart: 40, SumOffset: 16}
	if diff := cmp.Diff(want, got); !ok || diff != "" {
		t.Errorf("ParseHeader: %v (-want +got):\n%s", ok, diff)
	}
	again := make([]byte, HeaderSize)
	if got.Put(again); string(again) != string(b) {
		t.Errorf("Put wrote % x, want % x", again, b)
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Header{
			Flags: rapid.Byte().Draw(t, "flags"), GSO: Kind(rapid.Byte().Draw(t, "kind")),
			HeaderLen: rapid.Uint16().Draw(t, "header length"), SegmentSize: rapid.Uint16().Draw(t, "segment"),
			SumStart: rapid.Uint16().Draw(t, "start"), SumOffset: rapid.Uint16().Draw(t, "offset"),
		}
		b := make([]byte, HeaderSize)
		want.Put(b)
		if got, _ := ParseHeader(b); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}
