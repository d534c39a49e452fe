package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
)

// outgoingLoad is a sender with so many peers, whose datagrams the kernel of this host
// takes and drops.
type outgoingLoad struct {
	*sender
	peers  int
	random *rand.Rand
	// frames are those of one batch.
	headers []offload.Header
	packets [][]byte
	spent   []time.Duration
}

// newOutgoingLoad gives each peer a /24 of 10.0.0.0/8. They are reached where something
// is bound to port: at one address of loopback, or each at its own.
func newOutgoingLoad(b *testing.B, peers int, port uint16, apart bool) *outgoingLoad {
	b.Helper()
	var list []peer
	for i := range peers {
		at := [4]byte{127, 1, 0, 0}
		if apart {
			at[2], at[3] = byte(i>>8), byte(i)
		}
		list = append(list, peer{
			prefix:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
			endpoint: &endpoint{to: netip.AddrPortFrom(netip.AddrFrom4(at), port)},
		})
	}
	level := &socketLevel{log: slog.New(slog.DiscardHandler)}
	conns, err := openSockets(b.Context(), netip.MustParseAddrPort("127.0.0.1:0"), socketOptions{Queues: 1, Level: level})
	if err != nil {
		b.Fatal(err)
	}
	p := &path{world: new(atomic.Pointer[world]), answers: &answers{}, mtu: new(atomic.Int64), out: new(counters), outlets: newOutlets()}
	p.mtu.Store(1472)
	p.world.Store(&world{table: newTable(list)})
	err = p.outlets.put(newOutletSet(netip.AddrPort{}, conns, nil))
	b.Cleanup(func() {
		if err := errors.Join(err, p.outlets.put()); err != nil {
			b.Error(err)
		}
	})
	return &outgoingLoad{sender: newSender(p), peers: peers, random: rand.New(rand.NewPCG(1, 2))}
}

// add puts a frame into the batch.
func (l *outgoingLoad) add(h offload.Header, packet []byte) {
	l.headers, l.packets = append(l.headers, h), append(l.packets, packet)
}

// round forwards the batch, each frame to any of the peers.
func (l *outgoingLoad) round() {
	l.frames.Reset()
	for i, b := range l.packets {
		n := l.random.IntN(l.peers)
		binary.BigEndian.PutUint32(b[16:], 10<<24|uint32(n)<<8|9) //nolint:gosec // small
		l.frames.put(l.headers[i], b)
	}
	began := time.Now()
	l.forward()
	l.spent = append(l.spent, time.Since(began))
}

// median is that of a round, in nanoseconds.
func (l *outgoingLoad) median() float64 {
	slices.Sort(l.spent)
	return float64(l.spent[len(l.spent)/2])
}

// BenchmarkPeers is what a table of 10,000 peers costs, in proportion to one of a
// single peer: the whole way out, kernel included, to random ones of them. Small
// packets are looked up and sent one by one; of a stream's large ones, one is looked up
// for each 64 KiB. With peers apart it counts too that the kernel takes longer for many
// addresses than for one, and that each peer has an endpoint of its own, which at one
// address they share: of those two the second is 3 to 4 %.
func BenchmarkPeers(b *testing.B) {
	sink, err := openSocket(b.Context(), netip.MustParseAddrPort("0.0.0.0:0"), deafen)
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	port := uint16(sink.conn.LocalAddr().(*net.UDPAddr).Port)
	kinds := map[string]func(l *outgoingLoad){
		"small": func(l *outgoingLoad) {
			for i := range framesMost { // each longer than the last, so that none share a message
				f := out("10.0.0.9", 1)
				f.payload = make([]byte, 64+i)
				l.add(offload.Header{}, f.packet())
			}
		},
		"stream": func(l *outgoingLoad) {
			for range framesSlab / maxPacket {
				h, packet := largeTCP("10.0.0.9", make([]byte, 64_000), 1420)
				l.add(h, packet)
			}
		},
	}
	for _, kind := range []struct {
		name, fill string
		apart      bool
	}{{"small", "small", false}, {"small, peers apart", "small", true}, {"stream", "stream", false}} {
		b.Run(kind.name, func(b *testing.B) {
			loads := []*outgoingLoad{newOutgoingLoad(b, 1, port, kind.apart), newOutgoingLoad(b, 10_000, port, kind.apart)}
			for _, l := range loads {
				kinds[kind.fill](l)
				l.round()
				if s := l.out.snapshot(); s.Packets[Forwarded] == 0 || s.Packets[NoPeer]+s.Packets[SendFailed] != 0 {
					b.Fatalf("%d peers: counted %v", l.peers, s.Packets)
				}
				l.spent = l.spent[:0]
			}
			for b.Loop() {
				for _, l := range loads { // in turn, so that what disturbs one disturbs both
					l.round()
				}
			}
			for _, l := range loads {
				b.ReportMetric(l.median()/float64(len(l.packets)), fmt.Sprintf("ns/frame-%d-peers", l.peers))
			}
			b.ReportMetric(loads[1].median()/loads[0].median(), "ratio")
		})
	}
}
