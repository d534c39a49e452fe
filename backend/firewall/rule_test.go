package firewall

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func mustParse(t *testing.T, spec string) rule {
	t.Helper()
	l, err := parsed(spec)
	if err != nil {
		t.Fatal(err)
	}
	return l.rule
}

// Versions of iptables print one rule in different ways.
func TestParseRuleForms(t *testing.T) {
	want := rule{
		src: netip.MustParsePrefix("10.5.0.0/16"), notSrc: true, dst: netip.MustParsePrefix("10.5.3.1/32"),
		proto: "udp", dport: 8472, comment: `a "b"`, target: "ACCEPT",
	}
	for _, form := range []string{
		`! -s 10.5.0.0/16 -d 10.5.3.1/32 -p udp -m udp --dport 8472 -m comment --comment "a \"b\"" -j ACCEPT`,
		`-d 10.5.3.1 ! -s 10.5.0.0/16 -p 17 -m udp --dport 8472 -m comment --comment "a \"b\"" -j ACCEPT`,
		`-p udp -d 10.5.3.1/32 ! -s 10.5.0.0/16 -m comment --comment "a \"b\"" --dport 8472 -j ACCEPT`,
	} {
		if got := mustParse(t, form); got != want {
			t.Errorf("%s\nis understood as %s %q", form, got, got.other)
		}
	}
}

// What is not exactly our rule must not pass for it.
func TestParseRuleDifferences(t *testing.T) {
	const ours = `-s 10.5.0.0/16 -d 10.5.3.0/24 -i flannel.1 -m comment --comment c -j ACCEPT`
	for _, other := range []string{
		`-s 10.5.0.0/16 -d 10.5.3.0/24 ! -i flannel.1 -m comment --comment c -j ACCEPT`,
		`! -s 10.5.0.0/16 -d 10.5.3.0/24 -i flannel.1 -m comment --comment c -j ACCEPT`,
		`-s 10.5.0.0/16 -d 10.5.3.0/24 -i flannel.1 -m comment --comment c -g ACCEPT`,
		`-s 10.5.0.0/16 -d 10.5.3.0/24 -i flannel.1 -m mark --mark 0x1 -m comment --comment c -j ACCEPT`,
		`-s 10.5.0.0/16 -d 10.5.3.0/24 -i flannel.1 -m addrtype --src-type LOCAL -m comment --comment c -j ACCEPT`,
		`-s 10.5.0.0/16 -d 10.5.3.0/24 -i flannel.1 -m addrtype --src-type UNICAST -m comment --comment c -j ACCEPT`,
		`-s 10.5.0.0/16 -d 10.5.3.0/255.255.0.255 -i flannel.1 -m comment --comment c -j ACCEPT`,
		`-s 10.5.0.0/16 -d 10.5.3.0/24 -i flannel.1 -m comment --comment c -j ACCEPT --random-fully`,
		`-s 10.5.0.0/16 -d 10.5.3.0/24 -i flannel.1 -f -m comment --comment c -j ACCEPT`,
		`-s 10.5.0.0/16 -d 10.5.3.0/24 -i flannel.1 -p udp -m udp --dport 1:8472 -m comment --comment c -j ACCEPT`,
		`-s 10.5.0.0/16 -d 10.5.3.0/24 -i flannel.1 -m comment --comment c -j`,
		`-s 10.5.0.0/16 -d 10.5.3.0/24 -i flannel.1 -m comment --comment c -j ACCEPT !`,
	} {
		if mustParse(t, other) == mustParse(t, ours) {
			t.Errorf("%s\npasses for %s", other, ours)
		}
	}
}

// A rule of ours survives being written and read.
func TestRuleRoundTrip(t *testing.T) {
	prefix := func(t *rapid.T, name string) netip.Prefix {
		if rapid.Bool().Draw(t, name+" is there") {
			a := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, name)))
			return netip.PrefixFrom(a, rapid.IntRange(0, 32).Draw(t, name+" bits")).Masked()
		}
		return netip.Prefix{}
	}
	rapid.Check(t, func(t *rapid.T) {
		want := rule{
			src: prefix(t, "src"), dst: prefix(t, "dst"),
			in:       rapid.StringMatching(`|[a-z]{1,8}(\.\d)?\+?`).Draw(t, "in"),
			out:      rapid.StringMatching(`|[a-z]{1,8}`).Draw(t, "out"),
			srcLocal: rapid.Bool().Draw(t, "local"),
			comment:  rapid.StringMatching(`[ -~]{0,40}`).Draw(t, "comment"),
			target:   rapid.SampledFrom([]string{"ACCEPT", "RETURN", chainForward}).Draw(t, "target"),
			isGoto:   rapid.Bool().Draw(t, "goto"),
		}
		want.notSrc = want.src.IsValid() && rapid.Bool().Draw(t, "not src")
		want.notDst = want.dst.IsValid() && rapid.Bool().Draw(t, "not dst")
		if rapid.Bool().Draw(t, "udp") {
			want.proto, want.dport = "udp", rapid.Uint16Min(1).Draw(t, "port")
		}
		if rapid.Bool().Draw(t, "snat") {
			want.target, want.toSource, want.randomFully = "SNAT", netip.MustParseAddr("10.5.3.1"), true
		}
		got, err := parsed(want.String())
		if err != nil {
			t.Fatal(err)
		}
		if got.rule != want {
			t.Fatalf("%s\nis read as\n%s %q", want, got.rule, got.rule.other)
		}
	})
}

func TestParseSaveRefuses(t *testing.T) {
	cases := []struct{ name, text, want string }{
		{"cut off", "*filter\n:INPUT ACCEPT [0:0]\n", "table filter has no end"},
		{"table in table", "*filter\n*nat\n", "line 2: table filter has no end"},
		{"twice", "*filter\nCOMMIT\n*filter\n", "line 3: table filter is there twice"},
		{"outside", "-A INPUT -j ACCEPT\n", `line 1: "-A INPUT -j ACCEPT" stands outside of a table`},
		{"unknown chain", "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n", "line 2: \"-A INPUT -j ACCEPT\" is a rule of an unknown chain"},
		{"no rule", "*filter\nhello\nCOMMIT\n", `line 2: "hello" is no rule`},
		{"chain twice", "*filter\n:A - [0:0]\n:A - [0:0]\nCOMMIT\n", "line 3: chain A is there twice"},
		{"no chain", "*filter\n:A\nCOMMIT\n", `line 2: ":A" declares no chain`},
		{"open quote", "*filter\n:A - [0:0]\n-A A -m comment --comment \"x\nCOMMIT\n", "quote is not closed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseSave(c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestParseSaveWithCounters(t *testing.T) {
	set, err := parseSave("# comment\n*filter\n:INPUT DROP [12:3456]\n[1:2] -A INPUT -i lo -j ACCEPT\nCOMMIT\n")
	if err != nil {
		t.Fatal(err)
	}
	c := set.table("filter").chain("INPUT")
	if diff := cmp.Diff("-i lo -j ACCEPT", c.rules[0].spec); diff != "" || c.policy != "DROP" {
		t.Errorf("policy %q, rule (-want +got):\n%s", c.policy, diff)
	}
}

// Whatever iptables-save may print, a plan for it can be made; done, it leaves
// nothing to do; and the rules of others are as they were.
func FuzzPlan(f *testing.F) {
	f.Add(strings.TrimPrefix(docker20, "\n"))
	f.Add(flannelLeft)
	f.Add("*filter\n:FORWARD ACCEPT [0:0]\n:INPUT DROP [0:0]\n:FLANNELD-GO-FWD - [0:0]\n[1:2] -A FORWARD -j FLANNELD-GO-FWD\nCOMMIT\n")
	f.Fuzz(func(t *testing.T, text string) {
		set, err := parseSave(text)
		if err != nil {
			return
		}
		for _, spec := range owner(0).compile(vxlanDesired(), subnet.IPv4, share{nat: true, drops: true, randomFully: true}) {
			have := set.table(spec.name)
			if have == nil {
				have = newTable(spec.name)
			}
			after := have.clone()
			for _, h := range spec.hooks {
				if h.chain != dockerUser && after.chain(h.chain) == nil {
					after.chains = append(after.chains, &chain{name: h.chain, policy: "ACCEPT"})
				}
			}
			for _, l := range plan(have, spec) {
				if err := after.do(l); err != nil {
					t.Fatalf("%q: %v", l, err)
				}
			}
			if again := plan(after, spec); len(again) > 0 {
				t.Fatalf("still to do: %q", again)
			}
			if diff := cmp.Diff(foreign(have), foreign(after)); diff != "" {
				t.Fatalf("others' rules (-before +after):\n%s", diff)
			}
		}
	})
}

// foreign lists what is neither a chain of ours nor a jump to one.
func foreign(t *table) []string {
	var out []string
	for _, c := range t.chains {
		if isOurs(c.name) {
			continue
		}
		for _, l := range c.rules {
			if !jumpsToUs(l) {
				out = append(out, c.name+" "+l.spec)
			}
		}
	}
	return out
}
