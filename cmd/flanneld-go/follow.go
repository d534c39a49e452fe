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
	// share of the time rounds may take that only changes ask for.
	roundSoon  = 20 * time.Millisecond
	roundShare = 50
	// followEvery is the least time between two changes that are followed. The first
	// goes out at once, and what comes meanwhile is one change.
	followEvery = 40 * time.Millisecond
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
	// due is when the round after a change is to be made; 0: there was none.
	due time.Duration
	// rest is the uptime until which changes are gathered.
	rest time.Duration
	// ended is when the last round was over, and took how long it had taken.
	ended, took time.Duration
	// filtered: all of the firewall was as it should be after the last round.
	// Postponed: this round left to the next what a change means for it.
	filtered, postponed bool
}

// end says that what is in the kernel is not known any more.
func (f *followState) end() { f.snap = nil }

// rounded notes a round. One that was made for another reason, before a change's is due,
// is none for the change.
func (f *followState) rounded(began, ended time.Duration) {
	if !f.postponed {
		f.ended, f.took, f.due = ended, ended-began, 0
	}
	f.postponed = false
}

// until is the earlier of at and the round that a change asks for.
func (f *followState) until(at time.Duration) time.Duration {
	if f.due == 0 {
		return at
	}
	return min(at, f.due)
}

// beginToFollow notes that the kernel is as the snapshot wants it.
func (l *loop) beginToFollow() {
	f := &l.path.follow
	f.snap, f.uplink, f.checked = l.snap, l.uplink, l.clock.Uptime()
	f.public = make(map[netip.Addr]int, l.snap.Len())
	for lease := range l.snap.Leases() {
		f.count(lease, 1)
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
// whose round is not due yet.
func (l *loop) stillFiltered(ctx context.Context) bool {
	f := &l.path.follow
	return f.filtered && l.stillApplied() && l.clock.Uptime() < f.due && l.firewall.Undisturbed(ctx)
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
	l.path.peers = replacePeers(l.path.peers, c)
	f.rest = l.clock.Uptime() + followEvery
	f.snap, l.snap, l.path.steady = next, next, true
	l.showPeers()
	l.board.Update(func(s *status.Status) { s.Etcd.Revision = int64(next.Revision) })
	if !l.followFirewall(ctx, gone, c.New) {
		return false
	}
	if f.due == 0 && len(all) > 0 {
		f.due = max(l.clock.Uptime()+roundSoon, f.ended+roundShare*f.took)
	}
	return true
}

// letGo forgets where peers were before they moved, once that does not count any more.
// It reports false when that needs a round.
func (l *loop) letGo(ctx context.Context) bool {
	f, expired := &l.path.follow, l.path.former.expire(l.clock.Uptime())
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
		l.beat.set(l.clock.Now())
		return true
	}
	if !errors.Is(err, native.ErrNotFollowed) {
		l.log.DebugContext(ctx, "firewall does not follow", "error", err)
	}
	l.path.follow.due = max(1, l.clock.Uptime())
	return false
}

// moving reports whether this host has another uplink besides, for a while.
func (l *loop) moving() bool {
	return l.move.also(l.clock.Uptime()).Link.Index != 0
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

// overlaps reports whether a new peer's subnet overlaps that of another peer. In order
// of their subnets only neighbours can, in the first of their families.
func (l *loop) overlaps(c backend.Change) bool {
	for i, p := range c.New {
		at, found := findPeer(l.path.peers, p.Subnet)
		if found {
			continue // It is in the place of itself.
		}
		near := l.path.peers[max(0, at-1):min(at+1, len(l.path.peers))]
		if len(l.families()) > 1 {
			near = l.path.peers
		}
		if slices.ContainsFunc(near, func(o *subnet.Lease) bool { return o.Subnet.Overlaps(p.Subnet) }) ||
			slices.ContainsFunc(c.New[:i], func(o subnet.Lease) bool { return o.Subnet.Overlaps(p.Subnet) }) {
			return true
		}
	}
	return false
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
