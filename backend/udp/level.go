package udp

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
)

// The offloads, as they are called in the log, in metrics and in the status.
const (
	offloadTSO     = "tso"
	offloadUSO     = "uso"
	offloadSegment = "udp_segment"
	offloadGRO     = "udp_gro"
	offloadJoinTCP = "join_tcp"
	offloadJoinUDP = "join_udp"
)

// socketLevel is what all sockets can do. A way out that cannot do it is all the
// same in use by each of them, so one gives it up for all.
type socketLevel struct {
	// segment: messages of several datagrams go with one call (UDP_SEGMENT),
	// gro: arrivals bring several (UDP_GRO).
	segment, gro atomic.Bool
	log          *slog.Logger
}

// giveUpSegment is for when the kernel refuses with err to cut a message.
func (l *socketLevel) giveUpSegment(err error) {
	if l.segment.CompareAndSwap(true, false) {
		l.log.Warn("offload given up, the kernel refuses it", "offload", offloadSegment, "error", err)
	}
}

// joinLevel is which packets all queues join for the device. The device says at its
// start what it takes, and may refuse it later.
type joinLevel struct {
	refusedTCP, refusedUDP atomic.Bool
	log                    *slog.Logger
}

// of is what is joined for a device that takes can.
func (l *joinLevel) of(can offload.Protocols) offload.Protocols {
	return offload.Protocols{TCP: can.TCP && !l.refusedTCP.Load(), UDP: can.UDP && !l.refusedUDP.Load()}
}

// refused is what a join of kind is refused by, and its name.
func (l *joinLevel) refused(kind offload.Kind) (*atomic.Bool, string) {
	if kind == offload.UDP {
		return &l.refusedUDP, offloadJoinUDP
	}
	return &l.refusedTCP, offloadJoinTCP
}

// giveUp is for when the device refuses with err a join of kind.
func (l *joinLevel) giveUp(kind offload.Kind, err error) {
	if refused, name := l.refused(kind); refused.CompareAndSwap(false, true) {
		l.log.Warn("offload given up, the kernel refuses it", "offload", name, "error", err)
	}
}

// Level returns what the data path runs with: backend.Leveler.
func (b *Backend) Level() backend.Level {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tunnel == nil {
		return backend.Level{}
	}
	return b.level(b.tunnel)
}

func (b *Backend) level(t tunnel) backend.Level {
	tso, uso := t.offloads()
	joins := b.joins.of(joinable(t))
	return backend.Level{Queues: b.queues, Offloads: map[string]bool{
		offloadTSO: tso, offloadUSO: uso, offloadSegment: b.sockets.segment.Load(), offloadGRO: b.sockets.gro.Load(),
		offloadJoinTCP: joins.TCP, offloadJoinUDP: joins.UDP,
	}}
}

// leveled is the log for what is said once of each device: what it runs with.
func (b *Backend) leveled() *slog.Logger {
	b.logged = true
	level := b.level(b.tunnel)
	return b.log.With("device", b.device, "mtu", b.mtu.Load(), "queues", level.Queues, "offloads", listOn(level.Offloads))
}

// joinable is what a device takes joined. TCP's packets each takes that has vnet headers,
// whatever it hands over itself, so they are joined with Offload off, too: without that a
// stream gets much less through (docs/benchmarks.md).
func joinable(t tunnel) offload.Protocols {
	_, uso := t.offloads()
	return offload.Protocols{TCP: true, UDP: uso}
}

// listOn names the offloads that are on, for the log.
func listOn(offloads map[string]bool) string {
	on := slices.Sorted(maps.Keys(offloads))
	return strings.Join(slices.DeleteFunc(on, func(name string) bool { return !offloads[name] }), " ")
}
