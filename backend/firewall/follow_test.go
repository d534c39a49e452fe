package firewall

import (
	"context"
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
