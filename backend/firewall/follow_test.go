package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// saves counts the programs that read rules.
type saves struct {
	Exec
	count int
}

func (s *saves) Save(ctx context.Context, v Variant) (string, error) {
	s.count++
	return s.Exec.Save(ctx, v)
}

// member is peer n of a network in which nobody's address is next to another's.
func member(n int) native.Peer {
	var p native.Peer
	p.Subnet[subnet.IPv4] = netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", n))
	p.PublicIP[subnet.IPv4] = netip.MustParseAddr(fmt.Sprintf("198.18.%d.%d", n%7, 2*n+1))
	return p
}

// Of what this host does itself nothing disturbs it: not what Apply did to iptables and
// to our own table, one after the other, nor what is followed after that.
func TestOwnChangesDisturbNobody(t *testing.T) {
	enterNamespace(t)
	tools := &saves{}
	f := New(Options{Log: quiet(), Tools: tools, Firewalld: noFirewalld{}})
	d := vxlanDesired()
	d.Tunnel = backend.Tunnel{Devices: []string{"flannel0"}, Port: 8285, Encapsulation: backend.PlainPacket}
	d.Networks[subnet.IPv6], d.Own[subnet.IPv6] = netip.MustParsePrefix("fd05::/48"), netip.MustParsePrefix("fd05:0:0:3::/64")
	apply := func(peers ...native.Peer) {
		t.Helper()
		d.Peers = peers
		if err := f.Apply(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	undisturbed := func(when string) {
		t.Helper()
		before := tools.count
		if !f.Undisturbed(t.Context()) {
			t.Errorf("%s: our own doing disturbs us", when)
		}
		if err := f.Apply(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if n := tools.count - before; n > 0 {
			t.Errorf("%s: the same once more reads rules %d times", when, n)
		}
	}
	apply(member(1), member(2))
	apply(member(1), member(2)) // rules of our own table are read once more
	undisturbed("the same again")
	apply(member(1), member(2), member(3))
	undisturbed("both have changed")
	d.Masquerade = false
	apply(d.Peers...)
	if !f.Undisturbed(t.Context()) {
		t.Error("rules of iptables alone: our own doing disturbs us")
	}
	if err := f.Follow(t.Context(), []native.Peer{member(2)}, []native.Peer{member(4)}); err != nil {
		t.Fatal(err)
	}
	d.Peers = []native.Peer{member(1), member(3), member(4)}
	if !f.Undisturbed(t.Context()) {
		t.Error("what was followed disturbs us")
	}
	apply(d.Peers...)
	undisturbed("followed, and applied")
}

// meddled is our own table, while whose Apply somebody else changes rules.
type meddled struct {
	Native
	meddle func()
}

func (m *meddled) Apply(ctx context.Context, d native.Desired) error {
	defer m.meddle()
	return m.Native.Apply(ctx, d)
}

// What somebody else changed while our own table had nothing to change is not taken for
// a step of ours.
func TestOthersChangesAreNotOurs(t *testing.T) {
	enterNamespace(t)
	table := &meddled{native.New(native.Options{Log: quiet()}), func() {}}
	f := New(Options{Log: quiet(), Native: table, Firewalld: noFirewalld{}})
	d := vxlanDesired()
	d.Peers = []native.Peer{member(1), member(2)}
	for range 3 { // rules of our own table are read once more
		if err := f.Apply(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	rules := func() string {
		t.Helper()
		out, err := exec.Command("iptables-nft", "-w", "-S").Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	want := rules()
	table.meddle = func() {
		table.meddle = func() {}
		if out, err := exec.Command("iptables-nft", "-w", "-F", "FORWARD").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := f.Apply(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if rules() == want {
		t.Fatal("nothing was flushed")
	}
	if f.Undisturbed(t.Context()) {
		t.Error("what was flushed meanwhile disturbs nobody")
	}
	if err := f.Apply(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got := rules(); got != want {
		t.Errorf("it was not mended:\n%s", got)
	}
}

// scripted is our own table as a test says it is.
type scripted struct {
	fakeNative
	follows   error
	disturbed bool
	wrote     native.Step
}

func (s *scripted) Follow(context.Context, []native.Peer, []native.Peer) error { return s.follows }
func (s *scripted) Undisturbed(context.Context) bool                           { return !s.disturbed }
func (s *scripted) Wrote() native.Step                                         { return s.wrote }

// What goes wrong is told with where it did; what cannot be followed is no failure.
func TestFollowTells(t *testing.T) {
	broken := errors.New("no memory")
	for name, tc := range map[string]struct {
		follows error
		want    string
	}{
		"followed":     {nil, ""},
		"not followed": {native.ErrNotFollowed, native.ErrNotFollowed.Error()},
		"failed":       {broken, "nftables: no memory"},
	} {
		f := New(Options{Log: quiet(), Tools: newFakeTools(), Native: &scripted{follows: tc.follows}, Firewalld: noFirewalld{}})
		err := f.Follow(t.Context(), nil, []native.Peer{member(1)})
		if !errors.Is(err, tc.follows) || err != nil && err.Error() != tc.want {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// Whatever of ours may have changed, or cannot be asked for, disturbs us; a family in which
// nothing of ours is wanted does not.
func TestWhatDisturbs(t *testing.T) {
	for name, tc := range map[string]struct {
		harm func(tools *fakeTools, table *scripted)
		want bool
	}{
		"nothing":                   {func(*fakeTools, *scripted) {}, true},
		"our own table":             {func(_ *fakeTools, table *scripted) { table.disturbed = true }, false},
		"rules of iptables":         {func(tools *fakeTools, _ *scripted) { delete(tools.sets, "iptables-nft") }, false},
		"iptables does not tell":    {func(tools *fakeTools, _ *scripted) { tools.fail = unknown(subnet.IPv4) }, false},
		"a family that is not ours": {func(tools *fakeTools, _ *scripted) { tools.fail = unknown(subnet.IPv6) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			tools, table := newFakeTools(), &scripted{}
			f := New(Options{Log: quiet(), Tools: tools, Native: table, Firewalld: noFirewalld{}})
			for range 2 {
				if err := f.Apply(t.Context(), vxlanDesired()); err != nil {
					t.Fatal(err)
				}
			}
			tc.harm(tools, table)
			if got := f.Undisturbed(t.Context()); got != tc.want {
				t.Errorf("undisturbed: %t", got)
			}
		})
	}
}

// unknown refuses to tell what a family's rules are.
func unknown(family subnet.Family) func(op string, v Variant, table string) error {
	return func(op string, v Variant, _ string) error {
		if op == "stamp" && v.Family == family {
			return errors.New("not told")
		}
		return nil
	}
}

// What is known of iptables' rules in nf_tables holds behind one step of ours from there,
// and behind nothing else.
func TestPassed(t *testing.T) {
	enterNamespace(t)
	var at []native.Generation
	for _, name := range []string{"a", "b", "c"} {
		if out, err := exec.Command("nft", "add", "table", "ip", name).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		g, err := native.CurrentGeneration(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, g)
	}
	nft, legacy := Variant{Command: "iptables-nft", NFT: true}, Variant{Command: "iptables-legacy"}
	for name, tc := range map[string]struct {
		step native.Step
		want native.Generation
	}{
		"one step":           {native.Step{From: at[0], To: at[1]}, at[1]},
		"two":                {native.Step{From: at[0], To: at[2]}, at[0]},
		"one from elsewhere": {native.Step{From: at[1], To: at[2]}, at[0]},
		"none":               {native.Step{}, at[0]},
	} {
		f := New(Options{Log: quiet(), Tools: newFakeTools(), Native: &scripted{wrote: tc.step}, Firewalld: noFirewalld{}})
		f.known[nft], f.known[legacy] = reading{stamp: Stamp{Generation: at[0]}}, reading{stamp: Stamp{Tables: "some"}}
		if err := f.Follow(t.Context(), nil, nil); err != nil {
			t.Fatal(err)
		}
		if got := f.known[nft].stamp.Generation; got != tc.want {
			t.Errorf("%s: known of %v, want %v", name, got, tc.want)
		}
		if got := f.known[legacy].stamp; got != (Stamp{Tables: "some"}) {
			t.Errorf("%s: the legacy variant is known of %+v", name, got)
		}
	}
}
