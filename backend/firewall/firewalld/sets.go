package firewalld

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/godbus/dbus/v5"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// few is how many prefixes a policy lists by itself. Each is a rule that firewalld
// takes in by a run of nft over all that it has: 50 took 1 s, 1,000 four minutes.
const few = 32

// oneByOne is how many addresses are added or removed each by itself. Beyond that
// all of a set is replaced, which is faster, but leaves it empty for a moment.
const oneByOne = 16

// peerSet is a set of ours with the addresses it should have.
type peerSet struct {
	name    string
	family  subnet.Family
	entries []string
}

// setOf returns the set of a family.
func setOf(name string, f subnet.Family, peers []netip.Prefix) peerSet {
	s := peerSet{name: name, family: f}
	for _, p := range peers {
		// Addresses and not prefixes, of which firewalld takes none that
		// overlaps one it has: two that become one would be away meanwhile.
		for a := p.Masked().Addr(); p.Contains(a); a = a.Next() {
			s.entries = append(s.entries, a.String())
		}
	}
	return s
}

// setSettings are those of an ipset on the bus.
type setSettings struct {
	Version, Short, Description, Type string
	Options                           map[string]string
	Entries                           []string
}

// String is the same for the same settings; entries may be in any order.
func (s setSettings) String() string {
	return fmt.Sprintf("%q %v %q", s.Type, s.Options, slices.Sorted(slices.Values(s.Entries)))
}

// entries are what sets of ours hold at run time, by name.
type entries map[string][]string

// have reports whether a set exists.
func (e entries) have(set string) bool {
	_, ok := e[set]
	return ok
}

// sets are those of ours that exist at run time, of every instance.
func (d *door) sets(ctx context.Context) (entries, error) {
	var names []string
	if err := d.call(ctx, pathRuntime, ifaceSet, setKind().list, nil, &names); err != nil {
		return nil, err
	}
	out := entries{}
	for _, name := range slices.DeleteFunc(names, func(name string) bool { return !isOurs(name) }) {
		var s setSettings
		if err := d.call(ctx, pathRuntime, ifaceSet, setKind().runtime, []any{name}, &s); err != nil {
			return nil, err
		}
		if s.Description == description {
			out[name] = s.Entries
		}
	}
	return out, nil
}

// addSet makes a permanent set without entries.
func (d *door) addSet(ctx context.Context, s peerSet) error {
	options := map[string]string{}
	if s.family == subnet.IPv6 {
		options["family"] = "inet6"
	}
	var path dbus.ObjectPath
	return d.call(ctx, pathConfig, ifaceConfig, "addIPSet", []any{s.name, setSettings{
		Short: s.name, Description: description, Type: "hash:ip", Options: options, Entries: []string{},
	}}, &path)
}

// fill makes a set hold its entries and no others, of which it has some.
func (c *Client) fill(ctx context.Context, fw *door, s peerSet, have []string) error {
	come, gone := without(s.entries, have), without(have, s.entries)
	changes := len(come) + len(gone)
	var err error
	switch {
	case changes == 0:
		return nil
	case len(have) == 0, changes > oneByOne:
		all := append([]string{}, s.entries...) // of the right type on the bus, if empty
		err = fw.call(ctx, pathRuntime, ifaceSet, "setEntries", []any{s.name, all})
	default:
		err = fw.eachEntry(ctx, "addEntry", s.name, come)
		if err == nil {
			err = fw.eachEntry(ctx, "removeEntry", s.name, gone)
		}
	}
	if err != nil {
		return err
	}
	c.log.InfoContext(ctx, "firewall changed", "variant", "firewalld", "table", s.name, "operations", changes)
	return nil
}

func (d *door) eachEntry(ctx context.Context, method, set string, entries []string) error {
	for _, e := range entries {
		if err := d.call(ctx, pathRuntime, ifaceSet, method, []any{set, e}); err != nil {
			return err
		}
	}
	return nil
}

// without returns what is in a and not in b.
func without(a, b []string) []string {
	in := make(map[string]struct{}, len(b))
	for _, x := range b {
		in[x] = struct{}{}
	}
	return slices.DeleteFunc(slices.Clone(a), func(x string) bool {
		_, ok := in[x]
		return ok
	})
}
