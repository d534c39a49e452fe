package firewall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/flanneld-go/flanneld-go/backend/firewall/firewalld"
	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Errors that callers decide on, besides ErrNoTools.
var (
	// ErrNoUplink: packets of peers come in by the uplink, which has no name.
	ErrNoUplink = errors.New("uplink has no name")
	// ErrNotConverged: the rules are not as they were just written: another
	// program changes them as fast as we do.
	ErrNotConverged = errors.New("firewall does not stay as written")
)

// Options are what a Firewall is made of. The zero value is for a real host.
type Options struct {
	// Instance is who we are: whose chains, table and policies are ours.
	Instance kernel.Instance
	// Log is told what had to be changed; nil: slog.Default.
	Log *slog.Logger
	// Tools is the door to iptables; nil: a new Exec.
	Tools Tools
	// Native is our own table of nf_tables; nil: a new native.Table.
	Native Native
	// Firewalld is the door to firewalld; nil: a new firewalld.Client.
	Firewalld Firewalld
}

// Firewalld is what is needed of a [firewalld.Client], which is the real one.
type Firewalld interface {
	Apply(ctx context.Context, d firewalld.Desired) (reloaded bool, err error)
	Cleanup(ctx context.Context) error
	Drift(ctx context.Context) <-chan struct{}
}

// Native is what is needed of a [native.Table], which is the real one.
type Native interface {
	Apply(ctx context.Context, d native.Desired) error
	Follow(ctx context.Context, gone, fresh []native.Peer) error
	Passed(s native.Step)
	Wrote() native.Step
	Undisturbed(ctx context.Context) bool
	Cleanup(ctx context.Context) error
	Counters(ctx context.Context) (map[string]uint64, error)
}

// Firewall keeps the rules of one host. Its methods are safe for concurrent
// use; they run one after the other.
type Firewall struct {
	owner     owner
	log       *slog.Logger
	tools     Tools
	native    Native
	firewalld Firewalld

	mu sync.Mutex
	// lacks is what our own table could not do the last time, so that
	// iptables does it.
	lacks lacks
	// known is what each variant held when it was read last.
	known map[Variant]reading
	// clean are the families that have been found without anything of ours
	// since the last Apply that wanted something there.
	clean subnet.ByFamily[bool]
	// made are the marks seen of what we made.
	made map[mark]struct{}
}

// New returns a Firewall that has not acted yet.
func New(o Options) *Firewall {
	f := &Firewall{owner: owner(o.Instance), log: o.Log, tools: o.Tools, native: o.Native, firewalld: o.Firewalld, known: map[Variant]reading{}, made: map[mark]struct{}{}}
	if f.log == nil {
		f.log = slog.Default()
	}
	if f.tools == nil {
		f.tools = &Exec{Instance: o.Instance}
	}
	if f.native == nil {
		f.native = native.New(native.Options{Instance: o.Instance, Log: f.log})
	}
	if f.firewalld == nil {
		f.firewalld = firewalld.New(firewalld.Options{Instance: o.Instance, Log: f.log})
	}
	return f
}

// Apply makes the firewall hold what d wants of us, and nothing else of ours.
// It is idempotent, goes past single failures and returns them joined; none of
// them is a reason to stop, all of them are to be tried again. What our own table
// cannot do in this kernel, and iptables does instead, is no failure.
func (f *Firewall) Apply(ctx context.Context, d Desired) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.applyRules(ctx, d)
	// After the rest: it accepts by addresses alone, and counts on forged ones
	// being dropped.
	reloaded, wall := f.firewalld.Apply(ctx, d.firewalld(f.lacks.nat))
	if reloaded {
		err = f.applyRules(ctx, d)
	}
	return errors.Join(err, wall)
}

// applyRules does all that is not firewalld's.
func (f *Firewall) applyRules(ctx context.Context, d Desired) error {
	var direct error
	if d.Tunnel.Direct && d.Uplink == "" {
		direct = ErrNoUplink
	}
	if d.Native || f.noTools(ctx, d) {
		// Who takes the translation over has it before the other lets go.
		err := f.applyNative(ctx, d, true)
		return errors.Join(direct, err, f.applyTools(ctx, d, true))
	}
	knew := f.lacks
	err := f.applyTools(ctx, d, false)
	nativeErr := f.applyNative(ctx, d, false)
	if f.lacks != knew {
		err = f.applyTools(ctx, d, false)
	}
	return errors.Join(direct, err, nativeErr)
}

// noTools reports whether a family that is wanted has no iptables, so that our
// own table is the only one that can translate.
func (f *Firewall) noTools(ctx context.Context, d Desired) bool {
	for _, family := range subnet.Families() {
		if !d.Networks[family].IsValid() {
			continue
		}
		if _, err := f.tools.Variants(ctx, family); errors.Is(err, ErrNoTools) {
			return true
		}
	}
	return false
}

// applyTools does the part of iptables: all of it but what our own table does.
func (f *Firewall) applyTools(ctx context.Context, d Desired, nativeNAT bool) error {
	var errs []error
	for _, family := range subnet.Families() {
		does := share{nat: !nativeNAT || f.lacks.nat[family], drops: f.lacks.tables[family]}
		if err := f.applyFamily(ctx, d, family, does); err != nil {
			errs = append(errs, fmt.Errorf("%s firewall: %w", family, err))
		}
	}
	return errors.Join(errs...)
}

func (f *Firewall) applyFamily(ctx context.Context, d Desired, family subnet.Family, does share) error {
	// Of what most variants know the other form is not needed.
	specs := map[bool][]tableSpec{}
	compiled := func(randomFully bool) []tableSpec {
		if specs[randomFully] == nil {
			does.randomFully = randomFully
			specs[randomFully] = f.owner.compile(d, family, does)
		}
		return specs[randomFully]
	}
	wanted := slices.ContainsFunc(compiled(true), func(t tableSpec) bool { return len(t.chains) > 0 })
	if !wanted && f.clean[family] {
		return nil
	}
	f.clean[family] = false
	err := f.converge(ctx, family, func(v Variant) intent {
		return intent{owner: f.owner, specs: compiled(v.RandomFully), own: d.Own[family], network: d.Networks[family]}
	})
	if wanted {
		return err
	}
	// Nothing can be there without the tools to put it there.
	f.clean[family] = err == nil || errors.Is(err, ErrNoTools)
	if f.clean[family] {
		return nil
	}
	return err
}

// lacks is what the kernel has not got for our own table.
type lacks struct{ tables, nat subnet.ByFamily[bool] }

// applyNative does the part of our own table, and remembers what it cannot do.
func (f *Firewall) applyNative(ctx context.Context, d Desired, nat bool) error {
	err := f.native.Apply(ctx, d.native(nat))
	f.passed(f.native.Wrote())
	var found lacks
	var rest []error
	for _, e := range parts(err) {
		lack := (*native.ErrUnsupported)(nil)
		if !errors.As(e, &lack) {
			rest = append(rest, fmt.Errorf("nftables: %w", e))
			continue
		}
		found.add(lack)
	}
	if len(rest) > 0 {
		// Whether it translates is not known: iptables does it too, which
		// changes nothing for what is translated already.
		found.nat = subnet.ByFamily[bool]{true, true}
	}
	f.lacks = found
	return errors.Join(rest...)
}

func (l *lacks) add(e *native.ErrUnsupported) {
	switch e.Feature {
	case native.FeatureTables:
		l.tables[e.Family], l.nat[e.Family] = true, true
	case native.FeatureNAT:
		l.nat[e.Family] = true
	case native.FeatureFIB:
		// Nothing else can do that; the table does what is left.
	}
}

// parts takes a joined error apart.
func parts(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error }) //nolint:errorlint // the shape itself is asked for
	if !ok {
		return []error{err}
	}
	return joined.Unwrap()
}

// Cleanup removes everything of ours, whoever put it there, and nothing else.
// ErrNoTools: there is something of ours, and nothing to remove it with.
func (f *Firewall) Cleanup(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.known)
	var errs []error
	for _, family := range subnet.Families() {
		f.clean[family] = false
		err := f.converge(ctx, family, func(Variant) intent { return intent{owner: f.owner} })
		if errors.Is(err, ErrNoTools) && !f.isLeft(ctx, family) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s firewall: %w", family, err))
		}
	}
	clear(f.made)
	// Accepts go before the drops that they count on, and iptables before a
	// reload of firewalld's removes the marks of what we made there.
	errs = append(errs, f.firewalld.Cleanup(ctx), f.cleanupNative(ctx))
	return errors.Join(errs...)
}

// isLeft reports whether rules of ours are in nf_tables, where the tools that put
// them there have been removed since.
func (f *Firewall) isLeft(ctx context.Context, family subnet.Family) bool {
	v := Variant{Family: family, NFT: true}
	for chain, table := range map[string]string{
		chainForward: "filter", chainInput: "filter", chainNAT: "nat", chainRaw: tableRaw,
	} {
		has, err := f.tools.HasChain(ctx, v, table, f.owner.named(chain))
		if err != nil {
			f.log.DebugContext(ctx, "chain cannot be looked for", "table", table, "chain", chain, "error", err)
		}
		if has {
			return true
		}
	}
	return false
}

// cleanupNative takes a kernel without nf_tables for one without our table.
func (f *Firewall) cleanupNative(ctx context.Context) error {
	err := f.native.Cleanup(ctx)
	if lack := (*native.ErrUnsupported)(nil); err == nil || errors.As(err, &lack) {
		return nil
	}
	return fmt.Errorf("nftables: %w", err)
}

// Counters are how many forged packets were dropped, by reason; see
// [native.Table.Counters]. The map is the caller's.
func (f *Firewall) Counters(ctx context.Context) (map[string]uint64, error) {
	return f.native.Counters(ctx)
}

// converge reads, writes what differs, and reads again until nothing does.
func (f *Firewall) converge(ctx context.Context, family subnet.Family, want func(Variant) intent) error {
	variants, err := f.tools.Variants(ctx, family)
	if err != nil {
		return err
	}
	var failed error
	for round := range rounds {
		states, unread := f.read(ctx, variants)
		if len(states) == 0 {
			return unread
		}
		f.recallMade(states)
		changes := planAll(states, want)
		if len(changes) == 0 {
			return unread
		}
		if round == rounds-1 {
			break
		}
		failed = nil
		for _, c := range changes {
			failed = errors.Join(failed, f.write(ctx, c))
		}
	}
	return cmp.Or(failed, ErrNotConverged)
}

// rounds is how often the rules are read. Read, write, read is the usual; the one
// more is for a rule that somebody else inserted between our reading and writing.
const rounds = 3

// read returns the rules of each variant that has any to tell. The error is what
// the first one, which the plain name means, complains of; that of another only
// means that the kernel does not have it.
func (f *Firewall) read(ctx context.Context, variants []Variant) (states []state, err error) {
	for i, v := range variants {
		set, readErr := f.readOne(ctx, v)
		switch {
		case readErr == nil:
			states = append(states, state{v, set})
		case i == 0:
			err = readErr
		default:
			f.log.DebugContext(ctx, "firewall variant cannot be read", "variant", v.Command, "error", readErr)
		}
	}
	return states, err
}

// write does one change and says so.
func (f *Firewall) write(ctx context.Context, c change) error {
	f.markMade(ctx, &c)
	before := f.generation(ctx)
	err := f.tools.Restore(ctx, c.variant, c.script())
	step := native.Step{From: before, To: f.generation(ctx)}
	last := f.known[c.variant]
	delete(f.known, c.variant)
	if err != nil {
		return fmt.Errorf("change table %s: %w", c.table, err)
	}
	if c.variant.NFT {
		// Our own table is as it was, and so are the other family's rules. The legacy
		// variant makes no transaction: one that came meanwhile is somebody else's.
		f.passed(step)
		f.native.Passed(step)
		f.filled(c, last, step)
	}
	f.log.InfoContext(ctx, "firewall changed",
		"variant", c.variant.Command, "table", c.table, "operations", len(c.lines))
	if c.leftovers {
		f.log.InfoContext(ctx, "removed rules that flannel left behind",
			"variant", c.variant.Command, "table", c.table)
	}
	for _, name := range c.orphans {
		if err := f.tools.RemoveChain(ctx, c.variant, c.table, name); err != nil {
			return fmt.Errorf("remove empty chain %s: %w", name, err)
		}
	}
	if !c.unmake {
		return nil
	}
	if err := f.tools.RemoveTable(ctx, c.variant, c.table); err != nil {
		return fmt.Errorf("remove empty table %s: %w", c.table, err)
	}
	return nil
}
