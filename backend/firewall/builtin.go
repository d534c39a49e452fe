package firewall

import (
	"context"
	"slices"
	"strings"
)

// Chains that are built in exist in nf_tables from their first use on only, and
// iptables-save shows one that does not exist like one that is empty. So that
// Cleanup can tell them apart, those that we are the first to use get a mark
// beside them: an empty chain of our own, like that of a table which we made.
//
// Who flushes a table, as firewalld does when it is reloaded, takes the marks and
// leaves the chains. What a process has seen marked it marks again.

// madePrefix begins the names of marks.
const madePrefix = ChainPrefix + "MADE-"

// madeTable is the end of that of a table.
const madeTable = "TABLE"

// firstUses are the chains in which spec has a jump and that, by what can be seen,
// nobody has used yet. A table that we made goes as a whole.
func firstUses(have *table, spec tableSpec) []string {
	if have == nil || have.chain(chainMade) != nil {
		return nil
	}
	var out []string
	for _, h := range spec.hooks {
		if c := have.chain(h.chain); c.untouched() && have.chain(madePrefix+h.chain) == nil {
			out = append(out, h.chain)
		}
	}
	return out
}

// orphans are the chains that we were the first to use, once spec wants nothing of
// the table and nobody else uses them.
func orphans(have *table, spec tableSpec) []string {
	if have == nil || len(spec.chains) > 0 || have.shared(spec.owner) {
		return nil
	}
	var out []string
	for _, mark := range have.chains {
		name, marked := strings.CutPrefix(mark.name, madePrefix)
		if marked && have.chain(name).untouched() {
			out = append(out, name)
		}
	}
	return out
}

// untouched reports whether c is built in and has nothing but jumps of ours.
func (c *chain) untouched() bool {
	return c != nil && c.policy == "ACCEPT" && !slices.ContainsFunc(c.rules, func(l line) bool { return !jumpsToUs(l) })
}

// mark is a mark of something that we made, by the rest of its name.
type mark struct {
	variant     Variant
	table, name string
}

// recallMade remembers the marks that are there.
func (f *Firewall) recallMade(states []state) {
	for _, s := range states {
		for _, t := range s.set {
			for _, c := range t.chains {
				if name, marked := strings.CutPrefix(c.name, madePrefix); marked {
					f.made[mark{s.variant, t.name, name}] = struct{}{}
				}
			}
		}
	}
}

// markMade puts the marks into a change that is about to be written. Without one
// an empty chain is left behind at the end, so that no failure is worth more
// than a word.
func (f *Firewall) markMade(ctx context.Context, c *change) {
	var marks []string
	if _, made := f.made[mark{c.variant, c.table, madeTable}]; made && c.unmarked {
		marks = append(marks, madeTable)
	}
	for _, name := range c.firstUses {
		if _, made := f.made[mark{c.variant, c.table, name}]; !made {
			exists, err := f.tools.HasChain(ctx, c.variant, c.table, name)
			if err != nil {
				f.log.DebugContext(ctx, "chain cannot be looked for", "variant", c.variant.Command, "table", c.table, "chain", name, "error", err)
			}
			if err != nil || exists {
				continue
			}
		}
		marks = append(marks, name)
	}
	for _, name := range marks {
		c.lines = append([]string{":" + madePrefix + name + " - [0:0]"}, c.lines...)
	}
}
