package native

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Options are what a Table is made of. The zero value is for a real host.
type Options struct {
	// Instance is who we are: whose table is ours.
	Instance kernel.Instance
	// Log is told what had to be changed; nil: slog.Default.
	Log *slog.Logger
}

// Table keeps our table of nf_tables in both families. Its methods are safe for
// concurrent use; they run one after the other, in the network namespace of the
// calling thread.
type Table struct {
	name string
	log  *slog.Logger
	door door
	// release is the kernel's, as uname says.
	release string

	mu sync.Mutex
	// lost is what the kernel was found to lack. It is probed when a
	// transaction is refused, and then holds for ever: modules are loaded on
	// demand.
	lost lacks
	// last is the last round that found nothing to do.
	last settled
	// wrote is the last transaction of ours, if it was alone.
	wrote Step
}

// New returns a Table that has not acted yet.
func New(o Options) *Table {
	t := &Table{name: o.Instance.Alias(), log: o.Log, release: release()}
	t.door = &netlinkDoor{table: t.name}
	if t.log == nil {
		t.log = slog.Default()
	}
	return t
}

// rounds is how often Apply tries: once more if somebody changed the table
// between our reading and writing, and once for each feature that turns out to
// be missing.
const rounds = 5

// Apply makes the table hold what d wants and nothing else. It is idempotent: it
// reads what is there and writes, in one transaction, what differs. An
// [ErrUnsupported] says what could not be had; all else is in place then.
func (t *Table) Apply(ctx context.Context, d Desired) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if releaseBefore(t.release, FeatureNAT.minKernel()) {
		t.lose(ctx, subnet.IPv4, FeatureNAT)
		t.lose(ctx, subnet.IPv6, FeatureNAT)
	}
	var err error
	for range rounds {
		if ctx.Err() != nil {
			return fmt.Errorf("apply nftables: %w", context.Cause(ctx))
		}
		if err = t.once(ctx, d); err == nil {
			return t.lost.missed(d)
		}
		if !refused(err) {
			return err
		}
		if probeErr := t.look(ctx); probeErr != nil {
			return errors.Join(err, probeErr)
		}
	}
	return err
}

// once reads, compares and writes. Where the kernel says that nothing has changed
// since the same was found to be in place, it does none of it.
func (t *Table) once(ctx context.Context, d Desired) error {
	// Before the rest is read: what changes meanwhile is of a later one. A
	// kernel that does not tell is read every time.
	generation, unknown := t.door.generation(ctx)
	if unknown == nil && t.last.still(generation, d) {
		return nil
	}
	var changes subnet.ByFamily[change]
	var names subnet.ByFamily[[]string]
	operations := 0
	for _, f := range subnet.Families() {
		if t.lost.has(f, FeatureTables) {
			continue
		}
		want, err := compile(d, f, t.lost)
		if err != nil {
			return err
		}
		have, err := t.door.read(ctx, f)
		if err != nil {
			return err
		}
		for _, s := range want.sets {
			names[f] = append(names[f], s.name)
		}
		changes[f] = diff(have, want)
		operations += changes[f].operations()
	}
	if operations == 0 {
		t.last = settled{}
		if unknown == nil {
			t.last = settle(generation, d, names)
		}
		return nil
	}
	if err := t.door.write(ctx, changes); err != nil {
		return err
	}
	alone := unknown == nil && t.wroteAlone(ctx, generation)
	level := slog.LevelInfo
	if !slices.ContainsFunc(changes[:], change.structural) {
		level = slog.LevelDebug // peers, and more often their MACs, come and go
		// Keys are listed as they were told; rules may not be, so that those are
		// read again.
		t.last = settled{}
		if alone {
			t.last = settle(t.wrote.To, d, names)
		}
	}
	t.log.Log(ctx, level, "nftables changed", "table", t.name, "operations", operations)
	return nil
}

// wroteAlone notes a transaction of ours that was just written, and reports whether
// it was the only one since a generation.
func (t *Table) wroteAlone(ctx context.Context, since Generation) bool {
	t.wrote = Step{}
	now, err := t.door.generation(ctx)
	if s := (Step{since, now}); err == nil && s.Alone() {
		t.wrote = s
	}
	return t.wrote != Step{}
}

// look probes what a refused transaction may have lacked.
func (t *Table) look(ctx context.Context) error {
	for _, f := range subnet.Families() {
		for _, x := range features() {
			if t.lost.has(f, x) {
				continue
			}
			err := t.door.probe(ctx, f, x)
			switch {
			case err == nil:
			case refused(err):
				t.lose(ctx, f, x)
			default:
				return err
			}
		}
	}
	return nil
}

func (t *Table) lose(ctx context.Context, f subnet.Family, x Feature) {
	if t.lost[f][x] {
		return
	}
	t.lost[f][x] = true
	t.log.WarnContext(ctx, "kernel lacks a feature of nftables", "feature", x.String(), "family", f.String())
}

// Cleanup removes everything of ours, whoever put it there, and nothing else.
func (t *Table) Cleanup(ctx context.Context) error { return t.Apply(ctx, Desired{}) }

// Counters returns how many packets were dropped, by reason, both families
// together. They start anew when the table is made anew, as after `nft flush
// ruleset`. The map is the caller's.
func (t *Table) Counters(ctx context.Context) (map[string]uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]uint64{}
	for _, name := range reasons() {
		out[name] = 0
	}
	for _, f := range subnet.Families() {
		counted, err := t.door.counters(ctx, f)
		if err != nil {
			return nil, err
		}
		for name := range out {
			out[name] += counted[name]
		}
	}
	return out, nil
}
