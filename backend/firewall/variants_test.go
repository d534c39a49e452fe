package firewall

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// variantBench is both variants of IPv4 at once: the one the plain name means,
// and the other.
type variantBench struct {
	meant, other *bench
}

// tableNames are the tables that compile speaks of.
func tableNames() [3]string { return [3]string{tableRaw, "filter", "nat"} }

func onBothVariants(t *testing.T, test func(t *testing.T, v variantBench)) {
	t.Helper()
	run := func(t *testing.T, tools Tools) {
		variants, err := tools.Variants(t.Context(), subnet.IPv4)
		if err != nil {
			t.Fatal(err)
		}
		if len(variants) != 2 {
			t.Skipf("needs both variants of iptables: have %v", variants)
		}
		f := New(Options{Log: quiet(), Tools: tools, Native: &fakeNative{}, Firewalld: noFirewalld{}})
		test(t, variantBench{&bench{tools, variants[0], f}, &bench{tools, variants[1], f}})
	}
	t.Run("fake", func(t *testing.T) { run(t, newFakeTools()) })
	t.Run("real", func(t *testing.T) {
		enterNamespace(t)
		run(t, &Exec{})
	})
}

const (
	dockerOnly = "*filter\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"
	inputOnly  = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"
	dockerGone = "*filter\n-F FORWARD\n-F DOCKER-USER\n-X DOCKER-USER\nCOMMIT\n"
)

func TestVariantInUse(t *testing.T) {
	cases := []struct {
		name string
		// what others have in each variant
		meant, other string
		// which tables must have ours in each variant
		wantMeant, wantOther string
	}{
		{"nobody has anything", "", "", "filter nat", ""},
		{"docker by the plain name", dockerOnly, "", "filter nat", ""},
		{"docker in the other", "", dockerOnly, "", "filter nat"},
		{"others' rules in the other", "", inputOnly, "", "filter nat"},
		{"docker in the other, a policy in the first", inputOnly, dockerOnly, "filter", "filter nat"},
		{"docker first, a policy in the other", dockerOnly, inputOnly, "filter nat", "filter"},
		{"only flannel's leftovers in the other", "", flannelLeft, "filter nat", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			onBothVariants(t, func(t *testing.T, v variantBench) {
				v.meant.others(t, c.meant)
				v.other.others(t, c.other)
				v.meant.apply(t, vxlanDesired())
				if got := v.meant.ours(t); got != c.wantMeant {
					t.Errorf("ours in %s: %q, want %q", v.meant.v.Command, got, c.wantMeant)
				}
				if got := v.other.ours(t); got != c.wantOther {
					t.Errorf("ours in %s: %q, want %q", v.other.v.Command, got, c.wantOther)
				}
			})
		})
	}
}

// ours lists the tables that have chains of ours.
func (b *bench) ours(t *testing.T) string {
	t.Helper()
	set, err := parseSave(b.save(t))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, name := range tableNames() {
		if tab := set.table(name); tab.chain(chainForward) != nil || tab.chain(chainNAT) != nil {
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

// Docker comes and goes in the other variant: our rules go with it.
func TestVariantMoves(t *testing.T) {
	onBothVariants(t, func(t *testing.T, v variantBench) {
		before := v.meant.save(t)
		v.meant.apply(t, vxlanDesired())
		v.other.others(t, dockerOnly)
		v.meant.apply(t, vxlanDesired())
		if diff := cmp.Diff(before, v.meant.save(t)); diff != "" {
			t.Errorf("left behind in the first variant (-before +after):\n%s", diff)
		}
		v.other.wantChain(t, "filter", "FORWARD", "-j DOCKER-USER", jumpForward)

		v.other.others(t, dockerGone)
		v.meant.apply(t, vxlanDesired())
		if got := v.meant.ours(t) + "," + v.other.ours(t); got != "filter nat," {
			t.Errorf("after Docker went: %q", got)
		}
		v.meant.cleanup(t)
		if text := v.meant.save(t) + v.other.save(t); strings.Contains(text, "FLANNELD") {
			t.Errorf("left after Cleanup:\n%s", text)
		}
	})
}

func TestNoTools(t *testing.T) {
	tools := &Exec{LookPath: func(name string) (string, error) {
		return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
	}}
	f := New(Options{Log: quiet(), Tools: tools, Native: &fakeNative{}, Firewalld: noFirewalld{}})
	if err := f.Apply(t.Context(), vxlanDesired()); !errors.Is(err, ErrNoTools) {
		t.Errorf("Apply without iptables: %v, want ErrNoTools", err)
	}
	if err := f.Apply(t.Context(), Desired{}); err != nil {
		t.Errorf("Apply of nothing without iptables: %v", err)
	}
}

// Cleanup without iptables fails only where somebody removed it after we had used
// it.
func TestCleanupWithoutTools(t *testing.T) {
	enterNamespace(t)
	with := New(Options{Log: quiet(), Native: &fakeNative{}, Firewalld: noFirewalld{}})
	without := New(Options{Log: quiet(), Native: &fakeNative{}, Firewalld: noFirewalld{}, Tools: &Exec{
		LookPath: func(name string) (string, error) { return "", &exec.Error{Name: name, Err: exec.ErrNotFound} },
	}})
	if err := without.Cleanup(t.Context()); err != nil {
		t.Errorf("Cleanup of a host that never had iptables: %v", err)
	}
	v, err := (&Exec{}).Variants(t.Context(), subnet.IPv4)
	if err != nil || !v[0].NFT {
		t.Skipf("needs iptables with nf_tables: %v, %v", v, err)
	}
	if err := with.Apply(t.Context(), vxlanDesired()); err != nil {
		t.Fatal(err)
	}
	if err := without.Cleanup(t.Context()); !errors.Is(err, ErrNoTools) {
		t.Errorf("Cleanup with rules left: %v, want ErrNoTools", err)
	}
	if err := with.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := without.Cleanup(t.Context()); err != nil {
		t.Errorf("Cleanup of what is clean: %v", err)
	}
}

// One variant, one family, one table: the rest is done.
func TestFailuresAreJoined(t *testing.T) {
	refused := errors.New("refused")
	tools := newFakeTools()
	tools.variants[subnet.IPv6] = nil
	tools.fail = func(op string, _ Variant, table string) error {
		if op == "restore" && table == "filter" {
			return refused
		}
		return nil
	}
	f := New(Options{Log: quiet(), Tools: tools, Native: &fakeNative{}, Firewalld: noFirewalld{}})
	d := vxlanDesired()
	d.Peers = append(d.Peers, peers(addrs("fd00::1")...)...)
	err := f.Apply(t.Context(), d)
	if !errors.Is(err, refused) || !errors.Is(err, ErrNoTools) {
		t.Errorf("Apply: %v, want both failures", err)
	}
	if tools.sets["iptables-nft"].table("nat").chain(chainNAT) == nil {
		t.Error("nat was not written after filter had failed")
	}
	tools.fail = nil
	if err := f.Apply(t.Context(), vxlanDesired()); err != nil {
		t.Errorf("Apply after the failure ended: %v", err)
	}
	if tools.sets["iptables-nft"].table("filter").chain(chainForward) == nil {
		t.Error("filter was not written after the failure ended")
	}
}

// A kernel without legacy tables is no failure; one that cannot list what the
// plain name means is, but the other variant is served.
func TestUnreadableVariant(t *testing.T) {
	broken := errors.New("table does not exist")
	for _, c := range []struct {
		name, command string
		want          error
		written       string
	}{
		{"legacy", "iptables-legacy", nil, "iptables-nft"},
		{"what the plain name means", "iptables-nft", broken, "iptables-legacy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tools := newFakeTools()
			tools.fail = func(op string, v Variant, _ string) error {
				if op == "save" && v.Command == c.command {
					return broken
				}
				return nil
			}
			err := New(Options{Log: quiet(), Tools: tools, Native: &fakeNative{}, Firewalld: noFirewalld{}}).Apply(t.Context(), vxlanDesired())
			if !errors.Is(err, c.want) {
				t.Errorf("Apply: %v, want %v", err, c.want)
			}
			if tools.sets[c.written].table("filter").chain(chainForward) == nil {
				t.Errorf("%s was not written", c.written)
			}
		})
	}
}

// Somebody deletes our jump whenever we write.
func TestNotConverged(t *testing.T) {
	tools := newFakeTools()
	f := New(Options{Log: quiet(), Tools: tools, Native: &fakeNative{}, Firewalld: noFirewalld{}})
	tools.fail = func(op string, v Variant, _ string) error {
		if filter := tools.sets[v.Command].table("filter"); op == "save" && filter != nil {
			filter.chain("INPUT").rules = nil
		}
		return nil
	}
	if err := f.Apply(t.Context(), vxlanDesired()); !errors.Is(err, ErrNotConverged) {
		t.Errorf("Apply: %v, want ErrNotConverged", err)
	}
}

func TestDirectNeedsUplink(t *testing.T) {
	tools := newFakeTools()
	d := vxlanDesired()
	d.Tunnel.Direct, d.Uplink = true, ""
	if err := New(Options{Log: quiet(), Tools: tools, Native: &fakeNative{}, Firewalld: noFirewalld{}}).Apply(t.Context(), d); !errors.Is(err, ErrNoUplink) {
		t.Errorf("Apply: %v, want ErrNoUplink", err)
	}
	if tools.sets["iptables-nft"].table("filter").chain(chainForward) == nil {
		t.Error("the tunnel's rules were not written")
	}
}

// An Apply that finds everything in order, in two variants, costs nothing, and nor
// do families that are off after the first time.
func TestCostOfNothingToDo(t *testing.T) {
	tools := newFakeTools()
	f := New(Options{Log: quiet(), Tools: tools, Native: &fakeNative{}, Firewalld: noFirewalld{}})
	for range 2 {
		if err := f.Apply(t.Context(), vxlanDesired()); err != nil {
			t.Fatal(err)
		}
	}
	clear(tools.calls)
	if err := f.Apply(t.Context(), vxlanDesired()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int{}, tools.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// The real programs: what is found out once is not asked again, a name that was
// pointed elsewhere is.
func TestExecVariants(t *testing.T) {
	if _, err := exec.LookPath("iptables-legacy"); err != nil {
		t.Skip("needs program: iptables-legacy")
	}
	means, looked := "iptables-nft", 0
	tools := &Exec{LookPath: func(name string) (string, error) {
		looked++
		if name == "iptables" {
			name = means
		}
		return exec.LookPath(name)
	}}
	for _, want := range [][]string{{"iptables-nft", "iptables-legacy"}, {"iptables-legacy", "iptables-nft"}} {
		means = want[0]
		for range 2 {
			variants, err := tools.Variants(context.Background(), subnet.IPv4)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, v := range variants {
				got = append(got, v.Command)
				if v.NFT != strings.HasSuffix(v.Command, "nft") {
					t.Errorf("%s: NFT is %v", v.Command, v.NFT)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("variants when iptables means %s (-want +got):\n%s", means, diff)
			}
		}
	}
	looked = 0
	if _, err := tools.Variants(context.Background(), subnet.IPv4); err != nil || looked != 1 {
		t.Errorf("a known answer cost %d searches (%v), want 1", looked, err)
	}
}
