package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// acquireTimeout bounds one attempt to lease a subnet: some requests to an etcd
	// that hundreds of hosts may ask at the same moment, and two challenges in a
	// row where another claimant's stands already.
	acquireTimeout = 20*time.Second + 2*subnet.ChallengeWait
	// acquireTries is how often a world that is out of date is loaded anew
	// before the round is given up.
	acquireTries = 5
)

// leaseState is this host's lease.
type leaseState struct {
	// own is what the data path is built for.
	own    subnet.Lease
	keeper *subnet.Keeper
	status *subnet.KeeperStatus
	// unsure: a subnet may have been leased without an answer.
	unsure bool
	// previous are the subnets that this host had before.
	previous []subnet.Subnet
	// conflictAt is the uptime at which another owner, or the config, was
	// found to deny the subnet; 0: none does. conflict says why, and stays.
	conflictAt time.Duration
	conflict   string
	// withdrawn: data path and files were removed because of that. former is
	// what the cache says of it.
	withdrawn bool
	former    string
	// cached is what the cache file holds, since the uptime cachedAt. In
	// cacheIn it is to be written again; 0: not yet.
	cached   statedir.Cache
	cachedAt time.Duration
	cacheIn  time.Duration
}

// changed is closed when the lease is not what it was; nil without one.
func (s *leaseState) changed() <-chan struct{} {
	if s.status == nil {
		return nil
	}
	return s.status.Changed()
}

// takeLease leases a subnet, once; from then on it follows the keeper.
func (l *loop) takeLease(ctx context.Context) error {
	l.findClashes()
	if l.lease.keeper == nil {
		if err := l.firstLease(ctx); err != nil {
			return l.leaseless(ctx, err)
		}
	}
	s := l.lease.keeper.Status()
	if s.State == subnet.StateEnded {
		// With the keeper's task the process ends.
		return fmt.Errorf("lease of %s is no longer kept: %s", s.Lease.Subnet, s.Why)
	}
	l.followLease(s)
	if !insideNetwork(l.config.current, s.Lease.Subnet) {
		// Its own was gone, and the config that it could be leased by is one
		// that this process refused: nothing is left that could be kept.
		return &fatal{fmt.Errorf("this host's subnet is now %s, by a network config that only a restart can follow", s.Lease.Subnet)}
	}
	if l.mustWithdraw(s) {
		return l.withdraw(ctx, withHint(fmt.Errorf("lease of %s is in conflict, data path and files are withdrawn: %s", s.Lease.Subnet, s.Why), "%s", l.outOfConflict(s)))
	}
	l.lease.withdrawn, l.lease.former = false, ""
	if s.State == subnet.StateConflict && l.opts.onConflict == subnet.Renumber {
		// Who is killed before there is another subnet must not start with this one.
		l.lease.former = s.Why
		if err := l.saveCache(); err != nil {
			return errors.Join(l.standing(s), err)
		}
	}
	return l.standing(s)
}

// followLease takes in and shows what the keeper says.
func (l *loop) followLease(s *subnet.KeeperStatus) {
	former := l.lease.own.Subnet
	l.lease.status, l.lease.own = s, s.Lease
	switch {
	case s.State != subnet.StateConflict:
		l.lease.conflictAt = 0
	case l.lease.conflictAt == 0:
		l.lease.conflictAt = l.clock.Uptime()
		fallthrough
	default:
		l.lease.conflict = s.Why
	}
	switch {
	case former == s.Lease.Subnet:
	case former.IsZero():
		l.files.stale = len(l.lease.previous) > 0 && !slices.Contains(l.lease.previous, s.Lease.Subnet)
		l.log.Info("lease", "subnet", s.Lease.Subnet, "reservation", s.Lease.Reservation())
	default:
		l.files.stale = true
		l.renumbered(former, s)
	}
	l.showLease(s)
}

// standing says what is wrong with a lease that is in use.
func (l *loop) standing(s *subnet.KeeperStatus) error {
	switch s.State {
	case subnet.StateConflict:
		err := withHint(fmt.Errorf("lease of %s is in conflict: %s", s.Lease.Subnet, s.Why), "%s", l.outOfConflict(s))
		if l.opts.onConflict == subnet.Keep {
			// We go on, but peers send elsewhere.
			return &untrue{err}
		}
		return err // the other subnet is worth the next round, not this one
	case subnet.StateLost:
		return &untrue{fmt.Errorf("lease of %s is lost: %s", s.Lease.Subnet, s.Why)}
	case subnet.StateUnproven:
		// Nobody says that the subnet is another's. Waiting for etcd here would
		// hold up Docker at a boot without it.
		return &harmless{fmt.Errorf("lease of %s is unproven: %s", s.Lease.Subnet, s.Why)}
	case subnet.StateValid, subnet.StateDegraded, subnet.StateEnded:
	}
	return l.sharedByUs()
}

// outOfConflict says what to type when another holds our subnet. A start leases
// what it can get, whatever the policy of a host that runs.
func (l *loop) outOfConflict(s *subnet.KeeperStatus) string {
	if l.opts.onConflict == subnet.Renumber {
		return "flannelctl leases; it takes another subnet by itself as soon as one is free"
	}
	way := "systemctl restart " + l.opts.instance.Unit() + " takes another subnet"
	if holder, ok := l.holder(l.snap, s.Lease.Subnet); ok { // its key may be another than ours
		return way + fmt.Sprintf("; flannelctl release %s --yes gives this one back, if its holder is gone", holder.Subnet)
	}
	for _, b := range l.snap.Bad {
		if b.Occupies.Overlaps(s.Lease.Subnet) {
			return way + fmt.Sprintf("; flannelctl release %s --yes gives this one back", quoted(b.Key))
		}
	}
	return way
}

// cachedLease reports whether the cache holds a lease that was still ours, and
// the config that it was leased by.
func (l *loop) cachedLease() bool {
	c := l.cache
	return c.Identity != "" && c.Config.Modified != 0 && !c.Own.Subnet.IsZero() && c.Former == ""
}

// configLost reports whether etcd has lost the config that the cached lease was
// leased by, and which still is in force here. The keeper finds out what became
// of the lease.
func (l *loop) configLost() bool {
	return l.snap.Synced && l.snap.Config.Modified == 0 && l.cachedLease() && l.config.doc == l.cache.Config
}

// firstLease acquires, or takes up the lease of the cache while etcd is silent or
// has lost the config.
func (l *loop) firstLease(ctx context.Context) error {
	claim, err := l.claim(ctx)
	if err != nil {
		return err
	}
	o := subnet.KeeperOptions{
		Store: l.store, Clock: l.clock, Claim: claim, Margin: l.opts.renewMargin,
		OnConflict: l.opts.onConflict, View: l.view, Avoid: l.avoid(), Log: l.log,
	}
	switch {
	case l.snap.Synced && !l.configLost():
		world, err := l.freshWorld(ctx)
		if err != nil {
			return err
		}
		o.Asked = l.clock.Uptime()
		o.Lease, err = l.acquire(ctx, &world, claim)
		l.lease.unsure = err != nil && !errors.As(err, new(*subnet.ExhaustedError))
		if err != nil {
			return err
		}
		o.Identity = world.Identity
		l.runView(ctx, subnet.CrowdPause(world, o.Lease, l.clock.Uptime()-l.began, rand.Float64()))
	case !l.cache.Own.Subnet.IsZero() && l.cache.Former == "":
		o.Lease, o.Identity, o.Cached = l.cache.Own, l.cache.Identity, true
	case l.cache.Former != "":
		return fmt.Errorf("waiting for etcd: this host's former subnet %s is not its own any more: %s", l.cache.Own.Subnet, l.cache.Former)
	default:
		return errors.New("waiting for etcd: this host has no lease yet")
	}
	keeper := subnet.NewKeeper(o)
	l.lease.keeper = keeper
	l.group.Go(func() error { return keeper.Run(ctx) })
	return nil
}

// freshWorld returns what the view knows: a start costs the one load that the view
// needs, and a host that waits for a free subnet asks for one only when there is
// one. What it leases compares with etcd, whatever the view has missed. But a lease of
// our own that it misses would be left behind by a second: where there may be one, etcd
// is asked.
func (l *loop) freshWorld(ctx context.Context) (world subnet.World, err error) {
	if world = l.snap.World(); l.lease.unsure {
		ctx, cancel := context.WithTimeout(ctx, acquireTimeout)
		defer cancel()
		if world, err = l.store.Load(ctx); err != nil {
			return world, err
		}
	}
	if world.Config != l.config.doc {
		return subnet.World{}, errConfigChanged
	}
	return world, nil
}

// errConfigChanged: the next round leases by the new config.
var errConfigChanged = errors.New("network config changed while a subnet was leased")

// acquire leases a subnet in *world, and loads it anew when it is out of date.
func (l *loop) acquire(ctx context.Context, world *subnet.World, claim subnet.Claim) (subnet.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, acquireTimeout)
	defer cancel()
	for try := 1; ; try++ {
		lease, err := subnet.Acquire(ctx, l.store, *world, claim)
		stale := errors.Is(err, subnet.ErrConfigChanged) || errors.Is(err, subnet.ErrStoreChanged) || errors.Is(err, subnet.ErrLeaseLost)
		if !stale || try == acquireTries {
			return lease, err
		}
		if *world, err = l.store.Load(ctx); err != nil {
			return subnet.Lease{}, err
		}
		if world.Config != l.config.doc {
			return subnet.Lease{}, errConfigChanged
		}
	}
}

// claim says who we are, what we had, and what is not to be leased.
func (l *loop) claim(ctx context.Context) (subnet.Claim, error) {
	c := subnet.Claim{Node: l.node, Instance: l.instance, Attrs: l.attrs, TTL: l.opts.leaseTTL, Clock: l.clock}
	c.Previous = previousSubnets(l.cache.Own.Subnet, l.opts.subnetFile, func(err error) {
		l.log.Warn("subnet file of an earlier run is unreadable, its subnet is not asked for again", "error", err)
	})
	l.lease.previous = c.Previous
	var err error
	c.Avoid, err = l.avoid()(ctx)
	return c, err
}

// avoid returns what says, at any time and in any goroutine, what is occupied.
func (l *loop) avoid() func(context.Context) ([]netip.Prefix, error) {
	host, devices, uplink := l.host, l.backend.Tunnel().Devices, &l.uplinkIndex
	return func(ctx context.Context) ([]netip.Prefix, error) {
		return occupied(ctx, host, devices, int(uplink.Load()))
	}
}

// previousSubnets are those of the cache and of subnet.env.
func previousSubnets(cached subnet.Subnet, path string, warn func(error)) []subnet.Subnet {
	var list []subnet.Subnet
	if !cached.IsZero() {
		list = append(list, cached)
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return list
	}
	var e daemonconfig.Env
	if err == nil {
		e, err = daemonconfig.ParseEnv(text)
	}
	if err != nil {
		warn(err)
		return list
	}
	if s := subnet.Subnet(e.Subnets); !s.IsZero() && s != cached {
		list = append(list, s)
	}
	return list
}

// occupied are the prefixes that this host routes elsewhere: its addresses'
// and its routes', those of our own devices and of Docker's bridge left out.
func occupied(ctx context.Context, host kernel.Host, devices []string, uplinkIndex int) ([]netip.Prefix, error) {
	links, err := host.Links(ctx)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	ours := map[int]bool{}
	for _, link := range links {
		for _, name := range devices {
			ours[link.Index] = ours[link.Index] || link.Name == name
		}
		ours[link.Index] = ours[link.Index] || link.Name == dockerBridge || strings.HasPrefix(link.Name, "flannel")
	}
	addrs, err := host.Addrs(0).List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	routes, err := host.Routes().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var list []netip.Prefix
	for _, a := range addrs {
		if !ours[a.Link] {
			list = append(list, a.Prefix.Masked())
		}
	}
	for _, r := range routes {
		// By the uplink's gateways flannel's host-gw left routes to peers:
		// their subnets are leased anyway.
		leftover := r.Link == uplinkIndex && r.Gateway.IsValid()
		if !ours[r.Link] && !kernel.IsProtocol(r.Protocol) && !leftover && !r.Blackhole {
			list = append(list, r.Dst)
		}
	}
	return list, nil
}

// showLease puts the lease on the board.
func (l *loop) showLease(s *subnet.KeeperStatus) {
	shown := status.Lease{
		Subnet: s.Lease.Subnet.String(), State: s.State.String(), Since: s.Since, Reason: s.Why,
		Reservation: s.Lease.Reservation(), TTLSeconds: s.Lease.TTL.Seconds(),
	}
	// The end of any other lease is over, came from a file, or is none of ours.
	if s.Expires != 0 && (s.State == subnet.StateValid || s.State == subnet.StateDegraded) {
		shown.Expires = l.clock.Now().Add(s.Expires - l.clock.Uptime())
	}
	l.board.Update(func(st *status.Status) {
		// Until the round is over, data path and files are those of the former
		// subnet.
		st.Ready = st.Ready && st.Lease.Subnet == shown.Subnet
		st.Lease = shown
	})
}

// saveHost writes host.json before the deed that it tells of. Traffic does not
// depend on it: what cannot be written now, keepState tries again, and says so.
func (l *loop) saveHost() { l.unsaved = l.dir.SaveHost(l.saved) != nil }

// keepState keeps the files of the state directory.
func (l *loop) keepState(context.Context) error {
	var err error
	if l.unsaved {
		err = l.dir.SaveHost(l.saved)
		l.unsaved = err != nil
	}
	return errors.Join(err, l.keepCache())
}

// cacheLeast and cachePerPeer say how soon after another the cache is written for
// peers alone: the file is as long as they are many. HeardLeast is how soon after
// another for the time at which etcd was heard last.
const (
	cacheLeast   = time.Second
	cachePerPeer = time.Millisecond
	heardLeast   = 10 * time.Second
)

// keepCache writes what etcd last said, if it differs from what is written: at
// once when our lease or the config changed, and for peers a second after the
// last time. Who is killed must not start with fewer peers than it had.
func (l *loop) keepCache() error {
	c, next := &l.lease.cached, l.nextCache()
	l.lease.cacheIn = 0
	if next == nil || next.Same(*c) && l.timely(*c, *next) {
		return nil
	}
	known := !c.Own.Subnet.IsZero() && c.Own == next.Own && c.Former == next.Former && c.Config == next.Config
	every := max(cacheLeast, cachePerPeer*time.Duration(len(next.Peers)))
	if wait := l.lease.cachedAt + every - l.clock.Uptime(); known && wait > 0 {
		if !next.Same(*c) { // times alone are no reason for a round
			l.lease.cacheIn = wait
		}
		return nil
	}
	return l.writeCache(*next)
}

// saveCache writes the cache now, if it differs from what is written.
func (l *loop) saveCache() error {
	next := l.nextCache()
	if next == nil || next.Same(l.lease.cached) && l.timely(l.lease.cached, *next) {
		return nil
	}
	return l.writeCache(*next)
}

func (l *loop) writeCache(next statedir.Cache) error {
	if err := l.dir.SaveCache(next); err != nil {
		return err
	}
	next.Peers = slices.Clone(next.Peers) // the list is changed in place, its leases are not
	l.lease.cached, l.lease.cachedAt = next, l.clock.Uptime()
	return nil
}

// nextCache is what the cache should hold; nil: nothing that a start could use.
func (l *loop) nextCache() *statedir.Cache {
	next := l.lease.cached
	// While etcd is silent this is what it said last: a host that is booted then
	// must not miss a peer that came shortly before. What started from nothing has
	// no identity.
	if l.snap.Identity != "" && l.config.current != nil {
		next.Identity, next.Revision, next.Config = l.snap.Identity, l.snap.Revision, l.config.doc
	}
	if !l.path.own.IsZero() { // else the peers were not looked at
		next.Peers = l.path.peers
	}
	if !l.lease.own.Subnet.IsZero() {
		next.Own = l.lease.own
	}
	next.Former = l.lease.former
	l.noteTimes(&next)
	// A start from a subnet without a network, or from one outside of it, would
	// come to nothing.
	if next.Own.Subnet.IsZero() || next.Identity == "" || l.config.current == nil || !insideNetwork(l.config.current, next.Own.Subnet) {
		return nil
	}
	return &next
}

// untilCache shortens a pause so that it does not outlast the time at which the
// cache is to be written.
func (l *loop) untilCache(pause time.Duration) time.Duration {
	if l.lease.cacheIn == 0 {
		return pause
	}
	return min(pause, l.lease.cacheIn)
}

// leave ends the loop: everything stays in place, only the cache is written.
func (l *loop) leave() {
	if err := l.saveCache(); err != nil {
		l.log.Warn("cache not written", "error", err)
	}
}
