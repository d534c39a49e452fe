package firewall

import (
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

// owner is an instance, as the one that chains belong to. Two of them keep their rules
// side by side: each has chains of its own and a jump to them in the same place, and
// none minds in which order the jumps stand. Marks of what we made are of all: who goes
// last removes them, and what they stand for.
type owner kernel.Instance

// named is the owner's name for what the first instance calls chain.
func (o owner) named(chain string) string {
	return o.prefix() + strings.TrimPrefix(chain, ChainPrefix)
}

func (o owner) prefix() string {
	return strings.TrimSuffix(ChainPrefix, "-") + kernel.Instance(o).Suffix() + "-"
}

// has reports whether a chain of that name is the owner's.
func (o owner) has(name string) bool { return strings.HasPrefix(name, o.prefix()) && !isMark(name) }

// hasJump reports whether l goes to a chain of the owner's.
func (o owner) hasJump(l line) bool { return o.has(l.rule.target) }

// isOurs reports whether a chain of that name is of any instance.
func isOurs(name string) bool {
	if !strings.HasPrefix(name, strings.TrimSuffix(ChainPrefix, "-")) {
		return false // as most are
	}
	return slices.ContainsFunc(kernel.Instances(), func(i kernel.Instance) bool {
		return strings.HasPrefix(name, owner(i).prefix())
	})
}

// isMark reports whether a chain of that name stands for something that we made.
func isMark(name string) bool { return strings.HasPrefix(name, madePrefix) }

// shared reports whether t has chains of another instance than o.
func (t *table) shared(o owner) bool {
	return t != nil && slices.ContainsFunc(t.chains, func(c *chain) bool {
		return isOurs(c.name) && !isMark(c.name) && !o.has(c.name)
	})
}
