package subnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"
)

// DefaultTTL is how long a lease lasts after its renewal unless an option says
// otherwise: flannel's.
const DefaultTTL = 24 * time.Hour

// ErrNoConfig: the store holds no network config, so nothing can be leased.
var ErrNoConfig = errors.New("no network config")

// Claim is a host that wants a subnet.
type Claim struct {
	// Node and Instance become the lease's Owner and Instance.
	Node     NodeID
	Instance string
	// Attrs is what the backend publishes; its PublicIP is this host's.
	Attrs Attrs
	// Previous are subnets that this host had, the latest first. They are
	// hints: one is leased again only where the config would lease it anew.
	Previous []Subnet
	// Avoid are the host's existing routes, its own tunnel's left out. No
	// subnet that overlaps one is leased. A route that covers the network
	// whole (a default route, 10.0.0.0/8) rules out nothing, since every
	// subnet of ours is more specific; nor does one inside a Previous subnet,
	// which is that of the container bridge.
	Avoid []netip.Prefix
	// TTL of a new lease; zero: [DefaultTTL].
	TTL time.Duration
	// Clock measures how long the owner of a disputed lease is silent; nil:
	// [SystemClock].
	Clock Clock
}

// relation is whose a lease is, as a claimant sees it.
type relation uint8

const (
	// foreign leases belong to others.
	foreign relation = iota
	// own leases are ours to take over.
	own
	// disputed leases carry our node id and another address.
	disputed
)

// relate decides whose l is: see decision 3 of the design. A key with an owner
// belongs to that owner; it is disputed unless an address of ours is among its
// own, this very process wrote it, or no process did (a reservation made for a
// node). A key without an owner, which flannel wrote, belongs to whoever has all
// its addresses.
func (c Claim) relate(l Lease) relation {
	_, equal := compareAddrs(l.Attrs.PublicIP, c.Attrs.PublicIP)
	switch {
	case l.Attrs.Owner == "" && samePublicIP(l.Attrs.PublicIP, c.Attrs.PublicIP):
		return own
	case l.Attrs.Owner == "" || l.Attrs.Owner != c.Node:
		return foreign
	case equal > 0 || l.Attrs.Instance == "" || l.Attrs.Instance == c.Instance:
		return own
	}
	return disputed
}

// attrs is the value that the claimant's lease shall have, as it will be read
// back.
func (c Claim) attrs() Attrs {
	a := c.Attrs
	a.Owner, a.Instance = c.Node, c.Instance
	return a.canonical()
}

// Acquire leases a subnet for c, having read w: a lease of its own that fits
// the config and overlaps no older one of another owner (a reservation first, then
// the previous subnet), else a previous
// subnet that is free, else the first free one from [Pool.Start] on. Other leases
// of its own are released, reservations excepted: those stay for ever.
//
// A lease with our node id and another address is challenged first, whatever
// else there is: its owner has [ChallengeWait] to answer. If it does, two
// machines share a node id, and that is a *[ForeignInstanceError]; if it does
// not, this host has moved, and the lease is its own. A reservation made for a
// node, which no process has written, is not disputed.
//
// In a store that takes no writes a lease of its own is returned as it was, renewed;
// its attributes are then not yet c's.
//
// A lost race for a subnet takes the next one. ErrConfigChanged,
// ErrStoreChanged and ErrLeaseLost mean that w is out of date: Load and call
// again. *[ExhaustedError], *[ForeignInstanceError] and [ErrNoConfig] want an operator, and
// joined *[ConfigError]s too. After any other error the outcome is unknown; a
// further Acquire with a fresh World finds and takes over what was created.
func Acquire(ctx context.Context, s Store, w World, c Claim) (Lease, error) {
	if w.Config.Text == "" {
		return Lease{}, ErrNoConfig
	}
	cfg, err := ParseConfig(w.Config.Text)
	if err != nil {
		return Lease{}, fmt.Errorf("read network config: %w", err)
	}
	if c.Clock == nil {
		c.Clock = SystemClock{}
	}
	a := acquisition{store: s, world: w, claim: c, pool: cfg.Pool()}
	if err := a.settle(ctx); err != nil {
		return Lease{}, err
	}
	keep, drop := a.sort()
	if keep == nil {
		// What does not fit goes first: it may be all that fills the pool.
		if err := a.release(ctx, drop); err != nil {
			return Lease{}, err
		}
		return a.create(ctx, cfg)
	}
	l, err := a.takeOver(ctx, *keep)
	if err != nil {
		return Lease{}, err
	}
	if err := a.release(ctx, drop); err != nil && !errors.Is(err, ErrLeaseLost) {
		return Lease{}, err
	}
	return l, nil
}

// acquisition is one run of Acquire.
type acquisition struct {
	store Store
	world World
	claim Claim
	pool  Pool
	// elder, when set, leaves alone the owners of disputed leases that were
	// not created before.
	elder Revision
}

// sort finds the leases of our own: the one to keep, if any fits, and those to
// release. Those still disputed are our own: see settle.
func (a *acquisition) sort() (keep *Lease, drop []Lease) {
	var mine []Lease
	for _, l := range a.world.Leases {
		if a.claim.relate(l) != foreign {
			mine = append(mine, l)
		}
	}
	slices.SortStableFunc(mine, func(x, y Lease) int { return cmp.Compare(a.rank(x), a.rank(y)) })
	for i, l := range mine {
		switch {
		case keep == nil && a.fits(l):
			keep = &mine[i]
		case !l.Reservation():
			drop = append(drop, l)
		}
	}
	return keep, drop
}

// fits reports whether a lease of our own may be kept.
func (a *acquisition) fits(l Lease) bool {
	_, ok := a.claim.elder(a.world.Leases, l)
	return a.pool.Fits(l.Subnet) && !ok
}

// elder returns another owner's lease that overlaps ours, l, and was created
// before. No host of ours makes such leases by itself: somebody wrote one by hand,
// or restored an older snapshot. Everybody then routes to the elder.
func (c Claim) elder(leases []Lease, l Lease) (Lease, bool) {
	i := slices.IndexFunc(leases, func(x Lease) bool {
		return x.Created < l.Created && x.Subnet.Overlaps(l.Subnet) && c.relate(x) == foreign
	})
	if i < 0 {
		return Lease{}, false
	}
	return leases[i], true
}

// rank orders leases of our own, the best first: reservations, and among them as
// among the others what this host had last.
func (a *acquisition) rank(l Lease) int {
	n := len(a.claim.Previous)
	i := slices.Index(a.claim.Previous, l.Subnet)
	if i < 0 {
		i = n
	}
	if l.Reservation() {
		i -= n + 1
	}
	return i
}

// takeOver makes a lease of our own ours again: this instance's, with today's
// attributes. A reservation stays bare. A store that takes no writes, for want of
// space say, still renews, and the lease would expire while we wait: we begin with
// it as it is, and the keeper writes later.
func (a *acquisition) takeOver(ctx context.Context, l Lease) (Lease, error) {
	if l.Attrs == a.claim.attrs() {
		return l, nil
	}
	change := l
	change.Attrs = a.claim.attrs()
	taken, err := a.store.Update(ctx, change)
	if err == nil {
		return taken, nil
	}
	if !errors.Is(err, ErrLeaseLost) && !errors.Is(err, ErrStoreChanged) {
		// It proves as well that the write was not carried out after all.
		if kept, unproven := a.store.Renew(ctx, l); unproven == nil {
			return kept, nil
		}
	}
	return Lease{}, fmt.Errorf("take over %s: %w", l.Subnet, err)
}

// release gives up leases of our own. One that is lost is gone, or another's by
// now and its subnet not free.
func (a *acquisition) release(ctx context.Context, leases []Lease) (lost error) {
	for _, l := range leases {
		err := a.store.Release(ctx, l)
		switch {
		case err == nil:
			// No obstacle any more, and no witness of anything.
			a.world.Leases = slices.DeleteFunc(slices.Clone(a.world.Leases), func(x Lease) bool { return x.Subnet == l.Subnet })
		case !errors.Is(err, ErrLeaseLost):
			return err
		default:
			lost = err
		}
	}
	return lost
}

// create leases a subnet that is free in the world.
func (a *acquisition) create(ctx context.Context, cfg *Config) (Lease, error) {
	taken := a.pool.Taken(a.obstacles(cfg))
	var lost uint64
	for s := range a.candidates(taken) {
		l, err := a.store.Create(ctx, Lease{Subnet: s, Attrs: a.claim.attrs()}, cmp.Or(a.claim.TTL, DefaultTTL), a.world)
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, ErrTaken):
			return Lease{}, fmt.Errorf("create %s: %w", s, err)
		}
		lost++
	}
	return Lease{}, &ExhaustedError{Size: a.pool.Len(), Occupied: min(a.pool.Len(), taken.Len()+lost)}
}

// candidates yields what may be created, the best first: previous subnets, then
// all others from our own place on.
func (a *acquisition) candidates(taken Taken) iter.Seq[Subnet] {
	return func(yield func(Subnet) bool) {
		var tried []Subnet
		for _, s := range a.claim.Previous {
			i, ok := a.pool.Index(s)
			if !ok || taken.free(i) != i || slices.Contains(tried, s) {
				continue
			}
			tried = append(tried, s)
			if !yield(s) {
				return
			}
		}
		for s := range a.pool.Free(a.pool.Start(a.claim.Node), taken) {
			if !slices.Contains(tried, s) && !yield(s) {
				return
			}
		}
	}
}

// obstacles yields every prefix that a new subnet must not overlap.
func (a *acquisition) obstacles(cfg *Config) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for _, l := range a.world.Leases {
			if !yieldAll(l.Subnet, yield) {
				return
			}
		}
		for _, b := range a.world.Bad {
			if !yieldAll(b.Occupies, yield) {
				return
			}
		}
		for _, route := range a.claim.Avoid {
			if a.claim.blocks(cfg, route) && !yield(route) {
				return
			}
		}
	}
}

// yieldAll yields the halves of s.
func yieldAll(s Subnet, yield func(netip.Prefix) bool) bool {
	return yield(s[IPv4]) && yield(s[IPv6])
}

// blocks reports whether a route of the host rules out the subnets it overlaps.
func (c Claim) blocks(cfg *Config, route netip.Prefix) bool {
	if !route.IsValid() {
		return false
	}
	f := FamilyOf(route.Addr())
	if covers(route, cfg.Ranges[f].Network) {
		return false
	}
	return !slices.ContainsFunc(c.Previous, func(s Subnet) bool { return covers(s[f], route) })
}

// covers reports whether all of q lies inside p.
func covers(p, q netip.Prefix) bool {
	return p.IsValid() && q.IsValid() && p.Bits() <= q.Bits() && p.Contains(q.Addr())
}

// showAddrs joins the addresses that are there.
func showAddrs(addrs ByFamily[netip.Addr]) string {
	s := ""
	for _, a := range addrs {
		switch {
		case !a.IsValid():
		case s == "":
			s = a.String()
		default:
			s += " and " + a.String()
		}
	}
	return cmp.Or(s, "no address")
}
