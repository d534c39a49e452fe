package native

import (
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// table is the content of our table in one family, wanted or found. Nothing in
// it means that there is no such table.
type table struct {
	// strange: the table has properties that we never give (dormant, an owner).
	strange  bool
	counters []string
	sets     []set
	chains   []chain
}

func (t table) empty() bool {
	return !t.strange && len(t.counters)+len(t.sets)+len(t.chains) == 0
}

// chain is one chain, whole. Its rules are replaced together.
type chain struct {
	name string
	// hook is zero for a chain that is only jumped to.
	hook  hook
	rules []rule
}

// hook is where a base chain stands.
type hook struct {
	kind     nftables.ChainType
	number   nftables.ChainHook
	priority nftables.ChainPriority
	drops    bool
}

// rule is one rule. Two rules are the same if their text is.
type rule struct {
	comment string
	exprs   []expr.Any
	// text is comment and exprs in the kernel's encoding.
	text string
}

// set is a set of keys, sorted, each in the kernel's encoding: parts in network
// byte order, padded to four bytes.
type set struct {
	name string
	key  keyType
	keys []string
	// typeof says by expressions what the key is made of, for nft alone; nil: its
	// type says it. What was read has none.
	typeof []byte
}

// keyType is what a set's keys are made of. It is comparable.
type keyType struct {
	magic, bytes uint32
	// odd: the set has properties that ours never have.
	odd bool
}

func typeOf(t nftables.SetDatatype, odd bool) keyType {
	return keyType{t.GetNFTMagic(), t.Bytes, odd}
}

// datatype is the other way round.
func (k keyType) datatype() nftables.SetDatatype {
	t := nftables.SetDatatype{Bytes: k.bytes}
	t.SetNFTMagic(k.magic)
	return t
}

// family is the number that nf_tables has for a family.
func family(f subnet.Family) nftables.TableFamily {
	if f == subnet.IPv6 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// handle names our table of a family.
func (k *netlinkDoor) handle(f subnet.Family) *nftables.Table {
	return &nftables.Table{Name: k.table, Family: family(f)}
}

// normalize brings what may be listed in any order into one.
func (t *table) normalize() {
	slices.Sort(t.counters)
	slices.SortFunc(t.sets, func(a, b set) int { return strings.Compare(a.name, b.name) })
	slices.SortFunc(t.chains, func(a, b chain) int { return strings.Compare(a.name, b.name) })
	for _, s := range t.sets {
		slices.Sort(s.keys)
	}
}
