package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// fakeTools is both variants of iptables in memory, as strict as the real ones:
// it passes the same suite.
type fakeTools struct {
	mu       sync.Mutex
	variants subnet.ByFamily[[]Variant]
	sets     map[string]ruleset
	// calls counts what was called.
	calls map[string]int
	// changes is what Changes returns.
	changes chan struct{}
	// fail, when set, may refuse a call ("stamp", "save", "restore", "remove").
	fail func(op string, v Variant, table string) error
}

func newFakeTools() *fakeTools {
	f := &fakeTools{sets: map[string]ruleset{}, calls: map[string]int{}}
	for _, family := range subnet.Families() {
		plain := [2]string{"iptables", "ip6tables"}[family]
		f.variants[family] = []Variant{
			{Family: family, Command: plain + "-nft", NFT: true, RandomFully: true},
			{Family: family, Command: plain + "-legacy", RandomFully: true},
		}
	}
	return f
}

func (f *fakeTools) Variants(_ context.Context, family subnet.Family) ([]Variant, error) {
	if len(f.variants[family]) == 0 {
		return nil, ErrNoTools
	}
	return f.variants[family], nil
}

func (f *fakeTools) Save(_ context.Context, v Variant) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["save"]++
	if f.fail != nil {
		if err := f.fail("save", v, ""); err != nil {
			return "", err
		}
	}
	return f.text(v), nil
}

// Stamp is what Save would return.
func (f *fakeTools) Stamp(_ context.Context, v Variant) (Stamp, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		if err := f.fail("stamp", v, ""); err != nil {
			return Stamp{}, err
		}
	}
	return Stamp{Tables: "rules: " + f.text(v)}, nil
}

func (f *fakeTools) text(v Variant) string {
	var w strings.Builder
	for _, t := range f.sets[v.Command] {
		fmt.Fprintf(&w, "*%s\n", t.name)
		for _, c := range t.chains {
			policy := c.policy
			if policy == "" {
				policy = "-"
			}
			fmt.Fprintf(&w, ":%s %s [0:0]\n", c.name, policy)
		}
		for _, c := range t.chains {
			for _, l := range c.rules {
				fmt.Fprintf(&w, "-A %s %s\n", c.name, l.spec)
			}
		}
		w.WriteString("COMMIT\n")
	}
	return w.String()
}

func (f *fakeTools) Changes(context.Context) (<-chan struct{}, error) { return f.changes, nil }

var errNoSuch = errors.New("no chain/target/match by that name")

func (f *fakeTools) Restore(_ context.Context, v Variant, script string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["restore"]++
	lines := strings.Split(strings.TrimSpace(script), "\n")
	name := strings.TrimPrefix(lines[0], "*")
	if f.fail != nil {
		if err := f.fail("restore", v, name); err != nil {
			return err
		}
	}
	set := slices.Clone(f.sets[v.Command])
	i := slices.IndexFunc(set, func(t *table) bool { return t.name == name })
	if i < 0 {
		set = append(set, newTable(name))
		i = len(set) - 1
	}
	// On a copy, which becomes the table only if every line was right.
	work := set[i].clone()
	for n, l := range lines[1 : len(lines)-1] {
		if err := work.do(l); err != nil {
			return fmt.Errorf("line %d: %q: %w", n+2, l, err)
		}
	}
	if lines[len(lines)-1] != "COMMIT" {
		return errors.New("no COMMIT")
	}
	set[i] = work
	f.sets[v.Command] = set
	return nil
}

func (f *fakeTools) RemoveTable(_ context.Context, v Variant, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["remove"]++
	f.sets[v.Command] = slices.DeleteFunc(slices.Clone(f.sets[v.Command]), func(t *table) bool {
		return t.name == name && !slices.ContainsFunc(t.chains, func(c *chain) bool {
			return c.policy == "" || len(c.rules) > 0
		})
	})
	return nil
}

// HasChain: the chains of a table that is there are there, too.
func (f *fakeTools) HasChain(_ context.Context, v Variant, name, chain string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sets[v.Command].table(name).chain(chain) != nil, nil
}

// RemoveChain would make one that is built in look as before.
func (f *fakeTools) RemoveChain(context.Context, Variant, string, string) error { return nil }

func newTable(name string) *table {
	builtin := map[string][]string{
		"filter": {"INPUT", "FORWARD", "OUTPUT"},
		"nat":    {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
		"raw":    {"PREROUTING", "OUTPUT"},
	}
	t := &table{name: name}
	for _, c := range builtin[name] {
		t.chains = append(t.chains, &chain{name: c, policy: "ACCEPT"})
	}
	return t
}

func (t *table) clone() *table {
	out := &table{name: t.name}
	for _, c := range t.chains {
		out.chains = append(out.chains, &chain{c.name, c.policy, slices.Clone(c.rules)})
	}
	return out
}

// do is one line of iptables-restore.
func (t *table) do(l string) error {
	if l[0] == ':' {
		return t.doDeclare(strings.Fields(l[1:]))
	}
	op, rest, _ := strings.Cut(l, " ")
	name, rest, _ := strings.Cut(rest, " ")
	c := t.chain(name)
	if c == nil {
		return errNoSuch
	}
	switch op {
	case "-F":
		c.rules = nil
		return nil
	case "-X":
		return t.doRemove(c)
	case "-A":
		return t.doInsert(c, len(c.rules), rest)
	case "-I":
		number, spec, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(number)
		if err != nil {
			return err
		}
		return t.doInsert(c, n-1, spec)
	case "-D":
		want, err := parsed(rest)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(c.rules, func(l line) bool { return l.rule == want.rule })
		if i < 0 {
			return errors.New("bad rule (does a matching rule exist in that chain?)")
		}
		c.rules = slices.Delete(c.rules, i, i+1)
		return nil
	}
	return fmt.Errorf("unknown operation %s", op)
}

func (t *table) doDeclare(f []string) error {
	c := t.chain(f[0])
	switch {
	case len(f[0]) > 28:
		return errors.New("chain name too long (must be under 29 chars)")
	case c == nil:
		t.chains = append(t.chains, &chain{name: f[0]})
	case c.policy != "":
		c.policy = f[1]
	default:
		c.rules = nil
	}
	return nil
}

func (t *table) doRemove(gone *chain) error {
	if len(gone.rules) > 0 {
		return errors.New("directory not empty")
	}
	for _, c := range t.chains {
		if slices.ContainsFunc(c.rules, func(l line) bool { return l.rule.target == gone.name }) {
			return errors.New("too many links")
		}
	}
	t.chains = slices.DeleteFunc(t.chains, func(c *chain) bool { return c == gone })
	return nil
}

func (t *table) doInsert(c *chain, at int, spec string) error {
	l, err := parsed(spec)
	if err != nil {
		return err
	}
	if at < 0 || at > len(c.rules) {
		return errors.New("index of insertion too big")
	}
	verdicts := []string{"", "ACCEPT", "DROP", "RETURN", "REJECT", "MASQUERADE", "SNAT", "DNAT"}
	if !slices.Contains(verdicts, l.rule.target) && t.chain(l.rule.target) == nil {
		return errNoSuch
	}
	c.rules = slices.Insert(c.rules, at, l)
	return nil
}

func parsed(spec string) (line, error) {
	words, err := splitWords(spec)
	if err != nil {
		return line{}, err
	}
	return line{spec: spec, rule: parseRule(words)}, nil
}

// fakeNative is our own table as it was last wanted.
type fakeNative struct {
	want native.Desired
	// fail is what Apply and Cleanup return.
	fail error
	// applied is called by Apply.
	applied func()
}

func (f *fakeNative) Apply(_ context.Context, d native.Desired) error {
	f.want = d
	if f.applied != nil {
		f.applied()
	}
	return f.fail
}

func (f *fakeNative) Cleanup(ctx context.Context) error { return f.Apply(ctx, native.Desired{}) }

func (f *fakeNative) Follow(context.Context, []native.Peer, []native.Peer) error {
	return native.ErrNotFollowed
}

func (f *fakeNative) Passed(native.Step) {}
func (f *fakeNative) Wrote() native.Step { return native.Step{} }

func (f *fakeNative) Undisturbed(context.Context) bool { return true }

func (f *fakeNative) Counters(context.Context) (map[string]uint64, error) {
	return map[string]uint64{native.ForeignSource: 1}, nil
}
