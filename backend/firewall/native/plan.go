package native

import (
	"slices"
	"strings"
)

// change is what makes one family's table as wanted. All changes of a round are
// one transaction: a packet sees the state before or the state after it.
type change struct {
	// drop: remove the table first, as it is.
	drop bool
	// create: what is not there at all, in the order counters, sets, chains.
	create bool
	// counters and sets to add. The keys of new sets are in addKeys.
	addCounters []string
	addSets     []set
	addKeys     []set
	addChains   []chain
	// rewrite are chains whose rules are replaced, new ones included.
	rewrite []chain
	delKeys []set
	// What is not wanted goes last: nothing refers to it any more.
	delChains   []chain
	delSets     []set
	delCounters []string
}

// operations is the number of things that change, keys counted one by one.
func (c change) operations() int {
	n := len(c.addCounters) + len(c.addSets) + len(c.addChains) + len(c.rewrite) +
		len(c.delChains) + len(c.delSets) + len(c.delCounters)
	for _, s := range slices.Concat(c.addKeys, c.delKeys) {
		n += len(s.keys)
	}
	if c.drop || c.create {
		n++
	}
	return n
}

// structural reports whether more than the keys of sets changes.
func (c change) structural() bool {
	c.addKeys, c.delKeys = nil, nil
	return c.operations() > 0
}

// diff returns what makes have into want, both normalized. Its time is linear in
// their sizes.
func diff(have, want table) change {
	if want.empty() {
		return change{drop: !have.empty()}
	}
	var c change
	if !mendable(have, want) {
		c.drop, have = true, table{}
	}
	c.create = have.empty()
	c.addCounters, c.delCounters = merge(have.counters, want.counters)
	c.diffSets(have.sets, want.sets)
	c.diffChains(have.chains, want.chains)
	return c
}

// mendable reports whether what has the same name in both can be changed in
// place: the hook of a chain and the type of a set cannot.
func mendable(have, want table) bool {
	if have.strange {
		return false
	}
	for _, h := range have.chains {
		if w := find(want.chains, chain.id, h.name); w != nil && w.hook != h.hook {
			return false
		}
	}
	for _, h := range have.sets {
		if w := find(want.sets, set.id, h.name); w != nil && w.key != h.key {
			return false
		}
	}
	return true
}

func (c *change) diffSets(have, want []set) {
	for _, w := range want {
		h := find(have, set.id, w.name)
		if h == nil {
			c.addSets = append(c.addSets, w)
			h = &set{}
		}
		add, del := merge(h.keys, w.keys)
		if len(add) > 0 {
			c.addKeys = append(c.addKeys, set{name: w.name, key: w.key, keys: add})
		}
		if len(del) > 0 {
			c.delKeys = append(c.delKeys, set{name: w.name, key: w.key, keys: del})
		}
	}
	for _, h := range have {
		if find(want, set.id, h.name) == nil {
			c.delSets = append(c.delSets, h)
		}
	}
}

func (c *change) diffChains(have, want []chain) {
	for _, w := range want {
		h := find(have, chain.id, w.name)
		if h == nil {
			c.addChains = append(c.addChains, w)
			h = &chain{}
		}
		if !slices.EqualFunc(h.rules, w.rules, func(a, b rule) bool { return a.text == b.text }) {
			c.rewrite = append(c.rewrite, w)
		}
	}
	for _, h := range have {
		if find(want, chain.id, h.name) == nil {
			c.delChains = append(c.delChains, h)
		}
	}
}

func (c chain) id() string { return c.name }
func (s set) id() string   { return s.name }

// find returns the element of a short list that has the name, or nil.
func find[T any](list []T, id func(T) string, name string) *T {
	i := slices.IndexFunc(list, func(t T) bool { return id(t) == name })
	if i < 0 {
		return nil
	}
	return &list[i]
}

// merge compares two sorted lists without duplicates: what is only in want, and
// what is only in have.
func merge(have, want []string) (add, del []string) {
	for len(have) > 0 && len(want) > 0 {
		switch order := strings.Compare(have[0], want[0]); {
		case order < 0:
			del, have = append(del, have[0]), have[1:]
		case order > 0:
			add, want = append(add, want[0]), want[1:]
		default:
			have, want = have[1:], want[1:]
		}
	}
	return append(add, want...), append(del, have...)
}
