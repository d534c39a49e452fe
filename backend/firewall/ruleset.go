package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ruleset is all tables of one family in one variant, as iptables-save prints
// them. A table that is not there has never been used.
type ruleset []*table

// table is one table with its chains in printed order.
type table struct {
	name   string
	chains []*chain
}

// chain is a chain with its rules in order.
type chain struct {
	name string
	// policy is empty for chains that are not built in.
	policy string
	rules  []line
}

// line is a rule as printed and as understood.
type line struct {
	// spec is the text behind "-A CHAIN ", which iptables-restore takes back.
	spec string
	rule rule
}

func (s ruleset) table(name string) *table {
	for _, t := range s {
		if t.name == name {
			return t
		}
	}
	return nil
}

// chain returns nil when there is none, also from a nil table.
func (t *table) chain(name string) *chain {
	if t == nil {
		return nil
	}
	for _, c := range t.chains {
		if c.name == name {
			return c
		}
	}
	return nil
}

// has reports whether c has a rule of that kind; a chain that is not there has
// none.
func (c *chain) has(kind func(rule) bool) bool {
	return c != nil && slices.ContainsFunc(c.rules, func(l line) bool { return kind(l.rule) })
}

// parseSave reads the output of iptables-save. What is printed must be whole:
// a table without its COMMIT is an error.
func parseSave(text string) (ruleset, error) {
	var p saveParser
	n := 0
	for l := range strings.Lines(text) {
		n++
		l = strings.TrimRight(l, "\r\n")
		if err := p.line(l); err != nil {
			return nil, fmt.Errorf("parse iptables-save, line %d: %w", n, err)
		}
	}
	if p.table != nil {
		return nil, fmt.Errorf("parse iptables-save: table %s has no end", p.table.name)
	}
	return p.set, nil
}

type saveParser struct {
	set    ruleset
	table  *table
	chains map[string]*chain
}

func (p *saveParser) line(l string) error {
	switch {
	case l == "" || l[0] == '#':
		return nil
	case l[0] == '*':
		if p.table != nil {
			return fmt.Errorf("table %s has no end", p.table.name)
		}
		if p.set.table(l[1:]) != nil {
			return fmt.Errorf("table %s is there twice", l[1:])
		}
		p.table, p.chains = &table{name: l[1:]}, map[string]*chain{}
		return nil
	case p.table == nil:
		return fmt.Errorf("%q stands outside of a table", l)
	case l == "COMMIT":
		p.set = append(p.set, p.table)
		p.table = nil
		return nil
	case l[0] == ':':
		return p.declare(l)
	}
	return p.rule(l)
}

// declare reads ":INPUT DROP [1:2]".
func (p *saveParser) declare(l string) error {
	f := strings.Fields(l[1:])
	if len(f) < 2 {
		return fmt.Errorf("%q declares no chain", l)
	}
	if p.chains[f[0]] != nil {
		return fmt.Errorf("chain %s is there twice", f[0])
	}
	c := &chain{name: f[0]}
	if f[1] != "-" {
		c.policy = f[1]
	}
	p.chains[c.name] = c
	p.table.chains = append(p.table.chains, c)
	return nil
}

// rule reads "-A CHAIN SPEC", with counters in front of it or not.
func (p *saveParser) rule(l string) error {
	if l[0] == '[' {
		_, after, _ := strings.Cut(l, "] ")
		l = after
	}
	rest, ok := strings.CutPrefix(l, "-A ")
	if !ok {
		return fmt.Errorf("%q is no rule", l)
	}
	name, spec, _ := strings.Cut(rest, " ")
	c := p.chains[name]
	if c == nil {
		return fmt.Errorf("%q is a rule of an unknown chain", l)
	}
	words, err := splitWords(spec)
	if err != nil {
		return err
	}
	c.rules = append(c.rules, line{spec: spec, rule: parseRule(words)})
	return nil
}

// isOthers reports whether a chain of that name belongs to neither flannel nor us, any
// instance of us.
func isOthers(name string) bool {
	return !isOurs(name) && name != flannelForward && name != flannelMasquerade
}

// inUse reports whether anybody but us has put something into t. What a flannel
// left behind does not count: it is about to go.
func (t *table) inUse() bool {
	if t == nil {
		return false
	}
	return slices.ContainsFunc(t.chains, func(c *chain) bool {
		if !isOthers(c.name) {
			return false
		}
		if c.policy != "ACCEPT" {
			return true
		}
		return slices.ContainsFunc(c.rules, func(l line) bool { return isOthers(l.rule.target) })
	})
}

// hasDocker reports whether Docker's chains are in s.
func (s ruleset) hasDocker() bool {
	return s.table("filter").chain(dockerUser) != nil ||
		s.table("filter").chain(dockerBridges) != nil || s.table("nat").chain(dockerBridges) != nil
}

// directDrops reports whether the Docker whose rules are in s drops in raw
// PREROUTING what comes straight to its containers, or will when it has one.
// Docker 28 brought that together with a drop at the end of its own chain, and
// 28.0.1 another chain: by them it is known before its first container.
func (s ruleset) directDrops(own netip.Prefix) bool {
	if s.table("filter").chain(dockerForward) != nil {
		return true
	}
	if s.table("filter").chain(dockerBridges).has(closesBridge) {
		return true
	}
	return s.table(tableRaw).chain("PREROUTING").has(func(r rule) bool { return dropsDirect(r, own) })
}

// closesBridge reports whether r is "! -i docker0 -o docker0 -j DROP".
func closesBridge(r rule) bool {
	return r == rule{in: r.in, notIn: true, out: r.in, target: "DROP"}
}

// dropsDirect reports whether r is a rule by which Docker drops what comes to a
// container of own by anything but its bridge: "-d 10.5.3.2/32 ! -i docker0",
// in 28.0 one for each published port, from 29 on one for a whole network.
func dropsDirect(r rule, own netip.Prefix) bool {
	return r.dst.IsValid() && r.dst.Overlaps(own) &&
		r == rule{dst: r.dst, in: r.in, notIn: true, proto: r.proto, dport: r.dport, target: "DROP"}
}

func (s ruleset) inUse() bool { return slices.ContainsFunc(s, (*table).inUse) }
