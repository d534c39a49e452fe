package firewall

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Who translates, and who drops forged packets: our own table, or iptables where
// it cannot.
func TestShares(t *testing.T) {
	lack := func(features ...native.Feature) error {
		var errs []error
		for _, x := range features {
			errs = append(errs, &native.ErrUnsupported{Feature: x, Family: subnet.IPv4})
		}
		return errors.Join(errs...)
	}
	cases := []struct {
		name   string
		native bool
		fail   error
		// nat and drops: iptables does.
		nat, drops bool
		err        error
	}{
		{name: "iptables", nat: true},
		{name: "EnableNFTables", native: true},
		{name: "the kernel has no nf_tables", fail: lack(native.FeatureTables), nat: true, drops: true},
		{name: "EnableNFTables without nf_tables", native: true, fail: lack(native.FeatureTables), nat: true, drops: true},
		{name: "EnableNFTables on an old kernel", native: true, fail: lack(native.FeatureFIB, native.FeatureNAT), nat: true},
		{name: "no routes to ask", fail: lack(native.FeatureFIB), nat: true},
		{name: "EnableNFTables fails", native: true, fail: errors.Join(syscall.EPERM), nat: true, err: syscall.EPERM},
		{name: "fails", fail: syscall.EPERM, nat: true, err: syscall.EPERM},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			tools, table := newFakeTools(), &fakeNative{fail: c.fail}
			f := New(Options{Log: quiet(), Tools: tools, Native: table, Firewalld: noFirewalld{}})
			d := vxlanDesired()
			d.Native = c.native
			if err := f.Apply(t.Context(), d); !errors.Is(err, c.err) {
				t.Errorf("Apply: %v, want %v", err, c.err)
			}
			set := tools.sets["iptables-nft"]
			if got := set.table("nat").chain(chainNAT) != nil; got != c.nat {
				t.Errorf("iptables translates: %v, want %v", got, c.nat)
			}
			got := set.table("filter").chain(chainForward).has(func(r rule) bool { return r.target == "DROP" })
			if got != c.drops {
				t.Errorf("iptables drops forged packets: %v, want %v", got, c.drops)
			}
			want := native.Desired{
				Networks: d.Networks, Own: d.Own, Tunnel: d.Tunnel, Uplink: "eth0", Peers: d.Peers,
				NAT: c.native, Masquerade: true, RandomFully: true,
			}
			equal := cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})
			if diff := cmp.Diff(want, table.want, equal); diff != "" {
				t.Errorf("our own table (-want +got):\n%s", diff)
			}
		})
	}
}

// Whoever takes the translation over has it before the other lets go.
func TestTranslationMoves(t *testing.T) {
	tools, table := newFakeTools(), &fakeNative{}
	f := New(Options{Log: quiet(), Tools: tools, Native: table, Firewalld: noFirewalld{}})
	both := 0
	table.applied = func() {
		if tools.sets["iptables-nft"].table("nat").chain(chainNAT) == nil {
			t.Error("our own table is written while iptables does not translate")
		}
		both++
	}
	d := vxlanDesired()
	for range 2 {
		for _, d.Native = range []bool{false, true} {
			if err := f.Apply(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			if got := tools.sets["iptables-nft"].table("nat").chain(chainNAT) == nil; got != d.Native {
				t.Errorf("iptables lets go: %v, want %v", got, d.Native)
			}
		}
	}
	if both != 4 {
		t.Errorf("our own table was written %d times, want 4", both)
	}
}

// A host without iptables gets what our own table can do.
func TestNoToolsNative(t *testing.T) {
	tools, table := newFakeTools(), &fakeNative{}
	tools.variants = subnet.ByFamily[[]Variant]{}
	f := New(Options{Log: quiet(), Tools: tools, Native: table, Firewalld: noFirewalld{}})
	if err := f.Apply(t.Context(), vxlanDesired()); !errors.Is(err, ErrNoTools) {
		t.Errorf("Apply: %v, want ErrNoTools", err)
	}
	if !table.want.NAT {
		t.Error("nobody translates")
	}
	d := vxlanDesired()
	d.ForwardRules, d.Tunnel.Port = false, 0
	if err := f.Apply(t.Context(), d); err != nil {
		t.Errorf("Apply of what needs no iptables: %v", err)
	}
}

func TestCleanupOfBoth(t *testing.T) {
	tools, table := newFakeTools(), &fakeNative{}
	f := New(Options{Log: quiet(), Tools: tools, Native: table, Firewalld: noFirewalld{}})
	if err := f.Apply(t.Context(), vxlanDesired()); err != nil {
		t.Fatal(err)
	}
	table.fail = syscall.EPERM
	if err := f.Cleanup(t.Context()); !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "nftables") {
		t.Errorf("Cleanup: %v, want EPERM of nftables", err)
	}
	if len(table.want.Peers) != 0 || tools.sets["iptables-nft"].table("filter") != nil {
		t.Error("one of the two is not cleaned up")
	}
	table.fail = &native.ErrUnsupported{}
	if err := f.Cleanup(t.Context()); err != nil {
		t.Errorf("Cleanup without nf_tables: %v", err)
	}
	if got, err := f.Counters(t.Context()); err != nil || got[native.ForeignSource] != 1 {
		t.Errorf("Counters: %v, %v", got, err)
	}
}
