package firewall

import (
	"context"
	"fmt"
	"hash/maphash"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
)

// reading is what a variant held, as its program told.
type reading struct {
	stamp Stamp
	set   ruleset
	at    time.Time
}

// readOne returns the rules of a variant: those that are known, if the kernel says
// that they are the same still. They are not to be changed.
func (f *Firewall) readOne(ctx context.Context, v Variant) (ruleset, error) {
	// Before the rules: a change between the two shows the next time.
	stamp, unknown := f.tools.Stamp(ctx, v)
	last := f.known[v]
	if unknown == nil && stamp == last.stamp && time.Since(last.at) < native.ReadAnyway {
		return last.set, nil
	}
	delete(f.known, v)
	text, err := f.tools.Save(ctx, v)
	if err != nil {
		return nil, err
	}
	set, err := parseSave(text)
	if err != nil {
		return nil, fmt.Errorf("read rules of %s: %w", v.Command, err)
	}
	if unknown == nil {
		f.known[v] = reading{stamp, set, time.Now()}
	}
	return set, nil
}

// filled says what a variant holds behind a change of ours, which was alone: by what it
// held last and by what was written, if that only fills chains. To read it again would
// cost as much as to write it, and while peers come and go it is done all the time. When
// the programs were run last does not change by it.
func (f *Firewall) filled(c change, last reading, s native.Step) {
	if !s.Alone() || last.stamp != (Stamp{Generation: s.From}) {
		return
	}
	if set, known := c.after(last.set); known {
		f.known[c.variant] = reading{Stamp{Generation: s.To}, set, last.at}
	}
}

// Stamp implements Tools. It asks the kernel: nf_tables for its generation, which changes of others'
// tables count up too, and the legacy variant for its tables.
func (e *Exec) Stamp(ctx context.Context, v Variant) (Stamp, error) {
	if v.NFT {
		g, err := native.CurrentGeneration(ctx)
		return Stamp{Generation: g}, err
	}
	p, err := openPoller(v.Family, e.hashSeed())
	if err != nil {
		return Stamp{}, err
	}
	defer p.close()
	return p.stamp()
}

func (e *Exec) hashSeed() maphash.Seed {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.seed == (maphash.Seed{}) {
		e.seed = maphash.MakeSeed()
	}
	return e.seed
}
