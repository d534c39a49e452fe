package firewall

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// plan returns the lines for iptables-restore --noflush that make have hold want
// and nothing else of ours, in one transaction; none when that is so already.
// have is nil for a table that has never been used.
//
// Chains are filled before anything jumps to them, and emptied after nothing
// does.
func plan(have *table, want tableSpec) []string {
	stale := staleChains(have, want)
	var fill, hooks []string
	for _, c := range want.chains {
		if !sameRules(have.chain(c.name), c.rules) {
			fill = append(fill, fillChain(c)...)
		}
	}
	for _, name := range hookedChains(have, want) {
		hooks = append(hooks, planHook(have.chain(name), name, want)...)
	}
	return slices.Concat(declare(have, want), fill, hooks, removeChains(stale))
}

// declare returns a line for each chain that is to be written. restore creates
// such a chain, or empties it.
func declare(have *table, want tableSpec) []string {
	var out []string
	for _, c := range want.chains {
		if !sameRules(have.chain(c.name), c.rules) {
			out = append(out, ":"+c.name+" - [0:0]")
		}
	}
	return out
}

func sameRules(have *chain, want []rule) bool {
	return have != nil && slices.EqualFunc(have.rules, want, func(l line, r rule) bool { return l.rule == r })
}

func fillChain(c chainSpec) []string {
	out := make([]string, 0, len(c.rules))
	for _, r := range c.rules {
		out = append(out, "-A "+c.name+" "+r.String())
	}
	return out
}

// staleChains are the chains of ours that are not wanted, and marks once no instance
// needs the table.
func staleChains(have *table, want tableSpec) []string {
	if have == nil {
		return nil
	}
	wanted := map[string]bool{}
	for _, c := range want.chains {
		wanted[c.name] = true
	}
	var out []string
	unused := len(want.chains) == 0 && !have.shared(want.owner)
	for _, c := range have.chains {
		if want.owner.has(c.name) && !wanted[c.name] || isMark(c.name) && unused {
			out = append(out, c.name)
		}
	}
	return out
}

// removeChains empties all of them first: they may go to each other.
func removeChains(names []string) []string {
	var out []string
	for _, op := range []string{"-F ", "-X "} {
		for _, name := range names {
			out = append(out, op+name)
		}
	}
	return out
}

// hookedChains are the chains of others that have or should have a jump of ours,
// each once.
func hookedChains(have *table, want tableSpec) []string {
	var out []string
	for _, h := range want.hooks {
		out = append(out, h.chain)
	}
	if have != nil {
		for _, c := range have.chains {
			if !isOurs(c.name) && slices.ContainsFunc(c.rules, want.owner.hasJump) && !slices.Contains(out, c.name) {
				out = append(out, c.name)
			}
		}
	}
	return out
}

func jumpsToUs(l line) bool { return isOurs(l.rule.target) }

// planHook leaves exactly one jump of ours in a chain of others, in its place,
// or none. Jumps of other instances count for nothing there: else each would want to
// stand before them.
func planHook(have *chain, name string, want tableSpec) []string {
	var current, rest, others []line
	at := -1
	if have != nil {
		for _, l := range have.rules {
			if want.owner.hasJump(l) {
				current = append(current, l)
				at = len(others)
				continue
			}
			rest = append(rest, l)
			if !jumpsToUs(l) {
				others = append(others, l)
			}
		}
	}
	var out []string
	for _, l := range current {
		// By its text and never by its number: somebody may have inserted a
		// rule since we looked.
		out = append(out, "-D "+name+" "+l.spec)
	}
	i := slices.IndexFunc(want.hooks, func(h hook) bool { return h.chain == name })
	if i < 0 || want.hooks[i].place == placeClosing && have == nil {
		return out
	}
	h := want.hooks[i]
	place := position(others, h)
	if len(current) == 1 && at == place && current[0].rule == h.rule {
		return nil
	}
	return append(out, "-I "+name+" "+strconv.Itoa(behindOthers(rest, place)+1)+" "+h.rule.String())
}

// behindOthers is the first index in rest that has n rules before it, jumps of other
// instances not counted.
func behindOthers(rest []line, n int) int {
	for i, l := range rest {
		if n == 0 {
			return i
		}
		if !jumpsToUs(l) {
			n--
		}
	}
	return len(rest)
}

// position is the index at which a jump belongs among the rules of others, jumps of any
// instance left out.
func position(others []line, h hook) int {
	switch h.place {
	case placeFirst:
	case placeBehindDockerUser:
		// IndexFunc is -1, and so the place 0, where there is none.
		return 1 + slices.IndexFunc(others, func(l line) bool {
			return l.rule.target == dockerUser && l.rule.unconditional()
		})
	case placeClosing:
		i := slices.IndexFunc(others, func(l line) bool {
			return l.rule.target == "RETURN" && l.rule.unconditional()
		})
		if i < 0 {
			return len(others)
		}
		return i
	case placeBeforeDirectDrops:
		i := slices.IndexFunc(others, func(l line) bool { return dropsDirect(l.rule, h.own) })
		if i < 0 {
			return len(others)
		}
		return i
	}
	return 0
}

// leftovers returns the lines that remove what a flannel of the same network
// left in have. Its proof is its comment on every rule and our network in at
// least one; a chain for which that does not hold is left alone, with the jumps
// to it.
func leftovers(have *table, network netip.Prefix) []string {
	if have == nil || !network.IsValid() {
		return nil
	}
	var gone []string
	for _, c := range have.chains {
		if !isOthers(c.name) && !isOurs(c.name) && allOfFlannel(c, network) {
			gone = append(gone, c.name)
		}
	}
	var out []string
	for _, c := range have.chains {
		if !isOthers(c.name) {
			continue
		}
		for _, l := range c.rules {
			// Before it had chains flannel wrote into those of the kernel.
			direct := c.policy != "" && ofFlannel(l) && names(l, network)
			if direct || slices.Contains(gone, l.rule.target) {
				out = append(out, "-D "+c.name+" "+l.spec)
			}
		}
	}
	return append(out, removeChains(gone)...)
}

func allOfFlannel(c *chain, network netip.Prefix) bool {
	found := false
	for _, l := range c.rules {
		if !ofFlannel(l) {
			return false
		}
		if l.rule.src.IsValid() || l.rule.dst.IsValid() {
			found = found || names(l, network)
		}
	}
	return found
}

func ofFlannel(l line) bool {
	return strings.HasPrefix(l.rule.comment, "flanneld ")
}

func names(l line, network netip.Prefix) bool {
	return l.rule.src == network || l.rule.dst == network
}
