package main

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// A round looks at everything, and with thousands of peers that takes its time. A change
// of some peers and nothing else is followed instead, at the cost of the change: by the
// backend, and where packets would be dropped as forged by the firewall. What it means
// besides (accepts of others' firewalls, the cache, addresses that two hosts publish) is
// the next round's, which comes soon after, but not so often that rounds would be most of
// what a host does while its peers change all the time. Rounds that are made for other
// reasons leave the firewall to it. One change is followed at once, and those that come
// right after it together.
//
//	snapshot --> peers alone? --yes--> backend, firewall --> a round soon
//	                 '--no---------------------------------> a round now
//
// What the last round or change left in the kernel is trusted until somebody's event
// says otherwise, or the time for a full check has come.

const (
	// followedAtOnce is how many leases may have changed: to look at all of them is
	// simpler then.
	followedAtOnce = 1024
	// roundSoon is how soon after a change a round is made, and roundShare of what
	// share of the time rounds may take that only changes ask for. Until there is a
	// round, a firewall that drops lets nobody in who is new or has moved. So that many
	// who boot together do not wait for the share, the pauses between rounds grow to
	// it: the first after a quiet time is roundPause, and each is twice the one before.
	// RoundLatest is what they may come to: one round that a busy machine held up must
	// not make them long.
	roundSoon   = 20 * time.Millisecond
	roundPause  = 400 * time.Millisecond
	roundShare  = 50
	roundLatest = 10 * time.Second
	// followEvery is the least time between two changes that are followed. The first
	// goes out at once, and what comes meanwhile is one change. One that comes not much
	// later is one of many in a row, of which etcdstore reads some together: after
	// followSoon the others are there, too.
	followEvery = 25 * time.Millisecond
	followSoon  = 2 * time.Millisecond
)

// followState is what following goes on from.
type followState struct {
	// snap is what the data path is in line with; nil: it is not known to be.
	snap *subnet.Snapshot
	// uplink is the one that it is in line with.
	uplink backend.Uplink
	// checked is when all of the kernel was compared last.
	checked time.Duration
	// public counts the leases that publish an address.
	public map[netip.Addr]int
	// ranges6 are the peers' subnets, where the network has two families.
	ranges6 ranges6
	// due is when the round after a change is to be made; 0: there was none.
	due time.Duration
	// followed is when the last change was, and rest until when others are gathered
	// that have come since; 0: none has.
	followed, rest time.Duration
	// next is the uptime before which there is no other round of a change, and paid
	// that at which those of the past have had no more than their share.
	next, paid time.Duration
	// filtered is what all of the firewall is as it should be for.
	filtered filter
	// postponed: this round left to the next what a change means for the firewall.
	postponed bool
}

// filter is what the firewall drops by. Without a snapshot it is not known.
type filter struct {
	snap   *subnet.Snapshot
	own    subnet.Subnet
	uplink backend.Uplink
}

// is reports whether the firewall drops by what the loop has now.
func (f filter) is(l *loop) bool {
	return f.snap != nil && (f.snap == l.snap || alike(f.snap, l.snap) && len(l.snap.Differences(f.snap)) == 0) &&
		f.own == l.lease.own.Subnet && reflect.DeepEqual(f.uplink, l.uplink)
}

// end says that what is in the kernel is not known any more.
func (f *followState) end() { f.snap = nil }

// rounded notes a round. One that was made for another reason, before a change's is due,
// is none for the change, and while no change waits for one it costs them nothing.
func (f *followState) rounded(began, ended time.Duration) {
	if !f.postponed && f.due != 0 {
		share := min(roundShare*(ended-began), roundLatest)
		f.paid = max(f.paid, began) + share
		f.next, f.due = ended+roundsRest(ended-began, share, f.paid-ended), 0
	}
	f.postponed = false
}

// roundsRest is the pause after a round that took so long and stands for a share of the
// time, where the rounds until now are ahead of their share by so much.
func roundsRest(took, share, ahead time.Duration) time.Duration {
	pause := max(roundPause, took)
	for ahead -= share; ahead > 0 && pause < share; ahead -= share {
		pause *= 2
	}
	return min(pause, share)
}

// ask asks for the round of a change, if none is asked for.
func (f *followState) ask(now time.Duration) {
	if f.due == 0 {
		f.due = max(now+roundSoon, f.next)
	}
}

// until is the earlier of at and the round that a change asks for.
func (f *followState) until(at time.Duration) time.Duration {
	if f.due == 0 {
		return at
	}
	return min(at, f.due)
}

// gather reports whether news is to wait for more, until rest. What has waited is not.
func (f *followState) gather(now time.Duration) bool {
	waited := f.rest != 0
	f.rest = 0
	if waited || f.followed == 0 || now >= f.followed+2*followEvery {
		return false
	}
	f.rest = max(f.followed+followEvery, now+followSoon)
	return true
}

// beginToFollow notes that the kernel is as the snapshot wants it.
func (l *loop) beginToFollow() {
	f := &l.path.follow
	f.snap, f.uplink, f.checked = l.snap, l.uplink, l.clock.Uptime()
	f.public = make(map[netip.Addr]int, l.snap.Len())
	for lease := range l.snap.Leases() {
		f.count(lease, 1)
	}
	if f.ranges6 = (ranges6{}); len(l.families()) > 1 {
		f.ranges6 = rangesOf(l.path.peers)
	}
}

// count notes that so many more leases publish the addresses of one.
func (f *followState) count(lease *subnet.Lease, more int) {
	for _, a := range lease.Attrs.PublicIP {
		if !a.IsValid() {
			continue
		}
		if f.public[a] += more; f.public[a] == 0 {
			delete(f.public, a)
		}
	}
}

// stillApplied reports whether the data path is in line with the snapshot, as far as
// anybody has said, and it is not the time to look.
func (l *loop) stillApplied() bool {
	f := &l.path.follow
	_, follows := l.backend.(backend.Follower)
	return follows && f.snap == l.snap && reflect.DeepEqual(f.uplink, l.uplink) && l.path.own == l.lease.own.Subnet && len(l.path.failed) == 0 && !l.moving() &&
		f.due != 0 && l.clock.Uptime()-f.checked < resyncEvery
}

// stillFiltered reports whether the firewall needs nothing but what changes mean for it
// whose round is not due yet. What this round itself found to be new, and did not
// follow, the firewall has not been told.
func (l *loop) stillFiltered(ctx context.Context) bool {
	f := &l.path.follow
	return f.filtered.is(l) && l.stillApplied() && l.clock.Uptime() < f.due && l.firewall.Undisturbed(ctx)
}

// follow brings the data path in line with the latest snapshot. It reports false when
// that needs a round.
func (l *loop) follow(ctx context.Context) bool {
	f, next := &l.path.follow, l.view.Snapshot()
	if f.snap == nil || f.snap != l.snap || !alike(l.snap, next) || l.path.own != l.lease.own.Subnet || closed(l.lease.changed()) || l.moving() {
		return false
	}
	all := next.Differences(l.snap)
	c, ok := l.changeOf(all)
	away := moved(slices.Collect(subnet.Each(c.Old)), slices.Collect(subnet.Each(c.New)))
	c.Former = slices.Concat(l.path.former.of(c.New), away)
	if !ok || !l.followPath(ctx, c) {
		return false
	}
	for _, d := range all {
		f.count(&d.Old, -1)
		f.count(&d.New, 1)
	}
	l.path.former.take(away, l.clock.Uptime())
	gone := slices.DeleteFunc(slices.Clone(c.Old), func(o subnet.Lease) bool { return slices.Contains(away, o) })
	l.replacePeers(c)
	f.snap, l.snap, l.path.steady = next, next, true
	l.path.judged = next // there were no clashes, and none came
	l.showPeers()
	l.board.Update(func(s *status.Status) { s.Etcd.Revision = int64(next.Revision) })
	if len(all) > 0 {
		f.followed = l.clock.Uptime()
		if !l.followFirewall(ctx, gone, c.New) {
			return false
		}
		f.ask(l.clock.Uptime())
	}
	if f.filtered.snap != nil {
		f.filtered.snap = next
	}
	return true
}

// catchUp takes the latest snapshot for a round. If only peers have changed they are
// followed: while they do all the time, each round would compare all of the kernel.
func (l *loop) catchUp(ctx context.Context) {
	if next := l.view.Snapshot(); next == l.snap || !l.follow(ctx) {
		l.snap = l.view.Snapshot()
	}
}

// letGo forgets where peers were before they moved, once that does not count any more.
// It reports false when that needs a round.
func (l *loop) letGo(ctx context.Context) bool {
	f, expired := &l.path.follow, expire(&l.path.former, l.clock.Uptime())
	if len(expired) == 0 {
		return true
	}
	if f.snap == nil || f.snap != l.snap {
		return false
	}
	var held []subnet.Lease
	for _, e := range expired {
		at, found := findPeer(l.path.peers, e.Subnet)
		if found && !slices.Contains(held, *l.path.peers[at]) {
			held = append(held, *l.path.peers[at])
		}
	}
	c := backend.Change{Old: held, New: held, Former: l.path.former.of(expired)}
	if !l.followPath(ctx, c) {
		return false
	}
	f.snap, l.path.steady = l.snap, true
	// One may have come back to where it was.
	still := slices.Concat(c.New, c.Former)
	return l.followFirewall(ctx, slices.Concat(expired, still), still)
}

// followPath has the backend follow. It reports false where it cannot, or something
// went wrong: the round says what, and tries again.
func (l *loop) followPath(ctx context.Context, c backend.Change) bool {
	follower, ok := l.backend.(backend.Follower)
	if !ok {
		return false
	}
	l.path.follow.end()
	l.path.steady = false
	failed, rest := splitPeerErrors(follower.Follow(ctx, c))
	return rest == nil && len(failed) == 0
}

// followFirewall has the firewall follow where packets would be dropped as forged.
func (l *loop) followFirewall(ctx context.Context, gone, fresh []subnet.Lease) bool {
	err := l.firewall.Follow(ctx, nativePeers(gone), nativePeers(fresh))
	if err == nil {
		l.beat.set(l.clock.Uptime())
		return true
	}
	if !errors.Is(err, native.ErrNotFollowed) {
		l.log.DebugContext(ctx, "firewall does not follow", "error", err)
	}
	l.path.follow.filtered, l.path.follow.due = filter{}, max(1, l.clock.Uptime())
	return false
}

// moving reports whether this host has another uplink besides, for a while.
func (l *loop) moving() bool {
	return len(l.move.also(l.clock.Uptime())) > 0
}

// alike reports whether two snapshots can differ in nothing but leases.
func alike(a, b *subnet.Snapshot) bool {
	return a.Synced && b.Synced && a.Config == b.Config && a.Identity == b.Identity && len(a.Bad)+len(b.Bad) == 0
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// changeOf is what differences mean for the data path. Not ok: one of them means more
// than a path, or its meaning depends on other leases.
func (l *loop) changeOf(all []subnet.Difference) (c backend.Change, ok bool) {
	if len(all) > followedAtOnce || len(l.path.refused)+len(l.path.clashes)+len(l.path.failed) > 0 {
		return c, false
	}
	me, public := l.self(), followState{public: map[netip.Addr]int{}}
	for _, d := range all {
		if !d.Old.Subnet.IsZero() {
			public.count(&d.Old, -1)
			if v, _ := judgeLease(l.config.current, me, &d.Old); v == isPeer {
				c.Old = append(c.Old, d.Old)
			}
		}
		if d.New.Subnet.IsZero() {
			continue
		}
		public.count(&d.New, 1)
		switch v, _ := judgeLease(l.config.current, me, &d.New); v {
		case isRefused:
			return c, false
		case isPeer:
			c.New = append(c.New, d.New)
		case isNone:
		}
	}
	for a, more := range public.public {
		if more > 0 && l.path.follow.public[a]+more > 1 {
			return c, false // Two leases publish one address.
		}
	}
	return c, !l.overlaps(c)
}

func findPeer(peers []*subnet.Lease, s subnet.Subnet) (at int, found bool) {
	return slices.BinarySearchFunc(peers, s, func(p *subnet.Lease, s subnet.Subnet) int { return p.Subnet.Compare(s) })
}

// replacePeers does c to peers, which are sorted, in place.
func replacePeers(peers []*subnet.Lease, c backend.Change) []*subnet.Lease {
	for _, p := range c.Old {
		if at, found := findPeer(peers, p.Subnet); found && !slices.ContainsFunc(c.New, func(n subnet.Lease) bool { return n.Subnet == p.Subnet }) {
			peers = slices.Delete(peers, at, at+1)
		}
	}
	for _, p := range c.New {
		at, found := findPeer(peers, p.Subnet)
		if found {
			peers[at] = &p
			continue
		}
		peers = slices.Insert(peers, at, &p)
	}
	return peers
}

// nativePeers are peers as the firewall wants them that knows their MACs, if any.
func nativePeers(leases []subnet.Lease) []native.Peer {
	peers := make([]native.Peer, len(leases))
	for i, p := range leases {
		peers[i] = native.Peer{Subnet: p.Subnet, PublicIP: p.Attrs.PublicIP}
	}
	return peers
}
