package main

import (
	"context"
	"iter"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// calmMACs is the least time between two rounds for the sake of MACs. The kernel
// itself takes no second change of one address's MAC in that time (its locktime).
const calmMACs = time.Second

// calmAsking is the least time between two rounds of asking peers for their MACs.
const calmAsking = 30 * time.Second

// neighbourState is what events are held against.
type neighbourState struct {
	// told is what the firewall was told last; nil: nothing yet.
	told atomic.Pointer[toldMACs]
	// reading: a round is about to tell it something else.
	reading atomic.Bool
	// dropped is how many packets with a source of another peer's were dropped
	// when that was counted last; asked is the uptime at which the kernel was
	// made to ask for MACs, 0: never.
	dropped uint64
	asked   time.Duration
}

// toldMACs are the MACs of the peers that send plainly, by their addresses; the
// zero MAC where the kernel knew none.
type toldMACs struct {
	link int
	macs map[netip.Addr]kernel.MAC
}

// outdates reports whether an event says of a peer what contradicts the firewall,
// so that what the peer sends may be dropped as another's. A MAC that came or went
// contradicts nothing, and comes often: the next round is soon enough for it.
func (n *neighbourState) outdates(e kernel.Event) bool {
	if n.reading.Load() {
		return true // it may, and what is read now may be from before
	}
	told := n.told.Load()
	if told == nil || e.Link != told.link {
		return false
	}
	mac := told.macs[e.Addr]
	return mac != kernel.MAC{} && e.MAC != kernel.MAC{} && e.MAC != mac
}

// events are the kernel's that are worth a round. Each ARP of everybody on the
// segment is none.
func (l *loop) events(ctx context.Context) (<-chan kernel.Event, error) {
	all, err := l.host.Events(ctx)
	if err != nil {
		return nil, err
	}
	worth := make(chan kernel.Event, 1)
	l.group.Go(func() error {
		defer close(worth)
		l.sift(all, worth)
		return nil
	})
	return worth, nil
}

// sift passes on what is worth a round, until in is closed. Of what nobody has
// taken yet one says as much as many.
func (l *loop) sift(in <-chan kernel.Event, out chan<- kernel.Event) {
	var calm <-chan time.Time // while it lasts
	held := false             // until it has ended
	tell := func(e kernel.Event) {
		l.heard.Or(uint32(e.Topic))
		select {
		case out <- e:
		default:
		}
	}
	for {
		select {
		case e, ok := <-in:
			switch {
			case !ok:
				return
			case e.Topic != kernel.TopicResolved:
				tell(e)
			case !l.neighbours.outdates(e):
			case calm != nil:
				held = true
			default:
				tell(e)
				calm = l.clock.Timer(calmMACs).C
			}
		case <-calm:
			calm = nil
			if held {
				tell(kernel.Event{Topic: kernel.TopicResolved})
				held, calm = false, l.clock.Timer(calmMACs).C
			}
		}
	}
}

// firewallPeers are the peers as the firewall wants them: those that send plainly
// with the MACs that the kernel knows them by. Without those it judges less.
func (l *loop) firewallPeers(ctx context.Context) ([]native.Peer, error) {
	macs, err := l.peerMACs(ctx)
	peers := make([]native.Peer, 0, len(l.path.peers)+len(l.path.former))
	for p := range l.senders() {
		peer := native.Peer{Subnet: p.Subnet, PublicIP: p.Attrs.PublicIP}
		for f, a := range p.Attrs.PublicIP {
			peer.MAC[f] = macs[a]
		}
		peers = append(peers, peer)
	}
	if len(l.path.former) > 0 { // in the order in which changes can be followed
		slices.SortStableFunc(peers, func(a, b native.Peer) int { return a.Subnet.Compare(b.Subnet) })
	}
	return peers, err
}

// senders are the peers, and once more those that have moved a moment ago.
func (l *loop) senders() iter.Seq[*subnet.Lease] {
	return func(yield func(*subnet.Lease) bool) {
		former := slices.Collect(subnet.Each(l.path.former.leases(l.clock.Uptime())))
		for _, list := range [][]*subnet.Lease{l.path.peers, former} {
			for _, p := range list {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// peerMACs reads the MACs of the peers that send plainly.
func (l *loop) peerMACs(ctx context.Context) (map[netip.Addr]kernel.MAC, error) {
	link := l.uplink.Link.Index
	macs := map[netip.Addr]kernel.MAC{}
	if !l.backend.Tunnel().Direct {
		l.neighbours.told.Store(nil)
		return macs, nil
	}
	for p := range l.senders() {
		for _, a := range p.Attrs.PublicIP {
			if l.uplink.OnSegment(a) {
				macs[a] = kernel.MAC{}
			}
		}
	}
	l.neighbours.reading.Store(true)
	resolved, err := l.host.Resolved(ctx, link)
	for _, n := range resolved {
		if _, plain := macs[n.Addr]; plain {
			macs[n.Addr] = n.MAC
		}
	}
	l.neighbours.told.Store(&toldMACs{link, macs})
	l.neighbours.reading.Store(false)
	return macs, err
}

// doubt has the kernel ask the peers for their MACs, now and then, while packets
// are dropped for these. An idle peer that has moved behind the MAC of another is
// not asked by itself: it gets no answer, since what it sends is dropped.
func (l *loop) doubt(ctx context.Context, dropped map[string]uint64) {
	n := &l.neighbours
	now, rising := l.clock.Uptime(), dropped[native.PeerSource] > n.dropped
	n.dropped = dropped[native.PeerSource]
	told := n.told.Load()
	if !rising || told == nil || n.asked != 0 && now-n.asked < calmAsking {
		return
	}
	n.asked = now
	var known []netip.Addr
	for a, mac := range told.macs {
		if mac != (kernel.MAC{}) {
			known = append(known, a)
		}
	}
	if err := l.host.Confirm(ctx, told.link, known); err != nil {
		l.log.DebugContext(ctx, "neighbours cannot be asked for", "error", err)
	}
}
