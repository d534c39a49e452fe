package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unique"

	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
	"github.com/flanneld-go/flanneld-go/subnet"
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
	// at are the peers' addresses, to which a bare load sends the packets as they are:
	// that is the kernel's part.
	at   []netip.AddrPort
	bare bool
	// inner is the family of the packets.
	inner subnet.Family
}

// apart is how much the peers of a load have in common.
type apart int

const (
	nothingApart   apart = iota // all are reached at one address and share an endpoint
	endpointsApart              // an endpoint for each, at one address
	addressesApart              // each at its own address
	kernelApart                 // each at its own address, and no table
)

// newOutgoingLoad gives each peer a /24 of 10.0.0.0/8 and a /64 of fd05::/32. They are
// reached where something is bound to port, at addresses of loopback.
func newOutgoingLoad(b *testing.B, peers int, port uint16, how apart) *outgoingLoad {
	b.Helper()
	var list []peer
	var places []netip.AddrPort
	for i := range peers {
		at, own := [4]byte{127, 1, 0, 0}, [4]byte{127, 1, byte(i >> 8), byte(i)}
		if how >= addressesApart {
			at = own
		}
		to := &endpoint{to: netip.AddrPortFrom(netip.AddrFrom4(at), port)}
		if how == endpointsApart {
			to.former = unique.Make(formers{netip.AddrFrom4(own)})
		}
		places = append(places, to.to)
		list = append(list, peer{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), to})
		list = append(list, peer{netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 5, 6: byte(i >> 8), 7: byte(i)}), 64), to})
	}
	level := &socketLevel{log: slog.New(slog.DiscardHandler)}
	conns, err := openSockets(netip.MustParseAddrPort("127.0.0.1:0"), socketOptions{Queues: 1, Level: level})
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
	return &outgoingLoad{
		sender: newSender(p), peers: peers, random: rand.New(rand.NewPCG(1, 2)), at: places, bare: how == kernelApart,
	}
}

// add puts a frame into the batch.
func (l *outgoingLoad) add(h offload.Header, packet []byte) {
	l.headers, l.packets = append(l.headers, h), append(l.packets, packet)
}

// round forwards the batch, each frame to any of the peers.
func (l *outgoingLoad) round() {
	l.frames.Reset()
	var messages []Message
	for i, b := range l.packets {
		n := l.random.IntN(l.peers)
		messages = append(messages, Message{To: l.at[n], Parts: [][]byte{b}, Size: len(b), Packets: 1, Bytes: len(b)})
		if l.inner == subnet.IPv6 {
			binary.BigEndian.PutUint16(b[30:], uint16(n)) //nolint:gosec // small
		} else {
			binary.BigEndian.PutUint32(b[16:], 10<<24|uint32(n)<<8|9) //nolint:gosec // small
		}
		l.frames.put(l.headers[i], b)
	}
	began := time.Now()
	if l.bare {
		l.by = l.outlets.load().out(0).senders
		l.write(messages)
		l.out.add(&l.count)
	} else {
		l.forward()
	}
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
// for each 64 KiB. With endpoints apart each peer has one of its own, as where each has an
// address; what many addresses cost beside that is the kernel's, with or without us.
func BenchmarkPeers(b *testing.B) {
	sink, err := openSocket(netip.MustParseAddrPort("0.0.0.0:0"), false, deafen)
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	port := uint16(sink.at.Port())
	kinds := map[string]func(l *outgoingLoad){
		"small": func(l *outgoingLoad) {
			for i := range framesMost { // each longer than the last, so that none share a message
				f := out("10.0.0.9", 1)
				if l.inner == subnet.IPv6 {
					f.src, f.dst = "fd05:0:0:1::2", "fd05::9"
				}
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
		apart      apart
		inner      subnet.Family
	}{
		{"small", "small", nothingApart, subnet.IPv4},
		{"small, endpoints apart", "small", endpointsApart, subnet.IPv4},
		{"small, endpoints apart, IPv6 within", "small", endpointsApart, subnet.IPv6},
		{"small, addresses apart", "small", addressesApart, subnet.IPv4},
		{"small, addresses apart, kernel alone", "small", kernelApart, subnet.IPv4},
		{"stream", "stream", nothingApart, subnet.IPv4},
		{"stream, endpoints apart", "stream", endpointsApart, subnet.IPv4},
		{"stream, addresses apart", "stream", addressesApart, subnet.IPv4},
	} {
		b.Run(kind.name, func(b *testing.B) {
			loads := []*outgoingLoad{newOutgoingLoad(b, 1, port, kind.apart), newOutgoingLoad(b, 10_000, port, kind.apart)}
			for _, l := range loads {
				l.inner = kind.inner
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

// BenchmarkStreamAmongPeers is what 10,000 peers in the tables of both hosts cost one TCP
// stream between two namespaces, in proportion to a table of the one peer: rounds of both,
// one after the other and first in turn, on one connection.
func BenchmarkStreamAmongPeers(b *testing.B) {
	const window, settled = 500 * time.Millisecond, 50 * time.Millisecond
	one, other := joined(b)
	client, server := stream(b, one, other, subnet.IPv4)
	var came atomic.Int64
	var wait sync.WaitGroup
	wait.Go(func() { // until the other end is closed
		for buf := make([]byte, 256<<10); ; {
			n, err := server.Read(buf)
			came.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	wait.Go(func() {
		for buf := make([]byte, 256<<10); ; {
			if _, err := client.Write(buf); err != nil {
				return
			}
		}
	})
	defer func() {
		if err := errors.Join(client.Close(), server.Close()); err != nil {
			b.Error(err)
		}
		wait.Wait()
	}()
	tables := map[*machine][2]*world{}
	for _, m := range []*machine{one, other} {
		few := m.world.Load()
		many := &world{own: few.own, table: newTable(slices.Concat(few.table.peers(), strangers(9_999)))}
		tables[m] = [2]*world{few, many}
	}
	carried := func(which int) float64 {
		for m, worlds := range tables {
			m.world.Store(worlds[which])
		}
		<-time.After(settled)
		before, began := came.Load(), time.Now()
		<-time.After(window)
		return float64(came.Load()-before) / time.Since(began).Seconds()
	}
	var ratios, rates []float64
	for first := 0; b.Loop(); first = 1 - first {
		var rate [2]float64
		for _, which := range []int{first, 1 - first} {
			rate[which] = carried(which)
		}
		ratios, rates = append(ratios, rate[1]/rate[0]), append(rates, 8*rate[0]/1e9)
	}
	slices.Sort(ratios)
	slices.Sort(rates)
	b.ReportMetric(rates[len(rates)/2], "Gb/s-1-peer")
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
	b.ReportMetric(ratios[0], "least-ratio")
	b.ReportMetric(ratios[len(ratios)-1], "most-ratio")
}

// strangers are peers with a subnet, an address and an endpoint each.
func strangers(n int) (list []peer) {
	for i := range n {
		hi, lo := byte(i>>8), byte(i)
		to := &endpoint{to: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 19, hi, lo}), defaultPort)}
		list = append(list, peer{netip.PrefixFrom(netip.AddrFrom4([4]byte{11, hi, lo, 0}), 24), to})
		list = append(list, peer{netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 6, 6: hi, 7: lo}), 64), to})
	}
	return list
}
