package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/udp"
	"github.com/flanneld-go/flanneld-go/backend/uplink"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// chooseEvery is the least time between two choices while the uplink works.
	chooseEvery = time.Second
	// moveAfter is for how long other addresses must be chosen, without a break, to
	// be followed: who configures a host takes them away and puts them back. From
	// the move after movesFree on it doubles with each, up to moveAfterMost, until
	// the choice has stayed the same for moveMemory.
	moveAfter, moveAfterMost = time.Second, time.Minute
	movesFree, moveMemory    = 4, 2 * time.Minute
	// replaceAfter is for how long an address must have been there to be followed if it
	// replaces the uplink's: that one is gone, and this one came during replaceMemory
	// before. What was there for longer replaces nothing.
	replaceAfter, replaceMemory = 100 * time.Millisecond, time.Minute
	// moveSpread is what peers get to learn of another address before we send from
	// it, moveLinger how long the former one counts after that, with us as with
	// peers.
	moveSpread, moveLinger = time.Second, 5 * time.Second
)

// moveState is how the uplink is followed. One that works is left only when peers
// know the next one:
//
//	[stays] -- another is chosen, for moveAfter --> [opened] -- a round --> [announced]
//	   ^  ^                                            |                        |   |
//	   |  '-------- the present one is chosen again ---+------------------------'   |
//	   '---- sends by the next one <--------- etcd has it, moveSpread --------------'
//	                 ^
//	   broken, and another chosen for moveAfter, a replacement for replaceAfter,
//	   or the same address elsewhere
type moveState struct {
	// stale: the kernel has told of changes since the choice at the uptime chosenAt.
	stale    bool
	chosenAt time.Duration
	// failed is why nothing came of that.
	failed error
	// next is where to go, chosen since the uptime since; without an index: nowhere.
	next  backend.Uplink
	since time.Duration
	// opened: what comes to next is received. announced: the keeper has its
	// addresses; etcd since the uptime told, if that is not 0.
	opened, announced bool
	told              time.Duration
	// seen are the addresses of the present one's interface, with the uptime since when
	// they are there.
	seen map[netip.Prefix]time.Duration
	// former are those that were left a moment ago and still count.
	former formerUplinks
	// moves are those of late; another choice was made last at the uptime swayed.
	moves  int
	swayed time.Duration
	// wake is in what time to look again; 0: there is no hurry.
	wake time.Duration
}

// takeUplink chooses the interface, and follows it from then on.
func (l *loop) takeUplink(ctx context.Context) error {
	if l.uplink.Link.Index == 0 {
		up, err := l.chooseUplink(ctx, l.config.current)
		if err != nil {
			return err
		}
		l.log.Info("uplink", "interface", up.Link.Name, "mtu", up.Link.MTU, "addresses", addrs(up.Addr), "public_addresses", addrs(up.Public))
		l.setUplink(up)
		l.takeFormer(l.clock.Uptime())
		return nil
	}
	l.move.wake = 0
	now := l.clock.Uptime()
	l.holdFormer(now)
	l.abandon(l.uplink, expire(&l.move.former, now)) // before such an address goes, too
	if len(l.move.former) > 0 {
		l.move.wakeIn(l.move.former[0].until - now)
	}
	trouble := l.lookAtUplink(ctx)
	if weigh(vital, trouble) == minor {
		return trouble // what cannot be read says nothing
	}
	if l.move.due(now, trouble != nil) {
		chosen, err := l.chooseUplink(ctx, l.config.current)
		l.move.consider(l.uplink, chosen, err, now)
		if wrong := (*untrue)(nil); err != nil && errors.As(trouble, &wrong) {
			trouble = &untrue{fmt.Errorf("%w; %w", trouble, err)}
		}
	}
	l.takeBack()
	if l.move.next.Link.Index != 0 {
		return l.moveUplink(ctx, trouble, now)
	}
	if trouble == nil && l.move.failed != nil {
		return &harmless{l.move.failed}
	}
	return trouble
}

// due says whether it is time to choose.
func (m *moveState) due(now time.Duration, broken bool) bool {
	wait := resyncEvery
	if m.stale || m.next.Link.Index != 0 || m.failed != nil {
		wait = chooseEvery
	}
	if left := m.chosenAt + wait - now; left > 0 && !broken {
		m.wakeIn(left)
		return false
	}
	return true
}

// consider takes in what was chosen.
func (m *moveState) consider(present, chosen backend.Uplink, err error, now time.Duration) {
	m.stale, m.chosenAt, m.failed = false, now, nil
	switch {
	case err != nil:
		m.failed = fmt.Errorf("uplink %s goes on, but a start would find none: %w", present.Link.Name, err)
		m.goTo(backend.Uplink{}, now)
	case sameWay(present, chosen):
		m.goTo(backend.Uplink{}, now)
	case sameWay(m.next, chosen):
		m.next = chosen // its MTU may be another
	default:
		if now-m.swayed > moveMemory {
			m.moves = 0
		}
		m.swayed = now
		m.goTo(chosen, now)
	}
}

// goTo begins anew with where to go.
func (m *moveState) goTo(next backend.Uplink, now time.Duration) {
	m.next, m.since, m.told, m.opened = next, now, 0, false
}

// sameWay reports whether two uplinks differ in what follows by itself at most.
func sameWay(a, b backend.Uplink) bool {
	return a.Link.Index == b.Link.Index && a.Addr == b.Addr && a.Public == b.Public
}

// patience is for how long the next move must wait.
func (m *moveState) patience() time.Duration {
	return min(moveAfter<<max(0, min(m.moves-movesFree, 10)), moveAfterMost)
}

// see notes which addresses the present uplink's interface has. Those of the first look
// were always there. While the uplink's own are missing those that go are remembered,
// too: who takes all away puts them back one by one.
func (m *moveState) see(list []kernel.Addr, missing bool, now time.Duration) {
	seen := make(map[netip.Prefix]time.Duration, len(list))
	if missing {
		maps.Copy(seen, m.seen)
	}
	for _, a := range list {
		since, known := m.seen[a.Prefix]
		switch {
		case known:
		case m.seen == nil:
			since = now - replaceMemory
		default:
			since = now
		}
		seen[a.Prefix] = since
	}
	m.seen = seen
}

// replacement is since when the addresses are there by which the next uplink replaces
// those of the present one, which are gone; not ok: it does not. An address alone in its
// prefix is no host's own, and comes and goes.
func (m *moveState) replacement(present backend.Uplink, now time.Duration) (since time.Duration, ok bool) {
	if m.next.Link.Index != present.Link.Index || m.moves >= movesFree {
		return 0, false
	}
	for f, addr := range m.next.Addr {
		if addr == present.Addr[f] {
			continue
		}
		came := now - replaceMemory
		for p, at := range m.seen {
			if p.Addr() == addr && !p.IsSingleIP() {
				came = at
			}
		}
		if came <= now-replaceMemory {
			return 0, false
		}
		since = max(since, came)
	}
	return since, true
}

func (m *moveState) wakeIn(d time.Duration) {
	if m.wake == 0 || d < m.wake {
		m.wake = max(d, time.Millisecond)
	}
}

// also are the uplinks by which packets may arrive beside the present one.
func (m *moveState) also(now time.Duration) []backend.Uplink {
	var list []backend.Uplink
	if m.opened {
		list = append(list, m.next)
	}
	for _, f := range m.former {
		if now < f.until && (!m.opened || !sameWay(f.what, m.next)) {
			list = append(list, f.what)
		}
	}
	return list
}

// untilMove shortens a pause so that it does not outlast what a move of ours waits for.
func (l *loop) untilMove(pause time.Duration) time.Duration {
	if l.move.wake > 0 {
		pause = min(pause, l.move.wake)
	}
	return pause
}

// moveUplink goes to the next uplink when it is time. It returns trouble, why the
// present one does not carry packets, until then.
func (l *loop) moveUplink(ctx context.Context, trouble error, now time.Duration) error {
	m := &l.move
	attrs, err := l.attrsBy(m.next)
	if err != nil {
		m.failed = fmt.Errorf("uplink %s is chosen now and cannot be used: %w", m.next.Link.Name, err)
		m.goTo(backend.Uplink{}, now)
		l.takeBack()
		if trouble == nil {
			return &harmless{m.failed}
		}
		return trouble
	}
	elsewhere := trouble != nil && m.next.Addr == l.uplink.Addr && m.next.Public == l.uplink.Public
	if l.lease.keeper == nil || elsewhere {
		l.adoptUplink(ctx, m.next, attrs, trouble == nil)
		return nil
	}
	ripe := m.since + m.patience()
	if since, ok := m.replacement(l.uplink, now); ok && trouble != nil {
		ripe = since + replaceAfter
	}
	if left := ripe - now; left > 0 {
		m.wakeIn(left)
		return trouble
	}
	if trouble == nil && !l.announced(attrs, now) {
		return nil
	}
	l.adoptUplink(ctx, m.next, attrs, trouble == nil)
	return nil
}

// announced has peers told of the next uplink's addresses, a round after we have begun
// to receive there, and reports whether they have had the time to learn them.
func (l *loop) announced(attrs subnet.Attrs, now time.Duration) bool {
	m := &l.move
	if !m.opened {
		m.opened = true
		m.wakeIn(time.Millisecond)
		l.log.Info("uplink is about to change", "interface", m.next.Link.Name, "addresses", addrs(m.next.Addr), "public_addresses", addrs(m.next.Public))
		return false
	}
	m.announced = true
	l.lease.keeper.Publish(attrs)
	if m.told == 0 && l.lease.keeper.Lease().Attrs.PublicIP == attrs.PublicIP {
		m.told = now
	}
	if m.told == 0 {
		return false // the lease's change wakes us
	}
	left := m.told + moveSpread - now
	if left > 0 {
		m.wakeIn(left)
	}
	return left <= 0
}

// attrsBy is what peers must know of us by an uplink; no error: it can be used.
func (l *loop) attrsBy(up backend.Uplink) (subnet.Attrs, error) {
	if l.backend == nil {
		return subnet.Attrs{}, nil
	}
	return l.backend.Attrs(up)
}

// adoptUplink sends by another uplink from now on. Both: the former one is still there.
func (l *loop) adoptUplink(ctx context.Context, up backend.Uplink, attrs subnet.Attrs, both bool) {
	m, now, former := &l.move, l.clock.Uptime(), l.uplink
	m.goTo(backend.Uplink{}, now)
	m.announced = false
	if up.Link.Index != former.Link.Index {
		m.seen = nil
	}
	gone := []backend.Uplink{former}
	if m.former.forget(up); both {
		gone = m.former.add(former, now+moveLinger)
		m.wakeIn(m.former[0].until - now)
	}
	l.abandon(up, gone) // else we wait for answers that go there
	m.moves++
	l.attrs = attrs
	if l.lease.keeper != nil {
		l.lease.keeper.Publish(attrs)
	}
	l.changeUplink(ctx, up)
}

// takeBack has peers told of the present addresses again, once those that were
// announced are not where we go any more.
func (l *loop) takeBack() {
	if l.move.announced && !l.move.opened {
		l.move.announced = false
		l.lease.keeper.Publish(l.attrs)
	}
}

// abandon ends what we say to etcd from addresses of uplinks that are gone: those that
// neither up has, which is the present one now, nor any that still counts.
func (l *loop) abandon(up backend.Uplink, gone []backend.Uplink) {
	if len(gone) == 0 {
		return
	}
	kept := append(ownAddrs(l.move.also(l.clock.Uptime())), up.Addr[:]...)
	for _, a := range ownAddrs(gone) {
		if !slices.Contains(kept, a) {
			l.store.Abandon(a)
		}
	}
}

// changeUplink takes over what is different with an uplink, and says so.
func (l *loop) changeUplink(ctx context.Context, up backend.Uplink) {
	former := l.uplink
	said := []any{
		"interface", up.Link.Name, "mtu", up.Link.MTU, "addresses", addrs(up.Addr), "public_addresses", addrs(up.Public),
		"former_interface", former.Link.Name, "former_mtu", former.Link.MTU, "former_addresses", addrs(former.Addr),
	}
	if l.backend != nil {
		said = append(said, "overlay_mtu", l.backend.MTU(up))
	}
	level := slog.LevelInfo
	if sameWay(former, up) && former.Link.Name == up.Link.Name && former.Link.MTU == up.Link.MTU {
		level = slog.LevelDebug // somebody's addresses come and go beside ours
	}
	l.log.Log(ctx, level, "uplink changed", said...)
	l.path.steady = false
	l.setUplink(up)
}

// setUplink makes up the present uplink.
func (l *loop) setUplink(up backend.Uplink) {
	l.uplink = up
	l.uplinkIndex.Store(int64(up.Link.Index))
	l.board.Update(func(s *status.Status) {
		s.Uplink = status.Uplink{Name: up.Link.Name, MTU: up.Link.MTU, Addrs: addrs(up.Addr), Public: addrs(up.Public)}
		if l.backend != nil {
			s.Backend.MTU = l.backend.MTU(up)
		}
	})
}

// chooseUplink looks for the interface that cfg's families need. The addresses that
// peers know are kept for as long as they are there.
func (l *loop) chooseUplink(ctx context.Context, cfg *subnet.Config) (backend.Uplink, error) {
	o := l.opts.uplink
	for f, r := range cfg.Ranges {
		o.Families[f] = r.Network.IsValid()
	}
	o.Prefer = l.uplink.Addr
	up, err := uplink.Choose(ctx, l.host, o)
	// Nothing is sent by a family that the network does not have, and hosts change
	// their IPv6 addresses for privacy's sake. But udp sends IPv6 in IPv4, too.
	for f, on := range o.Families {
		if !on && (subnet.Family(f) == subnet.IPv6 || cfg.BackendType != udp.Type) {
			up.Addr[f], up.Public[f] = netip.Addr{}, netip.Addr{}
		}
	}
	return up, err
}

// lookAtUplink follows what may change of an interface that carries packets all the
// same, and says why it does not.
func (l *loop) lookAtUplink(ctx context.Context) error {
	name := l.uplink.Link.Name
	link, err := l.uplinkNow(ctx)
	switch {
	case errors.Is(err, kernel.ErrNotFound):
		return &untrue{withHint(fmt.Errorf("uplink %s is gone", name), "bring it back, or name another interface by --iface: what the options choose is followed")}
	case err != nil:
		return &harmless{fmt.Errorf("look at uplink %s: %w", name, err)}
	}
	list, err := l.host.Addrs(link.Index).List(ctx)
	if err != nil {
		return &harmless{fmt.Errorf("look at uplink %s: %w", name, err)}
	}
	now, missing := uplink.Again(l.uplink, link, list)
	l.move.see(list, len(missing) > 0, l.clock.Uptime())
	switch {
	case !link.Up:
		return &untrue{withHint(fmt.Errorf("uplink %s is down", link.Name), "ip link set %s up, and then the routes that it had", link.Name)}
	case !link.Running:
		return &untrue{withHint(fmt.Errorf("uplink %s has no carrier", link.Name), "look at its cable, its switch, or what else it hangs on: ip -d link show %s", link.Name)}
	}
	for _, a := range missing {
		if slices.Contains(l.families(), subnet.FamilyOf(a)) {
			return &untrue{withHint(fmt.Errorf("uplink %s has lost its address %s", link.Name, a), "ip addr add ADDRESS/LENGTH dev %s: another address is followed, too", link.Name)}
		}
	}
	return l.refreshUplink(ctx, now)
}

// uplinkNow reads the interface: whatever its name is by now, or, if it is gone, the
// one that has its name.
func (l *loop) uplinkNow(ctx context.Context) (kernel.Link, error) {
	named, err := l.host.LinkByName(ctx, l.uplink.Link.Name)
	if err == nil && named.Index == l.uplink.Link.Index || err != nil && !errors.Is(err, kernel.ErrNotFound) {
		return named, err
	}
	links, listErr := l.host.Links(ctx)
	if listErr != nil {
		return kernel.Link{}, listErr
	}
	i := slices.IndexFunc(links, func(x kernel.Link) bool { return x.Index == l.uplink.Link.Index })
	if i < 0 {
		return named, err
	}
	return links[i], nil
}

// refreshUplink takes over index, name, MTU and segments of the present interface.
func (l *loop) refreshUplink(ctx context.Context, now backend.Uplink) error {
	was := l.uplink
	if now.Link.Index == was.Link.Index && now.Link.Name == was.Link.Name && now.Link.MTU == was.Link.MTU && slices.Equal(now.Segments, was.Segments) {
		return nil
	}
	if _, err := l.attrsBy(now); err != nil {
		return &untrue{withHint(err, "ip link set %s mtu %d", now.Link.Name, was.Link.MTU)}
	}
	l.changeUplink(ctx, now)
	return nil
}
