package udp

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
)

// arrivalOf is packets as a socket brings them: of one size but for a shorter last one.
func arrivalOf(from string, packets ...[]byte) Arrival {
	return Arrival{Data: bytes.Join(packets, nil), Size: len(packets[0]), From: netip.MustParseAddrPort(from)}
}

// TestForgedTrain: what follows a packet that was dropped is decided on by itself, even where
// it would continue what its sender's victim has sent in the same batch.
func TestForgedTrain(t *testing.T) {
	for _, kind := range joinKinds() {
		l, wire := joinLab(new(bytes.Buffer)), kind.wire(t)
		another := slices.Clone(wire[2])
		another[ipv4Header]++ // its port
		newReceiver(&l.path).forward([]Arrival{
			arrivalOf("198.18.0.1:8285", wire[:2]...),
			arrivalOf("198.18.0.9:8285", another, wire[2], wire[3]),
		})
		if diff := cmp.Diff(ByVerdict{Forwarded: 2, WrongSender: 3}, l.in.snapshot().Packets); diff != "" {
			t.Errorf("%s: packets (-want +got):\n%s", kind.name, diff)
		}
		if got := l.device.taken(); len(got) != 1 || len(got[0].Data) != len(wire[0])+1000 {
			t.Errorf("%s: %d packets came through, want one of the two that were not forged", kind.name, len(got))
		}
	}
}

// drawTrains draws what several senders send, a few packets of it damaged, as trains and as
// the same packets one by one.
func drawTrains(t *rapid.T) (trains, singles []Arrival) {
	senders := []string{"198.18.0.1:8285", "198.18.0.1:8285", "198.18.0.1:999", "198.18.0.9:8285"}
	var flows [][][]byte
	for _, kind := range joinKinds() {
		h, large := kind.make("10.5.2.9", pattern(20*100, 1), 100)
		flows = append(flows, cutUp(t, h, large))
	}
	for range rapid.IntRange(1, 8).Draw(t, "trains") {
		from := rapid.SampledFrom(senders).Draw(t, "from")
		flow := &flows[rapid.IntRange(0, 1).Draw(t, "flow")]
		n := min(rapid.IntRange(1, 9).Draw(t, "packets"), len(*flow), arrivalsMost-len(singles))
		var train [][]byte
		for _, b := range (*flow)[:n] {
			b = slices.Clone(b)
			if rapid.IntRange(0, 7).Draw(t, "damage") == 0 {
				b[rapid.IntRange(0, 50).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			}
			train = append(train, b)
			singles = append(singles, arrivalOf(from, slices.Clone(b)))
		}
		*flow = (*flow)[n:]
		if len(train) > 0 {
			if len(singles) < arrivalsMost && rapid.IntRange(0, 2).Draw(t, "another first") == 0 {
				another := slices.Clone(train[0])
				another[ipv4Header]++ // its port
				train = slices.Insert(train, 0, another)
				singles = slices.Insert(singles, len(singles)-n, arrivalOf(from, slices.Clone(another)))
			}
			trains = append(trains, arrivalOf(from, train...))
		}
	}
	return trains, singles
}

// takeAll is what comes through of one batch, and how it was counted, with room for so many
// packets in a join.
func takeAll(batch []Arrival, room int) (through [][]byte, count Direction) {
	l := joinLab(new(bytes.Buffer))
	r := newReceiver(&l.path)
	r.merger = offload.NewMerger(offload.Options{Packets: room})
	r.forward(batch)
	for _, p := range l.device.taken() {
		through = append(through, p.Data)
	}
	return through, l.in.snapshot()
}

// TestTrainsAreTheirPackets: whether packets come in trains or one by one, the same ones
// pass, joined in the same way, and the others are counted by the same reasons.
func TestTrainsAreTheirPackets(t *testing.T) {
	joined, passed := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		trains, singles := drawTrains(t)
		room := rapid.SampledFrom([]int{0, 0, 7}).Draw(t, "room")
		want, counted := takeAll(singles, room)
		got, count := takeAll(trains, room)
		if diff := cmp.Diff(counted, count); diff != "" {
			t.Errorf("counted (-one by one +trains):\n%s", diff)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("came through (-one by one +trains):\n%s", diff)
		}
		passed += int(count.Packets[Forwarded])
		joined += len(got)
	})
	if joined*4 > passed*3 {
		t.Errorf("%d packets for %d: few were joined, and the test says little", joined, passed)
	}
}

func TestTrainsDoNotAllocate(t *testing.T) {
	for _, kind := range joinKinds() {
		l, wire := joinLab(new(bytes.Buffer)), kind.wire(t)
		l.devices.put(discard{})
		r, fresh := newReceiver(&l.path), arrivalOf("198.18.0.1:8285", wire...)
		batch := newArrivals(1)
		if n := testing.AllocsPerRun(20, func() {
			batch[0].Data = append(batch[0].Data[:0], fresh.Data...)
			batch[0].Size, batch[0].From = fresh.Size, fresh.From
			r.forward(batch)
		}); n != 0 {
			t.Errorf("%s: a train allocates %v times", kind.name, n)
		}
		if got := l.in.snapshot().Packets; got != (ByVerdict{Forwarded: uint64(21 * len(wire))}) {
			t.Errorf("%s: %v, want all of 21 times %d packets forwarded", kind.name, got, len(wire))
		}
	}
}
