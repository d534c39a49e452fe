package firewall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

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
	// Log is told what had to be changed; nil: slog.Default.
	Log *slog.Logger
	// Tools is the door to the firewall; nil: a new Exec.
	Tools Tools
}

// Firewall keeps the rules of one host. Its methods are safe for concurrent
// use; they run one after the other.
type Firewall struct {
	log   *slog.Logger
	tools Tools

	mu sync.Mutex
	// clean are the families that have been found without anything of ours
	// since the last Apply that wanted something there.
	clean subnet.ByFamily[bool]
}

// New returns a Firewall that has not acted yet.
func New(o Options) *Firewall {
	f := &Firewall{log: o.Log, tools: o.Tools}
	if f.log == nil {
		f.log = slog.Default()
	}
	if f.tools == nil {
		f.tools = &Exec{}
	}
	return f
}

// Apply makes the firewall hold what d wants of us, and nothing else of ours.
// It is idempotent, goes past single failures and returns them joined; none of
// them is a reason to stop, all of them are to be tried again.
func (f *Firewall) Apply(ctx context.Context, d Desired) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	if d.Tunnel.Direct && d.Uplink == "" {
		errs = append(errs, ErrNoUplink)
	}
	for _, family := range subnet.Families() {
		specs := map[bool][]tableSpec{true: compile(d, family, true), false: compile(d, family, false)}
		wanted := slices.ContainsFunc(specs[false], func(t tableSpec) bool { return len(t.chains) > 0 })
		if !wanted && f.clean[family] {
			continue
		}
		f.clean[family] = false
		err := f.converge(ctx, family, func(v Variant) intent {
			return intent{specs: specs[v.RandomFully], own: d.Own[family], network: d.Networks[family]}
		})
		if !wanted {
			// Nothing can be there without the tools to put it there.
			f.clean[family] = err == nil || errors.Is(err, ErrNoTools)
			if f.clean[family] {
				continue
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s firewall: %w", family, err))
		}
	}
	return errors.Join(errs...)
}

// Cleanup removes everything of ours, whoever put it there, and nothing else.
func (f *Firewall) Cleanup(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, family := range subnet.Families() {
		f.clean[family] = false
		err := f.converge(ctx, family, func(Variant) intent { return intent{} })
		if err != nil {
			errs = append(errs, fmt.Errorf("%s firewall: %w", family, err))
		}
	}
	return errors.Join(errs...)
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

func (f *Firewall) readOne(ctx context.Context, v Variant) (ruleset, error) {
	text, err := f.tools.Save(ctx, v)
	if err != nil {
		return nil, err
	}
	set, err := parseSave(text)
	if err != nil {
		return nil, fmt.Errorf("read rules of %s: %w", v.Command, err)
	}
	return set, nil
}

// write does one change and says so.
func (f *Firewall) write(ctx context.Context, c change) error {
	if err := f.tools.Restore(ctx, c.variant, c.script()); err != nil {
		return fmt.Errorf("change table %s: %w", c.table, err)
	}
	f.log.InfoContext(ctx, "firewall changed",
		"variant", c.variant.Command, "table", c.table, "operations", len(c.lines))
	if c.leftovers {
		f.log.InfoContext(ctx, "removed rules that flannel left behind",
			"variant", c.variant.Command, "table", c.table)
	}
	if !c.unmake {
		return nil
	}
	if err := f.tools.RemoveTable(ctx, c.variant, c.table); err != nil {
		return fmt.Errorf("remove empty table %s: %w", c.table, err)
	}
	return nil
}
