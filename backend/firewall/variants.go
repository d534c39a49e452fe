package firewall

import (
	"net/netip"
	"slices"
	"strings"
)

// state is what one variant holds.
type state struct {
	variant Variant
	set     ruleset
}

// intent is what one variant should hold of an owner; without specs nothing.
type intent struct {
	owner owner
	specs []tableSpec
	// own is our subnet.
	own netip.Prefix
	// network is the one whose flannel leaves things to remove; invalid:
	// none are removed.
	network netip.Prefix
}

// change is one transaction.
type change struct {
	variant Variant
	table   string
	lines   []string
	// leftovers: it also removes what flannel left.
	leftovers bool
	// unmake: we created the table, and nobody uses it now.
	unmake bool
	// firstUses are chains of nf_tables that may come to exist by this change,
	// orphans those that came to by one of ours and that nobody uses now.
	firstUses, orphans []string
	// unmarked: the table is there, and no mark says that we created it.
	unmarked bool
}

// script is the input of iptables-restore.
func (c change) script() string {
	return "*" + c.table + "\n" + strings.Join(c.lines, "\n") + "\nCOMMIT\n"
}

// after is what set holds when c is done, if c does no more than to make and fill chains
// whole: then its script reads like what is saved. Set is not changed.
func (c change) after(set ruleset) (out ruleset, known bool) {
	written, err := parseSave(c.script())
	at := slices.IndexFunc(set, func(t *table) bool { return t.name == c.table })
	if err != nil || at < 0 || c.unmake || len(c.orphans) > 0 {
		return nil, false
	}
	is := &table{name: c.table, chains: slices.Clone(set[at].chains)}
	for _, w := range written[0].chains {
		if i := slices.IndexFunc(is.chains, func(h *chain) bool { return h.name == w.name }); i >= 0 {
			is.chains[i] = w
			continue
		}
		is.chains = append(is.chains, w)
	}
	out = slices.Clone(set)
	out[at] = is
	return out, true
}

// planAll compares one family's variants with what is wanted. states has the
// variant that the plain name means first, and at least one.
func planAll(states []state, want func(Variant) intent) []change {
	first := primary(states)
	// The variant in use goes first: what moves there is there before it
	// leaves the other.
	order := append([]state{states[first]}, slices.Delete(slices.Clone(states), first, first+1)...)
	var out []change
	for i, s := range order {
		in := want(s.variant)
		for _, spec := range allTables(s.set, in) {
			have := s.set.table(spec.name)
			unused := i > 0 && !have.inUse()
			if spec.name == tableRaw {
				unused = !s.set.directDrops(in.own)
			}
			if unused {
				spec = tableSpec{owner: in.owner, name: spec.name}
			}
			if c := planTable(s.variant, have, spec, in.network); len(c.lines) > 0 {
				out = append(out, c)
			}
		}
	}
	return out
}

// planTable is plan, and the removal of leftovers, and the care for tables that
// did not exist.
func planTable(v Variant, have *table, spec tableSpec, network netip.Prefix) change {
	c := change{variant: v, table: spec.name, lines: plan(have, spec)}
	if left := leftovers(have, network); len(left) > 0 {
		c.lines = append(c.lines, left...)
		c.leftovers = true
	}
	if have == nil && v.NFT && len(c.lines) > 0 {
		c.lines = append([]string{":" + chainMade + " - [0:0]"}, c.lines...)
	}
	if v.NFT && len(c.lines) > 0 {
		c.firstUses, c.orphans = firstUses(have, spec), orphans(have, spec)
		c.unmarked = have != nil && have.chain(chainMade) == nil && len(spec.chains) > 0
	}
	c.unmake = have.chain(chainMade) != nil && len(spec.chains) == 0 && !have.inUse() && !have.shared(spec.owner)
	return c
}

// allTables are the specs, and empty ones for the tables of set that have none.
func allTables(set ruleset, in intent) []tableSpec {
	out := slices.Clone(in.specs)
	for _, t := range set {
		if !slices.ContainsFunc(in.specs, func(s tableSpec) bool { return s.name == t.name }) {
			out = append(out, tableSpec{owner: in.owner, name: t.name})
		}
	}
	return out
}

// primary is the index of the variant in use: with Docker's chains, else with
// anything of others, else what the plain name means. Where two have the same
// claim the earlier one is taken.
func primary(states []state) int {
	if i := slices.IndexFunc(states, func(s state) bool { return s.set.hasDocker() }); i >= 0 {
		return i
	}
	if i := slices.IndexFunc(states, func(s state) bool { return s.set.inUse() }); i >= 0 {
		return i
	}
	return 0
}
