package udp

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// TestAnswerAll: a batch has the answers that its packets have one by one, whatever the
// queries were about before.
func TestAnswerAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		peers := drawPeers(t)
		table := newTable(peers)
		queries := make([]query, framesMost)
		for _, e := range []end{source, destination} {
			for i := range queries {
				queries[i].read(drawPacket(t))
			}
			table.answerAll(queries, e)
			for i, q := range queries {
				var want *endpoint
				if q.ok {
					want = table.lookup(q.family, map[end]address{source: q.src, destination: q.dst}[e])
				}
				if q.peer != want {
					t.Fatalf("query %d, %+v of end %d: %v, want %v", i, q.header, e, q.peer, want)
				}
			}
		}
	})
}

// drawPacket is between two addresses of those that drawPeers has prefixes of, or none.
func drawPacket(t *rapid.T) []byte {
	a, b := drawAddr(t, "source"), drawAddr(t, "destination")
	if subnet.FamilyOf(a) != subnet.FamilyOf(b) || a.Is4In6() || b.Is4In6() {
		return nil
	}
	return flow{src: a.String(), dst: b.String(), hops: 64}.packet()
}
