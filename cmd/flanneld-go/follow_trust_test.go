package main

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// trustedTable is one that others may disturb.
type trustedTable struct {
	followingTable
	disturbed bool
}

func (t *trustedTable) Undisturbed(context.Context) bool { return !t.disturbed }

// unfollowing is a backend that does not follow.
type unfollowing struct{ backend.Backend }

// What is in the kernel is trusted only while everything is as it was: each single thing
// that is not ends the trust, and with it in place again there is some.
func TestTrustEnds(t *testing.T) {
	table := &trustedTable{}
	both, firewall := func(l *loop) (bool, bool) { return false, false }, func(l *loop) (bool, bool) { return true, false }
	for name, tc := range map[string]struct {
		harm func(l *loop)
		// want says what of the path and of the firewall is trusted still.
		want func(l *loop) (path, filter bool)
	}{
		"nothing":                         {func(*loop) {}, func(*loop) (bool, bool) { return true, true }},
		"a backend that does not follow":  {func(l *loop) { l.backend = unfollowing{l.backend} }, both},
		"what is there is not known":      {func(l *loop) { l.path.follow.end() }, both},
		"another snapshot":                {func(l *loop) { l.snap = &subnet.Snapshot{} }, both},
		"another uplink":                  {func(l *loop) { l.uplink.Link.MTU++ }, both},
		"another subnet":                  {func(l *loop) { l.lease.own.Subnet = subnet.Subnet{netip.MustParsePrefix("10.5.9.0/24")} }, both},
		"a peer without a path":           {func(l *loop) { l.path.failed = map[subnet.Subnet]error{{}: context.Canceled} }, both},
		"two uplinks":                     {func(l *loop) { l.move.opened = true }, both},
		"no round is due":                 {func(l *loop) { l.path.follow.due = 0 }, both},
		"the time for a full check":       {func(l *loop) { l.path.follow.checked -= resyncEvery }, both},
		"the time for the due round":      {func(l *loop) { l.path.follow.due = l.clock.Uptime() }, firewall},
		"a firewall that is not known":    {func(l *loop) { l.path.follow.filtered = filter{} }, firewall},
		"one for another subnet":          {func(l *loop) { l.path.follow.filtered.own = subnet.Subnet{} }, firewall},
		"one for another uplink":          {func(l *loop) { l.path.follow.filtered.uplink = backend.Uplink{Link: kernel.Link{Name: "eth7"}} }, firewall},
		"one for other peers":             {func(l *loop) { l.path.follow.filtered.snap = without(l.snap) }, firewall},
		"one that somebody else disturbs": {func(*loop) { table.disturbed = true }, firewall},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				*table = trustedTable{}
				h.table, h.tools = table, noVariants{}
				h.data.OverwriteConfig(networkConfig)
				h.peer("10.5.100.0-24", "198.18.0.100")
				h.start()
				h.ready()
				time.Sleep(2 * time.Second) // for the events of what it did itself
				synctest.Wait()
				h.stop()
				l := h.loop
				l.path.follow.due = l.clock.Uptime() + time.Minute
				tc.harm(l)
				path, filtered := tc.want(l)
				if got := l.stillApplied(); got != path {
					t.Errorf("the path is trusted: %t", got)
				}
				if got := l.stillFiltered(t.Context()); got != filtered {
					t.Errorf("the firewall is trusted: %t", got)
				}
			})
		})
	}
}

// without is a snapshot of the same store without a lease.
func without(s *subnet.Snapshot) *subnet.Snapshot {
	return &subnet.Snapshot{Synced: s.Synced, Config: s.Config, Identity: s.Identity}
}

// Only leases may differ between two snapshots for the one to be followed from the other.
func TestAlike(t *testing.T) {
	base := subnet.Snapshot{Synced: true, Identity: "a", Config: subnet.Document{Text: "{}", Modified: 3}}
	for name, tc := range map[string]struct {
		change func(s *subnet.Snapshot)
		want   bool
	}{
		"the same":               {func(*subnet.Snapshot) {}, true},
		"later":                  {func(s *subnet.Snapshot) { s.Revision++ }, true},
		"a store that is silent": {func(s *subnet.Snapshot) { s.Synced = false }, false},
		"another store":          {func(s *subnet.Snapshot) { s.Identity = "b" }, false},
		"another config":         {func(s *subnet.Snapshot) { s.Config.Modified++ }, false},
		"a key that is no lease": {func(s *subnet.Snapshot) { s.Bad = []subnet.BadKey{{Key: "x"}} }, false},
	} {
		other := base
		tc.change(&other)
		for _, pair := range [][2]*subnet.Snapshot{{&base, &other}, {&other, &base}} {
			if got := alike(pair[0], pair[1]); got != tc.want {
				t.Errorf("%s: %t", name, got)
			}
		}
	}
}

// A round that left the firewall to the next is none for the change that the next is for.
func TestPostponedRoundIsNone(t *testing.T) {
	f := followState{due: time.Hour, postponed: true}
	f.rounded(time.Minute, 2*time.Minute)
	if f.due != time.Hour || f.paid != 0 || f.postponed {
		t.Errorf("due %s, paid until %s, postponed %t", f.due, f.paid, f.postponed)
	}
	f.rounded(time.Hour, time.Hour+time.Second)
	if f.due != 0 || f.paid != time.Hour+roundLatest || f.next != time.Hour+2*time.Second {
		t.Errorf("due %s, paid until %s, next %s", f.due, f.paid, f.next)
	}
}

// Of who published an address nothing is kept.
func TestCountsEnd(t *testing.T) {
	f := followState{public: map[netip.Addr]int{}}
	l := &subnet.Lease{Attrs: subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{netip.MustParseAddr("198.18.0.1")}}}
	f.count(l, 1)
	if len(f.public) != 1 {
		t.Errorf("counted %v", f.public)
	}
	f.count(l, -1)
	if len(f.public) != 0 {
		t.Errorf("counted %v", f.public)
	}
}
