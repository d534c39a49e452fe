package udp

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// largeUDP is largeTCP's for datagrams.
func largeUDP(dst string, payload []byte, size int) (offload.Header, []byte) {
	be := binary.BigEndian
	udp := make([]byte, 8, 8+len(payload))
	be.PutUint16(udp, 5001)
	be.PutUint16(udp[2:], 53)
	be.PutUint16(udp[4:], uint16(8+len(payload)))
	b := flow{src: "10.5.1.2", dst: dst, hops: 64, whole: true, proto: 17, payload: append(udp, payload...)}.packet()
	h := offload.Header{Flags: offload.NeedsSum, GSO: offload.UDP, HeaderLen: 28, SegmentSize: uint16(size), SumStart: ipv4Header, SumOffset: 6}
	be.PutUint16(b[ipv4Header+6:], offload.Sum(0).Add(b[12:20]).Add16(17).Add16(uint16(len(b)-ipv4Header)).Fold())
	return h, b
}

// cutUp are the wire packets of a large one.
func cutUp(t rapid.TB, h offload.Header, large []byte) (wire [][]byte) {
	t.Helper()
	cut, err := offload.Plan(h, large)
	if err != nil {
		t.Fatal(err)
	}
	for i := range cut.Count {
		head := cut.Heads(large, make([]byte, cut.Head), i)
		wire = append(wire, append(head, cut.Payload(large, i)...))
	}
	return wire
}

// joinKind is one kind of joins.
type joinKind struct {
	name string
	kind offload.Kind
	make func(dst string, payload []byte, size int) (offload.Header, []byte)
}

func joinKinds() []joinKind {
	return []joinKind{{offloadJoinTCP, offload.TCP4, largeTCP}, {offloadJoinUDP, offload.UDP, largeUDP}}
}

// wire are ten packets that can be joined.
func (k joinKind) wire(t testing.TB) [][]byte {
	h, large := k.make("10.5.2.9", pattern(9*1000+7, 1), 1000)
	return cutUp(t, h, large)
}

// joinLab is a path whose device takes joins of both kinds, from a peer of 10.5.1.0/24.
func joinLab(log *bytes.Buffer) *lab {
	l := newLab()
	l.can, l.joins.log = offload.Protocols{TCP: true, UDP: true}, slog.New(slog.NewTextHandler(log, nil))
	l.world.Store(&world{table: newTable([]peer{peerAt("10.5.1.0/24", "198.18.0.1:8285")})})
	return l
}

// TestRefusedJoins: the packets of a join that the device refuses come one by one, none
// is lost. A kernel that does not know a kind of them is given no more of it, and what
// may pass is tried again; the other kind is joined all the time.
func TestRefusedJoins(t *testing.T) {
	for i, refused := range joinKinds() {
		other := joinKinds()[1-i]
		for cause, final := range map[unix.Errno]bool{unix.EINVAL: true, unix.EOPNOTSUPP: true, unix.ENOMEM: false, unix.ENOBUFS: false} {
			t.Run(refused.name+" "+cause.Error(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testRefusedJoins(t, refused, other, cause, final) })
			})
		}
	}
}

func testRefusedJoins(t *testing.T, refused, other joinKind, cause error, final bool) {
	var log bytes.Buffer
	l := joinLab(&log)
	tried := 0
	l.device.refuse = func(_ int, p Packet) error {
		if p.Header.GSO != refused.kind {
			return nil
		}
		tried++
		return cause
	}
	l.start(t)
	const rounds = 3
	for range rounds {
		wire := refused.wire(t)
		l.conn.feedArrival("198.18.0.1:8285", len(wire[0]), wire...)
		synctest.Wait()
		for _, b := range wire {
			lowerHops(b, subnet.IPv4)
		}
		var got [][]byte
		for _, p := range l.device.taken() {
			if p.Header != (offload.Header{}) {
				t.Errorf("a packet with the header %+v", p.Header)
			}
			got = append(got, p.Data)
		}
		if diff := cmp.Diff(wire, got); diff != "" {
			t.Errorf("delivered (-want +got):\n%s", diff)
		}
		wire = other.wire(t)
		l.conn.feedArrival("198.18.0.1:8285", len(wire[0]), wire...)
		synctest.Wait()
		if p := l.device.taken(); len(p) != 1 || p[0].Header.GSO != other.kind {
			t.Errorf("the other kind came in %d packets", len(p))
		}
	}
	l.stop(t)
	want := Direction{Packets: ByVerdict{Forwarded: 20 * rounds}, Bytes: rounds * (2*9007 + 10*40 + 10*28)}
	if diff := cmp.Diff(want, l.in.snapshot()); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
	wantTried, line := rounds, ""
	if final {
		wantTried, line = 1, "offload="+refused.name+" error=\""+cause.Error()+"\""
	}
	if tried != wantTried {
		t.Errorf("tried %d times, want %d", tried, wantTried)
	}
	if got := log.String(); strings.Count(got, "offload given up") != strings.Count(line, "=")/2 || !strings.Contains(got, line) {
		t.Errorf("logged:\n%s\nwant %s", got, line)
	}
}

// TestRefusedAmongMany: what was joined before the first refusal is not lost either, and
// of what is written one by one only what is refused again.
func TestRefusedAmongMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		l := joinLab(&log)
		l.device.refuse = func(n int, p Packet) error {
			if p.Header.GSO != offload.None || n == 5 {
				return unix.EINVAL
			}
			return nil
		}
		for range 3 { // are read at once
			wire := joinKinds()[0].wire(t)
			l.conn.feedArrival("198.18.0.1:8285", len(wire[0]), wire...)
		}
		l.start(t)
		l.stop(t)
		if got := l.in.snapshot().Packets; got != (ByVerdict{Forwarded: 29, NotDelivered: 1}) {
			t.Errorf("counted %v", got)
		}
		if got := l.device.writes; got != 31 {
			t.Errorf("%d writes, want one of a join and 30", got)
		}
	})
}

// TestJoinsOnADownDevice: a device that is down, or gone, takes nothing, and is no
// reason to give anything up or to try again.
func TestJoinsOnADownDevice(t *testing.T) {
	for name, spoil := range map[string]func(*lab){
		"down":   func(l *lab) { l.device.refuse = func(int, Packet) error { return unix.EIO } },
		"closed": func(l *lab) { l.device.Close() },
		"none":   func(l *lab) { l.devices.put() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				l := joinLab(&log)
				spoil(l)
				l.start(t)
				wire := joinKinds()[0].wire(t)
				l.conn.feedArrival("198.18.0.1:8285", len(wire[0]), wire...)
				synctest.Wait()
				l.stop(t)
				if got := l.in.snapshot().Packets; got != (ByVerdict{NotDelivered: 10}) || l.device.writes > 1 {
					t.Errorf("counted %v in %d writes", got, l.device.writes)
				}
				if log.Len() != 0 {
					t.Errorf("logged:\n%s", &log)
				}
			})
		})
	}
}
