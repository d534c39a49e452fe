package udp

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/flanneld-go/flanneld-go/backend"
)

// The offloads, as they are called in the log, in metrics and in the status.
const (
	offloadTSO     = "tso"
	offloadUSO     = "uso"
	offloadSegment = "udp_segment"
	offloadGRO     = "udp_gro"
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
	return backend.Level{Queues: b.queues, Offloads: map[string]bool{
		offloadTSO: tso, offloadUSO: uso, offloadSegment: b.sockets.segment.Load(), offloadGRO: b.sockets.gro.Load(),
	}}
}

// listOn names the offloads that are on, for the log.
func listOn(offloads map[string]bool) string {
	on := slices.Sorted(maps.Keys(offloads))
	return strings.Join(slices.DeleteFunc(on, func(name string) bool { return !offloads[name] }), " ")
}
