package robustness

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// The faults. Where a fault comes in variants, the table of specs lists them.
const (
	// FaultKill ends daemons by SIGKILL, FaultStop by SIGTERM. They are started
	// again when the step is over.
	FaultKill FaultKind = "kill"
	FaultStop FaultKind = "stop"
	// FaultPause stops daemons by SIGSTOP and continues them.
	FaultPause FaultKind = "pause"
	// FaultPartition drops a host's packets at the switch, FaultBlock only
	// those of its connections to etcd, which stay open.
	FaultPartition FaultKind = "partition"
	FaultBlock     FaultKind = "block"
	// FaultSlow delays a host's connections to etcd, FaultCut resets them and
	// refuses new ones.
	FaultSlow FaultKind = "slow"
	FaultCut  FaultKind = "cut"

	// FaultMemberKill and FaultMemberPause take one member of etcd,
	// FaultMajority all but one, FaultDown all of them.
	FaultMemberKill  FaultKind = "member-kill"
	FaultMemberPause FaultKind = "member-pause"
	FaultMajority    FaultKind = "majority-loss"
	FaultDown        FaultKind = "etcd-down"
	// FaultOffline stops etcd and starts daemons anew while it is away.
	FaultOffline    FaultKind = "restart-without-etcd"
	FaultCompact    FaultKind = "compact"
	FaultDefragment FaultKind = "defragment"
	FaultNoSpace    FaultKind = "nospace"
	// FaultWipe empties etcd; the config is put again when the step is over.
	FaultWipe FaultKind = "wipe"
	// FaultRestore makes a snapshot of etcd and puts it back later.
	FaultRestore FaultKind = "restore"

	// FaultRevoke revokes the lease of a host's key, FaultDelete deletes the
	// key, FaultOverwrite puts another value there.
	FaultRevoke    FaultKind = "revoke"
	FaultDelete    FaultKind = "delete"
	FaultOverwrite FaultKind = "overwrite"
	// FaultReserve makes a host's lease a reservation.
	FaultReserve FaultKind = "reserve"
	// FaultExhaust takes a host's subnet away while no other is free.
	FaultExhaust FaultKind = "exhaust"
	// FaultUsurp lets a host's lease expire while it is cut off, and another
	// owner have its subnet for long.
	FaultUsurp FaultKind = "usurp"
	// FaultMove changes a peer's address or MAC inside a gap of a host's watch,
	// and compacts the log in it.
	FaultMove FaultKind = "move"
	// FaultConfig puts another network config, FaultNoConfig deletes it.
	FaultConfig   FaultKind = "config"
	FaultNoConfig FaultKind = "no-config"

	// FaultClock makes a daemon's clock jump.
	FaultClock FaultKind = "clock"
	// FaultDisk fills the disk of a host's cache.
	FaultDisk FaultKind = "disk-full"
)

// The variants of faults.
const (
	variantBoth, variantIn, variantOut = "both", "in", "out"
	variantLeader, variantFollower     = "leader", "follower"
	// Values that a host's key is overwritten with: another owner's, nonsense,
	// the host's own but without a lease, and what flannel would put there.
	variantForeign, variantGarbage, variantDetached, variantFlannel = "foreign", "garbage", "detached", "flannel"
	// Configs: one that says the same in other words, one that is none, one
	// with another range.
	variantHarmless, variantInvalid, variantRange = "harmless", "invalid", "range"
	variantWall, variantBoot                      = "wall", "boot"
	variantAddress, variantMAC                    = "address", "mac"
	// A daemon that gives its lease up when it stops. A silence that outlasts a
	// watch's patience.
	variantRelease, variantLong = "release", "long"
)

// Step is one planned fault.
type Step struct {
	Kind    FaultKind
	Variant string
	// At is from the start of the schedule; For is how long it lasts, 0 for
	// what is done in a moment.
	At, For time.Duration
	// Hosts are the numbers of those it is done to.
	Hosts []int
	// Amount is a jump, or a delay.
	Amount time.Duration
	// Round is the number of the batch of faults that it belongs to.
	Round int
}

// until is when the step is over.
func (s Step) until() time.Duration { return s.At + s.For }

// String is one line for people.
func (s Step) String() string { return fmt.Sprintf("%7.1fs  %s", s.At.Seconds(), s.what()) }

// what is the line without the time.
func (s Step) what() string {
	var b strings.Builder
	b.WriteString(string(s.Kind))
	if s.Variant != "" {
		fmt.Fprintf(&b, " %s", s.Variant)
	}
	if s.Amount != 0 {
		fmt.Fprintf(&b, " by %s", s.Amount.Round(time.Millisecond))
	}
	for i, h := range s.Hosts {
		fmt.Fprintf(&b, "%s h%d", []string{",", " of"}[btoi(i == 0)], h)
	}
	if s.For != 0 {
		fmt.Fprintf(&b, " for %s", s.For.Round(time.Millisecond))
	}
	return b.String()
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// scheduleOptions are what a schedule is made for.
type scheduleOptions struct {
	Hosts         int
	TTL, Duration time.Duration
	// Small are the hosts whose disk can be filled, Releasing those who give
	// their lease up when they stop.
	Small, Releasing []int
	// Kinds, unless empty, are the only faults.
	Kinds []FaultKind
}

// A round is a time in which faults begin, followed by a gap without any: what
// is promised for the time after a fault can only be judged when there is one.
const (
	// window is how long faults begin, in TTLs.
	window = 1.5
	// shortGap is the gap after which a round's faults meet hosts that still
	// mend what the round before has done, in TTLs: all gaps of runs shorter
	// than longRun, and one of oneInGaps of the others. The other gaps are as
	// long as it takes to judge everything: see quiet.
	shortGap  = 2
	longRun   = 5 * time.Minute
	oneInGaps = 4
	// beyondQuiet is by how much those are longer: faults are healed a little
	// later than planned, and two samples in a row are needed.
	beyondQuiet = 2 * time.Second
	// leastFaults and mostFaults are how many a round has.
	leastFaults, mostFaults = 4, 9
	// tries is how often a place is looked for where a fault does not exclude
	// another.
	tries = 10
)

// quiet is how long hosts must be left alone until all that they did wrong is
// certain: they are able again after Heal, may hold on to what is gone for a TTL
// after that, must follow within React, and the record may be Lag behind.
func quiet(ttl time.Duration) time.Duration {
	b := DefaultBounds(ttl)
	return b.Heal + b.TTL + b.React + b.Lag
}

// newSchedule plans faults. It is a pure function: the same seed and options
// give the same steps, in the order of their times.
func newSchedule(seed uint64, o scheduleOptions) []Step {
	p := planner{opts: o, random: rand.New(rand.NewPCG(seed, 0))}
	for from, round := time.Duration(0), 0; ; round++ {
		added := p.round(round, from)
		if added == nil {
			slices.SortStableFunc(p.steps, func(a, b Step) int { return int(a.At - b.At) })
			return p.steps
		}
		p.steps = append(p.steps, added...)
		for _, s := range added {
			from = max(from, s.until())
		}
		from += p.gap()
	}
}

// gap is how long there are no faults after a round.
func (p *planner) gap() time.Duration {
	if p.opts.Duration < longRun || p.random.IntN(oneInGaps) == 0 {
		return shortGap * p.opts.TTL
	}
	return quiet(p.opts.TTL) + beyondQuiet
}

// planner is a schedule in the making.
type planner struct {
	opts   scheduleOptions
	random *rand.Rand
	steps  []Step
	// bag are the faults to come: every one is drawn before any is drawn again,
	// in an order that the seed decides.
	bag []spec
}

// round plans faults that begin at from or later; none fit: nil.
func (p *planner) round(round int, from time.Duration) []Step {
	var steps []Step
	var refused []spec
	want := leastFaults + p.random.IntN(mostFaults-leastFaults+1)
	for n := 0; len(steps) < want && n < 2*mostFaults; n++ {
		s := p.draw()
		step, ok := p.place(s, from, steps)
		if !ok {
			refused = append(refused, s)
			continue
		}
		step.Round = round
		steps = append(steps, step)
	}
	// The next round begins with them: nothing is in their way then.
	p.bag = append(refused, p.bag...)
	return steps
}

// draw takes a fault out of the bag.
func (p *planner) draw() spec {
	if len(p.bag) == 0 {
		for _, s := range specs() {
			chosen := len(p.opts.Kinds) == 0 || slices.Contains(p.opts.Kinds, s.kind)
			possible := (s.whom == nobody || len(p.candidates(s)) > 0) && (!s.long || p.opts.Duration >= longRun)
			if chosen && possible {
				p.bag = append(p.bag, s)
			}
		}
		p.random.Shuffle(len(p.bag), func(i, j int) { p.bag[i], p.bag[j] = p.bag[j], p.bag[i] })
	}
	s := p.bag[0]
	p.bag = p.bag[1:]
	return s
}

// place finds time and hosts for a fault beside those of its round.
func (p *planner) place(s spec, from time.Duration, others []Step) (Step, bool) {
	for range tries {
		step := Step{
			Kind: s.kind, Variant: s.variant,
			At:    from + p.between(0, window),
			Hosts: p.hosts(s),
		}
		if len(s.lasts) > 0 {
			r := s.lasts[p.random.IntN(len(s.lasts))]
			step.For = p.between(r.least, r.most)
		}
		if s.stays {
			step.For += quiet(p.opts.TTL)
		}
		if len(s.amounts) > 0 {
			r := s.amounts[p.random.IntN(len(s.amounts))]
			step.Amount = p.between(r.least, r.most)
		}
		excluded := slices.ContainsFunc(others, func(other Step) bool { return exclusive(step, other) })
		if !excluded && step.until() <= p.opts.Duration {
			return step, true
		}
	}
	return Step{}, false
}

// between is a duration between two numbers of TTLs, in milliseconds so that
// what is printed is all there is.
func (p *planner) between(least, most float64) time.Duration {
	ttls := least + p.random.Float64()*(most-least)
	return time.Duration(ttls * float64(p.opts.TTL)).Round(time.Millisecond)
}

// candidates are the hosts that a fault may be done to.
func (p *planner) candidates(s spec) []int {
	switch {
	case s.claims == claimDisk:
		return p.opts.Small
	case s.variant == variantRelease:
		return p.opts.Releasing
	}
	var all []int
	for n := range p.opts.Hosts {
		all = append(all, n+1)
	}
	return all
}

// hosts chooses whom a fault is done to.
func (p *planner) hosts(s spec) []int {
	from := p.candidates(s)
	n := 0
	switch s.whom {
	case nobody:
	case one:
		n = 1
	case some:
		n = 1 + p.random.IntN(max(1, len(from)/3))
	case many:
		n = max(1, len(from)/2) + p.random.IntN(len(from)/2+1)
	}
	var chosen []int
	for _, i := range p.random.Perm(len(from))[:n] {
		chosen = append(chosen, from[i])
	}
	slices.Sort(chosen)
	return chosen
}

// exclusive reports whether two steps must not overlap in time: both change what
// only one may.
func exclusive(a, b Step) bool {
	if a.until() < b.At || b.until() < a.At {
		return false
	}
	both := claimsOf(a) & claimsOf(b)
	if both&claimGlobal != 0 {
		return true
	}
	sameHost := slices.ContainsFunc(a.Hosts, func(h int) bool { return slices.Contains(b.Hosts, h) })
	return both != 0 && sameHost
}

func claimsOf(step Step) claim {
	for _, s := range specs() {
		if s.kind == step.Kind && s.variant == step.Variant {
			return s.claims
		}
	}
	return 0
}
