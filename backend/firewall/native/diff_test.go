package native

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// apply does to a table what the kernel would, in the order of writer, and
// refuses what the kernel would refuse.
func (c change) apply(t *rapid.T, have table) table {
	if c.drop {
		if have.empty() {
			t.Fatal("the table that is dropped is not there")
		}
		have = table{}
	}
	counters := map[string]bool{}
	for _, n := range have.counters {
		counters[n] = true
	}
	for _, n := range c.addCounters {
		counters[n] = true
	}
	sets, chains := byName(have.sets, set.id), byName(have.chains, chain.id)
	for _, s := range c.addSets {
		sets[s.name] = set{name: s.name, key: s.key}
	}
	for _, s := range c.addKeys {
		to, ok := sets[s.name]
		if !ok {
			t.Fatalf("keys for set %s, which is not there", s.name)
		}
		to.keys = slices.Sorted(slices.Values(slices.Concat(to.keys, s.keys)))
		if len(slices.Compact(slices.Clone(to.keys))) != len(to.keys) {
			t.Fatalf("keys twice in set %s", s.name)
		}
		sets[s.name] = to
	}
	for _, a := range c.addChains {
		chains[a.name] = chain{name: a.name, hook: a.hook}
	}
	for _, r := range c.rewrite {
		to, ok := chains[r.name]
		if !ok {
			t.Fatalf("rules for chain %s, which is not there", r.name)
		}
		to.rules = r.rules
		chains[r.name] = to
	}
	for _, s := range c.delKeys {
		to := sets[s.name]
		for _, k := range s.keys {
			i := slices.Index(to.keys, k)
			if i < 0 {
				t.Fatalf("set %s has no key to delete", s.name)
			}
			to.keys = slices.Delete(slices.Clone(to.keys), i, i+1)
		}
		sets[s.name] = to
	}
	for _, gone := range c.delChains {
		delete(chains, gone.name)
	}
	for _, gone := range c.delSets {
		delete(sets, gone.name)
	}
	for _, gone := range c.delCounters {
		delete(counters, gone)
	}
	out := table{
		counters: slices.Collect(maps.Keys(counters)),
		sets:     slices.Collect(maps.Values(sets)), chains: slices.Collect(maps.Values(chains)),
	}
	out.normalize()
	return out
}

func byName[T any](list []T, id func(T) string) map[string]T {
	out := map[string]T{}
	for _, x := range list {
		out[id(x)] = x
	}
	return out
}

func anyTable() *rapid.Generator[table] {
	name := rapid.SampledFrom([]string{"a", "b", "c", "d"})
	text := rapid.Custom(func(t *rapid.T) rule { return rule{text: name.Draw(t, "rule")} })
	return rapid.Custom(func(t *rapid.T) table {
		out := table{counters: rapid.SliceOfDistinct(name, rapid.ID).Draw(t, "counters")}
		for _, n := range rapid.SliceOfDistinct(name, rapid.ID).Draw(t, "sets") {
			out.sets = append(out.sets, set{
				name: n, key: keyType{bytes: rapid.Uint32Range(4, 5).Draw(t, "type")},
				keys: rapid.SliceOfNDistinct(rapid.StringMatching("[a-h]"), 0, 8, rapid.ID).Draw(t, "keys"),
			})
		}
		for _, n := range rapid.SliceOfDistinct(name, rapid.ID).Draw(t, "chains") {
			c := chain{name: n, rules: rapid.SliceOfN(text, 0, 3).Draw(t, "rules")}
			if rapid.Bool().Draw(t, "base") {
				c.hook = hook{kind: "filter", priority: priorityDrops}
			}
			out.chains = append(out.chains, c)
		}
		out.strange = !out.empty() && rapid.IntRange(0, 9).Draw(t, "strange") == 0
		out.normalize()
		return out
	})
}

// Whatever is there becomes what is wanted, and then nothing is left to do.
func TestDiffConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := anyTable().Draw(t, "have"), anyTable().Draw(t, "want")
		want.strange = false
		c := diff(have, want)
		got := c.apply(t, have)
		if d := cmp.Diff(show(want), show(got)); d != "" {
			t.Fatalf("after the change (-want +got)\n%s", d)
		}
		if n := diff(got, want).operations(); n != 0 {
			t.Fatalf("%d operations on a table that is as wanted", n)
		}
		if n := diff(want, want).operations(); n != 0 {
			t.Fatalf("%d operations between a table and itself", n)
		}
	})
}

// show is a table as plain values.
func show(t table) map[string]any {
	out := map[string]any{}
	for _, n := range t.counters {
		out["counter "+n] = true
	}
	for _, s := range t.sets {
		out["set "+s.name] = []any{s.key.bytes, slices.Concat([]string{}, s.keys)}
	}
	for _, c := range t.chains {
		texts := []string{}
		for _, r := range c.rules {
			texts = append(texts, r.text)
		}
		out["chain "+c.name] = []any{int(c.hook.priority), texts}
	}
	return out
}

// On the running kernel: from any shape to any other, with others' hands in it,
// the ruleset is the one that a fresh host gets.
func TestWalk(t *testing.T) {
	all := kinds()
	names := slices.Sorted(maps.Keys(all))
	fresh := map[string]string{}
	for _, n := range names {
		h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
		h.apply(t, all[n])
		fresh[n] = inOrder(h.list(t))
	}
	h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.SampledFrom(names).Draw(rt, "next")
		for _, deed := range rapid.SliceOfN(rapid.SampledFrom(deeds()), 0, 3).Draw(rt, "others") {
			// What is not there cannot be spoilt.
			h.Run(t, "sh", "-c", "nft '"+deed+"' 2>/dev/null || true")
		}
		h.apply(t, all[n])
		if d := cmp.Diff(fresh[n], inOrder(h.list(t))); d != "" {
			rt.Fatalf("%s (-fresh +walked)\n%s", n, d)
		}
		before := *h.written
		h.apply(t, all[n])
		if *h.written != before {
			rt.Fatalf("%s: written again", n)
		}
	})
}

// inOrder sorts what nft lists in the order of its making.
func inOrder(ruleset string) string {
	var blocks []string
	for table := range strings.SplitSeq(ruleset, "\n}\n") {
		name, content, _ := strings.Cut(table, "\n")
		for block := range strings.SplitSeq(content, "\n\t}") {
			blocks = append(blocks, name+strings.TrimSpace(block))
		}
	}
	slices.Sort(blocks)
	return strings.Join(blocks, "\n")
}

// deeds are what others may do to our table.
func deeds() []string {
	return []string{
		"flush ruleset",
		"flush table ip " + TableName,
		"delete table ip6 " + TableName,
		"delete chain ip " + TableName + " " + chainPrerouting,
		"flush chain ip " + TableName + " " + chainTunnel,
		"insert rule ip " + TableName + " " + chainElsewhere + " accept",
		"add rule ip " + TableName + " " + chainInput + " counter",
		"add chain ip " + TableName + " more",
		"add set ip " + TableName + " more { type ipv4_addr; }",
		"add counter ip " + TableName + " more",
		"flush set ip " + TableName + " " + setMACs,
		"add element ip " + TableName + " " + senderName(backend.VXLANFrame, subnet.IPv4, 24) + " { 192.0.2.1 . 0xa050100 }",
		"delete element ip " + TableName + " " + senderName(backend.VXLANFrame, subnet.IPv4, 24) + " { 198.18.0.1 . 0xa050100 }",
		"add table ip " + TableName + " { flags dormant; }",
		"add chain ip " + TableName + " " + chainInput + " { policy drop; }",
	}
}

// many is a network with so many peers.
func many(n int) Desired {
	d := v4()
	d.Networks[subnet.IPv4], d.Own[subnet.IPv4] = prefix("10.0.0.0/8"), prefix("10.255.0.0/24")
	d.Tunnel = backend.Tunnel{Devices: []string{"flannel.1"}, Port: 8472, Encapsulation: backend.VXLANFrame, VNI: 1}
	d.NAT, d.Peers = false, make([]Peer, n)
	for i := range d.Peers {
		a := [2]byte{byte(i >> 8), byte(i)}
		d.Peers[i] = Peer{
			Subnet:   subnet.Subnet{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, a[0], a[1], 0}), 24)},
			PublicIP: subnet.ByFamily[netip.Addr]{netip.AddrFrom4([4]byte{198, 18, a[0], a[1]})},
		}
	}
	return d
}

// Each way by which peers send is looked at, once: a name twice in a set is refused.
func TestUplinks(t *testing.T) {
	for _, tc := range []struct {
		uplink string
		also   []string
		want   []string
	}{
		{"", nil, nil},
		{"eth0", nil, []string{"eth0"}},
		{"eth0", []string{"eth1", "", "eth0", "eth2", "eth1"}, []string{"eth0", "eth1", "eth2"}},
		{"", []string{"eth1"}, []string{"eth1"}},
	} {
		c := compiler{Desired: Desired{Uplink: tc.uplink, AlsoUplinks: tc.also, Tunnel: backend.Tunnel{Direct: true}}}
		if diff := cmp.Diff(tc.want, c.Interfaces()); diff != "" {
			t.Errorf("%q and %q (-want +got):\n%s", tc.uplink, tc.also, diff)
		}
	}
}
