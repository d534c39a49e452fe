package firewalld

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// many is a network whose peers no prefix has in common.
func many(n int) Desired {
	d := desired()
	d.Peers = nil
	for i := range n {
		a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 7), byte(i << 1)})
		d.Peers = append(d.Peers, netip.PrefixFrom(a, 32))
	}
	return d
}

func TestCompileSets(t *testing.T) {
	v6 := netip.MustParsePrefix("2001:db8::9/128")
	d := many(few + 1)
	d.Peers = append(d.Peers, netip.MustParsePrefix("192.0.2.6/31"), v6)
	got := listed(d)
	wantSame(t, "rules of many and one", []string{
		`rule family="ipv4" source ipset="flanneld-go-ipv4" port port="8472" protocol="udp" accept`,
		`rule family="ipv6" source address="2001:db8::9/128" port port="8472" protocol="udp" accept`,
	}, got.input.rules)
	if diff := cmp.Diff([]string{"flanneld-go-ipv4"}, got.input.sets); diff != "" {
		t.Errorf("sets (-want +got):\n%s", diff)
	}
	if n := len(got.sets[0].entries); n != few+3 || got.sets[0].entries[n-2] != "192.0.2.6" || got.sets[0].entries[n-1] != "192.0.2.7" {
		t.Errorf("entries: %q", got.sets[0].entries)
	}
	d.Port = 0
	if got := inSets(d); len(got.input.rules) != 0 || len(got.sets) != 2 || len(got.sets[0].entries)+len(got.sets[1].entries) != 0 {
		t.Errorf("without a port: %+v", got)
	}
}

func TestWithout(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		some := rapid.SliceOfDistinct(rapid.StringMatching(`[a-e]`), rapid.ID)
		a, b := some.Draw(t, "a"), some.Draw(t, "b")
		got := slices.Concat(without(a, b), slices.DeleteFunc(slices.Clone(b), func(x string) bool { return !slices.Contains(a, x) }))
		if diff := cmp.Diff(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(got))); diff != "" {
			t.Fatalf("what is not in b and what is are not all (-want +got):\n%s", diff)
		}
	})
}

// Many peers take sets, which take one reload; from then on neither.
func TestSets(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		b.apply(t, many(few))
		b.wantHeld(t, listed(many(few)))
		if !b.apply(t, many(few+1)) {
			t.Error("a set was made without a reload")
		}
		held := func(d Desired) {
			t.Helper()
			b.wantHeld(t, func() *content {
				c := owner(0).compile(d, func(name string) bool { return name == setName(subnet.IPv4) })
				return &c
			}())
		}
		held(many(few + 1))
		one := many(few + 1)
		one.Peers[3], one.Peers[7] = netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/31")
		for _, d := range []Desired{one, many(few + 2), many(few + 2 + 2*oneByOne), many(2), many(0), many(few + 9)} {
			if b.apply(t, d) {
				t.Errorf("reloaded for %d peers", len(d.Peers))
			}
			held(d)
		}
		if err := b.admin.reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		held(Desired{})
		if b.apply(t, many(few+9)) {
			t.Error("reloaded although the set is there")
		}
		held(many(few + 9))
		dual := many(few + 1)
		for i := range few + 1 {
			dual.Peers = append(dual.Peers, netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x::1/128", i)))
		}
		if !b.apply(t, dual) {
			t.Error("the other family's set was made without a reload")
		}
		b.wantHeld(t, inSets(dual))
		if err := b.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.wantHeld(t, nil)
		for _, f := range subnet.Families() {
			if _, err := b.admin.permanent(t.Context(), setKind(), setName(f)); !errors.Is(err, errAbsent) {
				t.Errorf("permanent set after Cleanup: %v", err)
			}
		}
	})
}

// A set that cannot be had yet is no reason to leave the rest.
func TestSetsUnsaved(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		theirs := setSettings{Description: "somebody else's", Type: "hash:ip", Options: map[string]string{}, Entries: []string{}}
		var path dbus.ObjectPath
		if err := b.admin.call(t.Context(), pathConfig, ifaceConfig, "addIPSet", []any{"blocked", theirs}, &path); err != nil {
			t.Fatal(err)
		}
		b.apply(t, many(2))
		if err := b.admin.eachEntry(t.Context(), "addEntry", "blocked", []string{"192.0.2.66"}); err != nil {
			t.Fatal(err)
		}
		d := many(few + 1)
		d.Own[subnet.IPv4] = netip.MustParsePrefix("10.5.77.0/24")
		_, err := b.Apply(t.Context(), d)
		var unsaved *ErrUnsaved
		if !errors.As(err, &unsaved) || !slices.Equal(unsaved.Settings, []string{"ipset blocked"}) {
			t.Fatalf("Apply: %v, want that ipset blocked is not saved", err)
		}
		want := listed(d)
		want.input, want.sets = listed(many(2)).input, nil
		b.wantHeld(t, want)
		if err := b.admin.eachEntry(t.Context(), "removeEntry", "blocked", []string{"192.0.2.66"}); err != nil {
			t.Fatal(err)
		}
		if !b.apply(t, d) {
			t.Error("the set was made without a reload")
		}
		b.wantHeld(t, listed(d))
	})
}

// A set of our name that is not ours lets nobody in, and stays as it is.
func TestForeignSet(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		theirs := setSettings{Description: "somebody else's", Type: "hash:ip", Options: map[string]string{}, Entries: []string{"192.0.2.66"}}
		var path dbus.ObjectPath
		if err := b.admin.call(t.Context(), pathConfig, ifaceConfig, "addIPSet", []any{setName(subnet.IPv4), theirs}, &path); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			b.apply(t, desired())
		}
		b.wantHeld(t, listed(desired()))
		var foreign *ErrForeign
		if _, err := b.Apply(t.Context(), many(few+1)); !errors.As(err, &foreign) || *foreign != (ErrForeign{"ipset", setName(subnet.IPv4)}) {
			t.Errorf("Apply: %v, want that the set is not ours", err)
		}
		rules, err := b.admin.rules(t.Context(), policyInput)
		if err != nil || slices.ContainsFunc(rules, func(r string) bool { return strings.Contains(r, "ipset") }) {
			t.Errorf("rules with a foreign set: %q, %v", rules, err)
		}
		for range 2 {
			if err := b.Cleanup(t.Context()); err != nil {
				t.Errorf("Cleanup: %v", err)
			}
		}
		var s setSettings
		if err := b.admin.call(t.Context(), pathRuntime, ifaceSet, setKind().runtime, []any{setName(subnet.IPv4)}, &s); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(theirs.String(), s.String()); diff != "" {
			t.Errorf("their set (-want +got):\n%s", diff)
		}
	})
}

// The cost of peers that no prefix has in common.
func TestManyPeers(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		b.apply(t, many(few+1))
		for _, n := range []int{1000, 10000} {
			took := func(what string, d Desired) {
				t.Helper()
				begin := time.Now()
				b.apply(t, d)
				t.Logf("%s of %d peers: %v", what, n, time.Since(begin).Round(time.Millisecond))
			}
			if err := b.admin.reload(t.Context()); err != nil {
				t.Fatal(err)
			}
			took("first", many(n))
			took("nothing to do", many(n))
			d := many(n)
			d.Peers[n/2] = netip.MustParsePrefix("192.0.2.1/32")
			took("one moved", d)
			c := owner(0).compile(d, func(name string) bool { return name == setName(subnet.IPv4) })
			b.wantHeld(t, &c)
		}
	})
}
