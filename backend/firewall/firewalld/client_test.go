package firewalld

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/backend/firewall/firewalld/firewalldtest"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a firewalld with a client of ours and a door for the administrator.
type bench struct {
	*Client
	admin *door
}

// onEach runs a test on the fake and on the real firewalld, which has a network
// namespace of its own.
func onEach(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Helper()
	run := func(t *testing.T, bus *firewalldtest.Bus, here func() (bool, error)) {
		c := New(Options{Log: slog.New(slog.DiscardHandler), Connect: bus.Connect, Here: here})
		c.patience = 5 * time.Minute // on a busy machine the largest sets take more than is usual
		admin, err := c.enter(t.Context())
		if err != nil || admin == nil {
			t.Fatalf("enter: %v, %v", admin, err)
		}
		t.Cleanup(func() { _ = admin.close() }) // the bus may have ended
		test(t, &bench{c, admin})
	}
	t.Run("fake", func(t *testing.T) {
		bus := firewalldtest.NewBus(t)
		firewalldtest.NewFake(t, bus)
		run(t, bus, func() (bool, error) { return true, nil })
	})
	t.Run("real", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root: makes a network namespace")
		}
		runtime.LockOSThread() // the thread ends with the test
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		bus := firewalldtest.NewBus(t)
		firewalldtest.NewReal(t, bus, "nftables")
		run(t, bus, nil)
	})
}

func desired() Desired {
	return Desired{
		Networks: subnet.ByFamily[netip.Prefix]{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd05::/48")},
		Own:      subnet.Subnet{netip.MustParsePrefix("10.5.3.0/24"), netip.MustParsePrefix("fd05:0:0:3::/64")},
		Forward:  true, Port: 8472,
		Peers: []netip.Prefix{netip.MustParsePrefix("198.18.0.2/31"), netip.MustParsePrefix("198.18.0.9/32"), netip.MustParsePrefix("2001:db8::9/128")},
	}
}

func (b *bench) apply(t *testing.T, d Desired) (reloaded bool) {
	t.Helper()
	reloaded, err := b.Apply(t.Context(), d)
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	return reloaded
}

// wantHeld checks what there is at run time; nil: nothing of ours.
func (b *bench) wantHeld(t *testing.T, want *content) {
	t.Helper()
	sets, err := b.admin.sets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ours := slices.Collect(maps.Keys(sets))
	if want == nil {
		for _, name := range []string{policyForward, policyInput} {
			if _, err := b.admin.policy(t.Context(), name); !errors.Is(err, errAbsent) {
				t.Errorf("policy %s is there (%v)", name, err)
			}
		}
		if len(ours) > 0 {
			t.Errorf("sets are there: %q", ours)
		}
		return
	}
	for _, p := range []policy{want.forward, want.input} {
		have, err := b.admin.rules(t.Context(), p.name)
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "rules of "+p.name, p.rules, have)
	}
	var names []string
	for _, s := range want.sets {
		names = append(names, s.name)
		wantSame(t, "entries of "+s.name, s.entries, sets[s.name])
	}
	wantSame(t, "sets", names, ours)
}

func wantSame(t *testing.T, what string, want, got []string) {
	t.Helper()
	if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got))); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// listed is what there should be while there are no sets, in sets what there
// should be with sets of both families.
func listed(d Desired) *content {
	c := owner(0).compile(d, func(string) bool { return false })
	return &c
}

func inSets(d Desired) *content {
	c := owner(0).compile(d, func(string) bool { return true })
	return &c
}

func TestApply(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		d := desired()
		if !b.apply(t, d) {
			t.Error("policies were made without a reload")
		}
		b.wantHeld(t, listed(d))
		if b.apply(t, d) {
			t.Error("reloaded again")
		}
		d.Peers = []netip.Prefix{netip.MustParsePrefix("198.18.0.2/32"), netip.MustParsePrefix("198.18.0.8/31")}
		if b.apply(t, d) {
			t.Error("reloaded for a peer")
		}
		b.wantHeld(t, listed(d))
		// Permanent they hold nothing: a reload empties them.
		if err := b.admin.reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.wantHeld(t, listed(Desired{}))
		if b.apply(t, d) {
			t.Error("reloaded although the policies are there")
		}
		b.wantHeld(t, listed(d))
		for range 2 {
			if err := b.Cleanup(t.Context()); err != nil {
				t.Fatalf("Cleanup: %v", err)
			}
			b.wantHeld(t, nil)
			if _, err := b.admin.permanent(t.Context(), policyKind(), policyForward); !errors.Is(err, errAbsent) {
				t.Errorf("permanent policy after Cleanup: %v", err)
			}
		}
	})
}

// What an administrator has at run time only is not lost by a reload of ours.
func TestUnsaved(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		rule := []string{`rule family="ipv4" source address="192.0.2.7" accept`}
		set := func() {
			t.Helper()
			err := b.admin.call(t.Context(), pathRuntime, ifaceZone, "setZoneSettings2", []any{"public", settings{"rules_str": dbus.MakeVariant(rule)}})
			if err != nil {
				t.Fatal(err)
			}
		}
		kept := func() {
			t.Helper()
			var s settings
			if err := b.admin.call(t.Context(), pathRuntime, ifaceZone, "getZoneSettings2", []any{"public"}, &s); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(rule, s["rules_str"].Value()); diff != "" {
				t.Errorf("the administrator's rule (-want +got):\n%s", diff)
			}
		}
		set()
		for range 2 {
			_, err := b.Apply(t.Context(), desired())
			var unsaved *ErrUnsaved
			if !errors.As(err, &unsaved) || !slices.Equal(unsaved.Settings, []string{"zone public"}) {
				t.Fatalf("Apply: %v, want that zone public is not saved", err)
			}
			kept()
		}
		if err := b.admin.reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.apply(t, desired())
		b.wantHeld(t, listed(desired()))
		set()
		if err := b.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		kept()
		b.wantHeld(t, listed(Desired{}))
	})
}

func TestForeignPolicy(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		var path dbus.ObjectPath
		theirs := settings{
			"description": dbus.MakeVariant("somebody else's"), "priority": dbus.MakeVariant(int32(7)),
			"target": dbus.MakeVariant("CONTINUE"), "rich_rules": dbus.MakeVariant([]string{`rule family="ipv4" source address="192.0.2.7" drop`}),
			"ingress_zones": dbus.MakeVariant([]string{"ANY"}), "egress_zones": dbus.MakeVariant([]string{"ANY"}),
		}
		if err := b.admin.call(t.Context(), pathConfig, ifaceConfig, "addPolicy", []any{policyForward, theirs}, &path); err != nil {
			t.Fatal(err)
		}
		if err := b.admin.reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		before, err := b.admin.policy(t.Context(), policyForward)
		if err != nil {
			t.Fatal(err)
		}
		var foreign *ErrForeign
		if _, err := b.Apply(t.Context(), desired()); !errors.As(err, &foreign) {
			t.Errorf("Apply: %v, want that the policy is not ours", err)
		}
		if err := b.Cleanup(t.Context()); err != nil && !errors.As(err, &foreign) {
			t.Errorf("Cleanup: %v", err)
		}
		after, err := b.admin.policy(t.Context(), policyForward)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before.String(), after.String()); diff != "" {
			t.Errorf("their policy (-before +after):\n%s", diff)
		}
	})
}

func TestDrift(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		b.apply(t, desired())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		drift := b.Drift(ctx)
		wait := func(what string) {
			t.Helper()
			select {
			case <-drift:
			case <-time.After(time.Minute):
				t.Fatalf("no wake %s", what)
			}
		}
		wait("for what was before")
		if err := b.admin.reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		wait("after a reload")
		cancel()
		for range drift { // until it is closed
		}
	})
}

func TestFailed(t *testing.T) {
	bus := firewalldtest.NewBus(t)
	firewalldtest.NewFake(t, bus).Fail()
	c := New(Options{Connect: bus.Connect, Here: func() (bool, error) { return true, nil }})
	if _, err := c.Apply(t.Context(), desired()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Apply: %v, want %v", err, ErrNotRunning)
	}
}

// Where there is nothing to do, nothing is done and nothing is wrong.
func TestAbsent(t *testing.T) {
	yes := func() (bool, error) { return true, nil }
	bus := firewalldtest.NewBus(t)
	for name, o := range map[string]Options{
		"no table": {
			Connect: func(context.Context) (*dbus.Conn, error) { return nil, errors.New("the bus was asked") },
			Here:    func() (bool, error) { return false, nil },
		},
		"no bus": {
			Connect: func(context.Context) (*dbus.Conn, error) { return dbus.Connect("unix:path=/nonexistent/bus") },
			Here:    yes,
		},
		"nobody of the name": {Connect: bus.Connect, Here: yes},
	} {
		t.Run(name, func(t *testing.T) {
			c := New(o)
			if reloaded, err := c.Apply(t.Context(), desired()); err != nil || reloaded {
				t.Errorf("Apply: %v, %v", reloaded, err)
			}
			if err := c.Cleanup(t.Context()); err != nil {
				t.Errorf("Cleanup: %v", err)
			}
		})
	}
}

// A firewalld that takes its name has no table yet: the wake waits for its answer.
func TestDriftAwaitsStart(t *testing.T) {
	bus := firewalldtest.NewBus(t)
	c := New(Options{Connect: bus.Connect})
	ctx, cancel := context.WithCancel(t.Context())
	drift := c.Drift(ctx)
	<-drift // for what was before
	conn, err := bus.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // the bus may have ended
	var answered atomic.Bool
	get := func(string, string) (dbus.Variant, *dbus.Error) {
		answered.Store(true)
		return dbus.MakeVariant("RUNNING"), nil
	}
	if err := conn.ExportMethodTable(map[string]any{"Get": get}, pathRuntime, "org.freedesktop.DBus.Properties"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(busName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	<-drift
	if !answered.Load() {
		t.Error("woke before firewalld answered")
	}
	cancel()
	for range drift { // until it is closed
	}
}
